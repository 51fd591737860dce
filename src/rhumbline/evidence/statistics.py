"""Intervals, tests and ranks: arrays of outcomes or scores -> a number with its n, its interval or its p-value.

Independent of rows, models and margins.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

from rhumbline.errors import InputError

K = TypeVar("K", bound=Hashable)


def finite_or_none(value: float | None) -> float | None:
    """The number, or None for a NaN or an infinity, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


# -- intervals --------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """rate(before) - rate(after) on the same prompts."""

    mean: float
    low: float
    high: float
    n: int


class Mean(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of k out of n; (0, 1) for n = 0. Wilson 1927, JASA 22:209."""
    return _proportion_interval(k, n, level, "wilson")


def exact_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of k out of n; (0, 1) for n = 0. Biometrika 1934, 26:404.

    Its coverage is at least `level` for every rate.
    """
    return _proportion_interval(k, n, level, "exact")


@cache
def _proportion_interval(k: int, n: int, level: float, method: str) -> Interval:
    if not (0 <= k <= n and 0 < level < 1):
        raise InputError(f"An interval of {k} out of {n} at level {level}: expected 0 <= k <= n and 0 < level < 1.")
    if n == 0:
        return Interval(0.0, 1.0)
    interval = stats.binomtest(k, n).proportion_ci(level, method=method)
    return Interval(float(interval.low), float(interval.high))


def paired_difference(
    before: Bool[np.ndarray, " prompt"] | Float[np.ndarray, " prompt"],
    after: Bool[np.ndarray, " prompt"] | Float[np.ndarray, " prompt"],
    level: float = 0.95,
) -> Difference:
    """rate(before) - rate(after) with Newcombe's interval for paired proportions; NaN in [-1, 1] without prompts.

    A value between 0 and 1 is the share of several draws of one prompt. Its variance is taken as that of one draw, so
    the interval is conservative.

    Method 10 of Newcombe 1998 (Stat Med 17:2635): with p, [l, u] the two rates and their Wilson intervals,

        low  = d - sqrt((p1 - l1)^2 - 2 phi (p1 - l1)(u2 - p2) + (u2 - p2)^2)
        high = d + sqrt((u1 - p1)^2 - 2 phi (u1 - p1)(p2 - l2) + (p2 - l2)^2)

    where phi is the correlation of the pairs. A positive numerator of phi is reduced by n/2, but not below 0.
    """
    n, k1, k2, both = len(before), before.sum().item(), after.sum().item(), (before * after).sum().item()
    if n == 0:
        return Difference(math.nan, -1.0, 1.0, 0)
    p1, p2 = k1 / n, k2 / n
    (l1, u1), (l2, u2) = (
        wilson(int(k), n, level) if k == int(k) else wilson_of_rate(k / n, n, level) for k in (k1, k2)
    )
    excess = both * n - k1 * k2  # = both * neither - only_before * only_after
    if excess > 0:
        excess = max(excess - n / 2, 0)
    spread = k1 * (n - k1) * k2 * (n - k2)
    phi = excess / math.sqrt(spread) if spread else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    d = (k1 - k2) / n
    return Difference(d, max(d - half(p1 - l1, u2 - p2), -1.0), min(d + half(u1 - p1, p2 - l2), 1.0), n)


def wilson_of_rate(rate: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a rate for which rate * n need not be whole, such as the mean rate of several arms."""
    if n <= 0:
        return Interval(0.0, 1.0)
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def difference_of_rates(
    before: float, after: float, n: float, level: float = 0.95, *, n_after: float | None = None
) -> Difference:
    """before - after for two rates over n prompts, treated as independent: Newcombe's method 10.

    For rates that are means over arms or seeds and therefore have no single pairing. The interval is too wide if the
    outcomes of a prompt are positively correlated. `n_after`: the prompts of the second rate, if these are others.
    """
    n_after = n if n_after is None else n_after
    if n <= 0 or n_after <= 0:
        return Difference(math.nan, -1.0, 1.0, 0)
    low, high = difference_of_two_samples(before, n, after, n_after, level)
    return Difference(before - after, low, high, int(n))


def difference_of_two_samples(rate: float, n: float, other: float, other_n: float, level: float = 0.95) -> Interval:
    """Interval of rate - other for two samples of n and other_n prompts: Newcombe 1998, Stat Med 17:873, method 10."""
    (l1, u1), (l2, u2) = wilson_of_rate(rate, n, level), wilson_of_rate(other, other_n, level)
    d = rate - other
    low, high = d - math.hypot(rate - l1, u2 - other), d + math.hypot(u1 - rate, other - l2)
    return Interval(max(low, -1.0), min(high, 1.0))


LEAST_RESAMPLED = 8
"""Smallest number of prompts for which the bounds on damage and KL read a bootstrap interval, by convention. The
interval of fewer prompts is too narrow: it has no width for one prompt, and never exceeds their range."""


def bootstrap_mean(
    values: Float[np.ndarray, " prompt"],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 10_000,
    least: int = 1,
) -> Mean:
    """Mean of a continuous score with its percentile bootstrap interval (Efron 1979).

    The interval is NaN with fewer than `least` prompts, and the mean without prompts.
    """
    n = len(values)
    if n < max(1, least):
        return Mean(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
    # In pieces, so that the table of indices stays small.
    per_piece = max(1, 1_000_000 // n)
    sizes = [min(per_piece, draws - start) for start in range(0, draws, per_piece)]
    means = np.concatenate([values[rng.integers(n, size=(size, n))].mean(1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(values.mean()), float(low), float(high), n)


def bootstrap_share(
    change: Float[np.ndarray, " changed"],
    upper: Float[np.ndarray, " upper"],
    lower: Float[np.ndarray, " lower"],
    rng: np.random.Generator,
    *,
    of_upper: bool,
    draws: int = 1000,
) -> Mean:
    """mean(change) / (mean(upper) - mean(lower)) with its 95 % percentile bootstrap interval.

    `change` belongs to the prompts of `upper`, or of `lower`; both groups are resampled, so that the interval counts
    the variance of the difference; resamples without a positive difference are left out. The interval is NaN with
    fewer than `LEAST_RESAMPLED` prompts in a group, or if half of the resamples have no positive difference.
    """
    value, n = float(change.mean() / (upper.mean() - lower.mean())), len(change)
    if min(len(upper), len(lower)) < LEAST_RESAMPLED:
        return Mean(value, math.nan, math.nan, n)
    i, j = (rng.integers(len(group), size=(draws, len(group))) for group in (upper, lower))
    differences, changes = upper[i].mean(1) - lower[j].mean(1), change[i if of_upper else j].mean(1)
    known = differences > 0
    if known.mean() <= 0.5:
        return Mean(value, math.nan, math.nan, n)
    low, high = np.quantile(changes[known] / differences[known], [0.025, 0.975])
    return Mean(value, float(low), float(high), n)


def bootstrap_ratio(
    sums: Float[np.ndarray, " document"],
    sizes: Float[np.ndarray, " document"],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 10_000,
) -> Mean:
    """sum(sums) / sum(sizes), a mean over the tokens of documents, with its percentile bootstrap interval.

    Whole documents are resampled, because the tokens of one document are correlated. NaN without tokens.
    """
    n = len(sums)
    if n == 0 or not sizes.sum():
        return Mean(math.nan, math.nan, math.nan, n)
    per_piece = max(1, 1_000_000 // n)
    pieces = [min(per_piece, draws - start) for start in range(0, draws, per_piece)]
    ratios = []
    for size in pieces:
        rows = rng.integers(n, size=(size, n))
        ratios.append(sums[rows].sum(1) / sizes[rows].sum(1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(sums.sum() / sizes.sum()), float(low), float(high), n)


# -- tests ------------------------------------------------------------------------------------------------------------


def mcnemar(before: Bool[np.ndarray, " prompt"], after: Bool[np.ndarray, " prompt"]) -> float:
    """Exact two-sided p that `before` and `after` have the same rate: a sign test of the discordant pairs.

    McNemar 1947, Psychometrika 12:153. 1 without a discordant pair.
    """
    only_before, only_after = int((before & ~after).sum()), int((~before & after).sum())
    if only_before + only_after == 0:
        return 1.0
    return float(stats.binomtest(only_before, only_before + only_after).pvalue)


class Ranking(NamedTuple):
    """How many null draws reach an observed value."""

    beaten: int
    """Draws that are at least as large. A NaN, observed or drawn, counts as one."""
    draws: int

    @classmethod
    def of(cls, observed: float, null: Sequence[float]) -> "Ranking":
        """The ranking of an observed value among null draws."""
        # Rates of n prompts differ by 1/n at least, so this tolerance only absorbs rounding.
        return cls(sum(not value < observed - 1e-9 for value in null), len(null))

    def p(self, least_draws: int = 0) -> float | None:
        """(1 + beaten) / (1 + draws), one-sided (Phipson and Smyth 2010); None for fewer draws, and without any."""
        return None if self.draws < max(1, least_draws) else (1 + self.beaten) / (1 + self.draws)


def rank_p(observed: float, null: Sequence[float]) -> float:
    """(1 + #{null >= observed}) / (1 + draws): one-sided, valid for any number of draws (Phipson and Smyth 2010).

    At least `rank_floor(len(null))`. A NaN, observed or null, counts as a draw that reaches the observed value.
    """
    beaten, draws = Ranking.of(observed, null)
    return (1 + beaten) / (1 + draws)


def rank_floor(draws: int) -> float:
    """The smallest possible rank p: 1 / (1 + draws)."""
    return 1 / (1 + draws)


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """p-values after Holm's step-down adjustment, in the given order (Scand J Stat 1979, 6:65).

    Rejecting those below alpha has a family-wise error rate of at most alpha. In ascending order, the i-th of m
    (from 0) becomes max over j <= i of (m - j) p_j, at most 1.
    """
    adjusted: dict[K, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa of two judges on the same items: (agreement - chance) / (1 - chance).

    Chance agreement follows from the shares of each judge's classes. NaN if it is 1, and without items. Cohen 1960,
    Educ Psychol Meas 20:37.
    """
    if len(one) != len(other):
        raise InputError(
            f"kappa of {len(one)} and {len(other)} judgements: expected one of each judge per item. Pass equal lengths."
        )
    n = len(one)
    if n == 0:
        return math.nan
    agreement = sum(a == b for a, b in zip(one, other, strict=True)) / n
    chance = sum(one.count(c) * other.count(c) for c in set(one)) / n**2
    return math.nan if chance == 1 else (agreement - chance) / (1 - chance)


def auroc(positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]) -> float:
    """Probability that a positive value exceeds a negative one; ties count half (Mann and Whitney 1947)."""
    if not (len(positive) and len(negative)):
        raise InputError(
            f"AUROC of {len(positive)} positive and {len(negative)} negative values: pass at least one of each."
        )
    both = np.concatenate([positive, negative])
    if np.isnan(both).any():
        return math.nan
    rank_sum = stats.rankdata(both)[: len(positive)].sum()
    return float((rank_sum / len(positive) - (len(positive) + 1) / 2) / len(negative))


def decision_threshold(values: Float[np.ndarray, " row"], shows: Bool[np.ndarray, " row"]) -> float:
    """The threshold nearest to 0 that predicts `shows` from `values > threshold` about as well as the best one.

    *About as well*: its errors are within one standard error of the fewest (Breiman et al. 1984, section 3.4.3).
    Candidates are 0 and the middle between two neighbouring values, so both outcomes must occur. Values that are not
    finite are left out.
    """
    known = np.isfinite(values)
    values, shows = values[known], shows[known]
    distinct = np.unique(values)
    candidates = np.append((distinct[1:] + distinct[:-1]) / 2, 0.0)
    errors = np.array([np.count_nonzero((values > t) != shows) for t in candidates])
    best = errors.min()
    allowed = candidates[errors <= best + math.sqrt(best * (1 - best / max(len(values), 1)))]
    return float(allowed[np.abs(allowed).argmin()])


def auroc_interval(value: float, n_positive: int, n_negative: int, level: float = 0.95) -> Interval:
    """Interval of an AUROC within [0, 1], of positive width for 0 and 1 as well; (0, 1) for a NaN.

    Newcombe 2006 (Stat Med 25:559), method 5: all theta with |theta - value| <= z sqrt(V(theta)), where

        V(theta) = theta (1 - theta) [1 + k (1 - theta) / (2 - theta) + k theta / (1 + theta)] / (m n)

    is Hanley and McNeil's variance with both sample sizes in the bracket replaced: k = (m + n) / 2 - 1.
    """
    if math.isnan(value) or not (n_positive and n_negative):
        return Interval(0.0, 1.0)
    z, k = float(stats.norm.ppf((1 + level) / 2)), (n_positive + n_negative) / 2 - 1

    def excess(theta: float) -> float:
        inner = 1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta)
        return abs(theta - value) - z * math.sqrt(theta * (1 - theta) * inner / (n_positive * n_negative))

    # The variance is 0 at theta = 0 and 1, so these roots are not the bounds.
    edge = 1e-9
    low = 0.0 if value <= edge else optimize.root_scalar(excess, bracket=(0.0, min(value, 1 - edge))).root
    high = 1.0 if value >= 1 - edge else optimize.root_scalar(excess, bracket=(max(value, edge), 1.0)).root
    return Interval(float(low), float(high))
