"""The decision by rules up to version 4, for the verification of finished runs: evidence of a seed -> `Verdict`.

Unchanged: later versions decide by claims (claims.py, verdict.py). Independent of rows, models and files.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import UNSET, structs

from rhumbline.errors import ProtocolError
from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms, arms_of
from rhumbline.evidence.detectable_effects import prompts_to_decide
from rhumbline.evidence.seed_evidence import (
    NOT_MEASURED,
    SeedEvidence,
    Verdict,
    baseline_fault,
    induction_not_testable,
    judge_separates,
    metric_fault,
    reaches,
)
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.effect_results import Effect, Gap
from rhumbline.records.reasons import NoCandidate, TokensLacking
from rhumbline.records.shared import EffectName, Label
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import SeedVerdicts, VerdictCode, VerdictReason
from rhumbline.records.verdict_rule import Rule, is_number


def version_4_decide(rule: Rule, evidence: SeedEvidence, behaviour: str = "refusal") -> Verdict:
    """Apply the rule to one seed, in this order.

    1. The baseline rate is unknown or below `min_baseline`: NO-BASELINE. Without a candidate, a baseline that was not
       run is not a reason, because nothing had to be measured. For a continuous score also if it does not separate the
       classes (`min_separation`).
    2. No candidate was selected: NOT-SINGLE-DIRECTION.
    3. An intervention exceeds a bound of the rule on damage: DAMAGED.
    4. If the rate of negatives at baseline is above `max_negative`, only suppression is tested from here on.
    5. A condition fails (an effect below `min_drop`, a gap below `min_gap`, a rank p above `max_p`, several
       directions): NOT-SINGLE-DIRECTION, with every failed condition as a reason.
    6. A condition is undecided, because an interval contains a margin, or the cosine of groups is in the band between:
       INCONCLUSIVE, with the number of prompts that would decide it.
    7. Otherwise SINGLE-DIRECTION-REPRODUCES, or INCONCLUSIVE if only suppression was tested.

    With `open_if_unmeasured`, the verdict is INCONCLUSIVE in 1 if the baseline is unknown, in 2 if the candidates could
    not be scored (`_could_not_be_scored`), in 5 if the only failed condition is an effect that was not measured, and in
    2, 3 and 5 if the metric does not separate classes that the judge separates.
    """
    no_baseline = VerdictName.NO_BASELINE_REFUSAL if behaviour == "refusal" else VerdictName.NO_BASELINE
    if (reason := baseline_fault(rule, evidence)) is not None:
        is_open = rule.open_if_unmeasured and reason.code in NOT_MEASURED
        return Verdict(VerdictName.INCONCLUSIVE if is_open else no_baseline, (reason,))
    if (missing := evidence.no_candidate) is not None:
        is_open = rule.open_if_unmeasured and _could_not_be_scored(evidence, missing)
        verdict = Verdict(VerdictName.INCONCLUSIVE if is_open else VerdictName.NOT_SINGLE, (missing,))
    else:
        verdict = _tested(rule, evidence)
    fault = metric_fault(evidence) if rule.open_if_unmeasured else None
    is_against = verdict.verdict in (VerdictName.NOT_SINGLE, VerdictName.DAMAGED)
    return Verdict(VerdictName.INCONCLUSIVE, (fault,)) if fault is not None and is_against else verdict


def _tested(rule: Rule, evidence: SeedEvidence) -> Verdict:
    """The verdict on a direction that was selected."""
    no_room = induction_not_testable(rule, evidence)
    tested = EFFECTS if no_room is None else EFFECTS[:1]
    if damage := _damage(rule, evidence, tested):
        return Verdict(VerdictName.DAMAGED, damage)
    failed, undecided = _conditions(rule, evidence, tested)
    if failed:
        return Verdict(VerdictName.NOT_SINGLE, tuple(failed))
    if undecided:
        return Verdict(VerdictName.INCONCLUSIVE, tuple(undecided))
    return Verdict(VerdictName.REPRODUCES) if no_room is None else Verdict(VerdictName.INCONCLUSIVE, (no_room,))


def version_4_overall(verdicts: Mapping[int, Verdict]) -> Verdict:
    """The verdict of a run from those of its seeds.

    Seeds with the same verdict give that verdict. If some seeds are INCONCLUSIVE and all others reproduce, the run is
    INCONCLUSIVE; also if nothing was measured in these seeds, and all others have no baseline. Any other mixture is
    NOT-SINGLE-DIRECTION: a result that another sample of prompts does not give was not reproduced.
    """
    if not verdicts:
        raise ProtocolError("The verdict of a run needs at least one seed: got none. Pass the verdict of every seed.")
    seeds = sorted(verdicts)
    first = verdicts[seeds[0]]
    if len(seeds) == 1:
        return first
    by_name: dict[VerdictName, list[int]] = {}
    for seed in seeds:
        by_name.setdefault(verdicts[seed].verdict, []).append(seed)
    if len(by_name) == 1:
        reasons = (structs.replace(r, seed=seed) for seed in seeds for r in verdicts[seed].reasons)
        return Verdict(first.verdict, tuple(reasons))
    groups = tuple(SeedVerdicts(name, tuple(members)) for name, members in by_name.items())
    others = by_name.keys() - {VerdictName.INCONCLUSIVE}
    nothing_measured = all(
        reason.code in (VerdictCode.NO_CANDIDATE, *NOT_MEASURED)
        for seed in by_name.get(VerdictName.INCONCLUSIVE, ())
        for reason in verdicts[seed].reasons
    )
    agree = others == {VerdictName.REPRODUCES}
    agree |= nothing_measured and others <= {VerdictName.NO_BASELINE, VerdictName.NO_BASELINE_REFUSAL}
    if agree and VerdictName.INCONCLUSIVE in by_name:
        return Verdict(VerdictName.INCONCLUSIVE, (VerdictReason(code=VerdictCode.NOT_EVERY_SEED, verdicts=groups),))
    return Verdict(VerdictName.NOT_SINGLE, (VerdictReason(code=VerdictCode.SEEDS_DISAGREE, verdicts=groups),))


# -- the conditions ---------------------------------------------------------------------------------------------------


def _could_not_be_scored(evidence: SeedEvidence, missing: VerdictReason) -> bool:
    """Whether no candidate was selected for want of a metric or of prompts, and not because of the model.

    If no token separates the classes, this is a result about the model only if the judge does not separate them either.
    """
    if missing.lacking is TokensLacking.NOT_SEPARATING and (separates := judge_separates(evidence)) is not None:
        return separates
    return missing.no_candidate in (NoCandidate.NO_TOKENS, NoCandidate.NO_PROMPTS)


def _damage(rule: Rule, evidence: SeedEvidence, tested: Sequence[ComparedArms]) -> tuple[VerdictReason, ...]:
    """Every bound on damage that is exceeded."""
    reasons = []
    added: list[tuple[ArmId, Label]] = [(ADDITION, "negative")] if len(tested) == len(EFFECTS) else []
    on_effects: list[tuple[ArmId, Label]] = [(ABLATION, "positive"), *added]
    on_negatives: list[tuple[ArmId, Label]] = [(ABLATION, "negative")]

    def before_and_after(arm: ArmId, label: Label, field: Literal["degenerate", "correct"]) -> list[float | None]:
        values = (getattr(evidence.arm(a, label), field, None) for a in (BASELINE, arm))
        return [value if is_number(value) else None for value in values]

    for arm, label in on_effects + on_negatives:
        before, after = before_and_after(arm, label, "degenerate")
        if rule.max_degenerate is not None and after is not None:
            more = after - (before or 0.0)
            if not reaches(rule.max_degenerate, more):
                code = VerdictCode.DEGENERATE
                reasons.append(VerdictReason(code=code, value=more, bound=rule.max_degenerate, arm=arm, label=label))
    # KL is measured on negatives. If these show the behaviour, a change of their next token is the effect itself.
    if added and rule.max_kl is not None and is_number(evidence.shift.kl) and evidence.shift.kl > rule.max_kl:
        reasons.append(VerdictReason(code=VerdictCode.KL_TOO_LARGE, value=evidence.shift.kl, bound=rule.max_kl))
    code = VerdictCode.CONTENT_LOST if rule.content_everywhere else VerdictCode.ANSWERS_LOST
    for arm, label in on_negatives + (on_effects if rule.content_everywhere else []):
        before, after = before_and_after(arm, label, "correct")
        if rule.max_accuracy_loss is not None and before is not None and after is not None:
            lost = before - after
            if not reaches(rule.max_accuracy_loss, lost):
                reasons.append(VerdictReason(code=code, value=lost, bound=rule.max_accuracy_loss, arm=arm, label=label))
    return tuple(reasons)


_State = Literal["met", "failed", "undecided", "unknown"]
"""Whether a quantity reaches its margin; undecided if its interval contains the margin."""


class _Unmet(NamedTuple):
    """Conditions that are not met."""

    failed: list[VerdictReason]
    undecided: list[VerdictReason]


def _conditions(rule: Rule, evidence: SeedEvidence, tested: Sequence[ComparedArms]) -> _Unmet:
    """Every condition on the tested effects, their nulls and the groups of positives that is not met."""
    effects: dict[EffectName, Effect | None] = {arms.name: evidence.effect(arms.name) for arms in tested}
    measured = [effect for effect in effects.values() if effect is not None]
    states: dict[EffectName, _State] = {e.name: _state(rule, _drop(e), rule.min_drop) for e in measured}
    missing: list[EffectName] = [name for name, effect in effects.items() if effect is None]
    unmeasured = [VerdictReason(code=VerdictCode.EFFECT_NOT_MEASURED, effect=name) for name in missing]
    if rule.open_if_unmeasured:
        failed, undecided = _too_small(rule, measured, states), unmeasured
    else:
        failed, undecided = unmeasured or _too_small(rule, measured, states), []
    undecided += [_undecided(rule, evidence, effect) for effect in measured if states[effect.name] == "undecided"]
    large = [effect for effect in measured if states[effect.name] != "failed"]
    for family in rule.families:
        unmet = _null_conditions(rule, large, family, len(tested))
        failed += unmet.failed
        undecided += unmet.undecided
    several = _group_condition(rule, evidence.group_cosine)
    return _Unmet(failed + several.failed, undecided + several.undecided)


def _too_small(rule: Rule, effects: Sequence[Effect], states: Mapping[EffectName, _State]) -> list[VerdictReason]:
    """The reason for effects below the margin, if there are any."""
    refuted = [effect for effect in effects if states[effect.name] == "failed"]
    if not refuted:
        return []
    if len(refuted) == len(EFFECTS):
        return [VerdictReason(code=VerdictCode.NEITHER_EFFECT, bound=rule.min_drop)]
    code = VerdictCode.ONE_EFFECT_ONLY if "met" in states.values() else VerdictCode.EFFECT_TOO_SMALL
    return [_reason(code, refuted[0], _drop(refuted[0]), rule.min_drop)]


def _undecided(rule: Rule, evidence: SeedEvidence, effect: Effect) -> VerdictReason:
    """The reason for an effect whose interval contains the margin, with the prompts that would decide it."""
    if rule.min_separation is not None:
        return _reason(VerdictCode.LEVEL_UNDECIDED, effect, _drop(effect), rule.min_drop)
    arms = arms_of(effect.name)
    before, after = (evidence.rate(arm, arms.label) for arm in (BASELINE, arms.arm))
    prompts = None
    if before is not None and after is not None:
        prompts = prompts_to_decide(*(before, after)[:: arms.sign], margin=rule.min_drop)
    reason = _reason(VerdictCode.EFFECT_UNDECIDED, effect, _drop(effect), rule.min_drop)
    return structs.replace(reason, prompts=prompts)


def _null_conditions(rule: Rule, effects: Sequence[Effect], family: str, n_tested: int) -> _Unmet:
    """The conditions on one null family: the gap of every effect, and its rank among the wide nulls."""
    gaps = {effect.name: _gap(rule, effect, family) for effect in effects}
    states = {name: _state(rule, gap, rule.min_gap) for name, gap in gaps.items()}
    both = {effect.name: {states[effect.name], _rank(rule, effect, family)} for effect in effects}
    unknown = [effect for effect in effects if "unknown" in both[effect.name]]
    close = [effect for effect in effects if "failed" in both[effect.name] and effect not in unknown]
    code = VerdictCode.NULL_INTERVAL_NOT_SEPARATED
    if rule.reads == "estimate":
        code = VerdictCode.NULL_NOT_SEPARATED
    failed = []
    for kind, some in ((VerdictCode.NULL_NOT_MEASURED, unknown), (code, close)):
        if len(some) == n_tested:
            failed.append(VerdictReason(code=kind, family=family, bound=rule.min_gap))
        elif some:
            reason = _reason(kind, some[0], gaps[some[0].name], rule.min_gap)
            failed.append(structs.replace(reason, family=family, p=_rank_p(rule, some[0], family)))
    undecided = [
        structs.replace(_reason(VerdictCode.GAP_UNDECIDED, effect, gaps[effect.name], rule.min_gap), family=family)
        for effect in effects
        if states[effect.name] == "undecided"
    ]
    return _Unmet(failed, undecided)


def _reason(code: VerdictCode, effect: Effect, quantity: Gap, bound: float) -> VerdictReason:
    """A reason about one effect, with the effect or its gap as the measured quantity."""
    value, low, high = quantity.gap, quantity.low, quantity.high
    return VerdictReason(code=code, effect=effect.name, value=value, low=low, high=high, bound=bound)


def _group_condition(rule: Rule, cosine: float | None) -> _Unmet:
    """Whether the directions of two groups of positives are so different that one direction does not serve both."""
    if is_number(cosine) and rule.min_group_cosine is not None and cosine < rule.min_group_cosine:
        code, bound = VerdictCode.SEVERAL_DIRECTIONS, rule.min_group_cosine
        return _Unmet([VerdictReason(code=code, value=cosine, bound=bound)], [])
    if is_number(cosine) and rule.one_group_cosine is not None and cosine < rule.one_group_cosine:
        return _Unmet([], [VerdictReason(code=VerdictCode.NARROW_CONE, value=cosine, bound=rule.one_group_cosine)])
    return _Unmet([], [])


def _state(rule: Rule, quantity: Gap, margin: float) -> _State:
    """Whether an effect or a gap reaches the margin."""
    if not is_number(quantity.gap):
        return "unknown"
    if rule.reads == "estimate":
        return "met" if reaches(quantity.gap, margin) else "failed"
    if not (is_number(quantity.low) and is_number(quantity.high)):
        return "unknown"
    if reaches(quantity.low, margin):
        return "met"
    return "undecided" if reaches(quantity.high, margin) else "failed"


def _rank(rule: Rule, effect: Effect, family: str) -> _State:
    """Whether the rank p of an effect among the wide nulls of a family is small enough."""
    if rule.max_p is None:
        return "met"
    p = _rank_p(rule, effect, family)
    return "unknown" if p is None else "met" if p <= rule.max_p + 1e-9 else "failed"


def _rank_p(rule: Rule, effect: Effect, family: str) -> float | None:
    """The rank p that the rule reads: without aligned draws, if it has a bound on their cosine."""
    wide = effect.wide.get(family)
    if wide is None:
        return None
    return wide.p if rule.same_cosine is None or wide.p_apart is UNSET else wide.p_apart


def _drop(effect: Effect) -> Gap:
    """The effect with its interval."""
    return Gap(effect.drop, effect.low, effect.high)


def _gap(rule: Rule, effect: Effect, family: str) -> Gap:
    """The gap that the rule reads: without aligned draws, if it has a bound on their cosine."""
    if rule.same_cosine is not None:
        return (effect.apart or {}).get(family, Gap(None, None, None))
    return Gap(*(of_family.get(family) for of_family in (effect.gap, effect.gap_low or {}, effect.gap_high or {})))
