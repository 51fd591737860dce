from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from make_evidence import known
from rhumbline.errors import ProtocolError
from rhumbline.evidence.verdict import SeedEvidence, Verdict, decide, overall, sentence
from rhumbline.evidence.verdict_rules import ARDITI2024, BLOG2026, RHUMBLINE, STYLE, criteria
from rhumbline.records.claims import Claim, ClaimKind, claim_of
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import PooledEffect, RelativeChange
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.results import Results
from rhumbline.records.shared import SeedPair
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason
from rhumbline.records.verdict_rule import Rule

SHOWN, REFUTED, UNDECIDED, NOT_TESTED = ClaimState
DISCARDED = VerdictReason(
    code=VerdictCode.NO_CANDIDATE,
    no_candidate=NoCandidate.ALL_DISCARDED,
    counts={Discard.KL_TOO_LARGE: 20, Discard.TOO_LATE: 2},
)
SINGLE, NOT, NO_BASELINE = VerdictName.REPRODUCES, VerdictName.NOT_SINGLE, VerdictName.NO_BASELINE_REFUSAL
INCONCLUSIVE, DAMAGED, UNTESTED = VerdictName.INCONCLUSIVE, VerdictName.DAMAGED, VerdictName.NOT_TESTED
SEEDS = {
    SINGLE: known(),
    NOT: known(ablated=95),
    NO_BASELINE: known(base=40),
    INCONCLUSIVE: known(ablated=45),
    DAMAGED: known(kl=0.5),
    UNTESTED: replace(known(), no_candidate=DISCARDED),
}
"""Evidence that gives each verdict."""


def verdict_of(*names: VerdictName, rule=RHUMBLINE) -> Verdict:
    """The verdict of a run whose seeds have these verdicts."""
    return overall(rule, {seed: decide(rule, SEEDS[name]) for seed, name in enumerate(names)})


# -- one seed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEDS)
def test_the_headline_follows_from_the_claims(name):
    verdict = decide(RHUMBLINE, SEEDS[name])
    assert verdict.verdict is name
    assert (verdict.reasons == ()) == (name is SINGLE)
    assert sentence(verdict).startswith(str(name))


def test_a_discarded_candidate_with_a_large_kl_names_the_next_step():
    assert "`rhumbline analyze damage RUN`" in DISCARDED.advice
    assert structs.replace(DISCARDED, counts={Discard.TOO_LATE: 2}).advice is None


def test_no_candidate_is_not_a_refutation():
    verdict = decide(RHUMBLINE, SEEDS[UNTESTED])
    assert (verdict.verdict, verdict.reason) == (UNTESTED, "no candidate passed: 20 kl too large, 2 too late")
    assert decide(RHUMBLINE, replace(known(base=40), no_candidate=DISCARDED)).verdict is NO_BASELINE
    assert decide(BLOG2026, SEEDS[UNTESTED]).verdict is UNTESTED


def test_what_was_not_measured_is_not_a_refutation():
    evidence = known()
    assert decide(RHUMBLINE, replace(evidence, effects=evidence.effects[:1])).verdict is INCONCLUSIVE
    assert decide(RHUMBLINE, replace(evidence, effects=())).verdict is INCONCLUSIVE
    assert decide(RHUMBLINE, SeedEvidence((), ())).verdict is VerdictName.NOT_TESTED


def test_damage_alone_is_damaged_and_an_effect_that_is_refuted_is_refuted():
    assert decide(RHUMBLINE, known(ablated=95, kl=0.5)).verdict is NOT
    assert decide(RHUMBLINE, known(ablated=45, kl=0.5)).verdict is DAMAGED
    assert decide(RHUMBLINE, known(ablated=(0, 100))).verdict is DAMAGED  # broken text refutes no effect


def test_a_direction_that_an_unusable_metric_selected_refutes_nothing():
    verdict = decide(RHUMBLINE, replace(known(ablated=95), metric_auroc=0.5))
    assert verdict.verdict is INCONCLUSIVE
    assert verdict.reason == "not measured, the metric does not separate the classes: AUROC 0.50 < 0.60"
    assert decide(RHUMBLINE, replace(known(ablated=95), metric_auroc=0.7)).verdict is NOT
    assert decide(RHUMBLINE, replace(known(), metric_auroc=0.5)).verdict is SINGLE


def test_another_behaviour_has_its_own_name():
    assert decide(RHUMBLINE, known(base=40), "style").verdict is VerdictName.NO_BASELINE


# -- weaker rules -----------------------------------------------------------------------------------------------------


def test_a_weaker_rule_never_has_the_unqualified_label():
    assert decide(ARDITI2024, known()).verdict is VerdictName.REPRODUCES_PAPER
    assert decide(BLOG2026, known()).verdict is VerdictName.REPRODUCES_BLOG
    assert decide(BLOG2026, known(ablated=95)).verdict is VerdictName.NOT_SINGLE_BLOG
    assert decide(replace(RHUMBLINE, max_kl=None), known()).verdict is VerdictName.REPRODUCES_WEAKER
    assert decide(replace(ARDITI2024, min_drop=0.6), known()).verdict is VerdictName.REPRODUCES_WEAKER
    assert verdict_of(SINGLE, SINGLE, rule=ARDITI2024).verdict is VerdictName.REPRODUCES_PAPER
    assert verdict_of(NO_BASELINE, rule=ARDITI2024).verdict is NO_BASELINE  # nothing was decided
    assert VerdictName.REPRODUCES_PAPER.headline is SINGLE
    assert str(VerdictName.REPRODUCES_PAPER).endswith("by the paper's criteria")


STRICT = replace(RHUMBLINE, min_separation=0.7, content_everywhere=True)
WEAKER = {
    "reads": "estimate", "families": ("isotropic",), "same_cosine": 0.2, "content_everywhere": False,
    "min_drop": 0.4, "min_gap": 0.1, "min_baseline": 0.3, "min_contrast": None, "min_draws": 5, "min_separation": 0.6,
    "min_cosine": 0.5, "max_p": 0.1, "max_degenerate": 0.5, "max_kl": 0.5, "max_over_refusal": None,
    "max_accuracy_loss": 0.3, "max_negative": 0.9, "version": 4,
}  # fmt: skip
"""A weaker value of every field of a rule that decides a claim."""
DECIDES_NOTHING = {"name", "min_group_cosine", "one_group_cosine", "open_if_unmeasured"}
"""The name, and fields of version 4 only."""


@pytest.mark.parametrize("name", [field.name for field in fields(Rule) if field.name not in DECIDES_NOTHING])
def test_a_rule_with_a_looser_condition_is_weaker(name):
    assert replace(STRICT, **{name: WEAKER[name]}).is_weaker_than(STRICT)
    if getattr(STRICT, name) == getattr(RHUMBLINE, name):
        assert criteria(replace(RHUMBLINE, **{name: WEAKER[name]})) == "by weaker criteria"


def test_a_stricter_rule_is_not_weaker():
    stricter = replace(RHUMBLINE, max_p=0.01, min_drop=0.8, same_cosine=None, max_kl=0.1, name="mine")
    assert (criteria(RHUMBLINE), criteria(STYLE), criteria(stricter)) == ("", "", "")
    assert criteria(replace(STYLE, min_separation=0.6)) == "by weaker criteria"
    assert not STRICT.is_weaker_than(STRICT)


# -- several seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_that_agree_give_their_verdict(name):
    assert verdict_of(name, name).verdict is name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((SINGLE, NO_BASELINE), SINGLE),  # every seed that could be tested
        ((SINGLE, UNTESTED), SINGLE),
        ((SINGLE, INCONCLUSIVE), INCONCLUSIVE),
        ((SINGLE, DAMAGED), INCONCLUSIVE),
        ((INCONCLUSIVE, DAMAGED), INCONCLUSIVE),
        ((DAMAGED, NO_BASELINE), DAMAGED),
        ((NO_BASELINE, UNTESTED), UNTESTED),
        ((SINGLE, INCONCLUSIVE, DAMAGED, NO_BASELINE, UNTESTED), INCONCLUSIVE),
        # Contrary cases: something is refuted.
        ((SINGLE, NOT), NOT),
        ((NOT, INCONCLUSIVE), NOT),
        ((NOT, UNTESTED), NOT),
    ],
)
def test_only_a_refuted_claim_refutes_a_mixture(names, expected):
    assert verdict_of(*names).verdict is expected


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(list(SEEDS)), min_size=1, max_size=4))
def test_the_verdict_of_a_run(names):
    verdict = verdict_of(*names).verdict
    tested = [name for name in names if name not in (NO_BASELINE, UNTESTED)]
    assert (verdict is NOT) == (NOT in names)
    assert (verdict is SINGLE) == (set(tested) == {SINGLE})


def test_the_claims_of_a_run_name_the_seeds_that_differ():
    claim = claim_of(ClaimKind.SUPPRESSES, verdict_of(SINGLE, NOT).claims)
    assert claim.state is REFUTED
    assert claim.reason.startswith("seeds disagree: shown (seed 0), refuted (seed 1); seed 1: suppression")
    claim = claim_of(ClaimKind.SUPPRESSES, verdict_of(SINGLE, INCONCLUSIVE).claims)
    assert claim.state is UNDECIDED
    assert claim.reason.startswith("not every seed decides: shown (seed 0), undecided (seed 1)")
    assert [convert(to_json(c), Claim) for c in verdict_of(SINGLE, NOT).claims] == list(verdict_of(SINGLE, NOT).claims)


def test_the_number_of_an_effect_is_that_over_all_seeds():
    change = RelativeChange(value=0.9, low=0.85, high=0.95, n=150)
    pooled = [PooledEffect("suppression", 0.9, 0.8, 1.0, n=150, spread=0.1, shared=50, relative=change)]
    verdicts = {seed: decide(RHUMBLINE, known()) for seed in (0, 1)}
    claim = claim_of(ClaimKind.SUPPRESSES, overall(RHUMBLINE, verdicts, pooled=pooled).claims)
    assert (claim.value, claim.low, claim.n) == (0.9, 0.85, 150)
    # A rule that reads estimates compares the absolute drop with its margin.
    by_blog = {seed: decide(BLOG2026, known()) for seed in (0, 1)}
    claim = claim_of(ClaimKind.SUPPRESSES, overall(BLOG2026, by_blog, pooled=[replace(pooled[0], drop=0.7)]).claims)
    assert (claim.value, claim.low, claim.bound) == (0.7, 0.8, BLOG2026.min_drop)


def test_an_undecided_effect_has_no_number_beyond_the_margin():
    """Two seeds of 100 prompts are undecided, and the interval over both is above the margin of one half."""
    change = RelativeChange(value=0.58, low=0.51, high=0.64, n=200)
    pooled = [PooledEffect("suppression", 0.58, 0.5, 0.65, n=200, spread=0.0, shared=0, relative=change)]
    verdicts = {seed: decide(RHUMBLINE, known(ablated=42)) for seed in (0, 1)}
    claim = claim_of(ClaimKind.SUPPRESSES, overall(RHUMBLINE, verdicts, pooled=pooled).claims)
    assert (claim.state, claim.n) == (UNDECIDED, 100)
    assert claim.low < RHUMBLINE.min_drop < claim.high
    around = [replace(pooled[0], relative=structs.replace(change, low=0.45))]
    claim = claim_of(ClaimKind.SUPPRESSES, overall(RHUMBLINE, verdicts, pooled=around).claims)
    assert (claim.state, claim.low, claim.n) == (UNDECIDED, 0.45, 200)


def test_an_effect_that_some_seeds_refute_has_their_number_and_reasons():
    change = RelativeChange(value=0.9, low=0.85, high=0.95, n=150)
    pooled = [PooledEffect("suppression", 0.9, 0.8, 1.0, n=150, spread=0.1, shared=50, relative=change)]
    verdicts = {seed: decide(RHUMBLINE, SEEDS[name]) for seed, name in enumerate((SINGLE, NOT, INCONCLUSIVE))}
    claim = claim_of(ClaimKind.SUPPRESSES, overall(RHUMBLINE, verdicts, pooled=pooled).claims)
    assert (claim.state, claim.value) == (REFUTED, pytest.approx(0.05))
    assert {reason.seed for reason in claim.reasons[1:]} == {1}


@pytest.mark.parametrize(
    ("pairs", "state"),
    [
        ([(0.95, True)], SHOWN),
        ([(0.95, False), (0.6, True)], REFUTED),
        ([(0.6, False)], UNDECIDED),  # different sites
        ([(0.1, False), (0.6, True)], REFUTED),  # the smallest cosine is between different sites
        ([], UNDECIDED),
    ],
)
def test_seeds_decide_stability_too(pairs, state):
    verdicts = {seed: decide(RHUMBLINE, known()) for seed in (0, 1)}
    agreement = [SeedPair((0, 1), cosine, same_site) for cosine, same_site in pairs]
    verdict = overall(RHUMBLINE, verdicts, agreement=agreement)
    stable = claim_of(ClaimKind.STABLE, verdict.claims)
    assert stable.state is state
    # The number is that of the condition that decides.
    decides = state is not SHOWN and pairs
    assert (stable.value, stable.n) == ((0.6, len(pairs)) if decides else (pytest.approx(0.95), 20))
    assert verdict.verdict is SINGLE  # stability does not enter the headline


def test_only_tested_seeds_decide_stability():
    verdicts = {0: decide(RHUMBLINE, known()), 1: decide(RHUMBLINE, known()), 2: decide(RHUMBLINE, known(base=40))}
    pairs = [SeedPair((0, 1), 0.95, True), SeedPair((0, 2), 0.1, True)]
    stable = claim_of(ClaimKind.STABLE, overall(RHUMBLINE, verdicts, agreement=pairs).claims)
    assert stable.state is SHOWN
    stable = claim_of(ClaimKind.STABLE, overall(RHUMBLINE, {**verdicts, 2: verdicts[0]}, agreement=pairs).claims)
    assert stable.state is REFUTED


def test_a_run_without_seeds_has_no_verdict():
    with pytest.raises(ProtocolError, match="at least one seed"):
        overall(RHUMBLINE, {})


# -- stored results ---------------------------------------------------------------------------------------------------


def test_the_evidence_of_stored_results_gives_the_recorded_verdict(every_stage):
    results = RunDirectory.read(every_stage).read_record(Results)
    for result in results.seeds:
        verdict = decide(results.rule, SeedEvidence.of(result))
        assert (verdict.verdict, verdict.claims) == (result.verdict, result.claims)
    nothing = replace(results.seeds[0], selected=None)
    assert decide(results.rule, SeedEvidence.of(nothing)).reason == "no candidate passed"
