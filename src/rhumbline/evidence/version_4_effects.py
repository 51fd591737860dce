"""The statistics of rules up to version 4, for the verification of finished runs.

They differ from the current ones in the ranks (aligned draws stay in the denominator), in the intervals of the gaps
(without the variance between draws) and in what is reported. Independent of margins.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from msgspec import UNSET

from rhumbline.evidence.class_rates import class_rate
from rhumbline.evidence.compared_arms import NullDraw, OutcomeTable, arms_of, outcomes_by_arm
from rhumbline.evidence.level_effects import Levels
from rhumbline.evidence.metric_effects import Draws, wide_null
from rhumbline.evidence.rate_effects import drop_of, nulls_of, rate_effects
from rhumbline.evidence.statistics import Difference, difference_of_rates, finite_or_none, rank_floor, rank_p
from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import Effect, Gap, PooledEffect, WideNull
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.verdict_rule import is_comparable


def version_4_rate_effects(outcomes: Iterable[Outcome], aligned: Collection[NullDraw]) -> tuple[Effect, ...]:
    """Both effects on a rate; `apart` is the gap without aligned draws, unless no other draw is left."""
    rows = list(outcomes)
    return tuple(_with_rate_gaps(outcomes_by_arm(rows), effect, aligned) for effect in rate_effects(rows))


def version_4_level_effects(levels: Levels, aligned: Collection[NullDraw]) -> tuple[Effect, ...]:
    """Both effects on a level; a gap to a null family is paired."""
    return tuple(_with_level_gaps(levels, effect, aligned) for effect in levels.effects())


def version_4_wide_null(change: float, draws: Draws, same_cosine: float | None) -> WideNull:
    """The rank of the direction's change among all draws of a family; in `p_apart` aligned draws do not reach it."""
    unaligned = [d.change if is_comparable(d.null.cosine, same_cosine) else -math.inf for d in draws]
    return replace(
        wide_null(change, draws, None, 0),
        p=rank_p(change, [draw.change for draw in draws]),
        p_apart=rank_p(change, unaligned),
        floor=rank_floor(len(draws)),
        comparable=UNSET,
        beaten=UNSET,
        cosine=max((abs(draw.null.cosine) for draw in draws if not draw.change < change), default=None),
    )


def version_4_pooled(effects: Sequence[PooledEffect]) -> tuple[PooledEffect, ...]:
    """The effects over all seeds without what later versions add."""
    return tuple(replace(effect, shared=UNSET, relative=UNSET) for effect in effects)


def _version_4(
    effect: Effect, own: float, drops: dict[str, list[float]], gaps: dict[str, Gap], apart: dict[str, Gap]
) -> Effect:
    return replace(
        effect,
        gap_low={family: gap.low for family, gap in gaps.items()},
        gap_high={family: gap.high for family, gap in gaps.items()},
        apart=apart,
        p={family: rank_p(own, values) for family, values in drops.items()},
        floor={family: rank_floor(len(values)) for family, values in drops.items()},
        relative=UNSET,
        relative_gap=UNSET,
    )


def _with_rate_gaps(table: OutcomeTable, effect: Effect, aligned: Collection[NullDraw]) -> Effect:
    arms = arms_of(effect.name)
    own = drop_of(table, arms.arm, arms.label, arms.sign)
    baseline = table[BASELINE, arms.label]
    base = class_rate([row.cls for row in baseline.values()], {"refused"}).rate
    nulls = nulls_of(table, arms)
    drops = {f: [drop_of(table, null, arms.label, arms.sign).mean for null in some] for f, some in nulls.items()}

    def gap(family: str, left_out: Collection[NullDraw]) -> Gap:
        some = nulls[family]
        kept = [i for i, null in enumerate(some) if null.null_draw not in left_out] or list(range(len(some)))
        prompts = {prompt for i in kept for prompt in table[some[i], arms.label]}
        # Of draws that complete other prompts than each other, the mean is over all of these.
        n = own.n if len(prompts) >= len(baseline) else len(prompts)
        return _rate_gap(base, own, math.fsum(drops[family][i] for i in kept) / len(kept), arms.sign, n)

    gaps, apart = ({family: gap(family, left_out) for family in nulls} for left_out in ((), aligned))
    return _version_4(effect, own.mean, drops, gaps, apart)


def _rate_gap(base: float | None, own: Difference, null: float, sign: int, n_null: int) -> Gap:
    """The drop of the direction minus the mean drop of a family over `n_null` prompts, as a difference of two rates."""
    if base is None or not (math.isfinite(own.mean) and math.isfinite(null)):
        return Gap(None, None, None)
    treated, control = (min(1.0, max(0.0, base - sign * change)) for change in (own.mean, null))
    if sign < 0:
        gap = difference_of_rates(treated, control, own.n, n_after=n_null)
    else:
        gap = difference_of_rates(control, treated, n_null, n_after=own.n)
    return Gap(finite_or_none(gap.mean), finite_or_none(gap.low), finite_or_none(gap.high))


def _with_level_gaps(levels: Levels, effect: Effect, aligned: Collection[NullDraw]) -> Effect:
    arms = arms_of(effect.name)
    prompts, scale = sorted(levels.outcomes[BASELINE, arms.label]), levels.unit.scale
    own = arms.sign * levels.fall(arms.arm, arms.label, prompts)
    nulls = nulls_of(levels.outcomes, arms)
    falls = {f: [arms.sign * levels.fall(null, arms.label, prompts) for null in some] for f, some in nulls.items()}
    others = {
        f: [fall for fall, null in zip(falls[f], some, strict=True) if null.null_draw not in aligned] or falls[f]
        for f, some in nulls.items()
    }
    gaps = {f: levels.interval(own - np.mean(some, 0), arms.label) for f, some in falls.items()}
    apart = {f: levels.interval(own - np.mean(some, 0), arms.label) for f, some in others.items()}
    drops = {f: [float(fall.mean()) / scale for fall in some] for f, some in falls.items()}
    recorded = _version_4(effect, float(own.mean()) / scale, drops, gaps, apart)
    return replace(recorded, gap={f: gap.gap for f, gap in gaps.items()})
