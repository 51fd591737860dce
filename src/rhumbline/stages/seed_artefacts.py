"""The artefacts of one seed: a run directory and a seed number give records, tensors, the direction and its nulls.

Every file is read once. Independent of models and prompts.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from rhumbline.axes import Candidates
from rhumbline.inference.interventions import Direction
from rhumbline.records.codec import R
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Extracted, NullDirections, Selection


@dataclass(frozen=True)
class Null:
    """A null direction: drawn independently of the behaviour, with the norm of the direction."""

    family: str
    draw: int
    direction: Direction
    cosine: float
    """Cosine with the direction that it is compared with."""
    energy: float
    """Share of the squared norm of the stream that lies along it, at the site of the direction; ablation removes it."""


@dataclass(frozen=True)
class SeedArtefacts:
    """The files of one seed, read when they are first used."""

    directory: RunDirectory
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of the seed."""
        return self.directory.seed(self.seed)

    def read(self, kind: type[R]) -> R:
        """The record of one file of the seed."""
        return self.directory.read_record(kind, self.seed)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file of the seed."""
        return self.directory.load_tensors(self.folder / name)

    @cached_property
    def extraction(self) -> Extracted:
        """Positions, and the train and validation prompts that the sign of the metric kept."""
        return self.read(Extracted)

    @cached_property
    def selection(self) -> Selection:
        """The scores of the candidates and the selected one."""
        return self.read(Selection)

    @property
    def positions(self) -> tuple[Position, ...]:
        """Positions at which candidates were read."""
        return self.extraction.positions

    @cached_property
    def candidates(self) -> Candidates:
        """Differences in means, not normalised."""
        return self.tensors("directions.safetensors")["candidates"]

    def direction_at(self, position: Position, layer: int) -> Direction:
        """The candidate at one site, normalised."""
        return Direction.from_vector(self.candidates[self.positions.index(position), layer], position, layer)

    @cached_property
    def direction(self) -> Direction | None:
        """The selected direction; None if no candidate was selected."""
        cell = self.selection.selected
        return None if cell is None else self.direction_at(cell.position, cell.layer)

    @property
    def coefficient(self) -> float:
        """The coefficient of the additions of the seed, in units of the norm of the direction."""
        return self.selection.addition_coefficient

    @cached_property
    def nulls(self) -> list[Null]:
        """The null directions; empty if no candidate was selected."""
        if self.direction is None:
            return []
        rows, vectors = self.read(NullDirections).nulls, self.tensors("nulls.safetensors")["nulls"]
        return [
            Null(r.family, r.draw, Direction.from_vector(v, r.position, r.layer), r.cosine, r.energy)
            for r, v in zip(rows, vectors, strict=True)
        ]
