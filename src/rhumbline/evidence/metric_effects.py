"""Effects in the metric: the metric of test prompts under many null draws -> ranks, adjusted p-values, and KL.

No completions are needed, so every family can have many draws. Independent of margins.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.statistics import Ranking, bootstrap_mean, finite_or_none, holm, rank_floor
from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import Shift, WideEffect, WideNull
from rhumbline.records.seed_files import WideNulls
from rhumbline.records.shared import NullDirection

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
    metric = {row.arm: np.array(row.metric, float) for row in wide.rows if row.side == arms.label}
    if BASELINE not in metric or arms.arm not in metric:
        return None
    base, own = metric[BASELINE], metric[arms.arm]
    change = bootstrap_mean(arms.sign * (base - own), np.random.default_rng(0), draws=DRAWS)
    drawn = {null.null_draw: null for null in nulls}
    families: dict[str, list[tuple[float, NullDirection]]] = {}
    for arm, values in metric.items():
        if arms.has_null(arm) and arm.null_draw is not None:
            moved = float((arms.sign * (base - values)).mean())
            families.setdefault(arm.null_draw[0], []).append((moved, drawn[arm.null_draw]))
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


def wide_null(change: float, draws: Draws, same_cosine: float | None, least_draws: int) -> WideNull:
    """The rank of the direction's change among the changes of one family's draws."""
    changes = [moved for moved, _ in draws]
    comparable = [moved for moved, null in draws if same_cosine is None or abs(null.cosine) <= same_cosine]
    ranking = Ranking.of(change, comparable)
    return WideNull(
        draws=len(draws),
        mean=finite_or_none(math.fsum(changes) / len(draws)),
        max=finite_or_none(max(changes)),
        p=ranking.p(least_draws),
        floor=rank_floor(ranking.draws),
        comparable=ranking.draws,
        beaten=ranking.beaten,
        cosine=max((abs(null.cosine) for moved, null in draws if not moved < change), default=None),
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


def mean_kl(wide: WideNulls) -> Shift:
    """Mean KL divergence of the next-token distribution of negatives, baseline to ablation, with its interval."""
    values = np.array([kl for kl in wide.kl if kl is not None], float)
    mean = bootstrap_mean(values, np.random.default_rng(0), draws=DRAWS)
    return Shift(*(finite_or_none(x) for x in (mean.mean, mean.low, mean.high)), n=mean.n)
