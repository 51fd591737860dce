"""Edit a checkpoint file by file, with one tensor in memory; the model is not built.

A small model of the same config determines which stored tensors are edited (shard_recipes.py); its tensor names must be
those of the checkpoint. The edited values are those of the edit in memory, bit for bit. Finished files are kept, so the
same command resumes an interrupted edit; the directory is renamed at the end. Independent of the source of the
direction.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from rhumbline.edits.companions import copy_companions
from rhumbline.edits.edit_card import card
from rhumbline.edits.new_directory import check_target, new_directory
from rhumbline.edits.projection import Basis, inner_vectors, leak_allowed, matrices, orthonormal, project
from rhumbline.edits.proved_edit import refuse_large
from rhumbline.edits.read_direction import ImportedDirections, check_origin, check_sizes
from rhumbline.edits.save import EditOptions, edited_direction, versions
from rhumbline.edits.shard_recipes import IN_MEMORY, ShardRecipe, recipe
from rhumbline.edits.tensor_file import TensorFile, same_content, write_edited
from rhumbline.errors import EditError, ModelError, OutputError
from rhumbline.models.loaded_weights import fault_of, stored_apart, untied_by_edit
from rhumbline.models.loading import check_checkpoint, read_head
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.models.weight_files import INDEX, stored_tensors, weight_files
from rhumbline.organisms.files import CARD
from rhumbline.records.codec import convert, to_json
from rhumbline.records.edit_file import FILE as RECORD
from rhumbline.records.edit_file import ShardedEditRecord, ShardedProof
from rhumbline.records.files import canonical, read_json, write_bytes, write_json

STATE = "state.json"


@dataclass(frozen=True)
class FinishedFiles:
    """state.json: the finished files of an edit."""

    key: str
    """Hash of everything that the edited files depend on."""
    done: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each finished file, the share along the subspace of every edited tensor."""


class Shards(NamedTuple):
    """The weight files of a checkpoint."""

    folder: Path
    files: dict[str, TensorFile]

    @property
    def names(self) -> set[str]:
        """Names of all stored tensors."""
        return {name for file in self.files.values() for name in file.entries}


def shards_of(source: str, where: str | None = None) -> Shards:
    """The safetensors files of a local checkpoint; ModelError if one is missing, torn or in another folder.

    `where` is the directory of the checkpoint; `source` is its name in messages.
    """
    folder = Path(where or source).expanduser()
    files = [file for file in weight_files(folder) if file.endswith(".safetensors")]
    if not files:
        raise ModelError(
            f"{source}: --sharded needs a local directory with safetensors files, and there are none. Convert the "
            "weights to safetensors, or edit without --sharded."
        )
    stored_tensors(folder)  # refuses missing and torn files
    return Shards(folder, {file: TensorFile.read(folder / file) for file in files})


def edit_sharded(
    source: str,
    imported: ImportedDirections,
    out: str | Path,
    options: EditOptions = EditOptions(),  # noqa: B008
    progress: Callable[[str], None] = lambda text: None,
) -> ShardedEditRecord:
    """Orthogonalise a checkpoint file by file; returns the record. Calling it again resumes an interrupted edit."""
    target = Path(out)
    check_target(target)
    read = EditOptions(force=options.force, trust_remote_code=options.trust_remote_code)
    if replace(options, device=None if options.device == "cpu" else options.device) != read:
        raise EditError(
            "--sharded orthogonalises on the processor in the dtype of the checkpoint, and --add, --dtype, --device, "
            "--dequantize and other prompts of the proof need the model in memory. Omit them, or edit without "
            "--sharded."
        )
    with places_of(Source(source, trust_remote_code=options.trust_remote_code)) as places:
        if places.base is not None:
            raise EditError(
                f"{source} is an adapter, and --sharded edits whole checkpoints. Edit without --sharded, which merges "
                "the adapter into its base."
            )
        head = read_head(places)
        shards = shards_of(source, places.whole)
        config = head.config
        basis = _checked_basis(source, shards, config, imported, options)
        progress("proving the edit on a small model of the same config")
        made = recipe(source, config, len(basis))
        if made.plan.outcome == "approximate":
            # Nothing is written along the direction. How much the scale of the norms changes is measured on the small
            # model only, as the record and the card state.
            refuse_large(f"a small model of the config of {source}", made.gap)
        left_alone = _check_names(source, shards, made)
        check_checkpoint(places, head)
        copies = _copies(source, shards, made)
        vectors = {"": (basis, basis)}
        for norm in sorted({edit.norm for edit in made.edits.values()} - {""}):
            vectors[norm] = _vectors(config, shards, norm, basis, made)
        work = target.with_name(f".{target.name}.sharded")
        state = _state(work, _key(shards, imported))
        with new_directory(target, work):
            for number, (name, file) in enumerate(shards.files.items(), 1):
                if name not in state.done or not (work / name).is_file():
                    progress(f"file {number} of {len(shards.files)}: {name}")
                    state.done[name] = _edit_file(file, work / name, made, vectors, copies)
                    write_json(work / STATE, to_json(state))
            _finish(shards, made, copies, work)
            leaks = {name: leak for of_file in state.done.values() for name, leak in of_file.items()}
            record = ShardedEditRecord(
                outcome=made.plan.outcome,
                reasons=made.plan.reasons,
                base_model=source,
                direction=edited_direction(imported),
                changed=tuple(sorted(made.edits)),
                untied=made.untied is not None,
                left_alone=tuple(left_alone),
                proof=ShardedProof(made.gap, max(leaks.values()), leaks),
                versions=versions(),
            )
            write_json(work / RECORD, to_json(record))
            write_bytes(work / CARD, card(record).encode())
            (work / STATE).unlink()
            _check_complete(shards, made, work)
    return record


# -- checks -----------------------------------------------------------------------------------------------------------


def _checked_basis(
    source: str, shards: Shards, config: Any, imported: ImportedDirections, options: EditOptions
) -> Basis:
    """The subspace of the edit; EditError or DirectionError if it does not fit the checkpoint."""
    if getattr(config, "quantization_config", None) is not None:
        raise EditError(f"{source} is quantised. Edit the original checkpoint and quantise the result.")
    # A fingerprint is a hash of the loaded model, so the origin is compared by name and directory.
    model = imported.origin.model
    is_origin = model is not None and (model == source or Path(model).expanduser().resolve() == shards.folder.resolve())
    if not options.force and not is_origin:
        check_origin(imported, None, None)
    check_sizes(imported, config, source)
    basis = orthonormal(imported.vectors)
    return basis


def _check_names(source: str, shards: Shards, made: ShardRecipe) -> list[str]:
    """Stored tensors that are not part of the architecture; EditError if one of the architecture is missing."""
    head = {made.untied[0]} if made.untied else set()
    absent = sorted(made.names - shards.names - head)
    if absent:
        raise EditError(
            f"{source} has other tensor names than this architecture ({len(absent)} are missing, first {absent[0]}). "
            f"{IN_MEMORY}"
        )
    return sorted(shards.names - made.names)


def _copies(source: str, shards: Shards, made: ShardRecipe) -> dict[str, str]:
    """{head: embedding} if the head has to be stored as a copy; ModelError if the stored head has other values."""
    if made.untied is None:
        return {}
    head, embedding = made.untied
    if head not in shards.names:
        return {head: embedding}
    # An earlier edit can have untied the head of a config that has to keep its ties; such a head differs rightly.
    record = shards.folder / RECORD
    if untied_by_edit(record if record.is_file() else None):
        return {}
    of = {name: next(file for file in shards.files.values() if name in file.entries) for name in made.untied}
    if not same_content(of[head], head, of[embedding], embedding):
        # transformers would use the stored head, and the small model has a tied one.
        raise stored_apart(source, [f"{head} and {embedding}"])
    return {}


def _check_complete(shards: Shards, made: ShardRecipe, work: Path) -> None:
    """EditError unless the new checkpoint has every tensor of the old one, and the head if it was untied."""
    missing = [file for file in shards.files if not (work / file).is_file()]
    written = {name for file in shards.files if file not in missing for name in TensorFile.read(work / file).entries}
    expected = shards.names | ({made.untied[0]} if made.untied else set())
    if missing or written != expected:
        raise EditError(
            f"the new checkpoint is not complete: {len(missing)} files and {len(expected - written)} tensors are "
            "missing. Nothing was saved; rerun the same command."
        )


# -- the files --------------------------------------------------------------------------------------------------------


def _key(shards: Shards, imported: ImportedDirections) -> str:
    """Hash of everything that the files of an unfinished edit depend on."""
    digest = hashlib.sha256(imported.vectors.numpy().tobytes())
    for name, file in shards.files.items():
        stat = file.path.stat()
        digest.update(canonical([name, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def _state(work: Path, key: str) -> FinishedFiles:
    """The finished files of an interrupted edit with this key; all other files in `work` are removed."""
    try:
        state = convert(read_json(work / STATE), FinishedFiles)
        if state.key == key:
            # What a killed process left half written would become part of the result, so it is written again.
            for path in work.iterdir():
                if path.is_file() and path.name not in {STATE, *state.done}:
                    path.unlink()
            return state
    except (OutputError, msgspec.ValidationError):
        pass
    shutil.rmtree(work, ignore_errors=True)
    return FinishedFiles(key)


def _vectors(config: Any, shards: Shards, norm: str, basis: Basis, made: ShardRecipe) -> tuple[Basis, Basis]:
    """(read, write) of the tensors before a norm, from the weights of the norm."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).get_submodule(norm)
    module.to_empty(device="cpu")
    state = {}
    for name in module.state_dict():
        file = next(file for file in shards.files.values() if f"{norm}.{name}" in file.entries)
        state[name] = file.tensor(f"{norm}.{name}").float()
    module.load_state_dict(state)
    z = torch.randn(64, basis.shape[1], generator=torch.Generator().manual_seed(2))
    inner = inner_vectors(module, z, basis, oblique=made.oblique)
    if inner is None:
        raise EditError(f"{norm} differs in kind from that of the small model. {IN_MEMORY}")
    return inner[0], inner[1]


def _edit_file(
    source: TensorFile,
    target: Path,
    made: ShardRecipe,
    vectors: Mapping[str, tuple[Basis, Basis]],
    copies: Mapping[str, str],
) -> dict[str, float]:
    """Edit and write one file, with one tensor in memory; the share of every edited tensor along the subspace."""
    leaks: dict[str, float] = {}

    def edit(name: str, tensor: Tensor) -> Tensor:
        axis, norm = made.edits[name]
        if faults := {fault for part in matrices(tensor, axis) if (fault := fault_of(part))}:
            raise ModelError(f"{source.path}: the weights hold {min(faults)} (first in {name}). Download it again.")
        read, write = vectors[norm]
        tensor = project(tensor, axis, read, write, in_place=True)
        leaks[name], allowed = _leak(tensor, axis, read), leak_allowed(tensor.dtype)
        if leaks[name] > allowed:
            raise EditError(
                f"{name} still has a component along the direction ({leaks[name]:.1e}, allowed {allowed:.1e}). Nothing "
                f"was saved. {IN_MEMORY}"
            )
        return tensor

    edits = {name: partial(edit, name) for name in source.entries if name in made.edits}
    own = {copy: name for copy, name in copies.items() if name in source.entries}
    write_edited(source._replace(metadata=source.metadata or {"format": "pt"}), target, edits, own)
    return leaks


def _leak(tensor: Tensor, axis: int, read: Basis) -> float:
    """Norm of the component along the subspace, as a share of the norm of the tensor."""
    rows = read.float() / read.float().norm(dim=1, keepdim=True)
    along = size = 0.0
    for part in matrices(tensor, axis):
        along += float((rows @ part.float()).square().sum())
        size += float(part.float().square().sum())
    return (along / max(size, 1e-30)) ** 0.5


def _finish(shards: Shards, made: ShardRecipe, copies: Mapping[str, str], work: Path) -> None:
    """Write the index and the config, and copy the files that are not weights."""
    index = shards.folder / INDEX
    if list(shards.files) != ["model.safetensors"]:
        content = read_json(index)
        for copy, name in copies.items():
            content["weight_map"][copy] = content["weight_map"][name]
        files = [TensorFile.read(work / file) for file in dict.fromkeys(content["weight_map"].values())]
        total = sum(entry.size for file in files for entry in file.entries.values())
        content.setdefault("metadata", {})["total_size"] = total
        (work / index.name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    if made.untied is not None:
        values = read_json(shards.folder / "config.json")
        for part in (values, values.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        write_json(work / "config.json", values)
    copy_companions(shards.folder, work)
