"""A checkpoint and a direction in, a proved and edited checkpoint out, or nothing at all.

The directory appears under its name only once what lies on disk was loaded again and compared with what was proved.
Knows directories and the model card. How an edit is computed and proved is in weights.py.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rhumbline.edits.projection import orthonormal
from rhumbline.edits.proved_edit import (
    PROMPTS,
    Change,
    Edited,
    Gap,
    cast_back,
    check_width,
    dtypes_of,
    edit_in_place,
    measure_gap,
    refuse_large,
    refuse_quantised,
)
from rhumbline.edits.read_direction import Imported, check_coefficient, check_origin
from rhumbline.errors import EditError, OutputError
from rhumbline.inference.interventions import Add
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load_source, read_config
from rhumbline.models.proving import prove
from rhumbline.models.sources import Source, checkpoint
from rhumbline.models.templates import own_template, template_sha256
from rhumbline.records.files import write_bytes, write_json

RECORD = "rhumbline-edit.json"
UNMEASURED = (
    "how far this checkpoint is from its hooked self was not measured: the gap is the small model's, whose gains are "
    "random. Edit in memory, without --sharded, to have it measured."
)
"""What an approximate outcome means where the model was not built."""
_SKIPPED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx"}


@dataclass(frozen=True)
class EditOptions:
    """What may be asked of an edit besides its direction."""

    coefficient: float | None = None
    """None: orthogonalise; a number: the additive edit, in units of the direction's own norm."""
    dtype: str = "auto"
    """dtype of the saved weights: auto is the checkpoint's."""
    device: str | None = None
    dequantize: bool = False
    force: bool = False
    """Use a direction that says it was made for another model or template."""
    trust_remote_code: bool = False
    prompts: Sequence[str] = PROMPTS

    def __post_init__(self):
        check_coefficient(self.coefficient, "--add")


def edit_checkpoint(
    source: str, found: Imported, out: str | Path, options: EditOptions = EditOptions()
) -> dict[str, Any]:
    """Edit a checkpoint, prove the edit and save it under `out`; returns the record that lies beside the weights.

    EditError (exit code 3) where it cannot be proved; nothing is left under `out` then.
    """
    target = Path(out)
    check_target(target)
    with checkpoint(source) as where:
        chat_model = _loaded(source, where, found, options)
        c = options.coefficient
        change: Change = orthonormal(found.vectors) if c is None else Add(found.direction(), c)
        dtypes = dtypes_of(chat_model.model)
        chat_model.model.float()
        edited = edit_in_place(
            prove(chat_model.model, chat_model.tokenizer, source, coarse=True), change, options.prompts
        )
        cast_back(edited.chat_model.model, dtypes)
        with appearing(target) as folder:
            saved = _written(edited, change, folder, where, options)
            record = _record(edited, saved, change, found, source, chat_model)
            write_json(folder / RECORD, record)
            write_bytes(folder / "README.md", card(record).encode())
    return record


def _loaded(source: str, where: str, found: Imported, options: EditOptions) -> ChatModel:
    """The model with plain matrices, checked against the direction; EditError where its weights cannot be edited."""
    load_options = Source(source, options.dtype, options.device, True, options.trust_remote_code)
    chat_model = load_source(load_options)
    unpacked = _unpacked(chat_model, load_options, where)
    if options.dequantize and (unpacked or getattr(chat_model.model, "is_quantized", False)):
        chat_model = dequantized(chat_model)
    elif unpacked:
        raise EditError(
            f"{source} is stored quantised ({unpacked}), and transformers made plain matrices of it here. An edit "
            f"saves those, at {chat_model.dtype}: give --dequantize if that is wanted, or edit the original checkpoint "
            "and quantise the result. Runs work as they are."
        )
    refuse_quantised(chat_model.model)
    check_width(chat_model, found.vectors)
    if not options.force:
        template = own_template(chat_model.tokenizer)
        check_origin(
            found,
            fingerprints(chat_model, found, load_options),
            None if template is None else template_sha256(template),
        )
    return chat_model


def _unpacked(chat_model: ChatModel, source: Source, where: str) -> str | None:
    """How a checkpoint is stored that transformers dequantised while loading it (mxfp4 and fp8 on a CPU)."""
    if getattr(chat_model.model, "is_quantized", False):
        return None
    stored = getattr(read_config(source, where)[0], "quantization_config", None)
    return None if stored is None else str(dict(stored).get("quant_method", "an unknown method"))


def dequantized(chat_model: ChatModel) -> ChatModel:
    """The model with plain matrices in place of quantised ones, and no trace of a quantiser; EditError where it cannot
    undo itself."""
    try:
        quantised = getattr(chat_model.model, "is_quantized", False)
        model = chat_model.model.dequantize() if quantised else chat_model.model
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise EditError(
            f"{chat_model.name}: this quantisation cannot be undone by transformers ({type(error).__name__}). Edit the "
            "original checkpoint and quantise the result."
        ) from error
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    # A fresh model: transformers would save this one with the conversions of its quantiser.
    plain: Any = type(model)._from_config(model.config, dtype=model.get_input_embeddings().weight.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return prove(plain.to(chat_model.device), chat_model.tokenizer, chat_model.name, coarse=True)


def fingerprints(chat_model: ChatModel, found: Imported, source: Source) -> dict[str, str]:
    """Of the model as loaded and, where the direction was made at another dtype, of the model at that one."""
    if not found.origin.get("fingerprint"):
        return {}
    loaded = str(chat_model.dtype).removeprefix("torch.")
    prints = {loaded: fingerprint(chat_model)}
    other = found.origin.get("dtype")
    if other and other != loaded and prints[loaded] != found.origin["fingerprint"]:
        prints[other] = fingerprint(load_source(replace(source, dtype=other, device="cpu")))
    return prints


# -- the directory ----------------------------------------------------------------------------------------------------


def check_target(target: Path) -> None:
    """OutputError unless `target` can become a new directory: absent, or an empty directory."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not an empty directory; give another --out. Nothing was changed.")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its name only if all goes well, and otherwise is removed."""
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True)
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{target} cannot be written: {getattr(error, 'strerror', None) or error}. Nothing was left behind; "
            "free the "
            "disk or fix the permissions and run the same command again."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(edited: Edited, change: Change, folder: Path, source: str, options: EditOptions) -> "_Saved":
    """Write and load again. Where other weights are tied by the same entry of the config, it stays as it was."""
    _write(edited.chat_model, folder, source)
    try:
        return _reloaded(edited, change, folder, options)
    except EditError:
        if not edited.untied:
            raise
        # zamba2, say: its blocks share weights under tie_word_embeddings, which then has to stay on. transformers
        # keeps a head that is stored; whether it did is checked as before.
        config = edited.chat_model.model.config
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = True
        for path in folder.iterdir():
            path.unlink()
        _write(edited.chat_model, folder, source)
        return _reloaded(edited, change, folder, options)


def _write(chat_model: ChatModel, folder: Path, source: str) -> None:
    chat_model.model.save_pretrained(folder)
    if chat_model.tokenizer is not None:
        chat_model.tokenizer.save_pretrained(folder)
    copy_companions(Path(source).expanduser(), folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what lies beside the weights of a local checkpoint (processors, templates) and was not written anew."""
    if not source.is_dir():
        return
    for path in sorted(source.iterdir()):
        weights = path.suffix in _SKIPPED or path.name.endswith(".index.json")
        mine = path.name in {RECORD, "README.md", "contrast.jsonl"}
        if path.is_file() and not weights and not mine and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


class _Saved:
    """What was measured of the checkpoint as it lies on disk."""

    def __init__(self, gap: Gap, leaks: Mapping[str, float], bound: float, dtype: str) -> None:
        self.gap, self.leaks, self.bound, self.dtype = gap, leaks, bound, dtype


def _reloaded(edited: Edited, change: Change, folder: Path, options: EditOptions) -> _Saved:
    """Load what was written, compare it bit for bit with what was proved, and measure it in float32."""
    mine = edited.chat_model.model
    dtype = mine.get_input_embeddings().weight.dtype
    options_given = {"dtype": "auto", "trust_remote_code": options.trust_remote_code}
    try:
        again, info = type(mine).from_pretrained(folder, output_loading_info=True, **options_given)
    except (ValueError, RuntimeError, KeyError) as error:
        raise EditError(f"what was written cannot be loaded again ({error}); nothing was saved.") from error
    wrong = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    theirs = dict([*again.named_parameters(remove_duplicate=False), *again.named_buffers()])
    for name, parameter in (*mine.named_parameters(remove_duplicate=False), *mine.named_buffers()):
        other = theirs.get(name)
        if other is None or not torch.equal(parameter.cpu().float(), other.cpu().float()):
            wrong.append(name)
    if wrong:
        raise EditError(
            f"the checkpoint does not load as what was proved ({len(wrong)} parameters differ, first {wrong[0]}); "
            "nothing was saved."
        )
    again = again.float().to(edited.chat_model.device).eval()
    loaded = prove(again, edited.chat_model.tokenizer, edited.chat_model.name)
    gap, leaks = measure_gap(loaded, change, edited.reference)
    # Rounding a matrix to the checkpoint's dtype brings back a component of the order of that dtype's spacing.
    bound = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    if gap.leak > bound:
        raise EditError(
            f"rounded to {dtype}, the model still writes along the direction ({gap.leak:.1e}); save float32."
        )
    refuse_large(f"{edited.chat_model.name}, rounded to {dtype},", gap)
    return _Saved(gap, leaks, bound, str(dtype).removeprefix("torch."))


# -- what the reader is told ------------------------------------------------------------------------------------------


def _record(
    edited: Edited, saved: _Saved, change: Change, found: Imported, source: str, original: ChatModel
) -> dict[str, Any]:
    from importlib.metadata import version

    kind = "activation addition" if isinstance(change, Add) else "weight orthogonalisation"
    inferred = [e.name for e in edited.plan.edits if e.inferred] if edited.plan else []
    return {
        "schema": 1,
        "edit": kind,
        "outcome": edited.proof.outcome,
        "reasons": list(edited.proof.reasons),
        "base_model": source,
        "model_type": original.model.config.model_type,
        "direction": {
            "source": found.source,
            "rank": len(found.vectors),
            "layer": found.layer,
            "position": None if found.position is None else int(found.position),
            "norms": [float(n) for n in found.vectors.norm(dim=1)],
            **({"coefficient": change.coefficient} if isinstance(change, Add) else {}),
            "origin": dict(found.origin),
        },
        "changed": list(edited.changed),
        "decided_by_siblings": inferred,
        "untied": edited.untied,
        "proof": {
            "prompts": edited.proof.prompts,
            "tokens": edited.proof.tokens,
            "float32": asdict(edited.proof.gap),
            "saved": asdict(saved.gap) | {"dtype": saved.dtype, "leak_allowed": saved.bound},
            "leaks": dict(saved.leaks),
        },
        "versions": {n: version(n) for n in ("rhumbline", "torch", "transformers")},
    }


def card(record: Mapping[str, Any]) -> str:
    """The model card of an edited checkpoint: what was changed, from which run, with which verdict, and the gap."""
    made, proof = record["direction"], record["proof"]
    exact, saved = proof["float32"], proof["saved"]
    origin = made["origin"]
    base = record["base_model"]
    hub = base if base.count("/") == 1 and not base.startswith((".", "/", "~")) else None
    verdict = origin.get("verdict") or "none (the direction came from a file, without a run)"
    what = {
        "weight orthogonalisation": f"every parameter that writes into the residual stream was orthogonalised against "
        f"{'a direction' if made['rank'] == 1 else 'a subspace of rank ' + str(made['rank'])}",
        "activation addition": f"a constant, {made.get('coefficient')} times the direction, is added to the residual "
        f"stream before block {made['layer']}",
    }[record["edit"]]
    lines = [
        "---",
        *([f"base_model: {hub}"] if hub else []),
        "library_name: transformers",
        "tags: [rhumbline, edited]",
        "---",
        f"# {Path(base).name}, edited",
        "",
        f"In this copy of `{base}` {what}. It was made by rhumbline {record['versions']['rhumbline']} and loads in "
        "plain "
        "transformers.",
        "",
        "| | |",
        "|---|---|",
        f"| edit | {record['edit']} |",
        f"| outcome | **{record['outcome']}** |",
        f"| direction | `{made['source']}`, layer {made['layer']}, position {made['position']} |",
        f"| verdict of its run | {verdict} |",
        f"| parameters changed | {len(record['changed'])}{', embeddings untied first' if record['untied'] else ''} |",
        f"| proved on | {proof['prompts']} prompts, {proof['tokens']} tokens |",
        f"| effect: mean KL(unedited to hooked) | {exact['effect']:.3g} nats |",
        f"| gap in float32: mean KL(hooked to edited) | {exact['kl']:.2g} nats (max {exact['kl_max']:.2g}); "
        f"logits {exact['logits']:.2g} of {exact['size']:.3g} |",
        f"| gap as saved ({saved['dtype']}) | {saved['kl']:.2g} nats (max {saved['kl_max']:.2g}); "
        f"logits {saved['logits']:.2g} |",
        f"| largest share written along it, as saved | {saved['leak']:.1e} (allowed {saved['leak_allowed']:.1e}) |",
        "",
    ]
    if origin.get("sentence"):
        lines += ["What the run found: " + origin["sentence"], ""]
    if record["reasons"]:
        lines += ["Why it is not exact:", "", *[f"- {reason}" for reason in record["reasons"][:6]], ""]
    lines += [
        "Side effects on other abilities were not measured here, only the distance above. Changed parameters and every "
        f"number are in `{RECORD}`.",
        "",
    ]
    return "\n".join(lines)


def summary(record: Mapping[str, Any], out: Path) -> list[str]:
    """The outcome of an edit in a few lines, for a terminal."""
    proof = record["proof"]
    if record.get("how") == "sharded":
        small = proof["small_model"]
        return [
            f"{record['edit']}, file by file: {record['outcome']}, {len(record['changed'])} tensors"
            + (", embeddings untied" if record["untied"] else ""),
            f"largest share of a tensor along it: {proof['leak']:.1e}; on a small model of the same config hooked "
            "and edited "
            f"differ by KL {small['kl']:.2g} nats (the ablation moves it by {small['effect']:.2g})",
            *(f"not exact: {reason}" for reason in record["reasons"][:3]),
            *([UNMEASURED] if record["outcome"] != "exact" else []),
            f"model: {out}",
        ]
    gap, saved = proof["float32"], proof["saved"]
    lines = [
        f"{record['edit']}: {record['outcome']}, {len(record['changed'])} parameters"
        + (", embeddings untied" if record["untied"] else ""),
        f"hooked and edited agree: mean KL {gap['kl']:.2g} nats in float32, {saved['kl']:.2g} as saved "
        f"({saved['dtype']}); the intervention itself moves {gap['effect']:.3g}",
        f"largest share of a write along it: {gap['leak']:.1e} in float32, {saved['leak']:.1e} as saved",
    ]
    return [*lines, *(f"not exact: {reason}" for reason in record["reasons"][:3]), f"model: {out}"]
