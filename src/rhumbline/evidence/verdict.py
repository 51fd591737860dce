"""The verdict: the claims of every seed -> the headline of the seed and of the run, with the reasons.

Rules up to version 4 decide without claims (version_4_verdict.py). Independent of rows, models and files.
"""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, structs

from rhumbline.arguments import checked
from rhumbline.errors import ProtocolError
from rhumbline.evidence.claims import NOT_TESTED, REFUTED, SHOWN, UNDECIDED, combined, seed_claims, slack, state_of
from rhumbline.evidence.seed_evidence import SeedEvidence, Verdict
from rhumbline.evidence.verdict_rules import criteria
from rhumbline.evidence.version_4_verdict import version_4_decide, version_4_overall
from rhumbline.records.claims import DECISIVE_CLAIMS, EFFECT_CLAIMS, Claim, ClaimKind, claim_of, was_tested
from rhumbline.records.effect_results import PooledEffect
from rhumbline.records.shared import SeedPair
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, SeedVerdicts, VerdictCode, VerdictReason, reason_text
from rhumbline.records.verdict_rule import VERSION, Rule

__all__ = ["SeedEvidence", "Verdict", "decide", "overall", "sentence"]

_NO_BASELINE = {VerdictCode.BASELINE_TOO_LOW, VerdictCode.CLASSES_NOT_SEPARATED}
_POOLED = {ClaimKind.SUPPRESSES: "suppression", ClaimKind.INDUCES: "induction"}


@checked
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
    tested seed shows it. If every seed was tested, its number is the effect over all seeds, `pooled`; but if that has
    another state than the claim, or only some seeds refute it, it is that of the seed in its state which is nearest to
    the margin. Damage depends on the direction that a seed selects: it is refuted that the rest stays intact only if
    every tested seed refutes it.
    """
    if not verdicts:
        raise ProtocolError("The verdict of a run needs at least one seed: got none. Pass the verdict of every seed.")
    if rule.version < VERSION:
        return version_4_overall(verdicts)
    tested = {seed: v for seed, v in sorted(verdicts.items()) if was_tested(v.claims)}
    by_seed = tested or dict(sorted(verdicts.items()))
    of_all = pooled if len(tested) == len(verdicts) else ()
    claims = [
        _run_claim(rule, kind, {s: claim_of(kind, v.claims) for s, v in by_seed.items()}, of_all) for kind in ClaimKind
    ]
    if tested:
        pairs = [pair for pair in agreement if set(pair.seeds) <= tested.keys()]
        claims = [_with_seed_cosine(rule, c, pairs) if c.kind is ClaimKind.STABLE else c for c in claims]
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
    if not was_tested(claims):
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


def _is_left_out(claim: Claim) -> bool:
    """Whether the rule has no bound for a claim, so that its headline cannot need it."""
    return any(reason.code is VerdictCode.NOT_IN_RULE for reason in claim.reasons)


# -- several seeds ----------------------------------------------------------------------------------------------------


def _run_claim(rule: Rule, kind: ClaimKind, by_seed: Mapping[int, Claim], pooled: Sequence[PooledEffect]) -> Claim:
    """One claim over all tested seeds. It lists the seeds in its state; if it is undecided, all that do not show it."""
    if len(by_seed) == 1:
        return next(iter(by_seed.values()))
    state = combined(claim.state for claim in by_seed.values())
    if kind is ClaimKind.LEAVES_INTACT and state is REFUTED and any(c.state is not REFUTED for c in by_seed.values()):
        state = UNDECIDED
    reasons = [] if len({c.state for c in by_seed.values()}) == 1 else [_disagreement(by_seed)]
    is_listed = (lambda c: c.state is state) if state in (SHOWN, REFUTED) else (lambda c: c.state is not SHOWN)
    listed = {seed: claim for seed, claim in by_seed.items() if is_listed(claim)}
    reasons += [structs.replace(reason, seed=seed) for seed, claim in listed.items() for reason in claim.reasons]
    weakest = min(listed.values(), key=slack)
    claim = structs.replace(weakest, state=state, reasons=tuple(reasons), reason=reason_text(reasons))
    is_mixed = state is REFUTED and len(listed) < len(by_seed)
    return claim if is_mixed else _with_pooled(rule, claim, pooled)


def _disagreement(by_seed: Mapping[int, Claim]) -> VerdictReason:
    """The states of a claim by seed."""
    groups: dict[ClaimState, list[int]] = {}
    for seed, claim in by_seed.items():
        groups.setdefault(claim.state, []).append(seed)
    verdicts = tuple(SeedVerdicts(state.text, tuple(seeds)) for state, seeds in groups.items())
    code = VerdictCode.SEEDS_DISAGREE if {SHOWN, REFUTED} <= groups.keys() else VerdictCode.NOT_EVERY_SEED
    return VerdictReason(code=code, verdicts=verdicts)


def _with_pooled(rule: Rule, claim: Claim, pooled: Sequence[PooledEffect]) -> Claim:
    """The claim with the number of the effect over all seeds: the change of the rate that the rule reads.

    Not if its interval has another state: the seeds decide, and that of more prompts is narrower.
    """
    effect = next((e for e in pooled if e.name == _POOLED.get(claim.kind)), None)
    if effect is None or claim.value is None or effect.relative is UNSET:
        return claim
    if rule.reads == "estimate":
        return structs.replace(claim, value=effect.drop, low=effect.low, high=effect.high, n=effect.n)
    change = effect.relative
    if state_of(change.low, change.high if change.most is None else change.most, rule.min_drop) is not claim.state:
        return claim
    return structs.replace(claim, value=change.value, low=change.low, high=change.high, n=change.n)


def _with_seed_cosine(rule: Rule, claim: Claim, pairs: Sequence[SeedPair]) -> Claim:
    """The claim *stable* with the smallest cosine between the directions of two tested seeds.

    If this cosine decides the state, it is the number of the claim, and n the number of pairs. Seeds that select
    different sites can have different directions there, so a small cosine between them refutes nothing; that of two
    seeds with one site does, whatever the other pairs have.
    """
    if rule.min_cosine is None:
        return claim
    refuting = [pair for pair in pairs if pair.same_site and pair.cosine < rule.min_cosine]
    nearest = min(refuting or pairs, key=lambda pair: pair.cosine, default=None)
    if nearest is None:
        condition = VerdictReason(code=VerdictCode.SEED_COSINE, state=NOT_TESTED)
    else:
        state = REFUTED if nearest.same_site else UNDECIDED
        condition = VerdictReason(
            code=VerdictCode.SEED_COSINE,
            state=SHOWN if nearest.cosine >= rule.min_cosine else state,
            value=nearest.cosine,
            bound=rule.min_cosine,
            n=len(pairs),
        )
    state = combined([claim.state, condition.state])
    reasons = tuple(r for r in (*claim.reasons, condition) if state is SHOWN or r.state is not SHOWN)
    if nearest is not None and condition.state is state is not claim.state:
        claim = structs.replace(claim, value=nearest.cosine, low=None, high=None, bound=rule.min_cosine, n=len(pairs))
    return structs.replace(claim, state=state, reasons=reasons, reason=reason_text(reasons))
