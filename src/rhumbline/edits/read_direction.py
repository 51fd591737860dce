"""One loader for directions: a run directory, this project's direction.safetensors, and the files of others, in.

Reads tensors and plain values only: `.pt` files with weights_only, so that no file can run code. Checks shapes and
finiteness, and that a direction was made for the model it is to be used on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.errors import DirectionError, InputError
from rhumbline.inference.interventions import Direction
from rhumbline.records.files import file_sha256, tensors_metadata
from rhumbline.records.positions import Position
from rhumbline.records.results import Results
from rhumbline.stages.finished_run import open_run

FORMAT = "rhumbline-direction-1"
"""Value of `format` in the metadata of a direction.safetensors."""


@dataclass(frozen=True)
class Imported:
    """Directions from a file or a run, not normalised, with what is known of their origin."""

    vectors: Float[Tensor, "rank d_model"]
    layer: int | None
    """Block whose input they were read at or are to be added to; None where the file does not say."""
    position: Position | None
    source: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    """`model`, `fingerprint`, `template_sha256`, `verdict`, `sentence`, `protocol_sha256`, as far as they are known."""

    def direction(self, layer: int | None = None) -> Direction:
        """The one direction; DirectionError where there are several, or where the layer is not known."""
        if len(self.vectors) != 1:
            raise DirectionError(f"{self.source} holds {len(self.vectors)} vectors; one is needed (--rank 1).")
        where = self.layer if layer is None else layer
        if where is None:
            raise DirectionError(f"{self.source} does not say at which layer its vector acts; give --layer.")
        return Direction.from_vector(self.vectors[0], -1 if self.position is None else self.position, where)


def read_directions(
    source: str | Path,
    *,
    seed: int | None = None,
    layer: int | None = None,
    position: Position | int | None = None,
    rank: int | None = None,
) -> Imported:
    """Directions from a run directory (its selected one), .safetensors, .pt, .gguf or .npy.

    `layer` and `position` pick from a file that has one vector for each; `rank` keeps the first vectors of a subspace.
    """
    path = Path(source)
    if path.is_dir():
        found = _from_run(path, seed)
    elif not path.is_file():
        raise DirectionError(f"{path}: no such file or run directory.")
    else:
        found = _from_file(path, layer, None if position is None else Position.of(position))
    if rank is not None:
        if not 1 <= rank <= len(found.vectors):
            raise DirectionError(f"--rank {rank}: {path} holds {len(found.vectors)} vectors.")
        found = Imported(found.vectors[:rank], found.layer, found.position, found.source, found.origin)
    if layer is not None:
        found = Imported(found.vectors, layer, found.position, found.source, found.origin)
    norms = found.vectors.norm(dim=1)
    if not torch.isfinite(norms).all():
        raise DirectionError(f"{path}: the direction holds NaN or infinity.")
    if not bool((norms > 0).all()):
        raise DirectionError(f"{path}: the direction is a zero vector.")
    return found


def _from_run(path: Path, seed: int | None) -> Imported:
    run = open_run(path)
    artefacts = run.artefacts(seed)
    direction = artefacts.direction
    if direction is None:
        raise DirectionError(
            f"{path}: no candidate passed the selection of seed {artefacts.seed}, so there is no direction. Give "
            "another --seed, run or file."
        )
    results = run.results if run.directory.has(Results) else None
    model = run.context.model
    origin = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "model_type": model.model_type,
        "n_layers": model.n_layers,
        "template_sha256": run.context.chat.template_sha256,
        "verdict": None if results is None else results.verdict,
        "sentence": None if results is None else results.sentence,
        "protocol_sha256": run.directory.protocol_sha256,
        "seed": artefacts.seed,
    }
    return Imported(direction.difference[None], direction.layer, direction.position, str(path), origin)


def _from_file(path: Path, layer: int | None, position: Position | None) -> Imported:
    origin: dict[str, Any] = {"sha256": file_sha256(path)}
    at_layer: int | None = None
    at_position: Position | None = None
    match path.suffix:
        case ".safetensors":
            metadata = tensors_metadata(path)
            tensor = _safetensors(path)
            if metadata.get("format") == FORMAT:
                at_layer = int(metadata["layer"]) if metadata.get("layer") else None
                at_position = Position(int(metadata["position"])) if metadata.get("position") else None
                origin |= {k: v for k, v in metadata.items() if k not in {"format", "layer", "position"} and v}
        case ".pt" | ".pth" | ".bin":
            tensor = _pickled(path)
        case ".gguf":
            tensor, at_layer = _gguf(path, layer)
        case ".npy":
            import numpy as np

            tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        case _:
            raise DirectionError(f"{path}: not a known kind of direction file (.safetensors, .pt, .gguf, .npy).")
    if tensor.ndim == 3:
        tensor = _picked(path, tensor, layer, position)
        at_layer, at_position = layer, position
    if tensor.ndim not in (1, 2) or not tensor.is_floating_point():
        raise DirectionError(f"{path}: expected a vector or a matrix of vectors, found shape {tuple(tensor.shape)}.")
    vectors = tensor.detach().float().cpu().reshape(-1, tensor.shape[-1])
    return Imported(vectors, at_layer, at_position, str(path), origin)


def _picked(path: Path, tensor: Tensor, layer: int | None, position: Position | None) -> Tensor:
    """One vector of a [position, layer, d_model] table, as the paper's mean_diffs.pt or a run's candidates."""
    n_positions, n_layers, _ = tensor.shape
    if layer is None or position is None:
        raise DirectionError(
            f"{path} holds one vector for each of {n_positions} positions and {n_layers} layers; give --position "
            f"(-{n_positions} .. -1) and --layer (0 .. {n_layers - 1})."
        )
    if position.is_in_response or int(position) < -n_positions or not 0 <= layer < n_layers:
        raise DirectionError(
            f"{path}: position {int(position)}, layer {layer} is outside its {n_positions} x {n_layers}."
        )
    return tensor[int(position), layer]


def _one(path: Path, tensors: Mapping[str, Any]) -> Tensor:
    """The only tensor of several named ones, or the one whose name says that it is the direction."""
    found = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    for name in ("direction", "candidates", "mean_diffs"):
        if name in found:
            return found[name]
    if len(found) != 1:
        raise DirectionError(f"{path}: expected one tensor, found {', '.join(sorted(found)) or 'none'}.")
    return next(iter(found.values()))


def _safetensors(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _one(path, load_file(path))
    except (SafetensorError, OSError) as error:
        raise DirectionError(f"{path} cannot be read: {error}") from error


def _pickled(path: Path) -> Tensor:
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DirectionError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}); a pickle that would run code is not "
            "opened."
        ) from error
    return loaded if isinstance(loaded, Tensor) else _one(path, loaded if isinstance(loaded, Mapping) else {})


def extra(name: str, module: str) -> Any:
    """An optional dependency; InputError names the extra that brings it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed; install it with: pip install 'rhumbline[{name}]'") from error


def _gguf(path: Path, layer: int | None) -> tuple[Tensor, int]:
    """A llama.cpp control vector (repeng's form): direction.N is added to the output of block N, the input of N + 1."""
    gguf = extra("gguf", "gguf")
    try:
        reader = gguf.GGUFReader(str(path))
        found = {
            int(t.name.removeprefix("direction.")): torch.tensor(t.data.copy())
            for t in reader.tensors
            if t.name.startswith("direction.")
        }
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise DirectionError(f"{path} is not a control vector: {error}") from error
    if not found:
        raise DirectionError(f"{path} holds no tensor direction.N, so it is not a control vector.")
    wanted = next(iter(found)) if len(found) == 1 and layer is None else None if layer is None else layer - 1
    if wanted not in found:
        raise DirectionError(
            f"{path} holds vectors for the inputs of blocks {', '.join(str(n + 1) for n in sorted(found))}; "
            f"give one of them with --layer{'' if layer is None else f' ({layer} is none)'}."
        )
    return found[wanted].float(), wanted + 1


def check_origin(found: Imported, fingerprints: Mapping[str, str] | str, template_sha256: str | None) -> None:
    """DirectionError where a direction says that it was made for another model or chat template.

    `fingerprints` are those of the model as loaded (one, or one for each dtype).
    """
    known = {fingerprints} if isinstance(fingerprints, str) else set(fingerprints.values())
    made_for = found.origin.get("fingerprint")
    faults = []
    if made_for and made_for not in known:
        faults.append(f"it was made for the model {found.origin.get('model', '?')} ({made_for[:12]}), not this one")
    made_with = found.origin.get("template_sha256")
    if made_with and template_sha256 and made_with != template_sha256:
        faults.append("it was made with another chat template")
    if faults:
        raise DirectionError(f"{found.source} does not fit: {'; '.join(faults)}. Give --force to use it all the same.")


def check_coefficient(value: float | None, option: str) -> None:
    """InputError for the coefficient of an addition that is 0, NaN or infinite."""
    if value is not None and (value == 0 or not math.isfinite(value)):
        raise InputError(f"{option} {value:g} is no coefficient of an addition. Give a finite number other than 0.")
