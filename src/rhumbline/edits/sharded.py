"""Edit a checkpoint file by file: safetensors files and a direction in, edited files out, one tensor in memory.

The model is not built. A small model of the same config says which stored tensors are edited (shard_recipes.py); its
tensor names must be those of the checkpoint. The edited values are those of the edit in memory, bit for bit. Finished
files are kept, so the same command resumes an interrupted edit; the directory is renamed at the end. Independent of
where the direction comes from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from rhumbline.edits.edit_card import card
from rhumbline.edits.new_directory import RECORD, check_target, copy_companions
from rhumbline.edits.projection import Basis, inner_vectors, matrices, orthonormal, project
from rhumbline.edits.proved_edit import refuse_large
from rhumbline.edits.read_direction import ImportedDirections, check_origin
from rhumbline.edits.save import EditOptions, edited_direction, versions
from rhumbline.edits.shard_recipes import Recipe, recipe
from rhumbline.edits.tensor_file import TensorFile, write_edited
from rhumbline.errors import EditError, ModelError, OutputError
from rhumbline.models.loading import check_checkpoint, read_head
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.models.weight_files import INDEX, safetensors_header, stored_tensors, weight_files
from rhumbline.records.codec import convert, to_json
from rhumbline.records.edit_file import ShardedEditRecord, ShardedProof
from rhumbline.records.files import canonical, read_json, write_bytes, write_json

STATE = "state.json"
"""The progress of an edit, beside its finished files."""


@dataclass(frozen=True)
class Progress:
    """state.json: the finished files of an edit."""

    key: str
    """Hash of everything that the edited files depend on."""
    done: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each finished file, the share along the subspace of every edited tensor."""


# -- the checkpoint ---------------------------------------------------------------------------------------------------


class Shards(NamedTuple):
    """The weight files of a checkpoint."""

    folder: Path
    tensors: dict[str, list[str]]
    """Names of the tensors of every file, in the order of the index."""


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
    stored_tensors(folder)
    return Shards(folder, {file: list(safetensors_header(folder / file)) for file in files})


def _check_names(source: str, shards: Shards, made: Recipe) -> list[str]:
    """Stored tensors that are no part of the architecture; EditError if one of the architecture is missing."""
    present = {name for names in shards.tensors.values() for name in names}
    head = {made.untied[0]} if made.untied else set()
    absent = sorted(made.names - present - head)
    if absent:
        raise EditError(
            f"{source} does not name its tensors as this architecture stores them ({len(absent)} are missing, first "
            f"{absent[0]}). Edit it in memory, without --sharded."
        )
    return sorted(present - made.names)


def _tensor(shards: Shards, name: str) -> Tensor:
    from safetensors import safe_open

    file = next(f for f, names in shards.tensors.items() if name in names)
    with safe_open(shards.folder / file, framework="pt") as opened:
        return opened.get_tensor(name)


def _vectors(config: Any, shards: Shards, norm: str, basis: Basis, made: Recipe) -> tuple[Basis, Basis]:
    """(read, write) of the tensors before a norm, from the weights of the norm."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).get_submodule(norm)
    module.to_empty(device="cpu")
    state = {name: _tensor(shards, f"{norm}.{name}").float() for name in module.state_dict()}
    module.load_state_dict(state)
    z = torch.randn(64, basis.shape[1], generator=torch.Generator().manual_seed(2))
    inner = inner_vectors(module, z, basis, oblique=made.oblique)
    if inner is None:
        raise EditError(f"{norm} does not behave as that of the small model. Edit in memory, without --sharded.")
    return inner[0], inner[1]


# -- the edit ---------------------------------------------------------------------------------------------------------


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
    if options.coefficient is not None or options.dtype != "auto" or options.dequantize:
        raise EditError(
            "--sharded orthogonalises in the dtype of the checkpoint, and --add, --dtype and --dequantize need the "
            "model in memory. Leave them out, or edit without --sharded."
        )
    with places_of(Source(source, trust_remote_code=options.trust_remote_code)) as places:
        if places.base is not None:
            raise EditError(
                f"{source} is an adapter, and --sharded edits whole checkpoints. Edit without --sharded, which merges "
                "the adapter into its base."
            )
        shards = shards_of(source, places.whole)
        head = read_head(places)
        config = head.config
        basis = _checked_basis(source, shards, config, imported, options)
        progress("proving the edit on a small model of the same config")
        made = recipe(source, config, len(basis))
        if made.plan.outcome == "approximate":
            # Nothing is written along the direction. How much the scale of the norms changes is measured on the small
            # model only, as the record and the card say.
            refuse_large(f"a small model of the config of {source}", made.gap)
        extra = _check_names(source, shards, made)
        check_checkpoint(places, head)
        vectors = {"": (basis, basis)}
        for norm in sorted({rule.norm for rule in made.rules.values()} - {""}):
            vectors[norm] = _vectors(config, shards, norm, basis, made)
        work = target.with_name(f".{target.name}.sharded")
        with _resumable(target, work):
            leaks = _edit_files(_Edit(shards, made, vectors), work, _key(shards, imported), progress)
            _finish(shards, made, work)
            record = _record(source, imported, made, leaks, extra)
            write_json(work / RECORD, to_json(record))
            write_bytes(work / "README.md", card(record).encode())
            (work / STATE).unlink()
            _check_complete(shards, made, work)
    return record


def _checked_basis(
    source: str, shards: Shards, config: Any, imported: ImportedDirections, options: EditOptions
) -> Basis:
    """The subspace of the edit; EditError or DirectionError if it does not fit the checkpoint."""
    if getattr(config, "quantization_config", None) is not None:
        raise EditError(f"{source} is quantised. Edit the original checkpoint and quantise the result.")
    if not options.force and not _is_origin(imported, source, shards.folder):
        check_origin(imported, None, None)
    basis = orthonormal(imported.vectors)
    width = config.get_text_config().hidden_size
    if basis.shape[1] != width:
        raise EditError(
            f"the direction has {basis.shape[1]} components, but {source} has a residual stream of {width}. Nothing "
            "was changed; use a direction of this model."
        )
    return basis


def _is_origin(imported: ImportedDirections, source: str, folder: Path) -> bool:
    """Whether the direction was made for this checkpoint, by name or by directory.

    The fingerprint cannot be compared, because it is a hash of the loaded model.
    """
    model = imported.origin.model
    return model is not None and (model == source or Path(model).expanduser().resolve() == folder.resolve())


@contextmanager
def _resumable(target: Path, work: Path) -> Iterator[None]:
    """Rename `work` to `target` at the end. After an EditError or ModelError remove it; after a disk error keep it."""
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
    """EditError unless the new checkpoint has every tensor of the old one, and the head if it was untied."""
    missing = [file for file in shards.tensors if not (work / file).is_file()]
    written = {name for file in shards.tensors if file not in missing for name in TensorFile.read(work / file).entries}
    expected = {name for names in shards.tensors.values() for name in names}
    expected |= {made.untied[0]} if made.untied else set()
    if missing or written != expected:
        raise EditError(
            f"the new checkpoint is not complete: {len(missing)} files and {len(expected - written)} tensors are "
            "missing. Nothing was saved; run the command again."
        )


def _key(shards: Shards, imported: ImportedDirections) -> str:
    """Hash of everything that the files of an unfinished edit depend on."""
    digest = hashlib.sha256(imported.vectors.numpy().tobytes())
    for file in shards.tensors:
        stat = (shards.folder / file).stat()
        digest.update(canonical([file, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


class _Edit(NamedTuple):
    """What is edited, and with which vectors."""

    shards: Shards
    recipe: Recipe
    vectors: Mapping[str, tuple[Basis, Basis]]
    """(read, write) for each norm; under the empty name those without a norm."""


def _edit_files(edit: _Edit, work: Path, key: str, progress: Callable[[str], None]) -> dict[str, float]:
    """Edit and write every file that is not finished; the share of every edited tensor along the subspace."""
    state = _read_state(work)
    if state is None or state.key != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        state = Progress(key)
    for number, file in enumerate(edit.shards.tensors, 1):
        if file in state.done and (work / file).is_file():
            continue
        progress(f"file {number} of {len(edit.shards.tensors)}: {file}")
        state.done[file] = _edit_file(edit.shards.folder / file, work / file, edit.recipe, edit.vectors)
        write_json(work / STATE, to_json(state))
    return {name: leak for leaks in state.done.values() for name, leak in leaks.items()}


def _read_state(work: Path) -> Progress | None:
    try:
        return convert(read_json(work / STATE), Progress)
    except (OutputError, msgspec.ValidationError):
        return None


def _edit_file(
    source: Path, target: Path, made: Recipe, vectors: Mapping[str, tuple[Basis, Basis]]
) -> dict[str, float]:
    """Edit and write one file, with one tensor in memory; the share of every edited tensor along the subspace."""
    leaks: dict[str, float] = {}

    def edit(name: str, tensor: Tensor) -> Tensor:
        rule = made.rules[name]
        if not all(torch.isfinite(part).all() for part in matrices(tensor, rule.axis)):
            raise ModelError(f"{source}: the weights have NaN or infinity (first in {name}). Download it again.")
        read, write = vectors[rule.norm]
        tensor = project(tensor, rule.axis, read, write, in_place=True)
        leaks[name] = _left(tensor, rule.axis, read)
        allowed = 1e-4 if tensor.dtype == torch.float32 else 4 * torch.finfo(tensor.dtype).eps
        if leaks[name] > allowed:
            raise EditError(
                f"{name} still has a component along the direction ({leaks[name]:.1e}, allowed {allowed:.1e}). Nothing "
                "was saved; edit in memory, without --sharded."
            )
        return tensor

    opened = TensorFile.read(source)
    opened = opened._replace(metadata=opened.metadata or {"format": "pt"})
    edits = {name: partial(edit, name) for name in opened.entries if name in made.rules}
    copies = dict([made.untied]) if made.untied is not None and made.untied[1] in opened.entries else {}
    write_edited(opened, target, edits, copies)
    return leaks


def _left(tensor: Tensor, axis: int, read: Basis) -> float:
    """Norm of the component along the subspace, as a share of the norm of the tensor."""
    rows = read.float() / read.float().norm(dim=1, keepdim=True)
    along = size = 0.0
    for part in matrices(tensor, axis):
        along += float((rows @ part.float()).square().sum())
        size += float(part.float().square().sum())
    return (along / max(size, 1e-30)) ** 0.5


def _finish(shards: Shards, made: Recipe, work: Path) -> None:
    """Write the index and the config, and copy the other files beside the weights."""
    index = shards.folder / INDEX
    if list(shards.tensors) != ["model.safetensors"]:
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


def _record(
    source: str, imported: ImportedDirections, made: Recipe, leaks: Mapping[str, float], extra: list[str]
) -> ShardedEditRecord:
    return ShardedEditRecord(
        outcome=made.plan.outcome,
        reasons=made.plan.reasons,
        base_model=source,
        direction=edited_direction(imported),
        changed=tuple(sorted(made.rules)),
        untied=made.untied is not None,
        left_alone=tuple(extra),
        proof=ShardedProof(made.gap, max(leaks.values()), dict(leaks)),
        versions=versions(),
    )
