"""What a rule reads of one seed, and whether anything can be tested at all.

Independent of rows, models and files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import UNSET

from rhumbline.evidence.statistics import difference_of_two_samples
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.claims import Claim
from rhumbline.records.effect_results import ArmRate, DamageChange, Effect, SecondSummary, Shift, StabilitySummary
from rhumbline.records.results import LevelUnit, SeedResult
from rhumbline.records.shared import EffectName, Label
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import VerdictCode, VerdictReason, reason_text
from rhumbline.records.verdict_rule import Rule, is_number

USABLE_AUROC = 0.6
"""Separation of the training classes by a metric that can select a direction; required of first tokens too."""
SEPARATED_BY_JUDGE = 0.2
"""Difference of the baseline rates of classes that the judge separates: an AUROC of `USABLE_AUROC`."""
NOT_MEASURED = frozenset({VerdictCode.BASELINE_NOT_MEASURED, VerdictCode.CLASSES_NOT_MEASURED})
"""Reasons why the baseline is unknown."""
NO_SHIFT = Shift(None, None, None, 0)
"""A KL divergence that was not measured."""


class Verdict(NamedTuple):
    """The outcome of a rule for one seed, or for a run."""

    verdict: VerdictName
    reasons: tuple[VerdictReason, ...] = ()
    """Why; empty if every condition of the rule is met."""
    claims: tuple[Claim, ...] = ()
    """What the verdict follows from; empty up to version 4 of the rule."""

    @property
    def reason(self) -> str:
        """The reasons in one line."""
        return reason_text(self.reasons)


@dataclass(frozen=True)
class SeedEvidence:
    """What the rule reads of one seed."""

    arms: Sequence[ArmRate]
    """Rates or levels of the arms."""
    effects: Sequence[Effect]
    """Suppression and induction, with their nulls."""
    no_candidate: VerdictReason | None = None
    """Why no candidate was selected; None if one was."""
    shift: Shift = NO_SHIFT
    """KL divergence of ablation on negatives."""
    damage: Sequence[DamageChange] = ()
    """Changes apart from the effects. Empty for rules up to version 4, which read the arms instead."""
    stability: StabilitySummary | None = None
    """Bootstrap refits."""
    second: SecondSummary | None = None
    """The second direction; None if none was measured."""
    group_cosine: float | None = None
    """Cosine between the directions of two groups of positives, for rules up to version 4."""
    metric_auroc: float | None = None
    """AUROC of the token metric between the training classes; None without tokens."""
    unit: LevelUnit | None = None
    """The unit of levels; None if the behaviour has classes."""

    @classmethod
    def of(cls, seed: SeedResult) -> "SeedEvidence":
        """The evidence in results.json, for another rule of the same version."""
        missing = None
        if seed.selected is None:
            reasons = (reason for reason in seed.reasons if reason.code is VerdictCode.NO_CANDIDATE)
            missing = next(reasons, VerdictReason(code=VerdictCode.NO_CANDIDATE))
        unit = None if seed.style is UNSET else seed.style.unit
        return cls(
            arms=seed.arms,
            effects=seed.effects,
            no_candidate=missing,
            shift=seed.shift,
            damage=seed.damage,
            stability=seed.stability,
            second=None if seed.second is UNSET else seed.second,
            group_cosine=seed.groups,
            metric_auroc=seed.token_auroc,
            unit=unit,
        )

    def arm(self, arm: ArmId, label: Label) -> ArmRate | None:
        """The rate or level of an arm on a class; None if it was not run."""
        return next((row for row in self.arms if (row.arm, row.side) == (arm, label)), None)

    def rate(self, arm: ArmId, label: Label) -> float | None:
        """The same as a number; None if it is not known."""
        row = self.arm(arm, label)
        return row.rate if row is not None and is_number(row.rate) else None

    def effect(self, name: EffectName) -> Effect | None:
        """An effect with a known size, or None."""
        return next((e for e in self.effects if e.name == name and is_number(e.drop)), None)


def reaches(value: float, margin: float) -> bool:
    """Whether a value reaches a margin. In floating point 0.7 - 0.2 is slightly below 0.5, and counts as 0.5."""
    return value >= margin - 1e-9


def baseline_fault(rule: Rule, evidence: SeedEvidence) -> VerdictReason | None:
    """Why there is no behaviour at baseline that an intervention could change; None if there is.

    Without a candidate, a baseline that was not run is not a reason, because nothing had to be measured.
    """
    if rule.min_separation is not None:
        area = evidence.unit.auroc_low if evidence.unit is not None else None
        if not is_number(area):
            return VerdictReason(code=VerdictCode.CLASSES_NOT_MEASURED)
        if not reaches(area, rule.min_separation):
            return VerdictReason(code=VerdictCode.CLASSES_NOT_SEPARATED, value=area, bound=rule.min_separation)
    rate = evidence.rate(BASELINE, "positive")
    if rate is None:
        was_run = evidence.arm(BASELINE, "positive") is not None
        is_needed = was_run or evidence.no_candidate is None
        return VerdictReason(code=VerdictCode.BASELINE_NOT_MEASURED) if is_needed else None
    if reaches(rate, rule.min_baseline):
        return None
    return VerdictReason(code=VerdictCode.BASELINE_TOO_LOW, value=rate, bound=rule.min_baseline)


def judge_separates(evidence: SeedEvidence) -> bool | None:
    """Whether the rates of the classes differ at baseline; None if one is unknown."""
    positive, negative = evidence.rate(BASELINE, "positive"), evidence.rate(BASELINE, "negative")
    return None if positive is None or negative is None else reaches(positive - negative, SEPARATED_BY_JUDGE)


def metric_fault(evidence: SeedEvidence) -> VerdictReason | None:
    """Why the metric cannot select a direction: it does not separate classes that the judge separates."""
    area = evidence.metric_auroc
    if not is_number(area) or area >= USABLE_AUROC or not judge_separates(evidence):
        return None
    return VerdictReason(code=VerdictCode.METRIC_NOT_SEPARATING, value=area, bound=USABLE_AUROC)


def labels_fault(rule: Rule, evidence: SeedEvidence) -> VerdictReason | None:
    """Why the labels say too little about the behaviour at baseline; None if they say enough, or are not measured."""
    positive, negative = (evidence.arm(BASELINE, label) for label in ("positive", "negative"))
    if rule.min_contrast is None or positive is None or negative is None:
        return None
    if not (is_number(positive.rate) and is_number(negative.rate)):
        return None
    low, high = difference_of_two_samples(positive.rate, positive.n, negative.rate, negative.n)
    if reaches(low, rule.min_contrast):
        return None
    return VerdictReason(
        code=VerdictCode.LABELS_NOT_INFORMATIVE,
        value=positive.rate - negative.rate,
        low=low,
        high=high,
        bound=rule.min_contrast,
    )


def induction_not_testable(rule: Rule, evidence: SeedEvidence) -> VerdictReason | None:
    """Why a rise on negatives is not testable: they show the behaviour at baseline. None if it is testable."""
    rate = evidence.rate(BASELINE, "negative")
    if rule.max_negative is None or rate is None or rate <= rule.max_negative:
        return None
    return VerdictReason(code=VerdictCode.NO_ROOM, value=rate, bound=rule.max_negative)
