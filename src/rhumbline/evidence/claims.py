"""The claims of one seed: a rule that was fixed before the data, and the evidence of the seed -> six claims.

Every condition of a claim is shown, refuted, undecided or not tested; a quantity that is missing is never measured and
negative. Independent of rows, models and files.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import product

from msgspec import UNSET, structs
from scipy.stats import binomtest

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.detectable_effects import prompts_for_change
from rhumbline.evidence.seed_evidence import (
    SeedEvidence,
    baseline_fault,
    induction_not_testable,
    labels_fault,
    metric_fault,
    reaches,
)
from rhumbline.evidence.statistics import LEAST_RESAMPLED
from rhumbline.records.arms import ABLATION, BASELINE, ArmId
from rhumbline.records.claims import Claim, ClaimKind
from rhumbline.records.effect_results import DamageChange, Effect, Quantity, RelativeChange, SecondEffect
from rhumbline.records.shared import Label
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason, reason_text
from rhumbline.records.verdict_rule import Rule, is_number

SHOWN, REFUTED, UNDECIDED, NOT_TESTED = ClaimState
"""The states, short."""
DAMAGE = frozenset(
    {
        VerdictCode.DEGENERATE,
        VerdictCode.KL_TOO_LARGE,
        VerdictCode.ANSWERS_LOST,
        VerdictCode.CONTENT_LOST,
        VerdictCode.OVER_REFUSAL,
    }
)
"""Conditions that are met below their bound."""
UNIQUE_PROMPTS = 24
"""Test prompts per class with which the power of the search was measured (docs/calibration-directions.md)."""


def seed_claims(rule: Rule, evidence: SeedEvidence) -> tuple[Claim, ...]:
    """Every claim about the selected direction of one seed.

    Nothing is tested if the positives rarely show the behaviour at baseline, if no candidate was selected, or if the
    labels say too little about the behaviour at baseline.
    """
    fault = baseline_fault(rule, evidence) or evidence.no_candidate or labels_fault(rule, evidence)
    if fault is not None:
        return tuple(_not_tested(kind, fault) for kind in ClaimKind)
    no_room = induction_not_testable(rule, evidence)
    no_room = no_room and structs.replace(no_room, state=NOT_TESTED)
    suppression, induction = EFFECTS
    tested = EFFECTS if no_room is None else EFFECTS[:1]
    claims = (
        _claim(ClaimKind.SUPPRESSES, [_effect_size(rule, evidence, suppression)]),
        _not_tested(ClaimKind.INDUCES, no_room)
        if no_room is not None
        else _claim(ClaimKind.INDUCES, [_effect_size(rule, evidence, induction)]),
        _claim(ClaimKind.BEATS_NULLS, _null_conditions(rule, evidence, tested)),
        _claim(ClaimKind.LEAVES_INTACT, _damage_conditions(rule, evidence, tested)),
        _claim(ClaimKind.STABLE, [_refit_cosine(rule, evidence)]),
        uniqueness(rule, evidence),
    )
    fault = metric_fault(evidence)
    return claims if fault is None else tuple(_not_refuted(claim, fault) for claim in claims)


def _not_refuted(claim: Claim, fault: VerdictReason) -> Claim:
    """The claim about a direction that an unusable metric selected: that such a direction fails refutes nothing."""
    if claim.state is not REFUTED:
        return claim
    return structs.replace(claim, state=UNDECIDED, reason=fault.text, reasons=(fault,))


def uniqueness(rule: Rule, evidence: SeedEvidence) -> Claim:
    """Whether no second direction, orthogonal to the first, has the same effects.

    Refuted if the best second direction suppresses and induces, and its ranks are within the bound in every family of
    the rule. Shown if one of its effects misses the margin with the whole interval, on as many prompts as the power of
    the search was measured with on planted models, and both effects of the first direction are shown: where its own
    addition is too small, that of a second one fails as well. Otherwise undecided.
    """
    second = evidence.second
    if second is None or rule.reads == "estimate":
        return _not_tested(ClaimKind.UNIQUE, VerdictReason(code=VerdictCode.SECOND_DIRECTION, state=NOT_TESTED))
    if second.selected is None or not second.effects:
        return _claim(ClaimKind.UNIQUE, [VerdictReason(code=VerdictCode.SECOND_DIRECTION, state=UNDECIDED)])
    passes = len(second.effects) == len(EFFECTS) and all(_second_passes(rule, effect) for effect in second.effects)
    # The smallest effect comes first, and is the number of the claim.
    effects = sorted(second.effects, key=lambda effect: effect.relative.value or 0.0)
    failing = [effect for effect in effects if second.source is not UNSET and _second_fails(rule, effect)]
    if failing and not passes:
        first = [effect.relative for arms in EFFECTS if (effect := evidence.effect(arms.name)) is not None]
        reaches_margin = [c is not UNSET and state_of(c.low, c.high, rule.min_drop) is SHOWN for c in first]
        if len(first) < len(EFFECTS) or not all(reaches_margin):
            return _claim(ClaimKind.UNIQUE, [VerdictReason(code=VerdictCode.FIRST_NOT_SHOWN, state=UNDECIDED)])
        return _claim(ClaimKind.UNIQUE, [_second_effect(rule, effect, SHOWN) for effect in failing])
    state = REFUTED if passes else UNDECIDED
    return _claim(ClaimKind.UNIQUE, [_second_effect(rule, effect, state) for effect in effects])


def _second_fails(rule: Rule, effect: SecondEffect) -> bool:
    change = effect.relative
    return change.n >= UNIQUE_PROMPTS and state_of(change.low, change.high, rule.min_drop) is REFUTED


def _second_passes(rule: Rule, effect: SecondEffect) -> bool:
    ranks = [effect.p.get(family) for family in rule.families] if rule.max_p is not None else []
    is_large = state_of(effect.relative.low, effect.relative.high, rule.min_drop) is SHOWN
    return is_large and all(p is not None and p <= (rule.max_p or 1.0) + 1e-9 for p in ranks)


def _second_effect(rule: Rule, effect: SecondEffect, state: ClaimState) -> VerdictReason:
    known = [p for family in rule.families if (p := effect.p.get(family)) is not None]
    return VerdictReason(
        code=VerdictCode.SECOND_EFFECT,
        state=state,
        effect=effect.name,
        value=effect.relative.value,
        low=effect.relative.low,
        high=effect.relative.high,
        bound=rule.min_drop,
        n=effect.relative.n,
        p=max(known, default=None),
    )


# -- claims from conditions -------------------------------------------------------------------------------------------


def _not_tested(kind: ClaimKind, reason: VerdictReason) -> Claim:
    return Claim(kind=kind, state=NOT_TESTED, reason=reason.text, reasons=(reason,))


def _claim(kind: ClaimKind, conditions: Sequence[VerdictReason]) -> Claim:
    """The claim that all conditions are met.

    Its reasons are the conditions in its state (all that are not met, if it is undecided). A claim that is shown has
    those nearest to their margins, one of each kind. Its number is that of the reason with the least slack.
    """
    state = combined(condition.state for condition in conditions)
    if state is SHOWN:
        by_code: dict[VerdictCode, list[VerdictReason]] = {}
        for condition in conditions:
            by_code.setdefault(condition.code, []).append(condition)
        reasons = [min(some, key=_slack) for some in by_code.values()]
        if kind is ClaimKind.LEAVES_INTACT:
            reasons = [min(reasons, key=_slack)]
    elif state is UNDECIDED:
        reasons = [condition for condition in conditions if condition.state is not SHOWN]
    else:
        reasons = [condition for condition in conditions if condition.state is state]
    weakest = min((r for r in reasons if r.value is not None), key=_slack, default=reasons[0])
    return Claim(
        kind=kind,
        state=state,
        value=weakest.value,
        low=weakest.low,
        high=weakest.high,
        bound=weakest.bound,
        n=weakest.n,
        reason=reason_text(reasons),
        reasons=tuple(reasons),
    )


def combined(states: Iterable[ClaimState | None]) -> ClaimState:
    """The state of a claim whose conditions must all be met.

    Refuted if one is refuted, not tested if none is tested, shown if all are shown, and otherwise undecided.
    """
    every = set(states)
    if REFUTED in every:
        return REFUTED
    if every <= {NOT_TESTED}:
        return NOT_TESTED
    return SHOWN if every == {SHOWN} else UNDECIDED


def slack(claim: Claim) -> float:
    """By how much a claim is met, in units of its margin or bound, as for a condition; infinite without a number."""
    if claim.value is None:
        return math.inf
    bound = claim.bound or 1.0
    above = (claim.value - bound) / bound
    return -above if claim.kind is ClaimKind.LEAVES_INTACT else above


def _slack(condition: VerdictReason) -> float:
    """By how much a condition is met, in units of its margin or bound; negative if its number is on the other side.

    Of ranks, which have no number, the one with the largest p has the least.
    """
    if condition.code is VerdictCode.NULL_RANK:
        return -(condition.p or 0.0)
    bound = condition.bound or 1.0
    above = ((condition.value or 0.0) - bound) / bound
    return -above if condition.code in DAMAGE else above


def state_of(low: float | None, high: float | None, margin: float) -> ClaimState:
    """Whether a quantity with this interval reaches a margin; an unknown end decides nothing."""
    if is_number(low) and reaches(low, margin):
        return SHOWN
    return REFUTED if is_number(high) and not reaches(high, margin) else UNDECIDED


# -- effects ----------------------------------------------------------------------------------------------------------


def _effect_size(rule: Rule, evidence: SeedEvidence, arms: ComparedArms) -> VerdictReason:
    """Whether an effect reaches its margin: the estimated absolute change, or the interval of the relative one."""
    effect = evidence.effect(arms.name)
    if effect is None:
        return VerdictReason(code=VerdictCode.EFFECT_NOT_MEASURED, state=NOT_TESTED, effect=arms.name)
    if rule.reads == "estimate":
        assert effect.drop is not None
        return VerdictReason(
            code=VerdictCode.EFFECT_SIZE,
            state=SHOWN if reaches(effect.drop, rule.min_drop) else REFUTED,
            effect=arms.name,
            value=effect.drop,
            low=effect.low,
            high=effect.high,
            bound=rule.min_drop,
            n=effect.n,
        )
    change = effect.relative
    if change is UNSET or not is_number(change.value):
        return VerdictReason(code=VerdictCode.EFFECT_NOT_MEASURED, state=NOT_TESTED, effect=arms.name)
    reason = _relative_reason(VerdictCode.EFFECT_SIZE, change, rule.min_drop, effect)
    by_category = change.units is not None  # further prompts of the same categories need not narrow the interval
    if reason.state is not UNDECIDED or change.most is not None or rule.min_separation is not None or by_category:
        return reason
    rate = evidence.rate(BASELINE, arms.label)
    before = None if rate is None else rate if arms.sign > 0 else 1 - rate
    prompts = None if not before else prompts_for_change(before, change.value, rule.min_drop)
    # The interval of the change can be wider than the one that this number assumes.
    return structs.replace(reason, prompts=prompts) if prompts is not None and prompts > change.n else reason


def _relative_reason(
    code: VerdictCode, change: RelativeChange, margin: float, effect: Effect, family: str | None = None
) -> VerdictReason:
    """A relative change or gap and its margin. Refuted only if it misses the margin however degenerate text counts."""
    most = change.high if change.most is None else change.most
    return VerdictReason(
        code=code,
        state=state_of(change.low, most, margin),
        effect=effect.name,
        family=family,
        value=change.value,
        low=change.low,
        high=change.high,
        most=change.most,
        bound=margin,
        n=change.n,
        draws=change.draws,
        units=change.units,
    )


# -- nulls ------------------------------------------------------------------------------------------------------------


def _null_conditions(rule: Rule, evidence: SeedEvidence, tested: Sequence[ComparedArms]) -> list[VerdictReason]:
    """The gap of every tested effect to every family of the rule, and its rank among the draws."""
    conditions = []
    for arms, family in product(tested, rule.families):
        effect = evidence.effect(arms.name)
        if effect is None:
            conditions.append(VerdictReason(code=VerdictCode.EFFECT_NOT_MEASURED, state=NOT_TESTED, effect=arms.name))
            continue
        gap = _gap_size(rule, effect, family)
        conditions.append(gap)
        if rule.max_p is not None:
            conditions.append(_rank(rule, rule.max_p, effect, family, is_contradicted=gap.state is SHOWN))
    return list(dict.fromkeys(conditions))


def _gap_size(rule: Rule, effect: Effect, family: str) -> VerdictReason:
    missing = VerdictReason(code=VerdictCode.NULL_NOT_MEASURED, state=NOT_TESTED, effect=effect.name, family=family)
    if rule.reads == "estimate":
        gap = effect.gap.get(family)
        if not is_number(gap):
            return missing
        return VerdictReason(
            code=VerdictCode.NULL_GAP,
            state=SHOWN if reaches(gap, rule.min_gap) else REFUTED,
            effect=effect.name,
            family=family,
            value=gap,
            bound=rule.min_gap,
            n=effect.n,
        )
    change = (effect.relative_gap or {}).get(family)
    if change is None or not is_number(change.value):
        return missing
    return _relative_reason(VerdictCode.NULL_GAP, change, rule.min_gap, effect, family)


def _rank(rule: Rule, max_p: float, effect: Effect, family: str, *, is_contradicted: bool) -> VerdictReason:
    """Whether few enough comparable draws change the metric by at least as much as the direction.

    Refuted if the exact interval of the share of such draws is above the bound: the family reaches the effect too
    often. A larger p that does not show this decides nothing. Nor does it if completions contradict it: the metric also
    falls where a draw breaks the model, and a judge that reads texts does not call this suppression. Nor do draws whose
    metric is not finite, though they count as reaching the effect in p.
    """
    wide = effect.wide.get(family)
    comparable = 0 if wide is None or wide.comparable is UNSET else wide.comparable
    if wide is None or wide.p is None or wide.beaten is UNSET:
        if comparable >= max(1, rule.min_draws or 0):
            return VerdictReason(
                code=VerdictCode.NULL_NOT_MEASURED, state=NOT_TESTED, effect=effect.name, family=family
            )
        return VerdictReason(
            code=VerdictCode.TOO_FEW_DRAWS,
            state=NOT_TESTED,
            effect=effect.name,
            family=family,
            draws=comparable,
            bound=rule.min_draws or 1,
        )
    measured = max(0, wide.beaten - sum(value is None for value in wide.values))
    often = binomtest(measured, comparable).proportion_ci(0.95, "exact").low > max_p
    return VerdictReason(
        code=VerdictCode.NULL_RANK,
        state=SHOWN if wide.p <= max_p + 1e-9 else REFUTED if often and not is_contradicted else UNDECIDED,
        effect=effect.name,
        family=family,
        draws=comparable,
        beaten=wide.beaten,
        p=wide.p,
        bound=max_p,
    )


# -- damage -----------------------------------------------------------------------------------------------------------


def _damage_conditions(rule: Rule, evidence: SeedEvidence, tested: Sequence[ComparedArms]) -> list[VerdictReason]:
    """Every bound of the rule on damage. What was not measured is not tested; unknown answers have no condition."""
    induces = len(tested) == len(EFFECTS)
    effects: list[tuple[ArmId, Label]] = [(arms.arm, arms.label) for arms in tested]
    negatives: list[tuple[ArmId, Label]] = [(ABLATION, "negative")]
    content = VerdictCode.CONTENT_LOST if rule.content_everywhere else VerdictCode.ANSWERS_LOST
    bounds: dict[Quantity, tuple[VerdictCode, float | None, list[tuple[ArmId, Label]]]] = {
        "degenerate": (VerdictCode.DEGENERATE, rule.max_degenerate, effects + negatives),
        # If negatives show the behaviour, its change there is the effect itself.
        "behaviour": (VerdictCode.OVER_REFUSAL, rule.max_over_refusal if induces else None, negatives),
        "correct": (content, rule.max_accuracy_loss, negatives + (effects if rule.content_everywhere else [])),
    }
    measured = {(row.quantity, row.arm, row.side): row for row in evidence.damage}
    conditions = []
    for quantity, (code, bound, arms) in bounds.items():
        if bound is None:
            continue
        for arm, label in arms:
            row = measured.get((quantity, arm, label))
            if row is not None:
                conditions.append(_damage(code, row, bound))
            elif quantity != "correct":
                conditions.append(VerdictReason(code=code, state=NOT_TESTED, arm=arm, label=label, bound=bound))
    if rule.max_kl is not None and induces:
        conditions.append(_kl(rule.max_kl, evidence))
    if conditions:
        return conditions
    has_bound = any(bound is not None for _, bound, _ in bounds.values()) or rule.max_kl is not None
    code = VerdictCode.NOT_MEASURED if has_bound else VerdictCode.NOT_IN_RULE
    return [VerdictReason(code=code, state=NOT_TESTED)]


def _damage(code: VerdictCode, row: DamageChange, bound: float) -> VerdictReason:
    return VerdictReason(
        code=code,
        state=_within(row.low, row.high, bound),
        arm=row.arm,
        label=row.side,
        value=row.change,
        low=row.low,
        high=row.high,
        bound=bound,
        n=row.n,
    )


def _kl(bound: float, evidence: SeedEvidence) -> VerdictReason:
    shift = evidence.shift
    if not is_number(shift.kl):
        state = REFUTED if shift.not_finite else NOT_TESTED
        return VerdictReason(code=VerdictCode.KL_TOO_LARGE, state=state, bound=bound, n=shift.n)
    return VerdictReason(
        code=VerdictCode.KL_TOO_LARGE,
        state=_within(shift.low, shift.high, bound),
        value=shift.kl,
        low=shift.low,
        high=shift.high,
        bound=bound,
        n=shift.n,
    )


def _within(low: float | None, high: float | None, bound: float) -> ClaimState:
    """Whether a quantity with this interval stays within its bound."""
    if is_number(high) and reaches(bound, high):
        return SHOWN
    return REFUTED if is_number(low) and not reaches(bound, low) else UNDECIDED


# -- stability --------------------------------------------------------------------------------------------------------


def _refit_cosine(rule: Rule, evidence: SeedEvidence) -> VerdictReason:
    if rule.min_cosine is None:
        return VerdictReason(code=VerdictCode.NOT_IN_RULE, state=NOT_TESTED)
    refits = evidence.stability
    if refits is None or not is_number(refits.cosine.mean):
        return VerdictReason(code=VerdictCode.NOT_MEASURED, state=NOT_TESTED)
    # The range of few refits is no interval: that of one has no width.
    low, high = (refits.cosine.low, refits.cosine.high) if refits.refits >= LEAST_RESAMPLED else (None, None)
    return VerdictReason(
        code=VerdictCode.REFIT_COSINE,
        state=state_of(low, high, rule.min_cosine),
        value=refits.cosine.mean,
        low=low,
        high=high,
        bound=rule.min_cosine,
        n=refits.refits,
    )
