"""A safetensors checkpoint edited file by file: the model is never built, memory holds about one file.

What to edit is proved on a small random model of the same config with the same layers and experts and narrow matrices: it
is edited as in weights.py, saved before and after, and every stored tensor that changed says how. Its names must be
those of the checkpoint. Each tensor's values are then edited as the in-memory edit would, bit for bit.

A file that is done is kept, so a killed edit goes on where it was; the directory takes its name when all is done.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhumbline.editing import plan_ablation, untied
from rhumbline.errors import EditError, ModelError, OutputError
from rhumbline.importing import Imported, check_origin
from rhumbline.projecting import Basis, Plan, carry_out, inner_vectors, orthonormal, project
from rhumbline.proving import prove
from rhumbline.records import canonical, read_json, write_bytes, write_json
from rhumbline.saving import RECORD, EditOptions, check_target, copy_companions
from rhumbline.weights import Gap, measure_gap, probe_rows, reference

NARROW = 8
"""Width of an attention head of the small model."""
LARGEST_PROXY = 300_000_000
_WIDTHS = {
    "intermediate_size": 40, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "ffn_dim": 40,
    "n_inner": 40, "ffn_hidden_size": 40, "intermediate_size_mlp": 40, "shared_intermediate_size": 24, "head_dim": NARROW,
    "vocab_size": 96, "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "word_embed_proj_dim": None,
    "sliding_window": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": NARROW, "qk_nope_head_dim": NARROW,
    "v_head_dim": NARROW, "query_pre_attn_scalar": NARROW, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Entries of a config that only set a width, and what the small model has instead (None: the hidden size)."""
_HIDDEN = ("hidden_size", "n_embd", "d_model")


class Rule(NamedTuple):
    """How one stored tensor is edited."""

    axis: int
    norm: str
    """The norm whose gain shapes the edit; empty for the plain projection."""


@dataclass(frozen=True)
class Recipe:
    """What the small model showed: which stored tensors are edited, and which one is a copy of the embedding."""

    rules: Mapping[str, Rule]
    names: frozenset[str]
    """Every stored tensor of the edited small model."""
    untied: tuple[str, str] | None
    """(head, embedding): the head is stored as a copy of the unedited embedding."""
    plan: Plan
    gap: Gap
    oblique: bool


# -- the small model --------------------------------------------------------------------------------------------------


def narrow_config(config: Any) -> Any:
    """The same architecture with narrow matrices: depth, heads, experts, layer types, biases and ties as they are."""
    values = config.to_dict()
    for part in [values, *(v for k, v in values.items() if k == "text_config" and isinstance(v, dict))]:
        heads = part.get("num_attention_heads") or part.get("n_head") or 4
        hidden = max(32, heads * NARROW)
        changes = {k: (hidden if v is None else v) for k, v in _WIDTHS.items() if isinstance(part.get(k), int)}
        changes |= {k: hidden for k in _HIDDEN if isinstance(part.get(k), int)}
        part |= changes
        if isinstance(part.get("initializer_range"), float):
            part["initializer_range"] = 0.1
        part.pop("quantization_config", None)
    return type(config).from_dict(values)


def _small_model(source: str, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal = type(config) in AutoModelForCausalLM._model_mapping
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    try:
        small = narrow_config(config)
        with torch.device("meta"):
            size = sum(p.numel() for p in loader.from_config(small).parameters())
        if size > LARGEST_PROXY:
            raise ValueError(f"it would still have {size / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = loader.from_config(small, dtype=torch.float32).eval()
    except Exception as error:
        raise EditError(
            f"{source}: no small model of its config can be built ({error}), so the edit of its files cannot be proved. "
            "Edit it in memory, without --sharded."
        ) from error
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains of 1 and biases of 0 would hide that an edit changes them.
            if parameter.ndim == 1 or not parameter.any():
                parameter += 0.5 * torch.rand_like(parameter) - 0.25
    return model


def _stored(model: Any, folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def recipe(source: str, config: Any, rank: int) -> Recipe:
    """Edit a small model of the config, and read from its stored tensors what happens to which of them."""
    model = _small_model(source, config)
    chat_model = prove(model, None, source)
    basis = orthonormal(torch.randn(rank, chat_model.d_model, generator=torch.Generator().manual_seed(1)))
    with tempfile.TemporaryDirectory() as scratch:
        known = reference(chat_model, basis)
        was_tied = untied(model)
        before = _stored(model, Path(scratch) / "before")
        rows = probe_rows(known.sequences, chat_model.device)
        plan, oblique = plan_ablation(chat_model, basis, rows), False
        if plan.outcome == "approximate":
            try:
                plan, oblique = plan_ablation(chat_model, basis, rows, oblique=True), True
            except EditError:  # a LayerNorm's output is centred; the other edit stands
                oblique = False
        kept = {e.name: model.get_parameter(e.name).detach().clone() for e in plan.edits}
        carry_out(model, plan)
        same = [name for name, old in kept.items() if torch.equal(old, model.get_parameter(name))]
        if same:
            raise EditError(f"{source}: on a small model the edit leaves {same[0]} as it is; edit in memory.")
        gap, _ = measure_gap(chat_model, basis, known)
        after = _stored(model, Path(scratch) / "after")
    if gap.leak > 1e-4 or (plan.outcome == "exact" and gap.logits > 1e-4 * max(gap.size, 1.0)):
        raise EditError(
            f"{source}: the edit of a small model of its config does not agree with the hooks; edit in memory."
        )
    rules = {
        name: _rule(name, old, after[name], plan) for name, old in before.items() if not torch.equal(old, after[name])
    }
    return Recipe(rules, frozenset(after), _head(before, model) if was_tied else None, plan, gap, oblique)


def _rule(name: str, old: Tensor, new: Tensor, plan: Plan) -> Rule:
    """The edit that makes the stored tensor what it became, whatever it is called in the model."""
    ways = {(e.norm, e.read.numpy().tobytes()): e for e in plan.edits}
    d_model = plan.edits[0].read.shape[1]
    for (norm, _), edit in ways.items():
        for axis in (a for a, n in enumerate(old.shape) if n == d_model):
            if torch.allclose(project(old, axis, edit.read, edit.write), new, atol=1e-6, rtol=1e-5):
                return Rule(axis, norm)
    raise EditError(f"the stored tensor {name} changed in a way that is no projection of it; edit in memory.")


def _head(before: Mapping[str, Tensor], model: Any) -> tuple[str, str]:
    embedding = model.get_input_embeddings().weight
    head = next(n for n, p in model.named_parameters() if p is model.get_output_embeddings().weight)
    tokens = next(n for n, p in model.named_parameters() if p is embedding)
    if not {head, tokens} <= before.keys():
        raise EditError("the tied head is stored under another name than it has in the model; edit in memory.")
    return head, tokens


# -- the checkpoint ---------------------------------------------------------------------------------------------------


class Shards(NamedTuple):
    """The files of a checkpoint and what each of them holds."""

    folder: Path
    tensors: dict[str, list[str]]
    """Per file, in the order of the index: the names of its tensors."""


def shards_of(source: str) -> Shards:
    """The safetensors files of a local checkpoint; ModelError where one is missing or torn."""
    from safetensors import SafetensorError, safe_open

    folder = Path(source).expanduser()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = list(dict.fromkeys(read_json(index)["weight_map"].values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ModelError(f"{source}: --sharded needs a local directory with safetensors files, and there are none.")
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise ModelError(f"{source}: {len(missing)} of {len(files)} files are missing ({', '.join(missing[:3])}).")
    tensors = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as opened:
                tensors[file] = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{source}: {file} cannot be read ({error}). Is the download complete?") from error
    return Shards(folder, tensors)


def _check_names(source: str, shards: Shards, made: Recipe) -> list[str]:
    """Stored tensors that the architecture does not have; EditError where one that it has is missing."""
    present = {name for names in shards.tensors.values() for name in names}
    head = {made.untied[0]} if made.untied else set()
    absent = sorted(made.names - present - head)
    if absent:
        raise EditError(
            f"{source} does not name its tensors as this architecture stores them ({len(absent)} are missing, first "
            f"{absent[0]}), so they cannot be edited file by file. Edit it in memory, without --sharded."
        )
    return sorted(present - made.names)


def _tensor(shards: Shards, name: str) -> Tensor:
    from safetensors import safe_open

    file = next(f for f, names in shards.tensors.items() if name in names)
    with safe_open(shards.folder / file, framework="pt") as opened:
        return opened.get_tensor(name)


def _vectors(config: Any, shards: Shards, norm: str, basis: Basis, made: Recipe) -> tuple[Basis, Basis]:
    """(read, write) of the tensors behind a norm, from the norm's own weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).get_submodule(norm)
    module.to_empty(device="cpu")
    state = {name: _tensor(shards, f"{norm}.{name}").float() for name in module.state_dict()}
    module.load_state_dict(state)
    z = torch.randn(64, basis.shape[1], generator=torch.Generator().manual_seed(2))
    found = inner_vectors(module, z, basis, oblique=made.oblique)
    if found is None:
        raise EditError(f"{norm} does not behave as the small model's; edit in memory.")
    return found[0], found[1]


# -- the edit ---------------------------------------------------------------------------------------------------------


def edit_sharded(
    source: str,
    found: Imported,
    out: str | Path,
    options: EditOptions = EditOptions(),  # noqa: B008
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Orthogonalise a checkpoint file by file; returns the record. The same command goes on after an interruption."""
    from transformers import AutoConfig

    target = Path(out)
    check_target(target)
    if options.coefficient is not None or options.dtype != "auto" or options.dequantize:
        raise EditError(
            "--sharded orthogonalises at the checkpoint's dtype; --add, --dtype and --dequantize need memory."
        )
    shards = shards_of(source)
    config = AutoConfig.from_pretrained(source)
    if getattr(config, "quantization_config", None) is not None:
        raise EditError(f"{source} is quantised; edit the original checkpoint and quantise the result.")
    if found.origin.get("fingerprint") and not options.force:
        # Its fingerprint is over the loaded model, which is not built here.
        if Path(str(found.origin.get("model"))).expanduser().resolve() != shards.folder.resolve():
            check_origin(found, "unknown", None)
    basis = orthonormal(found.vectors)
    width = config.get_text_config().hidden_size
    if basis.shape[1] != width:
        raise EditError(f"the direction has {basis.shape[1]} components, but {source} has a stream of {width}.")
    progress("proving the edit on a small model of the same config")
    made = recipe(source, config, len(basis))
    if made.plan.outcome == "approximate" and not options.force:
        raise EditError(
            f"{source}: the edit is only approximate ({made.plan.reasons[0]}), and its gap on this model cannot be measured "
            "without building it. Edit it in memory, or give --force to save it unmeasured."
        )
    extra = _check_names(source, shards, made)
    vectors = {"": (basis, basis)}
    for norm in sorted({rule.norm for rule in made.rules.values()} - {""}):
        vectors[norm] = _vectors(config, shards, norm, basis, made)
    work = target.with_name(f".{target.name}.sharded")
    try:
        leaks = _edit_files(shards, made, vectors, work, _key(shards, found), progress)
        _finish(shards, made, work)
        record = _record(source, found, made, leaks, extra)
        write_json(work / RECORD, record)
        write_bytes(work / "README.md", sharded_card(record).encode())
        (work / "state.json").unlink()
        if target.exists():
            target.rmdir()
        work.rename(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. The files that are done wait in {work}: free the disk "
            "and run the same command again, or remove them."
        ) from error
    return record


def _key(shards: Shards, found: Imported) -> str:
    """What the files of an unfinished edit depend on."""
    digest = hashlib.sha256(found.vectors.numpy().tobytes())
    for file in shards.tensors:
        stat = (shards.folder / file).stat()
        digest.update(canonical([file, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def _edit_files(
    shards: Shards,
    made: Recipe,
    vectors: Mapping[str, tuple[Basis, Basis]],
    work: Path,
    key: str,
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Every file edited and written, those that are there already left out; per tensor, what is left along the subspace."""
    state: dict[str, Any] = {"key": key, "done": {}}
    if (work / "state.json").is_file() and read_json(work / "state.json").get("key") == key:
        state = read_json(work / "state.json")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    for number, (file, names) in enumerate(shards.tensors.items(), 1):
        if file in state["done"]:
            continue
        progress(f"file {number} of {len(shards.tensors)}: {file}")
        state["done"][file] = _edit_file(shards.folder / file, names, work / file, made, vectors)
        write_json(work / "state.json", state)
    return {name: leak for found in state["done"].values() for name, leak in found.items()}


def _edit_file(
    source: Path, names: list[str], target: Path, made: Recipe, vectors: Mapping[str, tuple[Basis, Basis]]
) -> dict[str, float]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    leaks, tensors = {}, {}
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata() or {"format": "pt"}
        for name in names:
            tensor = opened.get_tensor(name)
            if made.untied is not None and name == made.untied[1]:
                tensors[made.untied[0]] = tensor.clone()
            rule = made.rules.get(name)
            if rule is not None:
                if not torch.isfinite(tensor).all():
                    raise ModelError(f"{source}: the weights hold NaN or infinity (first in {name}).")
                read, write = vectors[rule.norm]
                tensor = project(tensor, rule.axis, read, write)
                leaks[name] = _left(tensor, rule.axis, read)
            tensors[name] = tensor
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(None, str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    allowed = 1e-4 if tensors[names[0]].dtype == torch.float32 else 4 * torch.finfo(tensors[names[0]].dtype).eps
    worst = max(leaks, key=leaks.__getitem__, default=None)
    if worst is not None and leaks[worst] > allowed:
        raise EditError(
            f"{worst} still has a component along the direction ({leaks[worst]:.1e}, allowed {allowed:.1e})."
        )
    return leaks


def _left(tensor: Tensor, axis: int, read: Basis) -> float:
    """Norm of what is left along the subspace, as a share of the tensor's."""
    rows = read.float() / read.float().norm(dim=1, keepdim=True)
    along = size = 0.0
    for part in tensor.movedim(axis, 0).flatten(1).split(8192, dim=1) if tensor.ndim > 1 else [tensor[:, None]]:
        along += float((rows @ part.float()).square().sum())
        size += float(part.float().square().sum())
    return (along / max(size, 1e-30)) ** 0.5


def _finish(shards: Shards, made: Recipe, work: Path) -> None:
    """Index, config and whatever lies beside the weights."""
    index = shards.folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        if made.untied is not None:
            head, embedding = made.untied
            content["weight_map"][head] = content["weight_map"][embedding]
        content.setdefault("metadata", {})["total_size"] = sum(
            _bytes(work / file) for file in dict.fromkeys(content["weight_map"].values())
        )
        (work / index.name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    if made.untied is not None:
        values = read_json(shards.folder / "config.json")
        for part in (values, values.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        write_json(work / "config.json", values)
    copy_companions(shards.folder, work)


def _bytes(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return sum(opened.get_tensor(n).nbytes for n in opened.keys())  # noqa: SIM118


def _record(source: str, found: Imported, made: Recipe, leaks: Mapping[str, float], extra: list[str]) -> dict[str, Any]:
    from dataclasses import asdict
    from importlib.metadata import version

    return {
        "schema": 1,
        "edit": "weight orthogonalisation",
        "how": "sharded",
        "outcome": made.plan.outcome,
        "reasons": list(made.plan.reasons),
        "base_model": source,
        "direction": {
            "source": found.source,
            "rank": len(found.vectors),
            "layer": found.layer,
            "position": found.position,
            "origin": dict(found.origin),
        },
        "changed": sorted(made.rules),
        "untied": made.untied is not None,
        "left_alone": extra,
        "proof": {"small_model": asdict(made.gap), "leak": max(leaks.values()), "leaks": dict(leaks)},
        "versions": {n: version(n) for n in ("rhumbline", "torch", "transformers")},
    }


def sharded_card(record: Mapping[str, Any]) -> str:
    """The model card of a checkpoint that was edited file by file: what was proved on it, and what on a small model."""
    made, proof = record["direction"], record["proof"]
    gap = proof["small_model"]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [rhumbline, edited]",
        "---",
        f"# {Path(record['base_model']).name}, edited",
        "",
        f"In this copy of `{record['base_model']}` every stored tensor that writes into the residual stream was "
        f"orthogonalised against {'a direction' if made['rank'] == 1 else 'a subspace of rank ' + str(made['rank'])}, file "
        f"by file, by rhumbline {record['versions']['rhumbline']}.",
        "",
        "| | |",
        "|---|---|",
        f"| outcome | **{record['outcome']}** |",
        f"| direction | `{made['source']}`, layer {made['layer']}, position {made['position']} |",
        f"| verdict of its run | {made['origin'].get('verdict') or 'none'} |",
        f"| tensors changed | {len(record['changed'])}{', embeddings untied' if record['untied'] else ''} |",
        f"| largest share of a tensor along it, as saved | {proof['leak']:.1e} |",
        f"| on a small random model of the same config | hooked and edited differ by KL {gap['kl']:.2g} nats "
        f"(the ablation moves it by {gap['effect']:.2g}) |",
        "",
        "The model itself was not built: that these tensors are all that writes was proved on the small model. Behaviour and "
        f"side effects of this checkpoint were not measured. Every number is in `{RECORD}`.",
        "",
    ]
    return "\n".join(lines)
