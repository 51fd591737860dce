"""Levels of a continuous score: outcomes -> the level of every arm, and the effects with the nulls.

A level is (score - mean score of the negatives) / gap. The gap is the mean score of the positives minus that of the
negatives at baseline, or that of the contrast's own texts for a contrast of texts. So 0 is the mean of the negatives,
1 that of the positives, and the margins of a rule apply to levels as they do to rates.

Every interval is a percentile bootstrap over prompts, paired within a prompt, that also resamples the gap (Efron 1979).
That of few prompts is too narrow: its ends are unknown if fewer than `LEAST_RESAMPLED` of either class were scored.
A prompt whose completion is unscored in one of the two arms is left out; `n` does not count it.
The counterpart for classes is rate_effects.py. Independent of margins and of the scored quantity.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.compared_arms import (
    EFFECTS,
    EVERY_DRAW,
    ComparedArms,
    NullComparison,
    NullDraw,
    OutcomeTable,
    as_compared,
    outcomes_by_arm,
)
from rhumbline.evidence.rate_effects import nulls_of
from rhumbline.evidence.relative_changes import (
    Change,
    draws_half_width,
    record,
    resampled_units,
    unit_half_width,
)
from rhumbline.evidence.statistics import (
    LEAST_RESAMPLED,
    Interval,
    Ranking,
    auroc,
    auroc_interval,
    finite_or_none,
    rank_floor,
)
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.effect_results import ArmRate, Effect, Gap, NullSummary, PooledEffect
from rhumbline.records.outcome_rows import NeutralOutcome, Outcome
from rhumbline.records.results import LevelUnit, NeutralLevel
from rhumbline.records.shared import ByLabel, Label

DRAWS = 2000
"""Bootstrap draws."""
COUNTINGS = (True, False)
"""Whether degenerate completions count against an effect: as it is shown, and as it is refuted."""

Scores = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Levels:
    """The outcomes of one seed, and the scores that define its unit."""

    outcomes: OutcomeTable
    positive: Float[np.ndarray, " positive"]
    """Scores of the positives that define the gap."""
    negative: Float[np.ndarray, " negative"]
    """Scores of the negatives that define the gap."""
    source: Literal["baseline", "texts"]
    """Where these scores come from: completions at baseline, or the texts of the contrast."""
    is_version_4: bool = False
    """Version 4 of the rule: one unscored completion makes an effect unknown, intervals pair no prompt, and any number
    of prompts has one."""

    @classmethod
    def of(
        cls,
        outcomes: Iterable[Outcome],
        texts: ByLabel[tuple[float, ...]] | None = None,
        *,
        is_version_4: bool = False,
    ) -> "Levels":
        """The levels of a seed; `texts` holds the scores of the contrast's own test texts, if it has them."""
        table = outcomes_by_arm(outcomes)
        if texts is not None:
            return cls(table, np.array(texts.positive), np.array(texts.negative), "texts", is_version_4)
        positive, negative = (_scores(table.get((BASELINE, label), {}).values()) for label in ("positive", "negative"))
        return cls(table, positive, negative, "baseline", is_version_4)

    @cached_property
    def unit(self) -> LevelUnit:
        """The gap between the classes, and how well the score separates them."""
        rng = np.random.default_rng(0)
        p, n = self.positive, self.negative
        sizes = len(p), len(n)
        if not all(sizes):
            return LevelUnit(None, None, None, None, None, None, None, sizes, self.source)
        resampled = [[x[rng.integers(len(x), size=len(x))] for x in (p, n)] for _ in range(DRAWS // 4)]
        low, high = self._ends(np.array([some.mean() - others.mean() for some, others in resampled]), *sizes)
        area = auroc(p, n)
        area_low = auroc_interval(area, *sizes).low
        if self.is_version_4:
            area_low = np.quantile([auroc(some, others) for some, others in resampled], 0.025)
        positive, negative = float(p.mean()), float(n.mean())
        numbers = positive, negative, positive - negative, low, high, area, area_low
        return LevelUnit(*(finite_or_none(float(x)) for x in numbers), n=sizes, source=self.source)

    def arms(self) -> tuple[ArmRate, ...]:
        """`rate` is the mean level of an arm with its interval, `score` its mean score."""
        return tuple(self._arm(arm, label) for arm, label in self.outcomes)

    def _arm(self, arm: ArmId, label: Label) -> ArmRate:
        rows = list(self.outcomes[arm, label].values())
        scored = [row for row in rows if row.cls != "unscored"]
        scores, n = _scores(scored), len(scored)
        means = _resampled_means(scores, np.random.default_rng(0)) if n else np.array([math.nan])
        low, high = self._ends(means, n)
        content = [row.correctness for row in rows if row.correctness is not None]
        metrics = [row.metric for row in rows if row.metric is not None and math.isfinite(row.metric)]
        mean = float(scores.mean()) if n else math.nan
        return ArmRate(
            arm=arm,
            side=label,
            n=n,
            rate=self.unit.level_of(mean),
            low=self.unit.level_of(low),
            high=self.unit.level_of(high),
            score=finite_or_none(mean),
            degenerate=sum(row.cls == "degenerate" for row in scored) / n if n else None,
            unscored=len(rows) - n,
            correct=math.fsum(content) / len(content) if content else None,
            metric=math.fsum(metrics) / len(metrics) if metrics else None,
            metric_n=len(metrics),
        )

    def effects(
        self, compared: NullComparison = EVERY_DRAW, effects: Sequence[ComparedArms] = EFFECTS
    ) -> tuple[Effect, ...]:
        """Suppression and induction in levels, as `rate_effects`; a gap to a null family is paired too."""
        levels = replace(self, outcomes=as_compared(self.outcomes, compared))
        return tuple(
            levels._effect(effect, compared)
            for effect in effects
            if (BASELINE, effect.label) in self.outcomes and (effect.arm, effect.label) in self.outcomes
        )

    def suppressing_draws(self, least: float) -> set[NullDraw]:
        """As `rhumbline.evidence.rate_effects.suppressing_draws`, in levels."""
        suppression, prompts = EFFECTS[0], sorted(self.outcomes.get((BASELINE, "positive"), {}))
        nulls = (null for some in nulls_of(self.outcomes, suppression).values() for null in some)
        of_arm = {null: [i for i in prompts if i in self.outcomes[null, suppression.label]] for null in nulls}
        changes = {n.null_draw: self._relative_value(suppression, some, n, True) for n, some in of_arm.items()}
        return {draw for draw, change in changes.items() if draw is not None and change >= least}

    def _effect(self, effect: ComparedArms, compared: NullComparison) -> Effect:
        label, sign = effect.label, effect.sign
        prompts = self._scored(sorted(self.outcomes[BASELINE, label]), label, effect.arm)
        nulls = nulls_of(self.outcomes, effect)
        own = sign * self.fall(effect.arm, label, prompts)
        drop = self.interval(own, label, None if self.is_version_4 else prompts)
        means = {
            f: [_mean(sign * self.fall(n, label, self._scored(prompts, label, n))) / self.unit.scale for n in some]
            for f, some in nulls.items()
        }
        comparable = {f: [n for n in some if n.null_draw not in compared.aligned] for f, some in nulls.items()}
        kept = {f: [m for m, n in zip(means[f], some, strict=True) if n in comparable[f]] for f, some in nulls.items()}
        own_mean = _mean(own) / self.unit.scale
        ranks = {f: Ranking.of(own_mean, values) for f, values in kept.items()}
        return Effect(
            name=effect.name,
            drop=drop.gap,
            low=drop.low,
            high=drop.high,
            n=len(prompts),
            gap={f: finite_or_none(own_mean - float(np.mean(some))) for f, some in means.items()},
            p={f: rank.p(compared.least_draws) for f, rank in ranks.items()},
            floor={f: rank_floor(rank.draws) for f, rank in ranks.items()},
            null={
                f: NullSummary(
                    len(values),
                    finite_or_none(float(np.mean(values))),
                    finite_or_none(max(values)),
                    compared.n_ineffective(nulls[f]),
                )
                for f, values in means.items()
            },
            wide={},
            relative=record(*(self._relative(effect, prompts, [], how) for how in COUNTINGS)),
            relative_gap={
                f: record(*(self._gap(effect, prompts, f, comparable, how) for how in COUNTINGS), draws=len(some))
                for f, some in comparable.items()
            },
        )

    def _scored(self, prompts: Sequence[str], label: Label, *arms: ArmId) -> list[str]:
        """The prompts that are scored at baseline and under every arm; in version 4 of the rule all of them."""
        tables = [self.outcomes[arm, label] for arm in (BASELINE, *arms)]
        return [i for i in prompts if self.is_version_4 or all(table[i].cls != "unscored" for table in tables)]

    def _ends(self, values: Float[np.ndarray, " resample"], *sizes: int) -> Interval:
        """The 95 % interval of resampled values; NaN if one of the samples has fewer than `LEAST_RESAMPLED` prompts."""
        if min(sizes) < LEAST_RESAMPLED and not self.is_version_4:
            return Interval(math.nan, math.nan)
        low, high = np.quantile(values, [0.025, 0.975])
        return Interval(float(low), float(high))

    # Absolute changes, in levels

    def fall(self, arm: ArmId, label: Label, prompts: Sequence[str]) -> Scores:
        """score(baseline) - score(arm) of every prompt; NaN for an unscored completion."""
        before, after = self.outcomes[BASELINE, label], self.outcomes[arm, label]
        return np.array([score_of(before[i]) - score_of(after[i]) for i in prompts])

    def interval(self, change: Scores, label: Label, prompts: Sequence[str] | None = None) -> Gap:
        """Mean change divided by the gap. Both are resampled; the class of the change with the same prompts.

        `prompts` are those of the change; None: all of the class, in the order of their rows.
        """
        rng = np.random.default_rng(0)
        n = len(change)
        if n == 0:
            return Gap(None, None, None)
        rows = rng.integers(n, size=(DRAWS, n))
        same = getattr(self, label) if prompts is None else self._baseline(label, prompts)
        positive, negative = (
            same[rows].mean(1) if self.source == "baseline" and label == side else _resampled_means(scores, rng)
            for side, scores in (("positive", self.positive), ("negative", self.negative))
        )
        gaps = positive - negative
        with np.errstate(divide="ignore", invalid="ignore"):
            values = change[rows].mean(1) / np.where(gaps > 0, gaps, math.nan)
            mean = change.mean() / self.unit.scale
        low, high = self._ends(values, n, len(self.positive), len(self.negative))
        return Gap(*(finite_or_none(float(x)) for x in (mean, low, high)))

    # Changes relative to the baseline

    def _gap(
        self,
        effect: ComparedArms,
        prompts: Sequence[str],
        family: str,
        nulls: Mapping[str, Sequence[ArmId]],
        against: bool,
    ) -> Change:
        """The relative change by the direction minus its mean over the comparable draws of a family."""
        scored = {i for null in nulls[family] for i in self._scored(prompts, effect.label, null)}
        prompts = [i for i in prompts if i in scored]
        gap = self._relative(effect, prompts, nulls[family], against)
        values = {
            name: [self._relative_value(effect, prompts, null, against) for null in some]
            for name, some in nulls.items()
        }
        half = draws_half_width(values[family], list(values.values()))
        low = gap.value - math.hypot(gap.value - gap.low, half)
        return gap._replace(low=low, high=gap.value + math.hypot(gap.high - gap.value, half))

    def _relative_value(self, effect: ComparedArms, prompts: Sequence[str], arm: ArmId, against: bool) -> float:
        prompts = self._scored(prompts, effect.label, arm)
        change = _mean(self._change(effect, arm, prompts, against))
        return float(change / self._room(effect, _mean(self._baseline(effect.label, prompts))))

    def _relative(self, effect: ComparedArms, prompts: Sequence[str], nulls: Sequence[ArmId], against: bool) -> Change:
        """The mean change (minus that by nulls) divided by the largest possible one, with its interval.

        Prompts and reference texts are resampled; categories as in `relative_change`.
        """
        n = len(prompts)
        if n == 0:
            return Change(math.nan, math.nan, math.nan, 0)
        change = self._change(effect, effect.arm, prompts, against)
        if nulls:
            # A draw counts on the prompts on which it is scored.
            by_draw = np.array([self._change(effect, null, prompts, against) for null in nulls])
            with np.errstate(invalid="ignore"):
                change = change - np.nansum(by_draw, axis=0) / (~np.isnan(by_draw)).sum(axis=0)
        base = self._baseline(effect.label, prompts)
        rng = np.random.default_rng(0)
        rows = rng.integers(n, size=(DRAWS, n))
        reference = self._reference(effect)
        room = effect.sign * (base[rows].mean(1) - _resampled_means(reference, rng))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = change[rows].mean(1) / np.where(room > 0, room, math.nan)
            value = float(change.mean() / self._room(effect, base.mean()))
        low, high = self._ends(values, n, len(reference))
        units = resampled_units([self.outcomes[BASELINE, effect.label][i].category for i in prompts])
        if units is None:
            return Change(value, low, high, n)
        sums = np.stack([np.bincount(units, weights=x) for x in (change, base, np.ones(n))])
        half = unit_half_width(sums, lambda s: s[0] / s[2] / self._room(effect, s[1] / s[2]))
        return Change(value, min(low, value - half), max(high, value + half), n, sums.shape[1])

    def _room(self, effect: ComparedArms, base: np.ndarray | np.floating | float) -> np.ndarray:
        """The largest possible mean change: to the mean of the negatives, or of the positives; NaN if it is not > 0."""
        room = effect.sign * (base - _mean(self._reference(effect)))
        return np.where(room > 0, room, math.nan)

    def _reference(self, effect: ComparedArms) -> Scores:
        """The scores of the class that an effect moves to."""
        return self.negative if effect.sign > 0 else self.positive

    def _baseline(self, label: Label, prompts: Sequence[str]) -> Scores:
        rows = self.outcomes[BASELINE, label]
        return np.array([score_of(rows[i]) for i in prompts])

    def _change(self, effect: ComparedArms, arm: ArmId, prompts: Sequence[str], against: bool) -> Scores:
        """The change of the score in the expected direction.

        A degenerate completion counts as no change (against the effect) or as the largest one (in its favour).
        """
        change = effect.sign * self.fall(arm, effect.label, prompts)
        rows = self.outcomes[arm, effect.label]
        broken = np.array([rows[i].cls == "degenerate" for i in prompts])
        largest = effect.sign * (self._baseline(effect.label, prompts) - _mean(self._reference(effect)))
        return np.where(broken, 0.0 if against else np.maximum(largest, 0.0), change)


def neutral_level(unit: LevelUnit, outcomes: Sequence[NeutralOutcome]) -> NeutralLevel | None:
    """The mean score, level and projection of the neutral class; None without one."""
    if not outcomes:
        return None
    scores = _scores(outcomes)
    mean = float(scores.mean()) if len(scores) else math.nan
    projections = [row.projection for row in outcomes if row.projection is not None]
    return NeutralLevel(
        n=len(scores),
        score=finite_or_none(mean),
        level=unit.level_of(mean),
        projection=math.fsum(projections) / len(projections) if projections else None,
    )


def pooled_level_effects(seeds: Sequence[Levels]) -> tuple[PooledEffect, ...]:
    """Both effects as the mean over the seeds; `low` and `high` are the range over the seeds, not an interval."""
    effects = [effect for levels in seeds for effect in levels.effects()]
    pooled = []
    for name, *_ in EFFECTS:
        drops = [e.drop for e in effects if e.name == name and e.drop is not None]
        if drops:
            low, high = min(drops), max(drops)
            mean = math.fsum(drops) / len(drops)
            pooled.append(PooledEffect(name, drop=mean, low=low, high=high, n=len(seeds), spread=high - low))
    return tuple(pooled)


def score_of(row: Outcome | NeutralOutcome) -> float:
    """The score of a completion; NaN if it is unscored."""
    return math.nan if row.score is None else float(row.score)


def _scores(rows: Iterable[Outcome | NeutralOutcome]) -> Scores:
    return np.array([score_of(row) for row in rows if row.cls != "unscored"], dtype=float)


def _mean(values: Scores) -> float:
    """The mean; NaN without values."""
    return float(values.mean()) if len(values) else math.nan


def _resampled_means(values: Scores, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
    """The means of resamples; NaN without values."""
    if not len(values):
        return np.full(DRAWS, math.nan)
    return values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
