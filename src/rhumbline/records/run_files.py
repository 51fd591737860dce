"""agreement.json, timings.json and discover.json: the files of a run directory that belong to no seed."""

from dataclasses import dataclass

from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    ByLabel,
    Label,
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
class SiteSeparation:
    """How well the projection on one candidate separates the classes, without intervention; None: not finite."""

    position: Position
    layer: int
    auroc: float | None
    """AUROC of the projection, positives over negatives."""
    cosine: float | None
    """Cosine between the training means of the classes."""
    norm: float | None
    """Length of the difference in means, in units of the residual stream."""


@dataclass(frozen=True)
class Projection:
    """The projection of one prompt on the selected direction, without intervention."""

    prompt_id: str
    label: Label
    """Its class."""
    projection: float | None
    """Projection onto the unit direction, in units of the residual stream; None: not finite."""


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
