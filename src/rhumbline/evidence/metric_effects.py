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

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.statistics import LEAST_RESAMPLED, Ranking, bootstrap_mean, finite_or_none, holm, rank_floor
from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import Shift, WideEffect, WideNull
from rhumbline.records.seed_files import StoppedFamily, WideNulls
from rhumbline.records.shared import NullDirection
from rhumbline.records.verdict_rule import Rule, is_comparable

DRAWS = 2000
"""Bootstrap draws."""


Draws = Sequence[tuple[float, NullDirection]]
"""The change of the metric by every draw of a family."""
Summarise = Callable[[float, Draws], WideNull]
"""The rank of the direction's change among the draws of one family."""


def wide_effects(
    wide: WideNulls,
    nulls: Sequence[NullDirection],
    same_cosine: float | None = None,
    least_draws: int = 0,
    summarise: Summarise | None = None,
) -> tuple[WideEffect, ...]:
    """Both effects in the metric, each with its rank among the wide nulls of every family.

    Draws with an absolute cosine above `same_cosine` are aligned with the direction and not comparable. The rank p is
    unknown with fewer than `least_draws` comparable draws.
    """
    rank = summarise or partial(wide_null, same_cosine=same_cosine, least_draws=least_draws)
    effects = (_wide_effect(wide, nulls, rank, arms) for arms in EFFECTS)
    return tuple(effect for effect in effects if effect is not None)


def _wide_effect(
    wide: WideNulls, nulls: Sequence[NullDirection], summarise: Summarise, arms: ComparedArms
) -> WideEffect | None:
    changes = metric_changes(wide, nulls, arms)
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
    families: dict[str, list[tuple[float, NullDirection]]]


def metric_changes(wide: WideNulls, nulls: Sequence[NullDirection], arms: ComparedArms) -> MetricChanges | None:
    """The metric of the direction and the changes by its nulls for one effect; None if its arms were not evaluated."""
    metric = {row.arm: np.array(row.metric, float) for row in wide.rows if row.side == arms.label}
    if BASELINE not in metric or arms.arm not in metric:
        return None
    base, drawn = metric[BASELINE], {null.null_draw: null for null in nulls}
    families: dict[str, list[tuple[float, NullDirection]]] = {}
    for arm, values in metric.items():
        if arms.has_null(arm) and arm.null_draw is not None:
            moved = float((arms.sign * (base - values)).mean())
            families.setdefault(arm.null_draw[0], []).append((moved, drawn[arm.null_draw]))
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
    stopped, least = [], math.ceil(1 / rule.max_p - 1e-9) - 1
    for arms in EFFECTS:
        if (changes := metric_changes(wide, nulls, arms)) is None:
            continue
        for family, draws in changes.families.items():
            change = float((arms.sign * (changes.base - changes.own)).mean())
            ranking = Ranking.of(change, comparable_changes(draws, rule.same_cosine))
            smallest_p = (1 + ranking.beaten) / (1 + planned[family])
            if least <= ranking.draws and len(draws) < planned[family] and smallest_p > rule.max_p + 1e-9:
                stopped.append(StoppedFamily(family, arms.name, len(draws)))
    return tuple(stopped)


def comparable_changes(draws: Draws, same_cosine: float | None) -> list[float]:
    """The changes by the draws that are compared with the direction.

    A draw of the whole procedure in which no candidate passed the selection found no direction, so it reaches nothing.
    The candidate that stands for it can change the metric more than the direction, because it breaks the model.
    """
    return [
        moved if null.passed else -math.inf
        for moved, null in draws
        if not null.passed or is_comparable(null.cosine, same_cosine)
    ]


def wide_null(change: float, draws: Draws, same_cosine: float | None, least_draws: int) -> WideNull:
    """The rank of the direction's change among the changes of one family's draws."""
    changes = [moved for moved, _ in draws]
    ranking = Ranking.of(change, comparable_changes(draws, same_cosine))
    return WideNull(
        draws=len(draws),
        mean=finite_or_none(math.fsum(changes) / len(draws)),
        max=finite_or_none(max(changes)),
        p=ranking.p(least_draws),
        floor=rank_floor(ranking.draws),
        comparable=ranking.draws,
        beaten=ranking.beaten,
        cosine=max((abs(null.cosine) for moved, null in draws if null.passed and not moved < change), default=None),
        energy=finite_or_none(math.fsum(null.energy for _, null in draws) / len(draws)),
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

    The interval is None with fewer than `least` negatives.
    """
    values = np.array([kl for kl in wide.kl if kl is not None], float)
    mean = bootstrap_mean(values, np.random.default_rng(0), draws=DRAWS, least=least)
    return Shift(*(finite_or_none(x) for x in (mean.mean, mean.low, mean.high)), n=mean.n)
