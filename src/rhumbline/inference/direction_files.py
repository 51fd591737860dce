"""The file format of directions, direction.safetensors: vectors with layer, position and origin.

Reads tensors and plain values only. Independent of the source of a direction and of its use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from msgspec import structs
from torch import Tensor

from rhumbline.errors import DirectionError
from rhumbline.records.codec import to_json
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.files import file_sha256, tensors_bytes, tensors_metadata, write_bytes
from rhumbline.records.positions import Position

FORMAT = "rhumbline-direction-1"
"""Value of `format` in the metadata."""
TEXTS = (
    *("model", "fingerprint", "dtype", "model_type", "template_sha256", "verdict", "sentence", "protocol_sha256"),
    *("hub", "revision"),
)
"""Fields of the origin that are texts in the metadata."""


@dataclass(frozen=True)
class SavedDirections:
    """The content of a .safetensors file with directions, not normalised."""

    tensor: Tensor
    """Floating-point, of any shape if another tool wrote the file."""
    layer: int | None = None
    """None: the file does not state it, as for the position."""
    position: Position | None = None
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = {name: text for name, text in tensors_metadata(path).items() if text}
    try:
        tensor = one_tensor(path, load_file(path))
    except (SafetensorError, OSError) as error:
        raise DirectionError(f"{path} cannot be read: {error}. Is the file complete?") from error
    origin = DirectionOrigin(sha256=file_sha256(path))
    if metadata.get("format") != FORMAT:
        return SavedDirections(tensor, origin=origin)
    position = _number(path, metadata, "position")
    numbers = {name: _number(path, metadata, name) for name in ("n_layers", "seed")}
    texts = {name: metadata.get(name) for name in TEXTS}
    return SavedDirections(
        tensor,
        _number(path, metadata, "layer"),
        None if position is None else Position(position),
        structs.replace(origin, **numbers, **texts),
    )


def one_tensor(path: Path, values: Mapping[str, object]) -> Tensor:
    """The only tensor, or the one that is named as a direction. Raises DirectionError."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name in ("direction", "candidates", "mean_diffs"):
        if name in tensors:
            return tensors[name]
    if len(tensors) != 1:
        raise DirectionError(
            f"{path}: expected one tensor, found {', '.join(sorted(tensors)) or 'none'}. Name the direction "
            "`direction`."
        )
    return next(iter(tensors.values()))


def _number(path: Path, metadata: Mapping[str, str], name: str) -> int | None:
    """A whole number of the metadata; None if it is missing."""
    try:
        return int(metadata[name]) if name in metadata else None
    except ValueError:
        raise DirectionError(
            f"{path}: {name} is {metadata[name]!r} in the metadata, expected a whole number. Export it again."
        ) from None
