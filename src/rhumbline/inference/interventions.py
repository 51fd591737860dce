"""Directions, interventions and arms as data.

Independent of hooks and of the way in which a direction was fitted. `batch_edits.py` applies interventions.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.arguments import check_fields, checked
from rhumbline.axes import Vector
from rhumbline.errors import DirectionError, OutputError, ProtocolError
from rhumbline.inference.direction_files import read_safetensors, write_directions
from rhumbline.inference.stream_edits import AblateByLayer, Affine, Rotate
from rhumbline.inference.windows import EVERYWHERE, Window
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Extracted, Selection


@dataclass(frozen=True)
class Direction:
    """A unit vector of the residual stream, and the site at which it was read."""

    vector: Vector
    """Norm 1, float32, on the CPU."""
    norm: float
    """Norm before normalisation, in units of the residual stream."""
    position: Position
    """Position at which the vector was read."""
    layer: int
    """Block at whose input (`resid_pre`) the vector was read."""

    def __post_init__(self):
        check_fields(self)
        if self.layer < 0:
            raise DirectionError(f"Direction.layer is {self.layer}; blocks are numbered from 0. Pass a number.")
        length = float(self.vector.detach().norm())
        if not abs(length - 1) < 1e-4:
            raise DirectionError(
                f"Direction.vector has norm {length:.3g}, expected 1. Use Direction.from_vector(v, position, layer)."
            )

    @classmethod
    @checked
    def from_vector(cls, vector: Vector, position: Position | int, layer: int) -> "Direction":
        """The direction of `vector`. DirectionError if it is zero or not finite."""
        v = vector.detach().double().cpu()
        norm = float(v.norm())
        if not (0 < norm < float("inf")):
            raise DirectionError(
                f"this vector has norm {norm}; a direction must be finite and not zero. Use another vector."
            )
        return cls((v / norm).float(), norm, Position.of(position), layer)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Direction":
        """The direction of a file that `save` or `rhumbline export --to direction` wrote. Raises DirectionError.

        For files of other tools use `rhumbline.read_directions`.
        """
        file = Path(path)
        if not file.is_file():
            raise DirectionError(f"{file}: no such file. Pass a file that Direction.save wrote.")
        saved = read_safetensors(file)
        if saved.layer is None or saved.tensor.ndim != 1 or not saved.tensor.is_floating_point():
            raise DirectionError(
                f"{file} has no vector with its layer: the tensor has shape {tuple(saved.tensor.shape)} and layer "
                f"{saved.layer}. Use rhumbline.read_directions(path, layer=...).direction()."
            )
        return cls.from_vector(saved.tensor, -1 if saved.position is None else saved.position, saved.layer)

    @classmethod
    @checked
    def from_run(cls, run: str | Path, seed: int | None = None) -> "Direction":
        """The selected direction of a run directory (default: of its first seed). Raises DirectionError."""
        directory = RunDirectory.read(run)
        seeds = directory.protocol.get("seeds") or [0]
        number = seeds[0] if seed is None else seed
        if number not in seeds:
            raise DirectionError(f"{run} has no seed {number}; it has {', '.join(map(str, seeds))}. Use one of these.")
        cell = directory.read_record(Selection, number).selected
        if cell is None:
            raise DirectionError(
                f"{run}: no candidate passed the selection of seed {number}, so there is no direction. Use another "
                "seed or run."
            )
        row = directory.read_record(Extracted, number).positions.index(cell.position)
        candidates = directory.load_tensors(directory.seed(number) / "directions.safetensors")["candidates"]
        return cls.from_vector(candidates[row, cell.layer], cell.position, cell.layer)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the direction as .safetensors, with norm, position and layer. An existing file is replaced."""
        if Path(path).suffix != ".safetensors":
            raise OutputError(f"{path}: a direction is saved as .safetensors. Pass a name with this ending.")
        write_directions(Path(path), self.difference[None], self.layer, self.position)

    @property
    def difference(self) -> Vector:
        """The un-normalised vector: norm * vector."""
        return self.vector * self.norm

    def __repr__(self) -> str:
        """One line without the numbers of the vector."""
        width = self.vector.shape[0]
        return f"Direction(width {width}, norm {self.norm:.4g}, position {self.position}, layer {self.layer})"


@dataclass(frozen=True, init=False)
class Ablate:
    """Directional ablation, x - a r (r.x), at every residual writer and at all positions, generated tokens included.

    Arditi et al. 2024, section 2.4, with a = 1.
    """

    direction: Direction
    strength: float = 1.0
    """a: 0 changes nothing, 1 removes the component along r, 2 reflects it. In mode `exact` the share a of every write
    along r is removed. In mode `coarse` every block input and output is edited in turn."""
    spared: int = 0
    """Tokens at the start of a text that are not edited, generated tokens not counted. In many models the first one has
    a massive activation on which attention rests (Sun et al. 2024, arXiv 2402.17762)."""

    @checked
    def __init__(self, direction: Direction | Tensor, strength: float = 1.0, spared: int = 0):
        """A bare vector of any norm is accepted, because an ablation uses neither norm nor layer."""
        if isinstance(direction, Tensor):
            if direction.ndim != 1 or not direction.is_floating_point():
                raise DirectionError(
                    f"Ablate: given a tensor of {direction.dtype} and shape {tuple(direction.shape)}, expected a "
                    "Direction or one floating-point vector [d_model]. Use AblateSpan for several vectors."
                )
            direction = Direction.from_vector(direction, -1, 0)
        if not 0 <= strength <= 2:
            raise ProtocolError(
                f"Ablate.strength is {strength}. Use 0 (removes nothing) to 1 (removes all), at most 2."
            )
        if spared < 0:
            raise ProtocolError(f"Ablate.spared is {spared}. Use a number of tokens, 0 for none.")
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "spared", spared)


@dataclass(frozen=True)
class AblateSpan:
    """Ablation of a subspace, x - a B^T B x with orthonormal rows of B, at the hook points of `Ablate`."""

    basis: Float[Tensor, "rank d_model"]
    """Orthonormal rows, float32, on the CPU. Every basis of the subspace has the same effect."""
    strength: float = 1.0
    """a, as of `Ablate`."""
    spared: int = 0
    """As of `Ablate`."""

    def __post_init__(self):
        check_fields(self)
        if not 0 <= self.strength <= 2 or self.spared < 0:
            raise ProtocolError(
                f"AblateSpan.strength is {self.strength} and spared is {self.spared}. Use a strength of 0 (removes "
                "nothing) to 1, at most 2, and a number of tokens, 0 for none."
            )
        basis = self.basis.detach()
        apart = basis @ basis.T - torch.eye(len(basis))
        if not (len(basis) and float(apart.abs().max()) < 1e-3):
            raise DirectionError(
                "AblateSpan.basis must have at least one row, and orthonormal rows. Use torch.linalg.qr."
            )


@dataclass(frozen=True)
class Add:
    """Activation addition, x + coefficient * norm * r, at the input of one block.

    Arditi et al. 2024, section 2.4: coefficient +1 induces, -1 bypasses; all positions, generated tokens included.
    """

    direction: Direction
    coefficient: float = 1.0
    """In units of the norm of the direction."""
    positions: Literal["all", "prompt"] = "all"
    """`prompt`: generated tokens are not changed."""

    def __post_init__(self):
        check_fields(self)
        if not math.isfinite(self.coefficient):
            raise ProtocolError(f"Add.coefficient is {self.coefficient}. Use a finite number.")


Intervention = Ablate | AblateSpan | Add | Affine | Rotate | AblateByLayer


@dataclass(frozen=True)
class Arm:
    """A named set of interventions; a prompt runs under one arm."""

    name: str
    interventions: tuple[Intervention, ...] = ()
    window: Window = EVERYWHERE
    """Tokens on which they act."""

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "interventions", tuple(self.interventions))

    @property
    def key(self) -> Hashable:
        """A key that is equal for arms with equal interventions on the same tokens, whatever their names."""
        return _key((self.interventions, self.window))


def _key(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.detach().cpu().numpy().tobytes())
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value), *(_key(getattr(value, field.name)) for field in fields(value)))
    return value


BASELINE = Arm("baseline")
