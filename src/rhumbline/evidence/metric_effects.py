"""Effects in the metric: the metric of test prompts under many null draws -> ranks, adjusted p-values, and KL.

No completions are needed, so every family can have many draws. Independent of margins.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from msgspec import UNSET
from scipy import stats

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.statistics import (
    LEAST_RESAMPLED,
    Mean,
    Ranking,
    bootstrap_mean,
    finite_or_none,
    holm,
    rank_floor,
)
from rhumbline.records.arms import BASELINE, ArmId, ArmKind
from rhumbline.records.effect_results import Shift, WideEffect, WideNull
from rhumbline.records.seed_files import StoppedFamily, WideNulls, WideRow
from rhumbline.records.shared import NOT_FINITE, NotFinite, NullDirection
from rhumbline.records.verdict_rule import Rule, is_comparable

DRAWS = 2000
"""Bootstrap draws."""


class Draw(NamedTuple):
    """What a null draw does to the metric."""

    change: float
    null: NullDirection
    is_damaging: bool = False
    """Its ablation's KL divergence is above the bound of the rule, and that of the direction on the same prompts."""

    @property
    def is_ineffective(self) -> bool:
        """Whether it counts as no change, whatever it changes.

        A draw that damages the model more than the rule permits, and more than the direction does, is one: the
        behaviour is lost in a broken model as well. So is a draw of the whole procedure in which no candidate passed
        the selection, which bounds the damage too.
        """
        return self.is_damaging or not self.null.passed


Draws = Sequence[Draw]
"""The draws of a family."""
Summarise = Callable[[float, Draws], WideNull]
"""The rank of the direction's change among the draws of one family."""


def wide_effects(
    wide: WideNulls,
    nulls: Sequence[NullDirection],
    same_cosine: float | None = None,
    least_draws: int = 0,
    summarise: Summarise | None = None,
    max_kl: float | None = None,
) -> tuple[WideEffect, ...]:
    """Both effects in the metric, each with its rank among the wide nulls of every family.

    Draws with an absolute cosine above `same_cosine` are aligned with the direction and not comparable. The rank p is
    unknown with fewer than `least_draws` comparable draws. A draw whose KL divergence exceeds `max_kl`, and that of the
    direction on the same prompts, counts as no change.
    """
    rank = summarise or partial(wide_null, same_cosine=same_cosine, least_draws=least_draws)
    effects = (_wide_effect(wide, nulls, rank, arms, max_kl) for arms in EFFECTS)
    return tuple(effect for effect in effects if effect is not None)


def _wide_effect(
    wide: WideNulls, nulls: Sequence[NullDirection], summarise: Summarise, arms: ComparedArms, max_kl: float | None
) -> WideEffect | None:
    changes = metric_changes(wide, nulls, arms, max_kl)
    if changes is None:
        return None
    base, own, families = changes
    change = bootstrap_mean(arms.sign * (base - own), np.random.default_rng(0), draws=DRAWS)
    return WideEffect(
        name=arms.name,
        n=len(base),
        change=finite_or_none(change.mean),
        low=finite_or_none(change.low),
        high=finite_or_none(change.high),
        before=float((base > 0).mean()) if len(base) else None,
        after=float((own > 0).mean()) if len(own) else None,
        families={family: summarise(change.mean, draws) for family, draws in families.items()},
    )


class MetricChanges(NamedTuple):
    """The metric at baseline and under the direction, and the mean change of every draw, by family."""

    base: Float[np.ndarray, " prompt"]
    own: Float[np.ndarray, " prompt"]
    families: dict[str, list[Draw]]


def metric_changes(
    wide: WideNulls, nulls: Sequence[NullDirection], arms: ComparedArms, max_kl: float | None = None
) -> MetricChanges | None:
    """The metric of the direction and the changes by its nulls for one effect; None if its arms were not evaluated."""
    most = None if max_kl is None else max(max_kl, _own_kl(wide))
    kl = {row.arm: _least_kl(row) for row in wide.rows}
    metric = {row.arm: np.array(row.metric, float) for row in wide.rows if row.side == arms.label}
    if BASELINE not in metric or arms.arm not in metric:
        return None
    base, drawn = metric[BASELINE], {null.null_draw: null for null in nulls}
    families: dict[str, list[Draw]] = {}
    for arm, values in metric.items():
        if arms.has_null(arm) and arm.null_draw is not None:
            moved = float((arms.sign * (base - values)).mean())
            is_damaging = most is not None and kl[arm] > most
            families.setdefault(arm.null_draw[0], []).append(Draw(moved, drawn[arm.null_draw], is_damaging))
    return MetricChanges(base, metric[arms.arm], families)


def families_below_bound(
    wide: WideNulls, nulls: Sequence[NullDirection], rule: Rule, planned: Mapping[str, int]
) -> tuple[StoppedFamily, ...]:
    """Families whose rank p exceeds `rule.max_p` whatever their remaining draws are (Besag and Clifford 1991).

    Draws that the rule compares: those not aligned with the direction. A family needs as many of them as a p of
    `max_p` requires, so that its p is known if the draws stop here. `planned` is the number of draws of each family.
    """
    if rule.max_p is None:
        return ()
    stopped = []
    for arms in EFFECTS:
        if (changes := metric_changes(wide, nulls, arms, rule.max_kl)) is None:
            continue
        for family, draws in changes.families.items():
            change = float((arms.sign * (changes.base - changes.own)).mean())
            ranking = Ranking.of(change, comparable_changes(draws, rule.same_cosine))
            smallest_p = (1 + ranking.beaten) / (1 + planned[family])
            if rule.needed_draws <= ranking.draws and len(draws) < planned[family] and smallest_p > rule.max_p + 1e-9:
                stopped.append(StoppedFamily(family, arms.name, len(draws)))
    return tuple(stopped)


def ineffective_arms(wide: WideNulls, nulls: Sequence[NullDirection], max_kl: float | None) -> frozenset[ArmId]:
    """Arms of null draws that count as no change: all of a draw without a candidate, and the ablations that damage."""
    kinds = (ArmKind.ABLATION, ArmKind.ADDITION)
    found = {ArmId.null(*null.null_draw, kind) for null in nulls if not null.passed for kind in kinds}
    suppression = EFFECTS[0]
    changes = metric_changes(wide, nulls, suppression, max_kl)
    draws = (draw for some in changes.families.values() for draw in some) if changes is not None else ()
    return frozenset(found | {ArmId.null(*d.null.null_draw, suppression.arm.kind) for d in draws if d.is_damaging})


def comparable_changes(draws: Draws, same_cosine: float | None) -> list[float]:
    """The changes by the draws that are compared with the direction; 0 for those that count as no change.

    So they rank above a direction that moves the metric the wrong way, or not at all.
    """
    return [
        0.0 if draw.is_ineffective else draw.change
        for draw in draws
        if not draw.null.passed or is_comparable(draw.null.cosine, same_cosine)
    ]


def wide_null(change: float, draws: Draws, same_cosine: float | None, least_draws: int) -> WideNull:
    """The rank of the direction's change among the changes of one family's draws.

    A change that is not finite has no rank: it was not measured. A draw with such a change reaches the direction's.
    """
    changes = [draw.change for draw in draws]
    reaching = [draw for draw in draws if draw.null.passed and not draw.change < change]
    damaging = sum(draw.is_damaging for draw in reaching)
    ranking = Ranking.of(change, comparable_changes(draws, same_cosine))
    return WideNull(
        draws=len(draws),
        mean=finite_or_none(math.fsum(changes) / len(draws)),
        max=finite_or_none(max(changes)),
        p=ranking.p(least_draws) if math.isfinite(change) else None,
        floor=rank_floor(ranking.draws),
        comparable=ranking.draws,
        beaten=ranking.beaten,
        damaging=damaging or UNSET,
        cosine=max((abs(draw.null.cosine) for draw in reaching if not draw.is_damaging), default=None),
        energy=finite_or_none(math.fsum(draw.null.energy for draw in draws) / len(draws)),
        values=tuple(finite_or_none(float(f"{moved:.4g}")) for moved in changes),
    )


def with_adjusted_p(by_seed: Mapping[int, Sequence[WideEffect]]) -> dict[int, tuple[WideEffect, ...]]:
    """The wide effects of every seed with Holm's adjusted p over all effects, families and seeds of the run.

    A p that is not known is not adjusted, and the others are adjusted as if it were 1.
    """
    p = {
        (seed, effect.name, family): null.p
        for seed, effects in by_seed.items()
        for effect in effects
        for family, null in effect.families.items()
    }
    adjusted: dict[tuple[int, str, str], float | None] = {
        **holm({key: 1.0 if x is None else x for key, x in p.items()})
    }
    adjusted |= {key: None for key, value in p.items() if value is None}

    def with_p(seed: int, effect: WideEffect) -> WideEffect:
        families = {
            family: replace(null, p_holm=adjusted[seed, effect.name, family])
            for family, null in effect.families.items()
        }
        return replace(effect, families=families)

    return {seed: tuple(with_p(seed, effect) for effect in effects) for seed, effects in by_seed.items()}


def mean_kl(wide: WideNulls, least: int = LEAST_RESAMPLED) -> Shift:
    """Mean KL divergence of the next-token distribution of negatives, baseline to ablation, with its interval.

    The interval is None with fewer than `least` negatives, and so is all of it if a divergence is not finite. Version 4
    of the rule, which asks for the interval of a single negative, has a percentile bootstrap.
    """
    return shift_of([kl for kl in wide.kl if kl is not None], least)


def shift_of(kl: Sequence[float | NotFinite], least: int = LEAST_RESAMPLED) -> Shift:
    """Mean of the KL divergences of some prompts, with its interval as in `mean_kl`."""
    values = np.array([_nats(x) for x in kl], float)
    if not_finite := int(np.isinf(values).sum()):
        return Shift(None, None, None, len(values), not_finite)
    if least == 1 or len(values) < least:
        mean = bootstrap_mean(values, np.random.default_rng(0), draws=DRAWS, least=least)
    else:
        mean = skewed_mean(values)
    return Shift(*(finite_or_none(x) for x in (mean.mean, mean.low, mean.high)), n=mean.n)


def skewed_mean(values: Float[np.ndarray, " prompt"], level: float = 0.95) -> Mean:
    """Mean of two or more skewed values that are not negative, with the t interval of its logarithm.

        m exp(-+ t s / (m sqrt(n))),   with the mean m, the standard deviation s, and t with n - 1 degrees of freedom

    Its upper end is below the true mean 0.4 to 0.75 times as often as that of a percentile bootstrap (lognormal and
    gamma samples, n from 8 to 32), and is at most m exp(t).
    Values below 0 come from rounding and count as 0.
    """
    values = np.maximum(values, 0.0)
    n, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread / (mean * math.sqrt(n)) if mean > 0 else 0.0
    return Mean(mean, mean * math.exp(-half), mean * math.exp(half), n)


def _least_kl(row: WideRow) -> float:
    """The lower end of the mean KL divergence of a null draw, or the mean in runs without it; 0 if not measured."""
    kl = row.kl if row.kl_low is UNSET else row.kl_low
    return 0.0 if kl is UNSET or kl is None else _nats(kl)


def _own_kl(wide: WideNulls) -> float:
    """The mean KL divergence of the direction; 0 if not measured."""
    own = [_nats(kl) for kl in wide.kl if kl is not None]
    return math.fsum(own) / len(own) if own else 0.0


def _nats(kl: float | NotFinite) -> float:
    return math.inf if kl == NOT_FINITE else kl
