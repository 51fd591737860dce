"""Edit a checkpoint in memory: a checkpoint and a direction in, a proved and edited checkpoint directory out.

The directory appears only after the saved checkpoint was loaded again and compared with the proved model; after an
error nothing is left. Independent of how an edit is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from rhumbline.edits.edit_card import card
from rhumbline.edits.new_directory import RECORD, appearing, check_target, copy_companions
from rhumbline.edits.projection import orthonormal
from rhumbline.edits.proved_edit import (
    PROMPTS,
    Change,
    Edited,
    cast_back,
    check_width,
    dtypes_of,
    edit_in_place,
    measure_gap,
    refuse_large,
    refuse_quantised,
)
from rhumbline.edits.read_direction import ImportedDirections, check_coefficient, check_origin
from rhumbline.errors import EditError
from rhumbline.inference.interventions import Add
from rhumbline.models.adapters import merge_adapter
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load_source
from rhumbline.models.proving import prove
from rhumbline.models.sources import Source, checkpoint
from rhumbline.models.templates import own_template, template_sha256
from rhumbline.records.codec import to_json
from rhumbline.records.edit_file import EditedDirection, EditProof, EditRecord, SavedGap
from rhumbline.records.files import write_bytes, write_json


@dataclass(frozen=True)
class EditOptions:
    """Options of an edit, besides its direction."""

    coefficient: float | None = None
    """None: orthogonalisation. A number: addition, in units of the norm of the direction."""
    dtype: str = "auto"
    """dtype of the saved weights; `auto` is that of the checkpoint."""
    device: str | None = None
    dequantize: bool = False
    """Edit a quantised model as plain matrices."""
    force: bool = False
    """Use a direction that was made for another model or template."""
    trust_remote_code: bool = False
    prompts: Sequence[str] = PROMPTS
    """Prompts of the proof."""

    def __post_init__(self):
        check_coefficient(self.coefficient, "--add")


def edit_checkpoint(
    source: str, imported: ImportedDirections, out: str | Path, options: EditOptions = EditOptions()
) -> EditRecord:
    """Edit a checkpoint, prove the edit and save it as `out`; returns the record that is saved beside the weights.

    Raises EditError (exit code 3) if the edit cannot be proved.
    """
    target = Path(out)
    check_target(target)
    with checkpoint(source) as where:
        chat_model = _loaded(source, imported, options)
        c = options.coefficient
        change: Change = orthonormal(imported.vectors) if c is None else Add(imported.direction(), c)
        # Merged in float32, an adapter is rounded once, with the edit. Its layers have the names of those they replace.
        dtypes = {name.replace(".base_layer", ""): dtype for name, dtype in dtypes_of(chat_model.model).items()}
        merge_adapter(chat_model.model.float())
        float32 = prove(chat_model.model, chat_model.tokenizer, source, coarse=True)
        edited = edit_in_place(float32, change, options.prompts)
        cast_back(edited.chat_model.model, dtypes)
        with appearing(target) as folder:
            saved = _written(edited, change, folder, where, options)
            record = _record(edited, saved, change, imported, source)
            write_json(folder / RECORD, to_json(record))
            write_bytes(folder / "README.md", card(record).encode())
    return record


# -- the model --------------------------------------------------------------------------------------------------------


def _loaded(source: str, imported: ImportedDirections, options: EditOptions) -> ChatModel:
    """The model with plain matrices, checked against the direction; EditError if its weights cannot be edited."""
    how = Source(source, options.dtype, options.device, True, options.trust_remote_code)
    chat_model = load_source(how)
    stored = chat_model.dequantised
    if options.dequantize and (stored or getattr(chat_model.model, "is_quantized", False)):
        chat_model = dequantized(chat_model)
    elif stored:
        raise EditError(
            f"{source} is stored quantised ({stored}), and transformers dequantised it while loading. An edit saves "
            f"plain matrices in {chat_model.dtype}. Pass --dequantize to do so, or edit the original checkpoint and "
            "quantise the result. Runs work with quantised weights."
        )
    refuse_quantised(chat_model.model)
    check_width(chat_model, imported.vectors)
    if not options.force:
        template = own_template(chat_model.tokenizer)
        prints = fingerprints(chat_model, imported, how)
        check_origin(imported, prints, None if template is None else template_sha256(template))
    return chat_model


def dequantized(chat_model: ChatModel) -> ChatModel:
    """The model with plain instead of quantised matrices; EditError if transformers cannot dequantise it."""
    try:
        quantised = getattr(chat_model.model, "is_quantized", False)
        model = chat_model.model.dequantize() if quantised else chat_model.model
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise EditError(
            f"{chat_model.name}: transformers cannot undo this quantisation ({type(error).__name__}). Edit the "
            "original checkpoint and quantise the result."
        ) from error
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    # A new model: transformers would save the old one with the conversions of its quantiser.
    plain: Any = type(model)._from_config(model.config, dtype=model.get_input_embeddings().weight.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return prove(plain.to(chat_model.device), chat_model.tokenizer, chat_model.name, coarse=True)


def fingerprints(chat_model: ChatModel, imported: ImportedDirections, source: Source) -> dict[str, str]:
    """Fingerprints of a model by dtype: as loaded and, if they differ, in the dtype that the direction was made in."""
    origin = imported.origin
    if not origin.fingerprint:
        return {}
    loaded = str(chat_model.dtype).removeprefix("torch.")
    prints = {loaded: fingerprint(chat_model)}
    if origin.dtype and origin.dtype != loaded and prints[loaded] != origin.fingerprint:
        prints[origin.dtype] = fingerprint(load_source(replace(source, dtype=origin.dtype, device="cpu")))
    return prints


# -- the checkpoint ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Saved:
    """The measurements of the checkpoint on disk."""

    gap: SavedGap
    leaks: Mapping[str, float]


def _written(edited: Edited, change: Change, folder: Path, source: str, options: EditOptions) -> _Saved:
    """Write the checkpoint and measure it; if its config ties other weights too, they stay tied."""
    _write(edited.chat_model, folder, source)
    try:
        return _reloaded(edited, change, folder, options)
    except EditError:
        if not edited.untied:
            raise
        # The blocks of zamba2, for example, share weights under tie_word_embeddings, which then has to stay enabled.
        # transformers keeps a head that is stored; whether it did is checked as before.
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


def _reloaded(edited: Edited, change: Change, folder: Path, options: EditOptions) -> _Saved:
    """Load the checkpoint, compare it bit for bit with the proved model, and measure it in float32."""
    proved = edited.chat_model.model
    dtype = proved.get_input_embeddings().weight.dtype
    try:
        again, info = type(proved).from_pretrained(
            folder, output_loading_info=True, dtype="auto", trust_remote_code=options.trust_remote_code
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise EditError(
            f"the written checkpoint cannot be loaded again ({error}). Nothing was saved; use rhumbline.applied."
        ) from error
    if wrong := _differing(proved, again, info):
        raise EditError(
            f"the written checkpoint differs from the proved model ({len(wrong)} parameters, first {wrong[0]}). "
            "Nothing was saved; use rhumbline.applied instead."
        )
    again = again.float().to(edited.chat_model.device).eval()
    loaded = prove(again, edited.chat_model.tokenizer, edited.chat_model.name)
    gap, leaks = measure_gap(loaded, change, edited.reference)
    # Rounding a matrix to a dtype adds a component of the order of the spacing of that dtype.
    allowed = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    if gap.leak > allowed:
        raise EditError(
            f"rounded to {dtype}, the model still writes along the direction ({gap.leak:.1e}). Nothing was saved; pass "
            "--dtype float32."
        )
    refuse_large(f"{edited.chat_model.name}, rounded to {dtype},", gap)
    return _Saved(SavedGap(**asdict(gap), dtype=str(dtype).removeprefix("torch."), leak_allowed=allowed), leaks)


def _differing(proved: Any, loaded: Any, info: Mapping[str, Any]) -> list[str]:
    """Names of the tensors in which a loaded model differs from the proved one."""
    wrong = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    tensors = dict([*loaded.named_parameters(remove_duplicate=False), *loaded.named_buffers()])
    for name, tensor in (*proved.named_parameters(remove_duplicate=False), *proved.named_buffers()):
        other = tensors.get(name)
        if other is None or not torch.equal(tensor.cpu().float(), other.cpu().float()):
            wrong.append(name)
    return wrong


def edited_direction(imported: ImportedDirections) -> EditedDirection:
    """The direction as the record of an edit describes it."""
    return EditedDirection(
        source=imported.source,
        rank=len(imported.vectors),
        layer=imported.layer,
        position=None if imported.position is None else int(imported.position),
        origin=imported.origin,
    )


def versions() -> dict[str, str]:
    """Versions of the software of an edit."""
    return {name: version(name) for name in ("rhumbline", "torch", "transformers")}


def _record(edited: Edited, saved: _Saved, change: Change, imported: ImportedDirections, source: str) -> EditRecord:
    proof, direction = edited.proof, edited_direction(imported)
    return EditRecord(
        edit="activation addition" if isinstance(change, Add) else "weight orthogonalisation",
        outcome=proof.outcome,
        reasons=proof.reasons,
        base_model=source,
        model_type=edited.chat_model.model.config.model_type,
        direction=structs.replace(
            direction,
            norms=tuple(float(n) for n in imported.vectors.norm(dim=1)),
            coefficient=change.coefficient if isinstance(change, Add) else None,
        ),
        changed=edited.changed,
        decided_by_siblings=tuple(e.name for e in edited.plan.edits if e.inferred) if edited.plan else (),
        untied=edited.untied,
        proof=EditProof(proof.prompts, proof.tokens, proof.gap, saved.gap, dict(saved.leaks)),
        versions=versions(),
    )
