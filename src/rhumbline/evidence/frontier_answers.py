"""Interventions at equal cost: completions under each -> rates with bands, gains, the damage at half, and the answers.

Simultaneous intervals are those of Wilson and Newcombe at the level that Bonferroni's inequality gives: they hold for
all rates, or all differences, of one record together. Independent of models and interventions.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.dosing import cost_at_half
from rhumbline.evidence.statistics import paired_difference, wilson_of_rate
from rhumbline.records.analysis_files import MeanRate
from rhumbline.records.frontier_file import (
    GROUPS,
    REFERENCE,
    BandedRate,
    Comparison,
    FrontierAnswers,
    FrontierRule,
    HalfDamage,
)

Shown = Float[np.ndarray, "draw prompt"]
"""1 if a completion shows the behaviour, otherwise 0; NaN if it has no class."""
DRAWS = 1000
"""Bootstrap resamples of the damage at half."""


def simultaneous(level: float, n: int) -> float:
    """The level of each of n intervals that hold together with probability `level`."""
    return 1 - (1 - level) / max(1, n)


def banded_rate(shown: Shown, level: float) -> BandedRate | None:
    """The rate over all draws; its intervals count prompts. None if no completion has a class."""
    n = int(np.isfinite(shown).any(0).sum())
    if n == 0:
        return None
    rate = float(np.nanmean(shown))
    own, band = wilson_of_rate(rate, n), wilson_of_rate(rate, n, level)
    return BandedRate(rate, own.low, own.high, n, band.low, band.high)


def gain(
    before: Float[np.ndarray, "draw prompt"], after: Float[np.ndarray, "other_draw prompt"], level: float
) -> MeanRate | None:
    """rate(before) - rate(after), paired, on the prompts that have a class in both; None if there are none."""
    scored = np.isfinite(before).any(0) & np.isfinite(after).any(0)
    if not scored.any():
        return None
    first, second = (np.nanmean(shown[:, scored], 0) for shown in (before, after))
    return MeanRate(*paired_difference(first, second, level))


class CostedRate(NamedTuple):
    """What is measured at one strength."""

    kl: Float[np.ndarray, "draw answer"]
    """Sum over the tokens of every answer, nats."""
    tokens: Float[np.ndarray, " answer"]
    shown: Shown


def half_damage(
    points: Sequence[CostedRate],
    baseline: Float[np.ndarray, "draw prompt"],
    rng: np.random.Generator,
    *,
    interpolate: bool = True,
) -> HalfDamage | None:
    """The cost at which half of the behaviour is lost; `points` in the order of their strength.

    `interpolate` between two strengths, which prompts do not have.
    """
    points = [point for point in points if _scored(point.shown)]
    value = cost_at_half(
        [(float(p.kl.mean(0).sum() / p.tokens.sum()), float(np.nanmean(p.shown))) for p in points],
        float(np.nanmean(baseline)) if _scored(baseline) else 0.0,
        interpolate=interpolate,
    )
    if value is None:
        return None
    prompts = rng.integers(baseline.shape[1], size=(DRAWS, baseline.shape[1]))
    answers = rng.integers(len(points[0].tokens), size=(DRAWS, len(points[0].tokens)))
    costs = np.array([p.kl.mean(0)[answers].sum(1) / p.tokens[answers].sum(1) for p in points])
    rates = np.array([_resampled(p.shown, prompts) for p in points])
    starts = _resampled(baseline, prompts)
    resamples = (list(zip(costs[:, k], rates[:, k], strict=True)) for k in range(DRAWS))
    values = [cost_at_half(r, s, interpolate=interpolate) for r, s in zip(resamples, starts, strict=True)]
    known = [v for v in values if v is not None]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (value, value)
    return HalfDamage(value, float(low), float(high), len(known) / DRAWS)


def _scored(shown: Shown) -> bool:
    return bool(np.isfinite(shown).any())


def _resampled(shown: Shown, rows: np.ndarray) -> Float[np.ndarray, " resample"]:
    """The rate of every resample of the prompts; 0 completions with a class count as no behaviour lost."""
    known = np.isfinite(shown)
    counts, sums = known.sum(0)[rows].sum(1), np.where(known, shown, 0).sum(0)[rows].sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


# -- answers ----------------------------------------------------------------------------------------------------------


def answers(
    baseline: BandedRate | None,
    reference_drops: Sequence[MeanRate],
    comparisons: Sequence[Comparison],
    null_drops: Sequence[tuple[float, MeanRate]],
    rule: FrontierRule,
) -> FrontierAnswers:
    """The answers of the rule; a pure function of simultaneous intervals.

    `reference_drops`: what each strength of the reference removes. `null_drops`: what random vectors remove, with their
    cost.
    """
    if baseline is None or baseline.rate < rule.min_baseline:
        rate = "not measured" if baseline is None else f"{baseline.rate:.2f}"
        none, reason = "NO-BASELINE", f"the rate on positives at baseline is {rate}"
        return FrontierAnswers(none, reason, none, reason, none, reason)
    several = [c for c in comparisons if GROUPS[c.name] == "several directions"]
    best = max(reference_drops, key=lambda d: d.low, default=None)
    one, better, nulls = (
        _one_direction(several, best, rule),
        _at_equal_cost(comparisons, rule),
        _nulls(null_drops, rule),
    )
    return FrontierAnswers(*one, *better, *nulls)


def _better(comparisons: Iterable[Comparison], rule: FrontierRule) -> list[Comparison]:
    return [c for c in comparisons if c.gain.low >= rule.margin]


def _one_direction(several: Sequence[Comparison], best: MeanRate | None, rule: FrontierRule) -> tuple:
    if better := _better(several, rule):
        top = max(better, key=lambda c: c.gain.low)
        return "MORE-HELPS", f"{_named(top)} removes {_text(top.gain)} more than {REFERENCE}"
    if not several or best is None:
        return "UNDETERMINED", "several directions were not measured within a budget of the reference"
    if best.low < rule.min_drop:
        return "UNDETERMINED", f"one direction removes {_text(best)}, and the interval does not reach {rule.min_drop:g}"
    widest = max(several, key=lambda c: c.gain.high)
    if widest.gain.high < rule.margin:
        names = ", ".join(dict.fromkeys(c.name for c in several))
        return "ONE-IS-ENOUGH", (
            f"one direction removes {_text(best)}, and several ({names}) remove nowhere {rule.margin:g} more"
        )
    return "UNDETERMINED", f"a larger effect of {_named(widest)} is not excluded: {_text(widest.gain)}"


def _at_equal_cost(comparisons: Sequence[Comparison], rule: FrontierRule) -> tuple:
    if better := _better(comparisons, rule):
        listed = "; ".join(f"{_named(c)}: {_text(c.gain)}" for c in better)
        return "SOMETHING-BETTER", f"remaining rate of {REFERENCE} minus that of {listed}"
    if not comparisons:
        return "UNDETERMINED", "nothing was measured within a budget of the reference"
    widest = max(comparisons, key=lambda c: c.gain.high)
    if widest.gain.high < rule.margin:
        return "NOTHING-BETTER", f"no intervention removes {rule.margin:g} more than {REFERENCE} at any budget"
    return "UNDETERMINED", f"a larger effect of {_named(widest)} is not excluded: {_text(widest.gain)}"


def _nulls(drops: Sequence[tuple[float, MeanRate]], rule: FrontierRule) -> tuple:
    if not drops:
        return "UNDETERMINED", "no random vectors were measured"
    removing = [(cost, drop) for cost, drop in drops if drop.low > 0]
    if removing:
        cost, least = min(removing, key=lambda d: d[0])
        below = [drop for c, drop in drops if c < 0.9 * cost]
        rest = f"; below, at most {_text(max(below, key=lambda d: d.mean))}" if below else ""
        reason = f"random vectors remove {_text(least)} at {cost:.2g} nats, where damage alone removes the behaviour"
        return "NOT-FLAT", reason + rest
    widest = max((d for _, d in drops), key=lambda d: d.high)
    if widest.high < rule.margin:
        return "FLAT", f"random vectors remove less than {rule.margin:g} at every dose; at most {_text(widest)}"
    return "UNDETERMINED", f"random vectors remove {_text(widest)}"


def _named(comparison: Comparison) -> str:
    return f"{comparison.name} at {comparison.budget:.2g} nats"


def _text(value: MeanRate) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
