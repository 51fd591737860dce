"""Read directions from a run directory, a direction.safetensors or a file of another tool, with their origin.

Reads tensors and plain values only (`.pt` files with weights_only), so that no file can execute code. Checks shapes,
finiteness, and whether a direction was made for the model that it is used on. Independent of its use.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from msgspec import structs
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.errors import DirectionError, InputError
from rhumbline.inference.direction_files import MOST_NUMBERS, check_numbers, one_tensor, read_safetensors
from rhumbline.inference.interventions import Direction
from rhumbline.models.loading import read_config
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.models.weight_files import extra, unpickled
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.files import file_sha256
from rhumbline.records.positions import Position
from rhumbline.stages.finished_run import open_run

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".gguf", ".npy")
LARGEST = 2**32
"""Bytes of a direction file, at most."""
PREFIX = "hf:"
"""Prefix of the name of a direction on the hub."""
GGUF_VECTOR = "direction."
"""Beginning of the name of a tensor of a control vector; the number of a block follows."""
_BLOCK = re.compile("[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class ImportedDirections:
    """Vectors from a file or a run, not normalised, with their origin."""

    vectors: Float[Tensor, "rank d_model"]
    layer: int | None
    """Block at whose input they were read, or are added; None if the file does not state it."""
    position: Position | None
    """Position at which they were read; None if the file does not state it."""
    source: str
    """Run directory or file."""
    origin: DirectionOrigin = DirectionOrigin()  # noqa: RUF009 - frozen

    def direction(self, layer: int | None = None) -> Direction:
        """The direction; DirectionError if there are several vectors, or if the layer is not known."""
        if len(self.vectors) != 1:
            raise DirectionError(f"{self.source} has {len(self.vectors)} vectors, and one is needed. Pass --rank 1.")
        layer = self.layer if layer is None else layer
        if layer is None:
            raise DirectionError(f"{self.source} does not state the layer of its vector. Pass --layer.")
        return Direction.from_vector(self.vectors[0], -1 if self.position is None else self.position, layer)


@checked
def read_directions(
    source: str | Path,
    *,
    seed: int | None = None,
    layer: int | None = None,
    position: Position | int | None = None,
    rank: int | None = None,
) -> ImportedDirections:
    """Read directions from a run directory (the selected one), .safetensors, .pt, .gguf, .npy or hf:owner/name.

    `seed` is that of a run. `layer` and `position` select from a file with one vector for each; `rank` keeps the first
    vectors of a subspace.
    """
    path, at = Path(source), None if position is None else Position.of(position)
    is_on_hub = str(source).startswith(PREFIX)
    is_run = not is_on_hub and path.is_dir()
    if is_run and position is not None:
        raise DirectionError(f"--position {position}: {path} is a run, whose position is selected. Omit --position.")
    if not is_run and seed is not None:
        raise DirectionError(f"--seed {seed}: {source} is not a run directory, so it has no seeds. Omit --seed.")
    if is_on_hub:
        imported = _from_hub(str(source), layer, at)
    elif is_run:
        imported = _from_run(path, seed)
    elif not path.is_file():
        raise DirectionError(f"{path}: no such file or run directory. Pass a run directory or a direction file.")
    else:
        imported = _from_file(path, layer, at)
    if rank is not None:
        if not 1 <= rank <= len(imported.vectors):
            raise DirectionError(f"--rank {rank}: {path} has {len(imported.vectors)} vectors. Pass at most that many.")
        imported = replace(imported, vectors=imported.vectors[:rank])
    if layer is not None:
        if imported.origin.n_layers is not None:
            _check_layer(layer, imported.origin.n_layers, imported.origin.model or "the model of the direction")
        imported = replace(imported, layer=layer)
    norms = imported.vectors.norm(dim=1)
    if not bool(((norms > 0) & torch.isfinite(norms)).all()):
        fault = "is a zero vector" if torch.isfinite(norms).all() else "has NaN or infinite values"
        raise DirectionError(f"{path}: the direction {fault}. Use another direction.")
    return imported


def _from_run(path: Path, seed: int | None) -> ImportedDirections:
    run = open_run(path)
    artefacts = run.artefacts(seed)
    direction = artefacts.direction
    if direction is None:
        raise DirectionError(
            f"{path}: no candidate passed the selection of seed {artefacts.seed}, so there is no direction. Pass "
            "another --seed, run or file."
        )
    results, model = run.results if run.is_finished else None, run.context.model
    origin = DirectionOrigin(
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=model.dtype,
        model_type=model.model_type,
        n_layers=model.n_layers,
        template_sha256=run.context.chat.template_sha256,
        verdict=results and results.verdict,
        sentence=results and results.sentence,
        protocol_sha256=run.directory.protocol_sha256,
        seed=artefacts.seed,
        spared=run.protocol.ablation.spared or None,
        added_at=run.protocol.addition.positions,
        coefficient=artefacts.coefficient,
    )
    return ImportedDirections(direction.difference[None], direction.layer, direction.position, str(path), origin)


def _from_hub(name: str, layer: int | None, position: Position | None) -> ImportedDirections:
    from rhumbline.edits.hub import hub_direction

    file = hub_direction(name)
    imported = _from_file(file.path, layer, position)
    origin = structs.replace(imported.origin, hub=name.partition("@")[0], revision=file.revision)
    return replace(imported, source=name, origin=origin)


def _from_file(path: Path, layer: int | None, position: Position | None) -> ImportedDirections:
    if path.suffix not in SUFFIXES:
        raise DirectionError(f"{path}: unknown kind of direction file. Use {', '.join(SUFFIXES)}.")
    if (size := path.stat().st_size) > LARGEST:
        raise DirectionError(f"{path} has {size:,} bytes; at most {LARGEST:,} are read. Save the direction alone.")
    origin = DirectionOrigin(sha256=file_sha256(path))
    at_layer: int | None = None
    at_position: Position | None = None
    positions: tuple[Position, ...] | None = None
    match path.suffix:
        case ".safetensors":
            saved = read_safetensors(path)
            tensor, at_layer, at_position, origin = saved.tensor, saved.layer, saved.position, saved.origin
            positions = saved.positions
        case ".gguf":
            tensor, at_layer = _gguf(path, layer)
        case ".npy":
            tensor = _numpy(path)
        case _:
            tensor = _pickled(path)
    check_numbers(path, tensor)
    if tensor.ndim == 3:
        tensor = _cell(path, tensor, positions, layer, position)
        at_layer, at_position = layer, position
    elif position is not None and position != at_position:
        raise DirectionError(f"--position {int(position)}: {path} has no table of positions. Omit --position.")
    if tensor.ndim not in (1, 2):
        raise DirectionError(
            f"{path}: expected a vector or a matrix of vectors, found the shape {tuple(tensor.shape)}. Save one "
            "vector, or one per row."
        )
    vectors = tensor.detach().float().cpu().reshape(-1, tensor.shape[-1])
    return ImportedDirections(vectors, at_layer, at_position, str(path), origin)


def _cell(
    path: Path, tensor: Tensor, positions: tuple[Position, ...] | None, layer: int | None, position: Position | None
) -> Tensor:
    """One vector of a [position, layer, d_model] table: the candidates of a run, or mean_diffs.pt of the paper.

    The rows of a file that does not state their positions end at position -1.
    """
    n_positions, n_layers, _ = tensor.shape
    known = f"{-n_positions} .. -1" if positions is None else ", ".join(str(int(p)) for p in positions)
    if positions is None:
        positions = tuple(map(Position, range(-n_positions, 0)))
    if position not in positions or layer is None or not 0 <= layer < n_layers:
        raise DirectionError(
            f"{path} has one vector for each of {n_positions} positions and {n_layers} layers. Pass --position "
            f"({known}) and --layer (0 .. {n_layers - 1}); given: {position and int(position)}, {layer}."
        )
    return tensor[positions.index(position), layer]


def _numpy(path: Path) -> Tensor:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size > MOST_NUMBERS:
            raise ValueError(f"{type(array).__name__} of {getattr(array, 'dtype', '?')}, expected an array of numbers")
        with np.errstate(all="ignore"):  # a value that overflows is refused as infinite
            return torch.from_numpy(array.astype(np.float32))
    except Exception as error:  # the parser of headers raises errors without a common base
        raise DirectionError(
            f"{path} cannot be read: {str(error)[:200]}. Save the direction as float32 with numpy.save."
        ) from error


def _pickled(path: Path) -> Tensor:
    loaded = unpickled(path, DirectionError, "Save the tensor as .safetensors.", map_location="cpu")
    return loaded if isinstance(loaded, Tensor) else one_tensor(path, loaded if isinstance(loaded, Mapping) else {})


def _gguf(path: Path, layer: int | None) -> tuple[Tensor, int]:
    """A llama.cpp control vector (the format of repeng): direction.N is added to the output of block N."""
    gguf = extra("gguf", "gguf")
    try:
        reader = gguf.GGUFReader(str(path))
        named = {t.name: t for t in reader.tensors if t.name.startswith(GGUF_VECTOR)}
        if odd := [name for name in named if not _BLOCK.fullmatch(name.removeprefix(GGUF_VECTOR))]:
            raise ValueError(f"tensor {odd[0][:40]!r}, expected {GGUF_VECTOR}N with the number N of a block, from 1")
        vectors = {int(name.removeprefix(GGUF_VECTOR)): torch.tensor(t.data.copy()) for name, t in named.items()}
    except Exception as error:  # the reader raises errors of NumPy without a common base
        raise DirectionError(f"{path} is not a control vector: {str(error)[:200]}. Is the file complete?") from error
    if not vectors:
        raise DirectionError(f"{path} has no tensor direction.N, so it is not a control vector. Use another file.")
    block = next(iter(vectors)) if len(vectors) == 1 and layer is None else None if layer is None else layer - 1
    if block not in vectors:
        raise DirectionError(
            f"{path} has vectors for the inputs of blocks {', '.join(str(n + 1) for n in sorted(vectors))}"
            f"{'' if layer is None else f', not {layer}'}. Pass one of them as --layer."
        )
    return vectors[block], block + 1


def check_origin(
    imported: ImportedDirections, fingerprints: Mapping[str, str] | None, template_sha256: str | None
) -> None:
    """DirectionError if a direction was made for another model or chat template.

    `fingerprints` are those of the loaded model, one for each dtype; None if it is known to be another model.
    """
    made_for, made_with = imported.origin.fingerprint, imported.origin.template_sha256
    faults = []
    if made_for and made_for not in (fingerprints or {}).values():
        faults.append(f"it was made for the model {imported.origin.model or '?'} ({made_for[:12]}), not this one")
    if made_with and template_sha256 and made_with != template_sha256:
        faults.append("it was made with another chat template")
    if faults:
        raise DirectionError(f"{imported.source} does not fit: {'; '.join(faults)}. Pass --force to use it anyway.")


def check_sizes(imported: ImportedDirections | None, config: Any, name: str, layer: int | None = None) -> None:
    """DirectionError unless width and layer are those of the model `name` with this config.

    `layer` replaces that of the directions; without directions it is checked alone.
    """
    text = config.get_text_config()
    n_layers, d_model = text.num_hidden_layers, text.hidden_size
    if imported is not None and imported.vectors.shape[1] != d_model:
        raise DirectionError(
            f"{imported.source} has width {imported.vectors.shape[1]}, and the residual stream of {name} has width "
            f"{d_model}. Use a direction of this model."
        )
    if layer is None and imported is not None:
        layer = imported.layer
    if layer is not None:
        _check_layer(layer, n_layers, name)


def _check_layer(layer: int, n_layers: int, name: str) -> None:
    if not 0 <= layer < n_layers:
        raise DirectionError(f"layer is {layer}; {name} has {n_layers} layers. Pass --layer from 0 to {n_layers - 1}.")


def check_fits(imported: ImportedDirections | None, source: Source, layer: int | None = None) -> None:
    """The same for a model that is not loaded: its config is read. ModelError if it cannot be read."""
    with places_of(source) as places:
        check_sizes(imported, read_config(places), source.model, layer)


def check_coefficient(value: float | None, option: str) -> None:
    """InputError if the coefficient of an addition is 0, NaN or infinite."""
    if value is not None and (value == 0 or not math.isfinite(value)):
        raise InputError(
            f"{option} {value:g}: the coefficient of an addition is finite and not 0. Pass another number."
        )
