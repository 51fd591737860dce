"""A safetensors checkpoint edited file by file: the model is never built, memory holds one tensor.

What to edit comes from a small model of the same config (recipes.py), whose names must be those of the checkpoint. Each
tensor's values are then edited as the edit in memory would, bit for bit.

A file that is done is kept, so a killed edit goes on where it was; the directory takes its name when all is done.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhumbline.edits.projection import Basis, inner_vectors, matrices, orthonormal, project
from rhumbline.edits.proved_edit import refuse_large
from rhumbline.edits.read_direction import Imported, check_origin
from rhumbline.edits.save import RECORD, UNMEASURED, EditOptions, check_target, copy_companions
from rhumbline.edits.shard_recipes import Recipe, recipe
from rhumbline.edits.tensor_file import TensorFile, write_edited
from rhumbline.errors import EditError, ModelError, OutputError
from rhumbline.models.loading import read_config
from rhumbline.models.sources import INDEX, Source, checkpoint, weight_files
from rhumbline.records.files import canonical, read_json, write_bytes, write_json

STATE = "state.json"
"""What is finished of an edit, and what it depends on."""

# -- the checkpoint ---------------------------------------------------------------------------------------------------


class Shards(NamedTuple):
    """The files of a checkpoint and what each of them holds."""

    folder: Path
    tensors: dict[str, list[str]]
    """Per file, in the order of the index: the names of its tensors."""


def shards_of(source: str, where: str | None = None) -> Shards:
    """The safetensors files of a local checkpoint (at `where`); ModelError where one is missing, torn or elsewhere."""
    from safetensors import SafetensorError, safe_open

    folder = Path(where or source).expanduser()
    files = weight_files(folder)
    if not files:
        raise ModelError(
            f"{source}: --sharded needs a local directory with safetensors files, and there are none. Convert the "
            "weights to safetensors, or edit without --sharded."
        )
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            f"{source}: {len(missing)} of {len(files)} files are missing ({', '.join(missing[:3])}). Is the download "
            "complete?"
        )
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
    target = Path(out)
    check_target(target)
    if options.coefficient is not None or options.dtype != "auto" or options.dequantize:
        raise EditError(
            "--sharded orthogonalises at the checkpoint's dtype; --add, --dtype and --dequantize need memory. Leave "
            "them out, or edit without --sharded."
        )
    with checkpoint(source) as where:
        shards = shards_of(source, where)
        config, _ = read_config(Source(source, trust_remote_code=options.trust_remote_code), where)
        if getattr(config, "quantization_config", None) is not None:
            raise EditError(f"{source} is quantised; edit the original checkpoint and quantise the result.")
        if not options.force and not _is_origin(found, source, shards.folder):
            check_origin(found, "unknown", None)
        basis = orthonormal(found.vectors)
        width = config.get_text_config().hidden_size
        if basis.shape[1] != width:
            raise EditError(
                f"the direction has {basis.shape[1]} components, but {source} has a stream of {width}: it was made "
                "for another model. Nothing was changed."
            )
        progress("proving the edit on a small model of the same config")
        made = recipe(source, config, len(basis))
        if made.plan.outcome == "approximate":
            # Nothing is written along r all the same; how far the scale of the norms moves is measured on the small
            # model only, and the record and the card say so.
            refuse_large(f"a small model of the config of {source}", made.gap)
        extra = _check_names(source, shards, made)
        vectors = {"": (basis, basis)}
        for norm in sorted({rule.norm for rule in made.rules.values()} - {""}):
            vectors[norm] = _vectors(config, shards, norm, basis, made)
        work = target.with_name(f".{target.name}.sharded")
        with _resumable(target, work):
            leaks = _edit_files(shards, made, vectors, work, _key(shards, found), progress)
            _finish(shards, made, work)
            record = _record(source, found, made, leaks, extra)
            write_json(work / RECORD, record)
            write_bytes(work / "README.md", sharded_card(record).encode())
            (work / STATE).unlink()
            _check_complete(shards, made, work)
    return record


def _is_origin(found: Imported, source: str, folder: Path) -> bool:
    """Whether the direction was made for this checkpoint, by name or by directory.

    A fingerprint is over the loaded model, which is not built here.
    """
    model = str(found.origin.get("model"))
    return model == source or Path(model).expanduser().resolve() == folder.resolve()


@contextmanager
def _resumable(target: Path, work: Path) -> Iterator[None]:
    """`work` takes the name of `target` at the end; after an EditError or ModelError it is removed.

    After a failure of the disk it stays, and the same command resumes it.
    """
    try:
        yield
        if target.exists():
            target.rmdir()
        work.rename(target)
    except (EditError, ModelError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. The finished files are in {work}: free the disk "
            "and run the same command again to resume, or remove them."
        ) from error


def _check_complete(shards: Shards, made: Recipe, work: Path) -> None:
    """EditError unless the new checkpoint has every tensor of the old one, and the head where it was untied."""
    missing = [file for file in shards.tensors if not (work / file).is_file()]
    written = {name for file in shards.tensors if file not in missing for name in TensorFile.read(work / file).entries}
    expected = {name for names in shards.tensors.values() for name in names} | set(
        made.untied[:1] if made.untied else ()
    )
    if missing or written != expected:
        raise EditError(
            f"the new checkpoint is not complete: {len(missing)} files and {len(expected - written)} tensors are "
            "missing. Nothing was saved; run the command again."
        )


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
    """Every file edited and written, those that are there already left out; per tensor, what is left along the
    subspace."""
    state: dict[str, Any] = {"key": key, "done": {}}
    if (work / STATE).is_file() and read_json(work / STATE).get("key") == key:
        state = read_json(work / STATE)
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    for number, file in enumerate(shards.tensors, 1):
        if file in state["done"] and (work / file).is_file():
            continue
        progress(f"file {number} of {len(shards.tensors)}: {file}")
        state["done"][file] = _edit_file(shards.folder / file, work / file, made, vectors)
        write_json(work / STATE, state)
    return {name: leak for found in state["done"].values() for name, leak in found.items()}


def _edit_file(
    source: Path, target: Path, made: Recipe, vectors: Mapping[str, tuple[Basis, Basis]]
) -> dict[str, float]:
    """One file edited and written, one tensor in memory at a time."""
    leaks: dict[str, float] = {}

    def edit(name: str, tensor: Tensor) -> Tensor:
        rule = made.rules[name]
        if not all(torch.isfinite(part).all() for part in matrices(tensor, rule.axis)):
            raise ModelError(f"{source}: the weights hold NaN or infinity (first in {name}).")
        read, write = vectors[rule.norm]
        tensor = project(tensor, rule.axis, read, write, in_place=True)
        leaks[name] = _left(tensor, rule.axis, read)
        allowed = 1e-4 if tensor.dtype == torch.float32 else 4 * torch.finfo(tensor.dtype).eps
        if leaks[name] > allowed:
            raise EditError(
                f"{name} still has a component along the direction ({leaks[name]:.1e}, allowed {allowed:.1e})."
            )
        return tensor

    opened = TensorFile.read(source)
    opened = opened._replace(metadata=opened.metadata or {"format": "pt"})
    edits = {name: partial(edit, name) for name in opened.entries if name in made.rules}
    copies = dict([made.untied]) if made.untied is not None and made.untied[1] in opened.entries else {}
    write_edited(opened, target, edits, copies)
    return leaks


def _left(tensor: Tensor, axis: int, read: Basis) -> float:
    """Norm of what is left along the subspace, as a share of the tensor's."""
    rows = read.float() / read.float().norm(dim=1, keepdim=True)
    along = size = 0.0
    for part in matrices(tensor, axis):
        along += float((rows @ part.float()).square().sum())
        size += float(part.float().square().sum())
    return (along / max(size, 1e-30)) ** 0.5


def _finish(shards: Shards, made: Recipe, work: Path) -> None:
    """Index, config and whatever lies beside the weights."""
    index = shards.folder / INDEX
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
    return sum(entry.size for entry in TensorFile.read(path).entries.values())


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
            "position": None if found.position is None else int(found.position),
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
        "orthogonalised against "
        f"{'a direction' if made['rank'] == 1 else 'a subspace of rank ' + str(made['rank'])}, file "
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
        "The model itself was not built: that these tensors are all that writes was proved on the small model. "
        f"Behaviour and side effects of this checkpoint were not measured. Every number is in `{RECORD}`.",
        "",
        *_approximate(record),
    ]
    return "\n".join(lines)


def _approximate(record: Mapping[str, Any]) -> list[str]:
    """What an approximate outcome means where the model was not built."""
    if record["outcome"] == "exact":
        return []
    return [
        "Why it is not exact:",
        "",
        *[f"- {reason}" for reason in record["reasons"][:6]],
        f"- {UNMEASURED}",
        "",
    ]
