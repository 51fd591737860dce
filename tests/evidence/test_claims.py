import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from make_evidence import known, ranked, with_effects, with_family
from rhumbline.evidence.claims import combined, seed_claims, slack
from rhumbline.evidence.seed_evidence import labels_fault
from rhumbline.evidence.verdict import decide
from rhumbline.evidence.verdict_rules import ARDITI2024, RHUMBLINE, STYLE
from rhumbline.records.claims import ClaimKind, claim_of
from rhumbline.records.codec import convert, to_json
from rhumbline.records.effect_results import MeanInterval, RelativeChange, SecondEffect, SecondSummary, Shift
from rhumbline.records.positions import Position
from rhumbline.records.reasons import NoCandidate
from rhumbline.records.results import LevelUnit
from rhumbline.records.shared import Survivor
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason

SHOWN, REFUTED, UNDECIDED, NOT_TESTED = ClaimState
FAMILIES = RHUMBLINE.families
SUPPRESSES, INDUCES, BEATS_NULLS, INTACT, STABLE, UNIQUE = ClaimKind


def claim(kind, evidence, rule=RHUMBLINE):
    return claim_of(kind, seed_claims(rule, evidence))


def states(evidence, rule=RHUMBLINE):
    return [claim.state for claim in seed_claims(rule, evidence)]


def test_a_clear_effect_shows_every_claim_but_uniqueness():
    claims = seed_claims(RHUMBLINE, known())
    assert [c.kind for c in claims] == list(ClaimKind)
    assert [c.state for c in claims] == [SHOWN] * 5 + [NOT_TESTED]
    assert claims[0].number == "1.00 [0.96, 1.00], n = 100"
    assert claims[-1].reason == "no second direction was measured"
    assert [convert(to_json(c), type(c)) for c in claims] == list(claims)


# -- uniqueness -------------------------------------------------------------------------------------------------------


def second(suppression: float = 1.0, induction: float = 1.0, p: float | None = 0.02, half: float = 0.2, n=24, **more):
    """A second direction with these relative changes and one rank in every family."""
    effects = (
        SecondEffect(name, RelativeChange(value=x, low=x - half, high=x + half, n=n), dict.fromkeys(FAMILIES, p))
        for name, x in (("suppression", suppression), ("induction", induction))
    )
    return SecondSummary(Survivor(Position(-1), 3, norm=1.0, bypass=-2.0), 1, tuple(effects), **more)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, REFUTED),
        ({"suppression": 0.6}, UNDECIDED),  # the interval contains the margin
        (
            {"suppression": 0.1},
            UNDECIDED,
        ),  # a run of an older version: differences in means do not find every direction
        ({"induction": 0.1}, UNDECIDED),
        ({"p": 0.2}, UNDECIDED),
        ({"p": None}, UNDECIDED),  # too few comparable draws
    ],
)
def test_a_second_direction_with_the_same_effects_refutes_uniqueness(fields, state):
    unique = claim(UNIQUE, replace(known(), second=second(**fields)))
    assert unique.state is state
    assert unique.n == 24
    assert unique.value == min(fields.get("suppression", 1.0), fields.get("induction", 1.0))
    # The verdict does not depend on it.
    assert decide(RHUMBLINE, replace(known(), second=second(**fields))).verdict == VerdictName.REPRODUCES


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"suppression": 0.1}, SHOWN),
        ({"induction": 0.1}, SHOWN),
        ({"induction": 0.1, "p": None}, SHOWN),
        ({"suppression": 0.4}, UNDECIDED),  # the interval contains the margin
        ({"suppression": 0.1, "n": 23}, UNDECIDED),  # fewer prompts than the power was measured with
        ({"p": 0.2}, UNDECIDED),  # both effects are large, and random draws have them too
        ({}, REFUTED),
    ],
)
def test_uniqueness_is_shown_if_the_best_second_direction_by_both_searches_fails(fields, state):
    found = {**fields, "source": "gradient", "independence": (0.0, 0.01)}
    unique = claim(UNIQUE, replace(known(), second=second(**found)))
    assert unique.state is state
    if state is SHOWN:
        assert unique.value == 0.1


@pytest.mark.parametrize(("low", "state"), [(0.6, SHOWN), (0.4, UNDECIDED)])
def test_a_second_direction_that_fails_shows_nothing_where_the_first_is_not_shown(low, state):
    """Where the additions of the run are too small for the first direction, they are for a second one too."""
    fails = second(induction=0.1, source="gradient", independence=(0.0, 0.01))
    first = with_effects(known(), relative=RelativeChange(value=0.7, low=low, high=0.8, n=100))
    unique = claim(UNIQUE, replace(first, second=fails))
    assert unique.state is state
    assert unique.reasons[0].code is (VerdictCode.SECOND_EFFECT if state is SHOWN else VerdictCode.FIRST_NOT_SHOWN)


def test_no_second_candidate_leaves_uniqueness_undecided():
    unique = claim(UNIQUE, replace(known(), second=SecondSummary(None, 0)))
    assert (unique.state, unique.value) == (UNDECIDED, None)
    assert "does not show that there is none" in unique.reason


# -- effects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"base": 62, "ablated": 2}, SHOWN),  # Yi-6B, published: absolute margins left it open
        ({"base": 60, "ablated": 0}, SHOWN),
        ({"base": 100, "ablated": (38, 30)}, UNDECIDED),  # counted as suppressed before
        ({"base": 100, "ablated": (0, 100)}, UNDECIDED),  # broken text shows nothing
        ({"base": 100, "ablated": (90, 5)}, REFUTED),  # even if they count
        ({"base": 100, "ablated": 38}, SHOWN),
        ({"base": 100, "ablated": 45}, UNDECIDED),
        ({"base": 60, "ablated": 45}, REFUTED),
    ],
)
def test_suppression_is_relative_and_degenerate_completions_count_against_it(counts, state):
    assert claim(SUPPRESSES, known(**counts)).state is state


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"plain": 5, "added": 88}, SHOWN),
        ({"plain": 16, "added": 84}, SHOWN),  # the blog
        ({"added": (40, 40)}, UNDECIDED),
        ({"added": (0, 100)}, UNDECIDED),
        ({"added": (5, 10)}, REFUTED),
        ({"plain": 40, "added": 100}, SHOWN),  # all that could be induced
        ({"plain": 40, "added": 55}, REFUTED),
    ],
)
def test_induction_is_relative_and_degenerate_completions_count_against_it(counts, state):
    assert claim(INDUCES, known(**counts)).state is state


def test_the_reason_of_an_undecided_effect_has_its_numbers():
    reason = claim(SUPPRESSES, known(ablated=(38, 30))).reasons[0]
    assert (reason.code, reason.value, reason.bound) == (VerdictCode.EFFECT_SIZE, pytest.approx(0.32), 0.5)
    assert reason.most > 0.5
    assert "up to 0.70 if degenerate completions count" in reason.text
    assert reason.prompts is None  # more prompts would not decide it
    reason = claim(SUPPRESSES, known(base=100, ablated=45)).reasons[0]
    assert reason.prompts > 100
    assert "prompts per class would decide it" in reason.text


def test_an_interval_over_categories_or_of_unpaired_prompts_gives_no_number_of_prompts():
    """From the same change of independent prompts far fewer would do; more of the same categories need not."""
    change = RelativeChange(value=0.8, low=0.24, high=1.36, n=100)
    for unable in (structs.replace(change, units=5), change):
        reason = claim(SUPPRESSES, with_effects(known(), relative=unable)).reasons[0]
        assert (reason.state, reason.prompts) == (UNDECIDED, None)
    few = RelativeChange(value=0.8, low=0.24, high=1.0, n=8)
    assert claim(SUPPRESSES, with_effects(known(), relative=few)).reasons[0].prompts > 8
    by_category = structs.replace(few, units=5)
    assert claim(SUPPRESSES, with_effects(known(), relative=by_category)).reasons[0].prompts is None


def test_a_point_estimate_decides_by_a_rule_that_reads_estimates():
    assert claim(SUPPRESSES, known(ablated=50), ARDITI2024).state is SHOWN
    assert claim(SUPPRESSES, known(ablated=51), ARDITI2024).state is REFUTED
    assert claim(SUPPRESSES, known(ablated=50)).state is UNDECIDED


def test_what_was_not_measured_is_not_tested():
    evidence = known()
    assert claim(SUPPRESSES, replace(evidence, effects=evidence.effects[1:])).state is NOT_TESTED
    unknown = with_effects(evidence, relative=RelativeChange(value=None, low=None, high=None, n=0))
    assert claim(INDUCES, unknown).state is NOT_TESTED
    assert claim(INTACT, replace(evidence, damage=(), shift=Shift(None, None, None, 0))).state is NOT_TESTED
    assert claim(STABLE, replace(evidence, stability=None)).state is NOT_TESTED


# -- nulls ------------------------------------------------------------------------------------------------------------


def test_every_family_of_the_rule_must_be_exceeded():
    assert "unrelated" in RHUMBLINE.families
    evidence = known()
    for family in RHUMBLINE.families:
        close = with_family(evidence, "relative_gap", family, RelativeChange(value=0.1, low=0.0, high=0.2, n=100))
        beats = claim(BEATS_NULLS, close)
        assert (beats.state, beats.reasons[0].family) == (REFUTED, family)
    open_gap = with_family(evidence, "relative_gap", "top-pc", RelativeChange(value=0.3, low=0.1, high=0.5, n=100))
    assert claim(BEATS_NULLS, open_gap).state is UNDECIDED
    lacking = with_effects(
        evidence, relative_gap={f: g for f, g in evidence.effects[0].relative_gap.items() if f != "unrelated"}
    )
    beats = claim(BEATS_NULLS, lacking)
    assert (beats.state, beats.reasons[0].code) == (UNDECIDED, VerdictCode.NULL_NOT_MEASURED)


@pytest.mark.parametrize(
    ("gaps", "state"),
    [((0.45, 0.26), UNDECIDED), ((0.1, -0.3), REFUTED), ((0.9, 0.6), SHOWN), ((-0.1, 0.45), UNDECIDED)],
)
def test_the_number_of_a_claim_is_the_smallest_gap_in_its_state(gaps, state):
    """In either order of the families. Gaps in other states do not give the number."""
    half = {UNDECIDED: 0.4, REFUTED: 0.05, SHOWN: 0.2}[state]
    for families in (("isotropic", "shuffled"), ("shuffled", "isotropic")):
        evidence = known()
        for family, gap in zip(families, gaps, strict=True):
            change = RelativeChange(value=gap, low=gap - half, high=gap + half, n=100)
            evidence = with_family(evidence, "relative_gap", family, change)
        beats = claim(BEATS_NULLS, evidence)
        assert (beats.state, beats.value) == (state, min(gaps))
        assert f"{min(gaps):.2f}" in beats.reason


@pytest.mark.parametrize(
    ("beaten", "comparable", "state"),
    [
        (0, 19, SHOWN),
        (0, 18, UNDECIDED),  # too few draws for any p
        (1, 19, UNDECIDED),  # p = 0.1: no evidence that the family reaches the effect often
        (19, 19, REFUTED),
        (4, 99, SHOWN),
        (8, 99, UNDECIDED),
        (20, 99, REFUTED),
    ],
)
def test_the_rank_among_comparable_draws(beaten, comparable, state):
    """Completions that exceed the family contradict a rank that does not: the metric also falls if a model breaks."""
    evidence = with_family(known(), "wide", "top-pc", ranked(beaten, comparable))
    assert claim(BEATS_NULLS, evidence).state is (UNDECIDED if state is REFUTED else state)
    open_gap = RelativeChange(value=0.3, low=0.1, high=0.5, n=100)
    open_state = claim(BEATS_NULLS, with_family(evidence, "relative_gap", "top-pc", open_gap)).state
    assert open_state is (UNDECIDED if state is SHOWN else state)


@pytest.mark.parametrize(("not_finite", "state"), [(0, REFUTED), (15, REFUTED), (30, UNDECIDED)])
def test_draws_whose_metric_is_not_finite_refute_nothing(not_finite, state):
    """Of 39 draws 30 reach the effect, and the metric of some of these is not finite: it was not measured."""
    values = (None,) * not_finite + (9.0,) * (39 - not_finite)
    evidence = with_family(known(), "wide", "top-pc", replace(ranked(30, 39), values=values))
    open_gap = RelativeChange(value=0.3, low=0.1, high=0.5, n=100)
    assert claim(BEATS_NULLS, with_family(evidence, "relative_gap", "top-pc", open_gap)).state is state


def test_a_rank_that_was_not_measured_is_not_a_lack_of_draws():
    evidence = with_family(known(), "wide", "top-pc", replace(ranked(0, 39), p=None))
    beats = claim(BEATS_NULLS, evidence)
    assert (beats.state, beats.reason) == (
        UNDECIDED,
        "top-pc nulls (suppression) not measured; top-pc nulls (induction) not measured",
    )
    few = claim(BEATS_NULLS, with_family(known(), "wide", "top-pc", ranked(0, 18)))
    assert "18 comparable draws, 19 needed" in few.reason


def test_a_null_that_breaks_the_text_is_no_competitor_and_no_support():
    broken = claim(BEATS_NULLS, known(ablated_nulls=[(0, 100)] * 3))
    assert broken.state is SHOWN
    effective = claim(BEATS_NULLS, known(ablated_nulls=[0] * 3))
    assert effective.state is REFUTED


def test_one_completed_draw_of_one_family_does_not_decide_a_gap():
    one = known(ablated_nulls=[100], added_nulls=[0])
    assert claim(BEATS_NULLS, one).state is UNDECIDED
    assert claim(BEATS_NULLS, one, ARDITI2024).state is SHOWN


# -- damage and stability ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "state", "code"),
    [
        ({"kl": 0.5}, REFUTED, VerdictCode.KL_TOO_LARGE),
        ({"kl": 0.19}, UNDECIDED, VerdictCode.KL_TOO_LARGE),
        ({"ablated": (0, 60)}, REFUTED, VerdictCode.DEGENERATE),
        ({"added": (40, 60)}, REFUTED, VerdictCode.DEGENERATE),
        ({"added": (70, 30)}, UNDECIDED, VerdictCode.DEGENERATE),
        ({"ablated_negatives": (0, 60)}, REFUTED, VerdictCode.DEGENERATE),
        ({"ablated_negatives": 40}, REFUTED, VerdictCode.OVER_REFUSAL),
        ({"base": (60, 40), "ablated": (0, 40)}, SHOWN, VerdictCode.KL_TOO_LARGE),  # degenerate before already
    ],
)
def test_the_rest_stays_intact(counts, state, code):
    intact = claim(INTACT, known(**counts))
    assert (intact.state, intact.reasons[0].code) == (state, code)
    assert claim(INTACT, known(**counts), ARDITI2024).reasons[0].code is VerdictCode.NOT_IN_RULE


def test_the_number_of_damage_is_that_of_the_bound_with_the_least_room():
    """Shown: the nearest. Refuted, or open: the one that is exceeded by most, or else the nearest."""
    within = replace(known(), shift=Shift(0.01, 0.0, 0.02, 16))
    degenerate = max(row.change / 0.3 for row in within.damage if row.quantity == "degenerate")
    assert degenerate == 0
    assert claim(INTACT, within).value == 0.01
    for shift, value in ((Shift(0.21, 0.205, 0.3, 16), 0.6), (Shift(0.9, 0.8, 1.0, 16), 0.9)):
        damaged = replace(known(ablated=(0, 60)), shift=shift)
        assert (claim(INTACT, damaged).state, claim(INTACT, damaged).value) == (REFUTED, pytest.approx(value))
    still_open = replace(known(added=(70, 30)), shift=Shift(0.1, 0.0, 0.3, 16))
    assert (claim(INTACT, still_open).state, claim(INTACT, still_open).value) == (UNDECIDED, pytest.approx(0.3))


def test_a_claim_without_a_number_is_no_nearest_one():
    suppresses = claim(SUPPRESSES, known())
    assert slack(suppresses) == pytest.approx(1.0)
    assert slack(structs.replace(suppresses, value=None)) == math.inf
    assert slack(structs.replace(suppresses, value=0.4)) == pytest.approx(-0.2)


def test_damage_on_a_few_prompts_decides_nothing():
    few = replace(known(), shift=Shift(5.0, None, None, 3))
    intact = claim(INTACT, few)
    assert (intact.state, intact.value, intact.n) == (UNDECIDED, 5.0, 3)


def test_logits_that_are_not_finite_are_damage():
    intact = claim(INTACT, replace(known(), shift=Shift(None, None, None, 16, not_finite=2)))
    assert (intact.state, intact.n) == (REFUTED, 16)
    assert "not finite" in intact.reason


@pytest.mark.parametrize("quantity", ["degenerate", "behaviour", "kl"])
def test_damage_that_was_not_measured_is_not_within_its_bound(quantity):
    shift = Shift(None, None, None, 0) if quantity == "kl" else known().shift
    lacking = replace(known(), damage=[row for row in known().damage if row.quantity != quantity], shift=shift)
    intact = claim(INTACT, lacking)
    assert (intact.state, {reason.state for reason in intact.reasons}) == (UNDECIDED, {NOT_TESTED})
    assert "not measured" in intact.reason


def test_the_reason_for_a_large_kl_names_the_next_step():
    assert "`rhumbline analyze damage RUN`" in claim(INTACT, known(kl=0.5)).reason
    assert "analyze damage" not in claim(INTACT, known()).reason


def test_refits_decide_stability():
    assert claim(STABLE, known(cosine=0.9)).state is SHOWN
    assert claim(STABLE, known(cosine=0.5)).state is REFUTED
    wide = replace(known().stability, cosine=MeanInterval(0.8, 0.6, 0.95))
    assert claim(STABLE, replace(known(), stability=wide)).state is UNDECIDED


@pytest.mark.parametrize(("refits", "decides"), [(1, False), (7, False), (8, True)])
@pytest.mark.parametrize(("cosine", "state"), [(0.95, SHOWN), (0.5, REFUTED)])
def test_few_refits_have_no_interval(refits, decides, cosine, state):
    few = replace(known().stability, refits=refits, cosine=MeanInterval(cosine, cosine, cosine))
    stable = claim(STABLE, replace(known(), stability=few))
    assert (stable.state, stable.value, stable.n) == (state if decides else UNDECIDED, cosine, refits)
    assert stable.low == (cosine if decides else None)


# -- nothing to test --------------------------------------------------------------------------------------------------


NO_TOKENS = VerdictReason(code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.NO_TOKENS)


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (known(base=40), VerdictCode.BASELINE_TOO_LOW),
        (known(base=55, plain=50), VerdictCode.LABELS_NOT_INFORMATIVE),
        (replace(known(), arms=()), VerdictCode.BASELINE_NOT_MEASURED),
        (replace(known(), no_candidate=NO_TOKENS), VerdictCode.NO_CANDIDATE),
    ],
)
def test_nothing_is_tested_without_a_baseline_a_candidate_or_informative_labels(evidence, code):
    claims = seed_claims(RHUMBLINE, evidence)
    assert {c.state for c in claims} == {NOT_TESTED}
    assert {c.reasons[0].code for c in claims} == {code}


def test_the_labels_are_as_informative_as_the_smaller_class_allows():
    def arms(n, other_n):
        sizes = {"positive": n, "negative": other_n}
        rates = {"positive": 0.7, "negative": 0.3}
        baselines = (row for row in known().arms if row.arm.is_baseline)
        return tuple(structs.replace(row, rate=rates[row.side], n=sizes[row.side]) for row in baselines)

    lows = []
    for sizes in ((20, 20), (20, 200), (200, 20)):
        fault = labels_fault(replace(RHUMBLINE, min_contrast=0.39), replace(known(), arms=arms(*sizes)))
        lows.append(fault.low)
    assert lows[0] < lows[1] == pytest.approx(lows[2])


def test_negatives_that_show_the_behaviour_leave_induction_untested():
    crowded = known(base=100, plain=60, added=100, ablated_negatives=0)
    assert states(crowded)[:4] == [SHOWN, NOT_TESTED, SHOWN, SHOWN]
    assert claim(INDUCES, crowded).reason == "negatives have 0.60 > 0.50 at baseline"


def test_a_level_needs_classes_that_the_score_separates():
    unit = LevelUnit(0.4, 0.0, 0.4, 0.3, 0.5, 1.0, 1.0, (100, 100), "baseline")
    assert states(replace(known(), unit=unit), STYLE)[0] is SHOWN
    for area in (0.6, None):
        fault = seed_claims(STYLE, replace(known(), unit=replace(unit, auroc_low=area)))[0].reasons[0]
        assert fault.code in (VerdictCode.CLASSES_NOT_SEPARATED, VerdictCode.CLASSES_NOT_MEASURED)


# -- states -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(list(ClaimState)), min_size=1))
def test_a_claim_is_as_good_as_its_conditions(some):
    state = combined(some)
    assert (state is REFUTED) == (REFUTED in some)
    assert (state is SHOWN) == all(s is SHOWN for s in some)
    assert (state is NOT_TESTED) == all(s is NOT_TESTED for s in some)


@settings(deadline=None, max_examples=10)
@given(st.integers(50, 100), st.integers(0, 100), st.integers(0, 100))
def test_degenerate_text_never_shows_and_never_refutes_suppression_alone(base, shown, degenerate):
    degenerate = min(degenerate, 100 - shown)
    counts = ((shown, degenerate), shown + degenerate, shown)
    without_nulls = (known(base=base, ablated=count, ablated_nulls=[], added_nulls=[]) for count in counts)
    counted, as_shown, as_gone = (claim(SUPPRESSES, evidence).state for evidence in without_nulls)
    assert (counted is SHOWN) == (as_shown is SHOWN)
    assert (counted is REFUTED) == (as_gone is REFUTED)
