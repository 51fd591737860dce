"""Values that several analyses report. `low` and `high` are the ends of a 95 % interval.

A value is None if it is not finite, or if there is no prompt to compute it from.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its bootstrap interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    """Prompts."""


@dataclass(frozen=True)
class MeanRate:
    """A rate, or a difference of two rates, in the form of a mean."""

    mean: float
    """Rate, 0 to 1 (Wilson's interval), or difference of rates, -1 to 1 (Newcombe's interval)."""
    low: float
    high: float
    n: int
    """Prompts."""


@dataclass(frozen=True)
class Rate:
    """A share of prompts with Wilson's interval."""

    rate: float
    """Share, 0 to 1; the mean over texts if several texts share their prompts."""
    low: float
    high: float
    n: int
    """Prompts."""


@dataclass(frozen=True)
class Auroc:
    """Probability that a positive has a larger projection than a negative."""

    value: float | None
    """AUROC, 0 to 1."""
    low: float
    high: float
    n: int
    """Prompts of both classes."""


@dataclass(frozen=True)
class LayerMean:
    """A mean over prompts in one layer."""

    layer: int
    mean: float | None
    low: float | None
    high: float | None
    n: int
    """Prompts."""


@dataclass(frozen=True)
class LayerCosine:
    """Cosine of two vectors of one layer."""

    layer: int
    cosine: float | None
    """None if a vector is zero."""


@dataclass(frozen=True)
class NullRank:
    """A statistic of the draws of a null family, and the rank of the direction among them."""

    mean: float | None
    """Mean over the draws."""
    max: float | None
    """Largest of the draws."""
    p: float
    """Rank p of the direction."""


@dataclass(frozen=True)
class TrainTest(Generic[T]):
    """One value for the training prompts and one for the test prompts."""

    train: T
    test: T


@dataclass(frozen=True)
class ValTest(Generic[T]):
    """One value for the validation prompts and one for the test prompts."""

    val: T
    test: T
