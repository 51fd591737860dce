"""Edit a checkpoint in memory, prove the edit, and save it as a new directory.

The saved checkpoint is loaded again and compared with the proved model before the directory gets its name; after an
error nothing is left. Independent of how an edit is computed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from rhumbline.edits.companions import copy_companions_of, files_not_cached
from rhumbline.edits.edit_card import card
from rhumbline.edits.new_directory import check_target, new_directory
from rhumbline.edits.projection import leak_allowed, orthonormal
from rhumbline.edits.proved_edit import (
    PROMPTS,
    Change,
    Edited,
    cast_back,
    dtypes_of,
    edit_in_place,
    measure_gap,
    refuse_large,
    refuse_quantised,
    tensors_of,
)
from rhumbline.edits.read_direction import ImportedDirections, check_coefficient, check_fits, check_origin
from rhumbline.errors import EditError
from rhumbline.inference.interventions import Add
from rhumbline.models.adapters import merge_adapter
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import checkpoint_dtype, fingerprint, load_source, read_config
from rhumbline.models.places import places_of
from rhumbline.models.proving import prove
from rhumbline.models.sources import Source, checkpoint
from rhumbline.models.templates import own_template, template_sha256
from rhumbline.organisms.files import CARD
from rhumbline.records.codec import to_json
from rhumbline.records.edit_file import FILE as RECORD
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
    """Edit a checkpoint, prove the edit and save it as `out`; returns its record, which is saved with it.

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
        with new_directory(target) as folder:
            gap, leaks = _save(edited, change, folder, where, options)
            sequences = edited.reference.sequences
            proof = EditProof(len(sequences), sum(map(len, sequences)), edited.gap, gap, leaks)
            record = EditRecord(
                edit="weight orthogonalisation" if c is None else "activation addition",
                outcome=edited.outcome,
                reasons=edited.reasons,
                base_model=source,
                model_type=edited.chat_model.model.config.model_type,
                direction=structs.replace(
                    edited_direction(imported), norms=tuple(imported.vectors.norm(dim=1).tolist()), coefficient=c
                ),
                changed=edited.changed,
                decided_by_siblings=edited.inferred,
                untied=edited.untied,
                proof=proof,
                not_cached=files_not_cached(where, edited.chat_model.model.config, folder),
                versions=versions(),
            )
            write_json(folder / RECORD, to_json(record))
            write_bytes(folder / CARD, card(record).encode())
    return record


# -- the model --------------------------------------------------------------------------------------------------------


def _loaded(source: str, imported: ImportedDirections, options: EditOptions) -> ChatModel:
    """The model with plain matrices, checked against the direction; EditError if its weights cannot be edited."""
    how = Source(source, options.dtype, options.device, True, options.trust_remote_code)
    if how.dtype == "auto":
        how = replace(how, dtype=_stored_dtype(how))
    check_fits(imported, how)
    chat_model = load_source(how)
    stored = chat_model.dequantised
    if stored and not options.dequantize:
        raise EditError(
            f"{source} is stored quantised ({stored}), and transformers dequantised it while loading. Pass "
            f"--dequantize to save matrices in {chat_model.dtype}, or edit the original checkpoint and quantise the "
            "result. Runs work with quantised weights."
        )
    if not options.dequantize:
        refuse_quantised(chat_model.model)
    if not options.force:
        # Before the model is dequantised: the fingerprint of a run is that of the weights as they were loaded.
        template = own_template(chat_model.tokenizer)
        prints = fingerprints(chat_model, imported, how)
        check_origin(imported, prints, None if template is None else template_sha256(template))
    if options.dequantize and (stored or getattr(chat_model.model, "is_quantized", False)):
        chat_model = dequantized(chat_model)
    refuse_quantised(chat_model.model)
    return chat_model


def _stored_dtype(source: Source) -> str:
    """The dtype of the checkpoint, which an edit keeps; runs on a processor may use a faster one."""
    with places_of(source) as places:
        stored = None if places.gguf else checkpoint_dtype(read_config(places))
    return "auto" if stored is None else str(stored).removeprefix("torch.")


def dequantized(chat_model: ChatModel) -> ChatModel:
    """The model with plain matrices; EditError if transformers cannot dequantise it."""
    try:
        quantised = getattr(chat_model.model, "is_quantized", False)
        model = chat_model.model.dequantize() if quantised else chat_model.model
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise EditError(
            f"{chat_model.name}: transformers cannot undo this quantisation ({type(error).__name__}). Edit the "
            "original checkpoint and quantise the result."
        ) from error
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    # A new model, because transformers would save the old one with the conversions of its quantiser.
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


def _save(
    edited: Edited, change: Change, folder: Path, source: str, options: EditOptions
) -> tuple[SavedGap, dict[str, float]]:
    """Write the checkpoint and measure it; if its config ties other weights too, they stay tied."""
    _write(edited.chat_model, folder, source)
    try:
        return _measure_saved(edited, change, folder, options)
    except EditError:
        if not edited.untied:
            raise
        # The blocks of zamba2, for example, share weights under tie_word_embeddings, which then has to stay enabled.
        # transformers keeps a head that is stored, which is checked as before.
        config = edited.chat_model.model.config
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = True
        for path in folder.iterdir():
            path.unlink()
        _write(edited.chat_model, folder, source)
        return _measure_saved(edited, change, folder, options)


def _write(chat_model: ChatModel, folder: Path, source: str) -> None:
    chat_model.model.save_pretrained(folder)
    if chat_model.tokenizer is not None:
        chat_model.tokenizer.save_pretrained(folder)
    copy_companions_of(source, chat_model.model.config, folder)


def _measure_saved(
    edited: Edited, change: Change, folder: Path, options: EditOptions
) -> tuple[SavedGap, dict[str, float]]:
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
    wrong = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    loaded = tensors_of(again)
    for name, tensor in tensors_of(proved).items():
        if name not in loaded or not torch.equal(tensor.cpu().float(), loaded[name].cpu().float()):
            wrong.append(name)
    if wrong:
        raise EditError(
            f"the written checkpoint differs from the proved model ({len(wrong)} parameters, first {wrong[0]}). "
            "Nothing was saved; use rhumbline.applied instead."
        )
    again = again.float().to(edited.chat_model.device).eval()
    chat_model = prove(again, edited.chat_model.tokenizer, edited.chat_model.name)
    gap, leaks = measure_gap(chat_model, change, edited.reference)
    allowed = leak_allowed(dtype)
    if gap.leak > allowed:
        raise EditError(
            f"rounded to {dtype}, the model still writes along the direction ({gap.leak:.1e}). Nothing was saved; pass "
            "--dtype float32."
        )
    refuse_large(f"{edited.chat_model.name}, rounded to {dtype},", gap)
    return SavedGap(**asdict(gap), dtype=str(dtype).removeprefix("torch."), leak_allowed=allowed), leaks


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
