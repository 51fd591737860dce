"""analyses/steering.json: additions of random vectors to positives, by their size, as records."""

from dataclasses import dataclass
from typing import Literal

from rhumbline.records.analysis_files import MeanRate, Rate
from rhumbline.records.plan_checks import outside, refuse, too_small
from rhumbline.records.shared import Site

LARGEST_SIZE = 16.0
"""Largest permitted size, in norms of the residual stream."""


@dataclass(frozen=True)
class SteeringPlan:
    """What is measured."""

    sizes: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Norms of the random vectors, in norms of the residual stream at their layer."""
    draws: int = 4
    """Random vectors, the same at every size."""
    prompts: int = 24
    """Test positives, at most."""
    max_new_tokens: int = 32
    """Longest completion, in tokens."""

    def __post_init__(self):
        sizes = f"numbers above 0 and up to {LARGEST_SIZE:g}"
        refuse(
            "steering",
            outside("sizes", self.sizes, lambda size: 0 < size <= LARGEST_SIZE, sizes),
            too_small(self, draws=1, prompts=2, max_new_tokens=1),
        )


QUICK = SteeringPlan(sizes=(0.5, 1.0, 2.0), draws=2, prompts=12, max_new_tokens=24)
"""A first answer with few prompts."""


@dataclass(frozen=True, kw_only=True)
class SteeredRates:
    """Rates on positives under the additions of one size, over all draws; `n` of a rate is the number of prompts."""

    size: float
    """0: the baseline."""
    refused: Rate | None
    """Share that shows the behaviour; None if no completion was scored, as below."""
    complied: Rate | None
    degenerate: Rate | None
    harmful: Rate | None = None
    """Share that the judge of harm calls unsafe; None without such a judge."""
    unscored: int
    """Completions without a class. They are in no rate."""
    drop: MeanRate | None = None
    """Paired fall of the behaviour; a degenerate completion is no removal. None for the baseline."""
    by_draw: tuple[float | None, ...]
    """Share that shows the behaviour under every draw."""


@dataclass(frozen=True, kw_only=True)
class SteeringRecord:
    """analyses/steering.json: additions of random vectors to positives (Rogue Scalpel, arXiv 2509.22067)."""

    analysis: Literal["steering"] = "steering"
    seed: int
    site: Site
    """The layer of the additions, and the position at which the norm of the stream was read."""
    parameters: SteeringPlan
    norm: float
    """Mean norm of the residual stream of the positives at the site, to which the sizes refer."""
    judge: str
    harm_judge: str | None = None
    """Judge of harm; None: harm was not judged."""
    rows: tuple[SteeredRates, ...]
    """The baseline, then every size."""
