"""The files of a run directory that belong to no seed, apart from results.json, as records."""

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, ValidationError, field

from rhumbline.errors import OutputError
from rhumbline.records.codec import convert
from rhumbline.records.files import read_json
from rhumbline.records.seed_files import Separation, SiteSeparation
from rhumbline.records.shared import (
    ByLabel,
    ModelFacts,
    SeedPair,
    StageTiming,
)


@dataclass(frozen=True)
class Agreement:
    """agreement.json: every two seeds that selected a direction, in the order of the seeds."""

    pairs: tuple[SeedPair, ...]


TIMINGS = "timings.json"


@dataclass(frozen=True)
class StageTimings:
    """timings.json; it has no stamp, and no result depends on it."""

    stages: tuple[StageTiming, ...]
    """In the order in which they ended."""

    def __post_init__(self):
        for stage in self.stages:
            if min(stage.seconds, stage.cpu_seconds or 0.0, stage.peak_memory_mb) < 0:
                raise ValueError(f"stage {stage.stage[:40]!r} has a negative number")


def read_timings(path: Path) -> StageTimings:
    """The content of timings.json. Raises OutputError that names the faulty field."""
    try:
        return convert(read_json(path), StageTimings)
    except ValidationError as error:
        raise OutputError(f"{path} is not what rhumbline writes there: {error}. Remove it.") from error


@dataclass(frozen=True, kw_only=True)
class Discovery(Separation):
    """discover.json: where the classes separate on validation prompts; no projections, since nothing is selected.

    `n` is the number of prompts of the smallest seed, and the grid has means over seeds.
    """

    seed: int
    """The first seed."""
    seeds: tuple[int, ...] = ()
    """Empty in older directories, which have one seed."""
    model: ModelFacts
    train: ByLabel[int]
    """Training prompts of the smallest seed."""

    def ranked(self) -> list[SiteSeparation]:
        """The sites from the largest AUROC down; equal ones from the smallest cosine of the means up."""
        return sorted(self.grid, key=lambda s: (_or_last(s.auroc and -s.auroc), _or_last(s.cosine)))

    def ties(self) -> int:
        """How many sites have the largest AUROC."""
        known = [site.auroc for site in self.grid if site.auroc is not None]
        return known.count(max(known, default=0.0))


def _or_last(value: float | None) -> float:
    """A sort key: what was not measured comes last."""
    return math.inf if value is None else value


Figure = tuple[int, int] | int | float | str | None
"""A site as (position, layer), a layer, a rate, a verdict; None if it was not measured."""


class FigureStatus(StrEnum):
    """What the comparison of a figure says."""

    AGREES = "agrees"
    DIFFERS = "differs"
    NO_INTERVAL = "measured, no interval"
    """Neither agreement nor difference can be stated."""
    NOT_MEASURED = "not measured"


class FigureComparison(Struct, frozen=True, kw_only=True):
    """One figure of a run, compared with the published one."""

    what: str
    seed: int | None
    """None for a figure of the whole run."""
    measured: Figure = field(name="found")
    published: Figure
    tolerance: str
    """What counts as agreement, in words."""
    agrees: bool | None
    """None if the figure was not measured, or has no interval."""
    low: float | None = None
    """Lower end of the 95 % interval of the measured figure."""
    high: float | None = None
    source: str = ""
    """Where the figure was published."""
    needs: str = ""
    """What a figure takes that was not measured."""

    @property
    def status(self) -> FigureStatus:
        """The status of the figure."""
        if self.measured is None:
            return FigureStatus.NOT_MEASURED
        if self.agrees is None:
            return FigureStatus.NO_INTERVAL
        return FigureStatus.AGREES if self.agrees else FigureStatus.DIFFERS


@dataclass(frozen=True)
class Reproduction:
    """reproduction.json: a run of a published model, compared with the published figures."""

    model: str
    rows: tuple[FigureComparison, ...]


class Check(Struct, frozen=True, kw_only=True):
    """One requirement of a reproduction, checked without weights."""

    what: str
    ok: bool | None
    """None if it could not be checked here."""
    detail: str = field(name="told")
    """What was read, and what is expected."""
