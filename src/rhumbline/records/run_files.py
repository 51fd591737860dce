"""The files of a run directory that belong to no seed, apart from results.json, as records."""

from dataclasses import dataclass

from msgspec import Struct, field

from rhumbline.records.seed_files import Projection, SiteSeparation
from rhumbline.records.shared import (
    ByLabel,
    ModelFacts,
    SeedPair,
    Split,
    StageTiming,
)


@dataclass(frozen=True)
class Agreement:
    """agreement.json: every two seeds that selected a direction."""

    pairs: tuple[SeedPair, ...]
    """In the order of the seeds; empty if fewer than two selected one."""


@dataclass(frozen=True)
class StageTimings:
    """timings.json; it has no stamp, and no result depends on it."""

    stages: tuple[StageTiming, ...]
    """In the order in which they ended."""


@dataclass(frozen=True)
class Discovery:
    """discover.json: where the classes separate on validation prompts."""

    seed: int
    """Seed of the splits."""
    model: ModelFacts
    train: ByLabel[int]
    """Number of training prompts."""
    split: Split
    """The split: val."""
    n: ByLabel[int]
    """Number of prompts (of a contrast of texts: rows)."""
    grid: tuple[SiteSeparation, ...]
    """Every candidate, by position and layer; the last token of the instruction comes first."""
    projections: tuple[Projection, ...]
    """Always empty: nothing is selected."""


Figure = tuple[int, int] | int | float | str | None
"""A site as (position, layer), a layer, a rate, a verdict; None if it was not measured."""


class FigureComparison(Struct, frozen=True, kw_only=True):
    """One figure of a run, compared with the published one."""

    what: str
    """Name of the figure."""
    seed: int | None
    """None for a figure of the whole run."""
    measured: Figure = field(name="found")
    published: Figure
    tolerance: str
    """What counts as agreement, in words."""
    agrees: bool | None
    """None if the figure was not measured, or if the samples are too small to compare."""


@dataclass(frozen=True)
class Reproduction:
    """reproduction.json: a run of a published model, compared with the published figures."""

    model: str
    """Name of the published model."""
    rows: tuple[FigureComparison, ...]


class Check(Struct, frozen=True, kw_only=True):
    """One requirement of a reproduction, checked without weights."""

    what: str
    """Name of the requirement."""
    ok: bool | None
    """None if it could not be checked here."""
    detail: str = field(name="told")
    """What was read, and what is expected."""
