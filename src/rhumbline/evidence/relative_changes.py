"""Relative changes: what share of the behaviour (or of its absence) an intervention removes, with its interval.

Every function reads one value per prompt between 0 and 1: 1 if what the intervention should remove is present, or a
mean over seeds or draws. Independent of arms, classes and margins.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from rhumbline.evidence.statistics import Interval, finite_or_none, wilson_of_rate
from rhumbline.records.effect_results import RelativeChange

LEAST_UNITS = 5
"""Smallest number of categories that are resampled; fewer are treated as fixed."""
RESAMPLES = 2000
"""Bootstrap draws of the categories."""

Presence = Float[np.ndarray, " prompt"]


class Change(NamedTuple):
    """1 - after / before, with its interval; NaN if nothing was present before."""

    value: float
    low: float
    high: float
    n: int
    units: int | None = None
    """Categories that were resampled; None if prompts were treated as independent."""


def relative_change(before: Presence, after: Presence, categories: Sequence[Hashable | None] = ()) -> Change:
    """1 - sum(after) / sum(before) over paired prompts, with its 95 % interval.

    The interval is that of Bonett and Price for a paired ratio. If the prompts belong to at least `LEAST_UNITS`
    categories, it is widened to value +- t sd, where sd is the standard deviation over resampled categories and t has
    one degree of freedom less than there are categories.
    """
    n, k1, k2 = len(before), float(before.sum()), float(after.sum())
    if k1 <= 0:
        return Change(math.nan, math.nan, math.nan, n)
    ratio = paired_ratio(k1, k2, float((before * after).sum()))
    value, low, high = 1 - k2 / k1, 1 - ratio.high, 1 - ratio.low
    units = resampled_units(categories)
    if units is None:
        return Change(value, low, high, n)
    sums = np.stack([np.bincount(units, weights=x) for x in (before, after)])
    half = unit_half_width(sums, lambda s: 1 - s[1] / s[0])
    return Change(value, min(low, value - half), max(high, value + half), n, sums.shape[1])


def paired_ratio(before: float, after: float, both: float, level: float = 0.95) -> Interval:
    """The interval of after / before for paired counts, which need not be whole: Bonett and Price's.

    Stat Med 25:3039 (2006), with Wilson's intervals. With m prompts that are counted at least once,

        z' = z A / (B + C),   A^2 = (before + after - 2 both + 2) / ((before + 1)(after + 1)),
        B^2 = (1 - (before + 1) / (m + 2)) / (before + 1),   C^2 likewise for after,

    and the interval is [l2 / u1, u2 / l1] for the Wilson intervals of before / m and after / m at z'.
    """
    m = before + after - both
    a = math.sqrt((before + after - 2 * both + 2) / ((before + 1) * (after + 1)))
    b, c = (math.sqrt(max(0.0, 1 - (k + 1) / (m + 2)) / (k + 1)) for k in (before, after))
    z = float(stats.norm.ppf((1 + level) / 2)) * a / (b + c)
    own_level = 2 * float(stats.norm.cdf(z)) - 1
    (l1, u1), (l2, u2) = (wilson_of_rate(min(1.0, k / m), m, own_level) for k in (before, after))
    return Interval(l2 / u1, u2 / l1 if l1 > 0 else math.inf)


class Paired(NamedTuple):
    """What an intervention should remove, on the prompts that one arm completed."""

    prompts: Sequence[str]
    before: Presence
    after: Presence
    categories: Sequence[str | None]

    @property
    def change(self) -> float:
        """1 - after / before; NaN if nothing was present."""
        before = float(self.before.sum())
        return 1 - float(self.after.sum()) / before if before > 0 else math.nan

    @classmethod
    def mean(cls, draws: Sequence["Paired"]) -> "Paired":
        """The mean over draws, prompt by prompt; the draws may have completed different prompts."""
        rows: dict[str, list[tuple[float, float]]] = {}
        category: dict[str, str | None] = {}
        for draw in draws:
            category |= dict(zip(draw.prompts, draw.categories, strict=True))
            for prompt, before, after in zip(draw.prompts, draw.before.tolist(), draw.after.tolist(), strict=True):
                rows.setdefault(prompt, []).append((before, after))
        means = np.array([np.mean(some, axis=0) for some in rows.values()]).reshape(-1, 2)
        return cls(list(rows), means[:, 0], means[:, 1], list(category.values()))


def gap_to_nulls(direct: Change, nulls: Sequence[Paired], families: Sequence[Sequence[Paired]] = ()) -> Change:
    """The relative change by the direction minus the mean one by the draws of a null family, with its interval.

    The half-widths of the two are added in quadrature. That of the mean over the draws is the larger one of
    `draws_half_width` and of the interval for independent prompts, since the spread between draws contains the sampling
    of their prompts (draws on the same prompts: docs/log.md, 2026-11-30). What categories add to the second is added.
    `families` holds the draws of every family. Without draws of the family the gap is not known.
    """
    if not nulls or math.isnan(direct.value):
        return direct._replace(value=math.nan, low=math.nan, high=math.nan)
    pooled = Paired.mean(nulls)
    mean, alone = (relative_change(pooled.before, pooled.after, some) for some in (pooled.categories, ()))
    draws = draws_half_width(_deviations(nulls), [_deviations(some) for some in families])

    def half_width(with_categories: float, independent: float) -> float:
        added = math.sqrt(max(0.0, with_categories**2 - independent**2))
        return math.hypot(float(np.maximum(independent, draws)), added)

    gap = direct.value - mean.value
    below = math.hypot(direct.value - direct.low, half_width(mean.high - mean.value, alone.high - alone.value))
    above = math.hypot(direct.high - direct.value, half_width(mean.value - mean.low, alone.value - alone.low))
    return direct._replace(value=gap, low=gap - below, high=gap + above)


def _deviations(draws: Sequence[Paired]) -> list[float]:
    """(after - R before) / mean(before) of every draw, for the ratio R of all; their mean is 0.

    The standard deviation of a ratio of means over draws is theirs (Cochran, Sampling Techniques, 6.4). Unlike a change
    of each draw it also exists for a draw on whose few prompts nothing was present. Empty without anything present.
    """
    before, after = (
        np.array([getattr(draw, side).mean() for draw in draws if len(draw.prompts)]) for side in ("before", "after")
    )
    if not before.sum() > 0:
        return []
    return ((after - after.sum() / before.sum() * before) / before.mean()).tolist()


def draws_half_width(family: Sequence[float], families: Sequence[Sequence[float]] = (), level: float = 0.95) -> float:
    """Half-width of the t interval of the mean over the draws of a family.

    The standard deviation is that of the family, or the one within all families (analysis of variance) if that is
    larger. The degrees of freedom are those within all families. NaN if no family has a second draw.
    """
    own = [x for x in family if not math.isnan(x)]
    groups = [[x for x in some if not math.isnan(x)] for some in (families or [own])]
    freedom = sum(len(some) - 1 for some in groups if some)
    if not own or freedom < 1:
        return math.nan
    squares = math.fsum(float(np.var(some)) * len(some) for some in groups if some)
    deviations = [math.sqrt(squares / freedom), *([float(np.std(own, ddof=1))] if len(own) > 1 else [])]
    return float(stats.t.ppf((1 + level) / 2, freedom)) * max(deviations) / math.sqrt(len(own))


def record(*countings: Change, draws: int | None = None) -> RelativeChange:
    """The record of a change, counted with degenerate completions against the effect and then in its favour.

    If the upper end is unknown in one of the two, `high` is None, so that no `most` always means that it is `high`.
    """
    against, in_favour = countings
    value, low, high = (finite_or_none(float(x)) for x in (against.value, against.low, against.high))
    most = finite_or_none(float(np.maximum(against.high, in_favour.high)))
    high = None if most is None else high
    return RelativeChange(
        value=value,
        low=low,
        high=high,
        n=against.n,
        most=None if most == high else most,
        draws=draws,
        units=against.units,
    )


# -- categories -------------------------------------------------------------------------------------------------------


def resampled_units(categories: Sequence[Hashable | None]) -> np.ndarray | None:
    """The number of the category of every prompt, or None if there are too few to resample.

    A prompt without a category is a unit of its own.
    """
    names = [("", i) if name is None else name for i, name in enumerate(categories)]
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(known) < LEAST_UNITS or len(known) == len(names):
        return None
    return np.array([known[name] for name in names])


def unit_half_width(
    sums: Float[np.ndarray, "quantity unit"], statistic: Callable[[np.ndarray], np.ndarray], level: float = 0.95
) -> float:
    """Half-width of the interval of a statistic of sums over prompts, from resampled units.

    The standard deviation of the statistic over `RESAMPLES` bootstrap samples of the units, with the factor
    sqrt(units / (units - 1)) that makes it unbiased for a mean, times t with units - 1 degrees of freedom.
    """
    n = sums.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(sums @ weights.T)
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES / 2:
        return math.inf
    spread = float(values.std()) * math.sqrt(n / (n - 1))
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * spread
