"""Assembles the record of the frontier: what was measured for every setting in, rates, gains and answers out.

Independent of models and of how the strengths were found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rhumbline.analyses.dosed_interventions import Setting
from rhumbline.analyses.trajectory_kl import Divergence
from rhumbline.evidence.dosing import DoseSearch
from rhumbline.evidence.frontier_answers import CostedRate, answers, banded_rate, gain, half_damage, simultaneous
from rhumbline.evidence.statistics import bootstrap_ratio, finite_or_none, wilson_of_rate
from rhumbline.records.analysis_files import Mean, Rate
from rhumbline.records.frontier_file import (
    GROUPS,
    REFERENCE,
    Comparison,
    FrontierCurve,
    FrontierParameters,
    FrontierPoint,
    FrontierRecord,
    HalfDamage,
    InterventionName,
    NotReached,
    Unavailable,
)
from rhumbline.records.shared import Site

LEVEL = 0.95
"""Probability with which all intervals of a kind hold together."""
RESAMPLED = 29
"""Last entry of the seed of resamples."""


class Measured(NamedTuple):
    """What is measured for one setting, the draws of a null together."""

    positive: Float[np.ndarray, "draw prompt"]
    """1 if the completion shows the behaviour, or is degenerate under an intervention, otherwise 0; NaN without a
    class. Broken text is no removal."""
    negative: Float[np.ndarray, "draw prompt"]
    degenerate: float | None
    divergence: Divergence
    right: Bool[np.ndarray, "draw question"] | None


@dataclass(frozen=True)
class FrontierResults:
    """What was measured on one run."""

    parameters: FrontierParameters
    seed: int
    searches: Mapping[InterventionName, Sequence[DoseSearch]]
    measured: Mapping[Setting | None, Measured]
    """By setting; None is the baseline."""
    system: tuple[float, Measured] | None
    """The cost of the system prompt on validation negatives, and what was measured; None without one."""
    unfitted: Mapping[InterventionName, Unavailable]
    """Interventions that were not measured, apart from the system prompt."""

    def record(self, site: Site, judge: str, spared: int, spared_by_run: int) -> FrontierRecord:
        """The record with the answers of the rule."""
        comparisons = tuple(self.comparisons())
        baseline = self._point(None, self.baseline)
        level = simultaneous(LEVEL, len(self.measured) - 1)
        drops = [
            (setting.name, setting.cost, drop)
            for setting, m in self.measured.items()
            if setting is not None and (drop := gain(self.baseline.positive, m.positive, level)) is not None
        ]
        return FrontierRecord(
            seed=self.seed,
            site=site,
            parameters=self.parameters,
            judge=judge,
            spared=spared,
            spared_by_run=spared_by_run,
            baseline=baseline,
            curves=tuple(self.curve(name) for name in self.parameters.plan.names),
            comparisons=comparisons,
            answers=answers(
                baseline.remaining,
                [drop for name, _, drop in drops if name == REFERENCE],
                comparisons,
                [(cost, drop) for name, cost, drop in drops if GROUPS[as_name(name)] == "null"],
                self.parameters.rule,
            ),
        )

    @property
    def baseline(self) -> Measured:
        """What was measured without an intervention."""
        return self.measured[None]

    def _settings(self, name: InterventionName) -> list[Setting]:
        return [setting for setting in self.measured if setting is not None and setting.name == name]

    # Points

    @cached_property
    def level(self) -> float:
        """Level of every rate, so that all hold together: two for each point."""
        return simultaneous(LEVEL, 2 * (len(self.measured) + (self.system is not None)))

    def _point(self, setting: Setting | None, m: Measured) -> FrontierPoint:
        kl, tokens = m.divergence.kl, m.divergence.tokens
        mean = bootstrap_ratio(kl.mean(0), tokens, np.random.default_rng([self.seed, RESAMPLED]), draws=1000)
        return FrontierPoint(
            dose=None if setting is None else setting.dose,
            strengths=() if setting is None else tuple(s.strength for s in setting.strengths),
            dosed_kl=0.0 if setting is None else finite_or_none(setting.cost),
            kl=Mean(finite_or_none(mean.mean), finite_or_none(mean.low), finite_or_none(mean.high), mean.n),
            agreement=float(m.divergence.agreed.mean(0).sum() / tokens.sum()),
            remaining=banded_rate(m.positive, self.level),
            over=banded_rate(m.negative, self.level),
            degenerate=m.degenerate,
            accuracy=_accuracy(m.right),
        )

    def curve(self, name: InterventionName) -> FrontierCurve:
        """One intervention over its doses."""
        if name == "system-prompt":
            return self._system_curve()
        settings, searches = self._settings(name), self.searches.get(name, ())
        reached = {setting.dose for setting in settings}
        unreached = tuple(
            NotReached(dose, _why_not(searches, dose))
            for dose in (self.parameters.plan.doses if searches else ())
            if dose not in reached
        )
        return FrontierCurve(
            name=name,
            group=GROUPS[name],
            draws=max(1, len(searches)),
            points=tuple(self._point(setting, self.measured[setting]) for setting in settings),
            not_reached=unreached,
            unavailable=self.unfitted.get(name),
            half=self._half([self.measured[setting] for setting in settings]),
        )

    def _system_curve(self) -> FrontierCurve:
        points, half = (), None
        if self.system is not None:
            cost, m = self.system
            point = self._point(None, m)
            points, half = (_with_cost(point, cost),), self._half([m])
        return FrontierCurve(
            name="system-prompt",
            group=GROUPS["system-prompt"],
            draws=1,
            points=points,
            not_reached=(),
            unavailable=None if self.system else "no system prompt in the template",
            half=half,
        )

    def _half(self, measured: Sequence[Measured]) -> HalfDamage | None:
        points = [CostedRate(m.divergence.kl, m.divergence.tokens, m.positive) for m in measured]
        rng = np.random.default_rng([self.seed, RESAMPLED])
        return half_damage(points, self.baseline.positive, rng) if points else None

    # Comparisons

    def comparisons(self) -> Iterator[Comparison]:
        """Every intervention that removes the behaviour, compared with the reference at every budget."""
        pairs = list(dict.fromkeys(self._pairs()))
        level = simultaneous(LEVEL, len(pairs))
        for name, budget, before, after in pairs:
            reference = self.measured[before].positive
            other = self.system[1] if after is None and self.system is not None else self.measured[after]
            difference = gain(reference, other.positive, level)
            if difference is not None:
                yield Comparison(name, budget, difference)

    def _pairs(self) -> Iterator[tuple[InterventionName, float, Setting, Setting | None]]:
        """Name, budget, and the settings of the reference and of the intervention; None is the system prompt."""
        for name in self.parameters.plan.names:
            if GROUPS[name] not in ("one direction", "several directions") or name == REFERENCE:
                continue
            both_largest = False
            for budget in self.parameters.plan.doses:
                before, after = self._within(REFERENCE, budget), self._within(name, budget)
                if before is not None and after is not None and not both_largest:
                    yield name, budget, before, after
                    both_largest = before.dose is None and after.dose is None
        if self.system is not None and (before := self._within(REFERENCE, self.system[0])) is not None:
            yield "system-prompt", self.system[0], before, None

    def _within(self, name: InterventionName, budget: float) -> Setting | None:
        """An intervention at a budget: its dose, or else its largest strength; None if the cost jumps over it."""
        own = {setting.dose: setting for setting in self._settings(name)}
        largest = own.get(None)
        return own.get(budget) or (largest if largest is not None and largest.cost < budget else None)


def as_name(name: str) -> InterventionName:
    """The name of an intervention of this analysis."""
    return next(known for known in GROUPS if known == name)


def _with_cost(point: FrontierPoint, cost: float) -> FrontierPoint:
    return replace(point, dosed_kl=finite_or_none(cost))


def _why_not(
    searches: Sequence[DoseSearch], dose: float
) -> Literal["largest strength costs less", "cost jumps over the dose"]:
    largest = [search.at_largest() for search in searches]
    short = any(s is not None and s.cost < dose for s in largest)
    return "largest strength costs less" if short else "cost jumps over the dose"


def _accuracy(right: Bool[np.ndarray, "draw question"] | None) -> Rate | None:
    """The share over all draws; its interval counts questions."""
    if right is None or right.shape[1] == 0:
        return None
    n = right.shape[1]
    rate = float(right.mean())
    return Rate(rate, *wilson_of_rate(rate, n), n)
