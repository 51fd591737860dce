"""The file format of directions, direction.safetensors: vectors with layer, position and origin.

Reads tensors and plain values only. Independent of the source of a direction and of its use.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Float
from msgspec import structs
from torch import Tensor

from rhumbline.errors import DirectionError, InputError
from rhumbline.records.codec import to_json
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.files import file_sha256, tensors_bytes, tensors_metadata, write_bytes
from rhumbline.records.positions import FURTHEST, Position

FAMILY = "rhumbline"
FORMAT = f"{FAMILY}-direction-1"
"""Value of `format` in the metadata. Files of other tools have other values, which do not begin with `FAMILY`."""
LARGEST_NUMBER = 2**32
"""Of a layer, and of every number of the origin, in the metadata, at most."""
MOST_NUMBERS = 2**28
"""Numbers of a table of directions, at most."""
TEXTS = (
    *("model", "fingerprint", "dtype", "model_type", "template_sha256", "verdict", "sentence", "protocol_sha256"),
    *("hub", "revision"),
)
"""Fields of the origin that are texts in the metadata."""
NUMBERS = ("n_layers", "seed", "spared")
"""Fields of the origin that are whole numbers in the metadata."""


@dataclass(frozen=True)
class SavedDirections:
    """The content of a .safetensors file with directions, not normalised."""

    tensor: Tensor
    """Floating-point, of any shape if another tool wrote the file."""
    layer: int | None = None
    """None: the file does not state it, as for the position."""
    position: Position | None = None
    positions: tuple[Position, ...] | None = None
    """Those of the rows of a table of candidates of a run; None for other files."""
    origin: DirectionOrigin = DirectionOrigin()  # noqa: RUF009 - frozen


def write_directions(
    path: Path,
    vectors: Float[Tensor, "rank d_model"],
    layer: int | None,
    position: Position | None,
    origin: DirectionOrigin = DirectionOrigin(),  # noqa: B008 - frozen
) -> None:
    """Write a direction.safetensors; one vector has the shape [d_model]. Raises OutputError."""
    number = None if position is None else int(position)
    values = {"layer": layer, "position": number, **to_json(origin), "sha256": None}
    metadata = {name: str(value) for name, value in values.items() if value is not None}
    tensor = vectors[0] if len(vectors) == 1 else vectors
    write_bytes(path, tensors_bytes({"direction": tensor.float().contiguous()}, {"format": FORMAT, **metadata}))


def read_safetensors(path: Path) -> SavedDirections:
    """The directions of a .safetensors file of this project or of another tool. Raises DirectionError."""
    from safetensors.torch import load_file

    metadata = {name: text for name, text in tensors_metadata(path).items() if text}
    try:
        tensors = load_file(path)
    except Exception as error:  # unknown dtypes, shapes and offsets raise errors without a common base
        raise DirectionError(f"{path} cannot be read: {str(error)[:200]}. Is the file complete?") from error
    tensor = one_tensor(path, tensors)
    check_numbers(path, tensor)
    origin = DirectionOrigin(sha256=file_sha256(path))
    if (given := metadata.get("format", "")) != FORMAT:
        if given.strip().casefold().startswith(FAMILY):
            raise DirectionError(
                f"{path} has the format {given[:60]!r}; this version of rhumbline reads {FORMAT!r}. Use the version "
                "that wrote it, or export it again."
            )
        return SavedDirections(tensor, positions=_positions(path, metadata, tensor), origin=origin)
    position = _number(path, metadata, "position")
    numbers = {name: _number(path, metadata, name) for name in NUMBERS}
    texts = {name: metadata.get(name) for name in TEXTS}
    return SavedDirections(
        tensor,
        _number(path, metadata, "layer"),
        None if position is None else Position(position),
        origin=structs.replace(origin, **numbers, **texts, **_addition(path, metadata)),
    )


def check_numbers(path: Path, tensor: Tensor) -> None:
    """DirectionError unless a tensor has real numbers in memory, and not more than a table of directions has."""
    is_plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested)
    if not (is_plain and tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.dtype.itemsize > 1):
        kind = "quantised values" if tensor.is_quantized else f"{tensor.dtype} ({tensor.layout}, {tensor.device})"
        raise DirectionError(f"{path}: expected a vector of real numbers, found {kind}. Save the direction as float32.")
    if not 0 < tensor.numel() <= MOST_NUMBERS:
        raise DirectionError(
            f"{path}: the shape {tuple(tensor.shape)} has {tensor.numel():,} numbers; from 1 to {MOST_NUMBERS:,} are "
            "read. Save one vector, or one per row."
        )


def one_tensor(path: Path, values: Mapping[Any, object]) -> Tensor:
    """The only tensor, or the one that is named as a direction. Raises DirectionError."""
    tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    for name in ("direction", "candidates", "mean_diffs"):
        if name in tensors:
            return tensors[name]
    if len(tensors) != 1:
        raise DirectionError(
            f"{path}: expected one tensor, found {', '.join(sorted(tensors)[:5]) or 'none'}. Name the direction "
            "`direction`."
        )
    return next(iter(tensors.values()))


def _positions(path: Path, metadata: Mapping[str, str], tensor: Tensor) -> tuple[Position, ...] | None:
    """The position of each row of a table, as a run writes them; None if the file does not state them."""
    if tensor.ndim != 3 or "positions" not in metadata:
        return None
    try:
        found = tuple(map(Position, msgspec.json.decode(metadata["positions"], type=list[int])))
    except (msgspec.MsgspecError, InputError):
        found = ()
    if len(found) != len(tensor) or len(set(found)) != len(found):
        raise DirectionError(
            f"{path}: positions is {metadata['positions'][:40]!r} in the metadata, expected one whole number for each "
            f"of {len(tensor)} rows. Use the file as the run wrote it."
        )
    return found


def _addition(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Where the additions of the run act, and their coefficient, as fields of the origin."""
    at, text = metadata.get("added_at"), metadata.get("coefficient")
    if at not in (None, "all", "prompt"):
        raise DirectionError(
            f"{path}: added_at is {at[:40]!r} in the metadata, expected all or prompt. Export it again."
        )
    try:
        coefficient = None if text is None else float(text)
    except ValueError:
        coefficient = math.nan
    if coefficient is not None and not math.isfinite(coefficient):
        raise DirectionError(
            f"{path}: coefficient is {text and text[:40]!r} in the metadata, expected a finite number. Export it again."
        )
    return {"added_at": at, "coefficient": coefficient}


def _number(path: Path, metadata: Mapping[str, str], name: str) -> int | None:
    """A whole number of the metadata; None if it is missing."""
    if name not in metadata:
        return None
    whole, most = r"0|[1-9][0-9]{0,17}", LARGEST_NUMBER
    if name == "position":
        whole, most = rf"{whole}|-[1-9][0-9]{{0,17}}", FURTHEST
    if not re.fullmatch(whole, metadata[name]) or abs(int(metadata[name])) > most:
        raise DirectionError(
            f"{path}: {name} is {metadata[name][:40]!r} in the metadata, expected a whole number of at most {most:,}. "
            "Export it again."
        )
    return int(metadata[name])
