"""The decision by rules up to version 4, and finished runs of that version."""

import json
import math
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from make_evidence import arm_rate, evidence, wide_null, with_arm, with_effects, with_family
from paths import DATA
from rhumbline import verify
from rhumbline.evidence.seed_evidence import SeedEvidence, Verdict
from rhumbline.evidence.verdict import decide, overall
from rhumbline.records.effect_results import Gap, Shift
from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking
from rhumbline.records.results import LevelUnit
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import VerdictCode, VerdictReason
from rhumbline.records.verdict_rule import Rule
from rhumbline.verification import check

BLOG2026 = Rule("blog2026", open_if_unmeasured=True)
RHUMBLINE = Rule(
    "rhumbline", families=("isotropic", "covariance", "top-pc", "shuffled-site", "shuffled"), reads="interval",
    max_p=0.05, same_cosine=0.5, min_group_cosine=0.5, one_group_cosine=0.85, max_degenerate=0.3, max_kl=0.2,
    max_accuracy_loss=0.2, open_if_unmeasured=True,
)  # fmt: skip
STYLE = replace(RHUMBLINE, name="style", min_separation=0.65, max_negative=0.5, content_everywhere=True)
REPRODUCES, NOT, NO_BASELINE = "SINGLE-DIRECTION-REPRODUCES", "NOT-SINGLE-DIRECTION", "NO-BASELINE-REFUSAL"
WHOLE = evidence(families=RHUMBLINE.families)
NOTHING = SeedEvidence((), ())
OLDER = replace(BLOG2026, open_if_unmeasured=False)
"""The rule as runs of older versions recorded it."""
DISCARDED = VerdictReason(
    code=VerdictCode.NO_CANDIDATE,
    no_candidate=NoCandidate.ALL_DISCARDED,
    counts={Discard.KL_TOO_LARGE: 20, Discard.TOO_LATE: 2},
)


def codes(verdict: Verdict) -> list[VerdictCode]:
    return [reason.code for reason in verdict.reasons]


# -- the decision


@pytest.mark.parametrize(
    ("rates", "expected", "reason"),
    [
        # The blog's published runs: Qwen2.5-1.5B-Instruct, two seeds, and Gemma 3 1B.
        ({"plain": 0.16, "added": 0.84, "added_null": 0.09}, REPRODUCES, ""),
        ({"ablated": 0.12, "plain": 0.16, "added": 0.94, "added_null": 0.19}, REPRODUCES, ""),
        ({"base": 0.40}, NO_BASELINE, "baseline 0.40 < 0.50"),
        # The measured organisms.
        ({"added": 0.33}, NOT, "suppresses only"),
        ({"base": 0.99, "ablated_null": 0.99, "added": 0.89}, REPRODUCES, ""),
        ({"base": 0.31, "ablated": 0.0}, NO_BASELINE, "baseline 0.31 < 0.50"),
        ({"base": 0.99, "ablated": 0.53, "ablated_null": 0.99, "added": 0.9}, NOT, "induces only"),
        # Contrary cases.
        ({"ablated": 1.0, "added": 0.0}, NOT, "neither suppresses nor induces"),
        ({"ablated_null": 0.1}, NOT, "not separated from null: isotropic (suppression)"),
        ({"added_null": 0.9}, NOT, "not separated from null: isotropic (induction)"),
        ({"ablated_null": 0.1, "added_null": 0.9}, NOT, "not separated from null: isotropic"),
        (
            {"ablated_null": 0.1, "added": 0.3},
            NOT,
            "suppresses only; not separated from null: isotropic (suppression)",
        ),
        ({"ablated": 1.0, "base": 0.5}, NOT, "induces only"),
    ],
)
def test_the_blogs_rule(rates, expected, reason):
    verdict = decide(BLOG2026, evidence(**rates))
    assert (verdict.verdict, verdict.reason) == (expected, reason)


def test_margins_are_reached_in_spite_of_rounding_and_not_below():
    at = {"base": 0.98, "ablated": 0.48, "ablated_null": 0.73, "plain": 0.2, "added": 0.7, "added_null": 0.45}
    assert 0.7 - 0.2 < 0.5  # the rounding
    assert decide(BLOG2026, evidence(**at)).verdict == REPRODUCES
    for field, step in {"ablated": 0.001, "ablated_null": -0.001, "added": -0.001, "added_null": 0.001}.items():
        assert decide(BLOG2026, evidence(**{**at, field: at[field] + step})).verdict == NOT
    assert decide(BLOG2026, evidence(base=0.5)).verdict == REPRODUCES
    assert decide(BLOG2026, evidence(base=0.5 - 1e-12, ablated=0.0)).verdict == REPRODUCES
    assert decide(BLOG2026, evidence(base=0.499)).reason == "baseline 0.499 < 0.500"


def test_every_family_of_the_rule_must_be_exceeded():
    assert decide(RHUMBLINE, WHOLE).verdict == REPRODUCES
    close = with_family(WHOLE, "apart", "shuffled", Gap(0.1, 0.0, 0.2))
    assert decide(BLOG2026, close).verdict == REPRODUCES  # that family is only reported there
    verdict = decide(RHUMBLINE, close)
    assert (verdict.verdict, verdict.reason) == (NOT, "NOT-SEPARATED-FROM-NULL: shuffled")
    outranked = with_family(WHOLE, "wide", "top-pc", wide_null(p=0.06))
    verdict = decide(RHUMBLINE, outranked)
    assert (verdict.verdict, verdict.reason) == (NOT, "NOT-SEPARATED-FROM-NULL: top-pc")
    assert decide(BLOG2026, outranked).verdict == REPRODUCES
    verdict = decide(RHUMBLINE, evidence(families=RHUMBLINE.families[:-1]))
    assert (verdict.verdict, verdict.reason) == (NOT, "null not measured: shuffled")


# -- what the default rule adds


def test_an_interval_that_contains_the_margin_decides_nothing():
    known = evidence(base=1.0, ablated=0.4, families=RHUMBLINE.families)
    suppression, induction = known.effects
    wide = replace(known, effects=(replace(suppression, low=0.45, high=0.7), induction))
    verdict = decide(RHUMBLINE, wide)
    assert verdict.verdict == "INCONCLUSIVE"
    assert "suppression undecided: 0.60 [0.45, 0.70] around 0.50" in verdict.reason
    assert "prompts per class would settle it" in verdict.reason
    (reason,) = verdict.reasons
    assert (reason.effect, reason.value, reason.low, reason.bound) == ("suppression", suppression.drop, 0.45, 0.5)
    assert reason.prompts > 0
    assert decide(BLOG2026, wide).verdict == REPRODUCES  # reads the estimate
    refuted = replace(known, effects=(replace(suppression, low=0.2, high=0.49), induction))
    assert decide(RHUMBLINE, refuted).reason == "induces only"
    both = with_effects(known, low=0.2, high=0.49)
    assert decide(RHUMBLINE, both).reason == "neither suppresses nor induces"
    open_gap = with_family(known, "apart", "top-pc", Gap(0.3, 0.2, 0.4))
    assert decide(RHUMBLINE, open_gap).reason.startswith("gap of suppression to top-pc nulls")


def test_an_aligned_draw_does_not_compete_but_several_directions_are_a_fault():
    aligned = with_family(WHOLE, "wide", "top-pc", wide_null(p=0.5, p_apart=0.01))
    assert decide(RHUMBLINE, aligned).verdict == REPRODUCES
    assert decide(replace(RHUMBLINE, same_cosine=None), aligned).verdict == NOT
    verdict = decide(RHUMBLINE, replace(WHOLE, group_cosine=0.1))
    spread = "spread: two groups of positives have directions with cosine 0.10"
    assert (verdict.verdict, verdict.reason) == (NOT, spread)
    assert decide(RHUMBLINE, replace(WHOLE, group_cosine=0.9)).verdict == REPRODUCES
    between = replace(WHOLE, group_cosine=0.84)
    narrow = decide(RHUMBLINE, between)
    assert narrow.verdict == "INCONCLUSIVE"
    assert narrow.reason.startswith(
        "one direction or a narrow cone of several: two groups of positives have directions"
    )
    assert decide(replace(RHUMBLINE, one_group_cosine=None), between).verdict == REPRODUCES
    assert decide(BLOG2026, replace(WHOLE, group_cosine=0.1)).verdict == REPRODUCES


def test_damage_is_decided_before_the_effects():
    broken = with_arm(WHOLE, "addition", "negative", rate=0.6, degenerate=0.4)
    verdict = decide(RHUMBLINE, broken)
    assert (verdict.verdict, verdict.reason) == ("DAMAGED", "0.40 degenerate under addition on negatives > 0.3")
    assert decide(BLOG2026, broken).verdict == REPRODUCES
    verdict = decide(RHUMBLINE, replace(WHOLE, shift=Shift(0.5, None, None, 16)))
    assert (verdict.verdict, verdict.reason) == ("DAMAGED", "KL 0.50 > 0.2 under ablation on negatives")
    assert decide(RHUMBLINE, replace(WHOLE, shift=Shift(0.1, None, None, 16))).verdict == REPRODUCES
    # A baseline that was degenerate already is not damage by the intervention.
    before = with_arm(WHOLE, "baseline", "negative", degenerate=0.4)
    assert decide(RHUMBLINE, with_arm(before, "addition", "negative", degenerate=0.5)).verdict == REPRODUCES
    right = with_arm(WHOLE, "baseline", "negative", correct=1.0)
    right = replace(right, arms=(*right.arms, arm_rate("ablation", "negative", 0.0, correct=0.5)))
    assert decide(RHUMBLINE, right).reason == "0.50 of the right answers lost under ablation > 0.2"


UNIT = LevelUnit(0.4, 0.0, 0.4, 0.3, 0.5, 1.0, 1.0, (100, 100), "baseline")
CROWDED = {"plain": 0.98, "added": 0.98, "families": STYLE.families, "unit": UNIT}


@pytest.mark.parametrize(
    ("rates", "expected", "reason"),
    [
        ({}, "INCONCLUSIVE", "suppresses; induction has no room: negatives have 0.98 > 0.50 at baseline"),
        ({"ablated": 0.9}, NOT, "does not suppress"),
        ({"ablated": 0.48}, "INCONCLUSIVE", "suppression undecided: 0.52"),
        ({"ablated_null": 0.0}, NOT, "NOT-SEPARATED-FROM-NULL: isotropic"),
        ({"base": 0.4}, "NO-BASELINE", "baseline 0.40 < 0.50"),
    ],
)
def test_if_negatives_show_the_style_only_suppression_is_decided(rates, expected, reason):
    verdict = decide(STYLE, evidence(**{**CROWDED, **rates}), "style")
    assert (verdict.verdict, verdict.reason[: len(reason)]) == (expected, reason)


def test_with_room_or_without_the_bound_induction_is_tested():
    crowded = evidence(**CROWDED)
    assert decide(replace(STYLE, max_negative=None), crowded, "style").reason.startswith("suppresses only")
    roomy = evidence(**{**CROWDED, "plain": 0.1})
    assert decide(STYLE, roomy, "style").verdict == REPRODUCES
    # If negatives show the style, its loss changes their next token: not damage. Lost content still is.
    assert decide(STYLE, replace(roomy, shift=Shift(2.0, None, None, 16)), "style").verdict == "DAMAGED"
    assert decide(STYLE, replace(crowded, shift=Shift(2.0, None, None, 16)), "style").reason.startswith("suppresses")
    lost = with_arm(with_arm(crowded, "baseline", "positive", correct=1.0), "ablation", "positive", correct=0.5)
    assert codes(decide(STYLE, lost, "style")) == [VerdictCode.CONTENT_LOST]


@pytest.mark.parametrize(("unit", "reason", "expected"), [
    (None, "classes not measured", "INCONCLUSIVE"),
    (replace(UNIT, auroc_low=None), "classes not measured", "INCONCLUSIVE"),
    (replace(UNIT, auroc_low=0.6), "score does not tell the classes apart: AUROC at least 0.60 < 0.65", "NO-BASELINE"),
])  # fmt: skip
def test_a_score_that_does_not_separate_the_classes_has_no_baseline(unit, reason, expected):
    known = evidence(families=STYLE.families, unit=unit)
    verdict = decide(STYLE, known, "style")
    assert (verdict.verdict, verdict.reason) == (expected, reason)
    assert decide(replace(STYLE, open_if_unmeasured=False), known, "style").verdict == "NO-BASELINE"


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_what_is_not_known_never_supports_the_claim(unknown):
    known = evidence()
    for i, name in enumerate(("suppression", "induction")):
        this, other = known.effects[i], known.effects[1 - i]
        verdict = decide(BLOG2026, replace(known, effects=(replace(this, drop=unknown), other)))
        assert (verdict.verdict, verdict.reason) == ("INCONCLUSIVE", f"{name} not measured")
        verdict = decide(BLOG2026, replace(known, effects=(replace(this, gap={"isotropic": unknown}), other)))
        assert (verdict.verdict, verdict.reason) == (NOT, f"null not measured: isotropic ({name})")
        verdict = decide(BLOG2026, replace(known, effects=(other,)))
        assert (verdict.verdict, verdict.reason) == ("INCONCLUSIVE", f"{name} not measured")
        # The other effect is refuted, whatever this one is.
        refuted = decide(BLOG2026, replace(known, effects=(replace(other, drop=0.1, gap={"isotropic": 0.1}),)))
        assert refuted.verdict == NOT
        assert decide(OLDER, replace(known, effects=(other,))).verdict == NOT
    unmeasured = with_arm(known, "baseline", "positive", rate=unknown)
    verdict = decide(BLOG2026, unmeasured)
    assert (verdict.verdict, verdict.reason) == ("INCONCLUSIVE", "baseline not measured")
    assert decide(BLOG2026, replace(unmeasured, no_candidate=DISCARDED)).reason == "baseline not measured"
    assert decide(BLOG2026, replace(known, arms=())).reason == "baseline not measured"
    assert decide(BLOG2026, NOTHING).verdict == "INCONCLUSIVE"
    assert decide(OLDER, NOTHING).verdict == NO_BASELINE
    assert decide(BLOG2026, replace(known, effects=())).reason == "suppression not measured; induction not measured"


NO_METRIC = "no candidate passed: not measured, no refusal tokens: "


def without_metric(lacking):
    return VerdictReason(code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.NO_TOKENS, lacking=lacking)


@pytest.mark.parametrize(
    ("lacking", "negatives", "expected"),
    [
        (TokensLacking.AFTER_BLOCK, 0.0, "INCONCLUSIVE"),
        (TokensLacking.AFTER_BLOCK, 0.9, "INCONCLUSIVE"),
        (TokensLacking.NOT_SHOWN, 0.0, "INCONCLUSIVE"),
        (TokensLacking.NOT_LIKELIER, 0.0, "INCONCLUSIVE"),
        # The judge separates the classes and no token does: the metric is at fault, not the model.
        (TokensLacking.NOT_SEPARATING, 0.0, "INCONCLUSIVE"),
        (TokensLacking.NOT_SEPARATING, 0.7, "INCONCLUSIVE"),
        # The judge does not separate them either.
        (TokensLacking.NOT_SEPARATING, 0.75, NOT),
        (TokensLacking.NOT_SEPARATING, 0.9, NOT),
    ],
)
def test_a_missing_metric_is_no_result_about_the_model(lacking, negatives, expected):
    known = evidence(base=0.9, plain=negatives, no_candidate=without_metric(lacking))
    verdict = decide(BLOG2026, known)
    assert (verdict.verdict, verdict.reason) == (expected, NO_METRIC + str(lacking))
    assert decide(OLDER, known).verdict == NOT
    assert decide(BLOG2026, evidence(base=0.4, no_candidate=without_metric(lacking))).verdict == NO_BASELINE


@pytest.mark.parametrize(
    ("area", "negatives", "is_open"),
    [(0.5, 0.0, True), (0.59, 0.1, True), (0.6, 0.0, False), (0.95, 0.0, False), (None, 0.0, False), (0.5, 0.8, False)],
)
def test_a_metric_that_does_not_separate_classes_that_the_judge_separates(area, negatives, is_open):
    against = [
        evidence(base=0.9, plain=negatives, ablated=0.8, added=negatives),
        evidence(base=0.9, plain=negatives, no_candidate=DISCARDED),
    ]
    for known in against:
        verdict = decide(BLOG2026, replace(known, metric_auroc=area))
        assert verdict.verdict == ("INCONCLUSIVE" if is_open else NOT)
        assert (codes(verdict) == [VerdictCode.METRIC_NOT_SEPARATING]) == is_open
        assert any("--refusal-tokens" in (reason.advice or "") for reason in verdict.reasons) == is_open
        assert decide(OLDER, replace(known, metric_auroc=area)).verdict == NOT
    # A direction that reproduces was found in spite of its metric.
    assert decide(BLOG2026, replace(evidence(), metric_auroc=area)).verdict == REPRODUCES


def test_prompts_that_the_filter_removed_are_no_result_about_the_model():
    removed = VerdictReason(code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.NO_PROMPTS)
    assert decide(BLOG2026, evidence(no_candidate=removed)).verdict == "INCONCLUSIVE"


def test_the_baseline_is_checked_before_the_candidates():
    assert decide(BLOG2026, evidence(base=0.4, no_candidate=DISCARDED)).verdict == NO_BASELINE
    known = evidence(no_candidate=DISCARDED)
    for arms in (known.arms, known.arms[:1], ()):
        verdict = decide(BLOG2026, SeedEvidence(arms, (), DISCARDED))
        assert (verdict.verdict, verdict.reason) == (NOT, "no candidate passed: 20 kl too large, 2 too late")
    # Even effects that reach the margins cannot come from a direction that was not selected.
    assert decide(BLOG2026, known).verdict == NOT


def test_another_behaviour_has_its_own_verdict():
    assert decide(BLOG2026, evidence(base=0.4), behaviour="style").verdict == "NO-BASELINE"
    assert decide(BLOG2026, evidence(), behaviour="style").verdict == REPRODUCES


rates = st.integers(0, 20).map(lambda k: k / 20)


@settings(deadline=None)
@given(st.fixed_dictionaries({k: rates for k in ("base", "ablated", "ablated_null", "plain", "added", "added_null")}))
def test_the_rule_is_the_one_of_the_blog(r):
    """The four inequalities of the blog, in twentieths, so that rounding cannot decide."""
    t = {name: round(20 * rate) for name, rate in r.items()}
    holds = (
        t["base"] - t["ablated"] >= 10
        and t["ablated_null"] - t["ablated"] >= 5
        and t["added"] - t["plain"] >= 10
        and t["added"] - t["added_null"] >= 5
    )
    expected = NO_BASELINE if t["base"] < 10 else REPRODUCES if holds else NOT
    verdict = decide(BLOG2026, evidence(**r))
    assert verdict.verdict == expected
    assert (verdict.reasons == ()) == (expected == REPRODUCES)


# -- several seeds


def seed(verdict, code=None):
    """The verdict of a seed with one reason, or none."""
    return Verdict(verdict, () if code is None else (VerdictReason(code=code),))


ONE, OTHER = VerdictCode.NEITHER_EFFECT, VerdictCode.BASELINE_NOT_MEASURED


def test_one_seed_is_the_run():
    assert overall(BLOG2026, {3: seed(NOT, ONE)}) == seed(NOT, ONE)


@pytest.mark.parametrize("name", [name for name in VerdictName if name is name.headline and name != "NOT-TESTED"])
def test_unanimous_seeds_give_their_verdict(name):
    verdict = overall(BLOG2026, {0: seed(name, ONE), 1: seed(name, ONE)})
    assert (verdict.verdict, verdict.reason) == (name, "neither suppresses nor induces")
    assert [reason.seed for reason in verdict.reasons] == [0, 1]
    verdict = overall(BLOG2026, {1: seed(name, OTHER), 0: seed(name, ONE)})
    assert verdict.reason == "seed 0: neither suppresses nor induces; seed 1: baseline not measured"


def test_an_inconclusive_seed_and_one_that_reproduces_leave_it_open():
    assert overall(BLOG2026, {0: seed(REPRODUCES), 1: seed("INCONCLUSIVE", ONE)}).verdict == "INCONCLUSIVE"
    assert overall(BLOG2026, {0: seed(NOT, ONE), 1: seed("INCONCLUSIVE", ONE)}).verdict == NOT


@pytest.mark.parametrize("other", [NOT, NO_BASELINE])
def test_seeds_without_a_measurement_leave_a_missing_baseline_open(other):
    assert overall(BLOG2026, {0: seed(other), 1: seed("INCONCLUSIVE", OTHER)}).verdict == expected_of(other)
    assert overall(BLOG2026, {0: seed(other), 1: seed("INCONCLUSIVE", ONE)}).verdict == NOT


def expected_of(other):
    return "INCONCLUSIVE" if other == NO_BASELINE else NOT


@pytest.mark.parametrize("other", [NOT, NO_BASELINE])
def test_seeds_that_disagree_did_not_reproduce(other):
    verdict = overall(BLOG2026, {1: seed(other, ONE), 0: seed(REPRODUCES), 2: seed(REPRODUCES)})
    assert verdict.verdict == NOT
    assert verdict.reason == f"seeds disagree: {REPRODUCES} (seed 0 2), {other} (seed 1)"
    assert overall(BLOG2026, {0: seed(NOT, ONE), 1: seed(NO_BASELINE, ONE)}).verdict == NOT


# -- finished runs


@pytest.fixture(scope="session")
def old_runs(tmp_path_factory):
    """Two runs that rhumbline made before version 5 of the rule: of a rate and of a level."""
    folder = tmp_path_factory.mktemp("version-4")
    with tarfile.open(DATA / "version-4" / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", ["planted", "style"])
def test_a_finished_run_of_version_4_verifies(old_runs, name):
    assert check(old_runs / name).faults == []


@pytest.mark.parametrize("field", ["p_apart", "gap_low", "verdict", "reasons"])
def test_a_changed_number_of_version_4_does_not_verify(old_runs, tmp_path, field):
    run = Path(shutil.copytree(old_runs / "planted", tmp_path / "run"))
    results = json.loads((run / "results.json").read_text())
    seed = results["seeds"][0]
    match field:
        case "p_apart":
            seed["effects"][0]["wide"]["top-pc"][field] = 0.123
        case "gap_low":
            seed["effects"][0][field]["isotropic"] = 0.123
        case "verdict":
            seed[field] = "INCONCLUSIVE"
        case _:
            seed[field] = [{"code": "neither-effect", "bound": 0.5}]
    (run / "results.json").write_text(json.dumps(results))
    assert any(field in fault for fault in verify(run))
