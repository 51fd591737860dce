"""Effects of the second direction: its metric on test prompts, and the nulls of the first -> `SecondSummary`.

A prompt shows the behaviour if its metric is positive, as in the dose curves. Independent of margins.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.metric_effects import Draws, comparable_changes, metric_changes
from rhumbline.evidence.relative_changes import Change, record, relative_change
from rhumbline.evidence.statistics import Ranking
from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import SecondEffect, SecondSummary
from rhumbline.records.seed_files import SecondDirection, WideNulls, WideRow
from rhumbline.records.shared import NullDirection

Metric = Float[np.ndarray, " prompt"]


def second_summary(
    second: SecondDirection,
    wide: WideNulls,
    nulls: Sequence[NullDirection],
    same_cosine: float | None = None,
    least_draws: int = 0,
    max_kl: float | None = None,
) -> SecondSummary:
    """Suppression and induction by the second direction, relative to the baseline, with their ranks.

    The ranks are among the null draws of the first direction that are comparable with it; a change of the metric that
    is not finite has none. A draw whose measured KL divergence exceeds `max_kl`, and that of the first direction on the
    same prompts, counts as no change.
    """
    effects = (
        _effect(
            second,
            None if (changes := metric_changes(wide, nulls, arms, max_kl)) is None else changes.families,
            same_cosine,
            least_draws,
            arms,
        )
        for arms in EFFECTS
    )
    measured = tuple(effect for effect in effects if effect is not None)
    found = {} if second.source is None else {"source": second.source, "independence": second.independence}
    return SecondSummary(second.selected, second.survivors, measured, **found)


def _effect(
    second: SecondDirection,
    families: Mapping[str, Draws] | None,
    same_cosine: float | None,
    least_draws: int,
    arms: ComparedArms,
) -> SecondEffect | None:
    tested, ranked = _pair(second.rows, arms), _pair(second.ranked, arms)
    if tested is None:
        return None
    p: dict[str, float | None] = {}
    if families is not None and ranked is not None:
        own = float((arms.sign * (ranked[0] - ranked[1])).mean())
        for family, draws in families.items():
            ranking = Ranking.of(own, comparable_changes(draws, same_cosine))
            p[family] = ranking.p(least_draws) if math.isfinite(own) else None
    change = _relative(*tested, arms.sign)
    return SecondEffect(arms.name, record(change, change), p)


def _relative(before: Metric, after: Metric, sign: int) -> Change:
    """The relative change of the behaviour (sign 1), or of its absence (-1), on prompts with a finite metric."""
    known = np.isfinite(before) & np.isfinite(after)
    shown, left = (np.asarray((x[known] > 0) == (sign > 0), dtype=float) for x in (before, after))
    return relative_change(shown, left)


def _pair(rows: Sequence[WideRow], arms: ComparedArms) -> tuple[Metric, Metric] | None:
    """The metric at baseline and under the arm of an effect; None if they were not measured."""
    metric = {row.arm: np.array(row.metric, float) for row in rows if row.side == arms.label}
    return (metric[BASELINE], metric[arms.arm]) if {BASELINE, arms.arm} <= metric.keys() else None
