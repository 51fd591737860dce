"""The verdict: the claims of every seed -> the headline of the seed and of the run, with the reasons.

Rules up to version 4 decide without claims (version_4_verdict.py). Independent of rows, models and files.
"""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, structs

from rhumbline.errors import ProtocolError
from rhumbline.evidence.claims import NOT_TESTED, REFUTED, SHOWN, UNDECIDED, claim_of, combined, seed_claims, slack
from rhumbline.evidence.seed_evidence import SeedEvidence, Verdict
from rhumbline.evidence.verdict_rules import criteria
from rhumbline.evidence.version_4_verdict import version_4_decide, version_4_overall
from rhumbline.records.claims import DECISIVE_CLAIMS, EFFECT_CLAIMS, Claim, ClaimKind
from rhumbline.records.effect_results import PooledEffect
from rhumbline.records.shared import SeedPair
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, SeedVerdicts, VerdictCode, VerdictReason, reason_text
from rhumbline.records.verdict_rule import VERSION, Rule

__all__ = ["SeedEvidence", "Verdict", "decide", "overall", "sentence"]

_NO_BASELINE = {VerdictCode.BASELINE_TOO_LOW, VerdictCode.CLASSES_NOT_SEPARATED}
_POOLED = {ClaimKind.SUPPRESSES: "suppression", ClaimKind.INDUCES: "induction"}


def decide(rule: Rule, evidence: SeedEvidence, behaviour: str = "refusal") -> Verdict:
    """Apply the rule to one seed."""
    if rule.version < VERSION:
        return version_4_decide(rule, evidence, behaviour)
    return _verdict(rule, seed_claims(rule, evidence), behaviour)


def overall(
    rule: Rule,
    verdicts: Mapping[int, Verdict],
    behaviour: str = "refusal",
    pooled: Sequence[PooledEffect] = (),
    agreement: Sequence[SeedPair] = (),
) -> Verdict:
    """The verdict of a run from those of its seeds, by the same claims.

    Seeds in which nothing could be tested are left out. An effect is refuted if one seed refutes it, and shown if every
    tested seed shows it. If every seed was tested, its number is the effect over all seeds, `pooled`. Damage depends on
    the direction that a seed selects: it is refuted that the rest stays intact only if every tested seed refutes it.
    """
    if not verdicts:
        raise ProtocolError("The verdict of a run needs at least one seed: got none. Pass the verdict of every seed.")
    if rule.version < VERSION:
        return version_4_overall(verdicts)
    tested = {seed: v for seed, v in sorted(verdicts.items()) if _was_tested(v.claims)}
    by_seed = tested or dict(sorted(verdicts.items()))
    of_all = pooled if len(tested) == len(verdicts) else ()
    claims = [_run_claim(kind, {s: claim_of(kind, v.claims) for s, v in by_seed.items()}, of_all) for kind in ClaimKind]
    if tested:
        claims = [_with_seed_cosine(rule, c, agreement) if c.kind is ClaimKind.STABLE else c for c in claims]
    return _verdict(rule, tuple(claims), behaviour)


def sentence(verdict: Verdict) -> str:
    """The verdict and its claims in one line."""
    tested = [claim for claim in verdict.claims if claim.state is not NOT_TESTED]
    if not tested:
        return f"{verdict.verdict}: nothing was tested ({verdict.reason})."
    return f"{verdict.verdict}: {'; '.join(claim.text for claim in tested)}."


# -- the headline -----------------------------------------------------------------------------------------------------


def _verdict(rule: Rule, claims: tuple[Claim, ...], behaviour: str) -> Verdict:
    """The headline that follows from the claims, and the reasons of the claims that decide it."""
    decisive = [claim for claim in claims if claim.kind in DECISIVE_CLAIMS and not _is_left_out(claim)]
    if not _was_tested(claims):
        reasons = _reasons(decisive)
        return Verdict(_untested(reasons, behaviour), reasons, claims)
    effects_refuted = [c for c in decisive if c.kind in EFFECT_CLAIMS and c.state is REFUTED]
    damaged = [c for c in decisive if c.kind is ClaimKind.LEAVES_INTACT and c.state is REFUTED]
    open_claims = [c for c in decisive if c.state is not SHOWN]
    if effects_refuted:
        name, deciding = VerdictName.NOT_SINGLE, effects_refuted
    elif damaged:
        name, deciding = VerdictName.DAMAGED, damaged
    elif open_claims:
        name, deciding = VerdictName.INCONCLUSIVE, open_claims
    else:
        name, deciding = VerdictName.REPRODUCES, []
    return Verdict(name.qualified(criteria(rule)), _reasons(deciding), claims)


def _reasons(claims: Sequence[Claim]) -> tuple[VerdictReason, ...]:
    """The reasons of some claims, each once."""
    distinct: list[VerdictReason] = []
    for claim in claims:
        distinct += [reason for reason in claim.reasons if reason not in distinct]
    return tuple(distinct)


def _untested(reasons: Sequence[VerdictReason], behaviour: str) -> VerdictName:
    """Why nothing was tested, as a verdict."""
    if not reasons or any(reason.code not in _NO_BASELINE for reason in reasons):
        return VerdictName.NOT_TESTED
    return VerdictName.NO_BASELINE_REFUSAL if behaviour == "refusal" else VerdictName.NO_BASELINE


def _was_tested(claims: Sequence[Claim]) -> bool:
    return any(claim.state is not NOT_TESTED for claim in claims if claim.kind in DECISIVE_CLAIMS)


def _is_left_out(claim: Claim) -> bool:
    """Whether the rule has no bound for a claim, so that its headline cannot need it."""
    return any(reason.code is VerdictCode.NOT_IN_RULE for reason in claim.reasons)


# -- several seeds ----------------------------------------------------------------------------------------------------


def _run_claim(kind: ClaimKind, by_seed: Mapping[int, Claim], pooled: Sequence[PooledEffect]) -> Claim:
    """One claim over all tested seeds."""
    if len(by_seed) == 1:
        return next(iter(by_seed.values()))
    state = combined(claim.state for claim in by_seed.values())
    if kind is ClaimKind.LEAVES_INTACT and state is REFUTED and any(c.state is not REFUTED for c in by_seed.values()):
        state = UNDECIDED
    reasons = [] if len({c.state for c in by_seed.values()}) == 1 else [_disagreement(by_seed)]
    shown = {seed: claim for seed, claim in by_seed.items() if claim.state is SHOWN}
    listed = shown if state is SHOWN else {seed: c for seed, c in by_seed.items() if c.state is not SHOWN}
    reasons += [structs.replace(reason, seed=seed) for seed, claim in listed.items() for reason in claim.reasons]
    weakest = min(listed.values(), key=slack)
    claim = structs.replace(weakest, state=state, reasons=tuple(reasons), reason=reason_text(reasons))
    return _with_pooled(claim, pooled)


def _disagreement(by_seed: Mapping[int, Claim]) -> VerdictReason:
    """The states of a claim by seed."""
    groups: dict[ClaimState, list[int]] = {}
    for seed, claim in by_seed.items():
        groups.setdefault(claim.state, []).append(seed)
    verdicts = tuple(SeedVerdicts(state.text, tuple(seeds)) for state, seeds in groups.items())
    code = VerdictCode.SEEDS_DISAGREE if {SHOWN, REFUTED} <= groups.keys() else VerdictCode.NOT_EVERY_SEED
    return VerdictReason(code=code, verdicts=verdicts)


def _with_pooled(claim: Claim, pooled: Sequence[PooledEffect]) -> Claim:
    """The claim with the number of the effect over all seeds."""
    effect = next((e for e in pooled if e.name == _POOLED.get(claim.kind)), None)
    if effect is None or claim.value is None or effect.relative is UNSET:
        return claim
    change = effect.relative
    return structs.replace(claim, value=change.value, low=change.low, high=change.high, n=change.n)


def _with_seed_cosine(rule: Rule, claim: Claim, agreement: Sequence[SeedPair]) -> Claim:
    """The claim *stable* with the smallest cosine between the directions of two seeds.

    Seeds that select different sites can have different directions there, so a small cosine between them decides
    nothing.
    """
    if rule.min_cosine is None:
        return claim
    nearest = min(agreement, key=lambda pair: pair.cosine, default=None)
    if nearest is None:
        condition = VerdictReason(code=VerdictCode.SEED_COSINE, state=NOT_TESTED)
    else:
        state = REFUTED if nearest.same_site else UNDECIDED
        condition = VerdictReason(
            code=VerdictCode.SEED_COSINE,
            state=SHOWN if nearest.cosine >= rule.min_cosine else state,
            value=nearest.cosine,
            bound=rule.min_cosine,
            n=len(agreement),
        )
    state = combined([claim.state, condition.state])
    reasons = tuple(r for r in (*claim.reasons, condition) if state is SHOWN or r.state is not SHOWN)
    return structs.replace(claim, state=state, reasons=reasons, reason=reason_text(reasons))
