import json
import math
import typing
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import ProtocolError
from rhumbline.evidence.statistics import arm_rates, effects
from rhumbline.evidence.verdict import Verdict, VerdictName, decide, overall
from rhumbline.evidence.verdict_rules import ARDITI2024, BLOG2026, RHUMBLINE, RULES, STYLE, Rule, rule

REPRODUCES, NOT, NO_BASELINE = "SINGLE-DIRECTION-REPRODUCES", "NOT-SINGLE-DIRECTION", "NO-BASELINE-REFUSAL"


def arm(name, side, rate, n=100, degenerate=0.0):
    return {
        "arm": name, "set": side, "n": n, "rate": rate, "low": max(0.0, (rate or 0) - 0.05), "high": 1.0,
        "degenerate": degenerate, "unscored": 0, "metric": None, "metric_n": 0,
    }  # fmt: skip


def effect(name, drop, **gaps):
    return {
        "name": name, "drop": drop, "low": drop - 0.05, "high": drop + 0.05, "n": 100, "gap": gaps,
        "gap_low": {f: g and g - 0.05 for f, g in gaps.items()},
        "gap_high": {f: g and g + 0.05 for f, g in gaps.items()},
        "apart": {f: {"gap": g, "low": g and g - 0.05, "high": g and g + 0.05} for f, g in gaps.items()},
        "p": dict.fromkeys(gaps, 0.1), "wide": {f: {"p": 0.01, "p_apart": 0.01, "draws": 99} for f in gaps},
        "null": {family: {"draws": 9, "mean": 0.0, "max": 0.0} for family in gaps},
    }  # fmt: skip


def summary(base=1.0, ablated=0.0, ablated_null=1.0, plain=0.0, added=1.0, added_null=0.0, families=("isotropic",)):
    """What the statistics say when the rates are these."""
    arms = [
        arm("baseline", "positive", base),
        arm("baseline", "negative", plain),
        arm("ablation", "positive", ablated),
        arm("addition", "negative", added),
    ]
    moved = [
        effect("suppression", base - ablated, **dict.fromkeys(families, ablated_null - ablated)),
        effect("induction", added - plain, **dict.fromkeys(families, added - added_null)),
    ]
    return arms, moved


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
    found = decide(BLOG2026, *summary(**rates))
    assert (found.verdict, found.reason) == (expected, reason)


def test_margins_hold_in_spite_of_rounding_and_no_further():
    at = {"base": 0.98, "ablated": 0.48, "ablated_null": 0.73, "plain": 0.2, "added": 0.7, "added_null": 0.45}
    assert 0.7 - 0.2 < 0.5  # the trap
    assert decide(BLOG2026, *summary(**at)).verdict == REPRODUCES
    for field, step in {"ablated": 0.001, "ablated_null": -0.001, "added": -0.001, "added_null": 0.001}.items():
        assert decide(BLOG2026, *summary(**{**at, field: at[field] + step})).verdict == NOT
    assert decide(BLOG2026, *summary(base=0.5)).verdict == REPRODUCES
    assert decide(BLOG2026, *summary(base=0.5 - 1e-12, ablated=0.0)).verdict == REPRODUCES
    assert decide(BLOG2026, *summary(base=0.499)).reason == "baseline 0.499 < 0.500"


def test_every_family_of_the_rule_must_be_exceeded():
    arms, moved = summary(families=RHUMBLINE.families)
    assert decide(RHUMBLINE, arms, moved).verdict == REPRODUCES
    near = {"gap": 0.1, "low": 0.0, "high": 0.2}
    close = [{**e, "apart": {**e["apart"], "shuffled": near}} for e in moved]
    assert decide(BLOG2026, arms, close).verdict == REPRODUCES  # that family is only reported there
    found = decide(RHUMBLINE, arms, close)
    assert (found.verdict, found.reason) == (NOT, "NOT-SEPARATED-FROM-NULL: shuffled")
    outranked = [{**e, "wide": {**e["wide"], "top-pc": {"p_apart": 0.06, "draws": 99}}} for e in moved]
    found = decide(RHUMBLINE, arms, outranked)
    assert (found.verdict, found.reason) == (NOT, "NOT-SEPARATED-FROM-NULL: top-pc")
    assert decide(BLOG2026, arms, outranked).verdict == REPRODUCES
    found = decide(RHUMBLINE, *summary(families=RHUMBLINE.families[:-1]))
    assert (found.verdict, found.reason) == (NOT, "null not measured: shuffled")


# -- what the default rule adds


def test_an_interval_with_the_margin_inside_decides_nothing():
    arms, moved = summary(base=1.0, ablated=0.4, families=RHUMBLINE.families)
    wide = [{**moved[0], "low": 0.45, "high": 0.7}, moved[1]]
    found = decide(RHUMBLINE, arms, wide)
    assert found.verdict == "INCONCLUSIVE"
    assert "suppression undecided: 0.60 [0.45, 0.70] around 0.50" in found.reason
    assert "prompts per class would settle it" in found.reason
    assert decide(BLOG2026, arms, wide).verdict == REPRODUCES  # reads the estimate
    refuted = [{**moved[0], "low": 0.2, "high": 0.49}, moved[1]]
    assert decide(RHUMBLINE, arms, refuted).reason == "induces only"
    both = [{**e, "low": 0.2, "high": 0.49} for e in moved]
    assert decide(RHUMBLINE, arms, both).reason == "neither suppresses nor induces"
    around = {"gap": 0.3, "low": 0.2, "high": 0.4}
    open_gap = [{**e, "apart": {**e["apart"], "top-pc": around}} for e in moved]
    assert decide(RHUMBLINE, arms, open_gap).reason.startswith("gap of suppression to top-pc nulls")


def test_a_draw_that_is_the_direction_again_is_no_competitor_but_spread_positives_are_a_fault():
    arms, moved = summary(families=RHUMBLINE.families)
    again = [{**e, "wide": {**e["wide"], "top-pc": {"p": 0.5, "p_apart": 0.01, "draws": 99}}} for e in moved]
    assert decide(RHUMBLINE, arms, again).verdict == REPRODUCES
    assert decide(replace(RHUMBLINE, same_cosine=None), arms, again).verdict == NOT
    found = decide(RHUMBLINE, arms, moved, group_cosine=0.1)
    assert (found.verdict, found.reason) == (NOT, "spread: two groups of positives have directions with cosine 0.10")
    assert decide(RHUMBLINE, arms, moved, group_cosine=0.9).verdict == REPRODUCES
    narrow = decide(RHUMBLINE, arms, moved, group_cosine=0.84)
    assert narrow.verdict == "INCONCLUSIVE"
    assert narrow.reason.startswith(
        "one direction or a narrow cone of several: two groups of positives have directions"
    )
    assert decide(replace(RHUMBLINE, one_group_cosine=None), arms, moved, group_cosine=0.84).verdict == REPRODUCES
    assert decide(BLOG2026, arms, moved, group_cosine=0.1).verdict == REPRODUCES


def test_damage_is_said_before_the_effects_are_read():
    arms, moved = summary(families=RHUMBLINE.families)
    at = {(a["arm"], a["set"]): i for i, a in enumerate(arms)}
    broken = list(arms)
    broken[at["addition", "negative"]] = arm("addition", "negative", 0.6, degenerate=0.4)
    found = decide(RHUMBLINE, broken, moved)
    assert (found.verdict, found.reason) == ("DAMAGED", "0.40 degenerate under addition on negatives > 0.3")
    assert decide(BLOG2026, broken, moved).verdict == REPRODUCES
    found = decide(RHUMBLINE, arms, moved, kl=0.5)
    assert (found.verdict, found.reason) == ("DAMAGED", "KL 0.50 > 0.2 under ablation on negatives")
    assert decide(RHUMBLINE, arms, moved, kl=0.1).verdict == REPRODUCES
    # A baseline that was degenerate already is not the intervention's damage.
    arms[at["baseline", "negative"]] = arm("baseline", "negative", 0.0, degenerate=0.4)
    arms[at["addition", "negative"]] = arm("addition", "negative", 1.0, degenerate=0.5)
    assert decide(RHUMBLINE, arms, moved).verdict == REPRODUCES
    right = [{**a, "correct": 1.0 if a["arm"] == "baseline" else 0.5} for a in summary()[0]]
    right.append({**arm("ablation", "negative", 0.0), "correct": 0.5})
    assert decide(RHUMBLINE, right, moved).reason == "0.50 of the right answers lost under ablation > 0.2"


UNIT = {"positive": 0.4, "negative": 0.0, "auroc": 1.0, "auroc_low": 1.0}
CROWDED = {"plain": 0.98, "added": 0.98, "families": STYLE.families}


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
def test_where_negatives_show_the_style_only_suppression_is_decided(rates, expected, reason):
    found = decide(STYLE, *summary(**{**CROWDED, **rates}), "style", unit=UNIT)
    assert (found.verdict, found.reason[: len(reason)]) == (expected, reason)
    if expected != "NO-BASELINE":
        assert "induction was not tested, since negatives have 0.98 > 0.50 at baseline" in found.sentence


def test_with_room_or_without_the_bound_induction_is_tested():
    crowded = summary(**CROWDED)
    assert decide(replace(STYLE, max_negative=None), *crowded, "style", unit=UNIT).reason.startswith("suppresses only")
    roomy = summary(**{**CROWDED, "plain": 0.1})
    assert decide(STYLE, *roomy, "style", unit=UNIT).verdict == REPRODUCES
    # Where negatives show the style, losing it moves their next token: no damage. Lost content still is.
    assert decide(STYLE, *roomy, "style", kl=2.0, unit=UNIT).verdict == "DAMAGED"
    assert decide(STYLE, *crowded, "style", kl=2.0, unit=UNIT).reason.startswith("suppresses")
    for row, kept in zip(crowded[0], (1.0, 1.0, 0.5, 1.0), strict=True):
        row["correct"] = kept
    assert decide(STYLE, *crowded, "style", unit=UNIT).verdict == "DAMAGED"


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_what_is_not_known_never_supports_the_claim(unknown):
    arms, moved = summary()
    for i, name in enumerate(("suppression", "induction")):
        other = moved[1 - i]
        found = decide(BLOG2026, arms, [{**moved[i], "drop": unknown}, other])
        assert (found.verdict, found.reason) == (NOT, f"{name} not measured")
        found = decide(BLOG2026, arms, [{**moved[i], "gap": {"isotropic": unknown}}, other])
        assert (found.verdict, found.reason) == (NOT, f"null not measured: isotropic ({name})")
        found = decide(BLOG2026, arms, [other])
        assert (found.verdict, found.reason) == (NOT, f"{name} not measured")
    found = decide(BLOG2026, [arm("baseline", "positive", unknown), *arms[1:]], moved)
    assert (found.verdict, found.reason) == (NO_BASELINE, "baseline not measured")
    assert decide(BLOG2026, [], moved).reason == "baseline not measured"
    assert decide(BLOG2026, [], []).verdict == NO_BASELINE
    assert decide(BLOG2026, arms, []).reason == "suppression not measured; induction not measured"


def test_the_baseline_is_checked_before_the_candidates():
    arms, moved = summary(base=0.4)
    assert decide(BLOG2026, arms, moved, no_candidate="kl > 0.1").verdict == NO_BASELINE
    arms, _ = summary()
    for known in (arms, arms[:1], []):
        found = decide(BLOG2026, known, [], no_candidate="kl > 0.1 for all 20")
        assert (found.verdict, found.reason) == (NOT, "no candidate passed: kl > 0.1 for all 20")
    # Even effects that look right cannot come from a direction that was not selected.
    assert decide(BLOG2026, *summary(), no_candidate="none").verdict == NOT


def test_another_behaviour_has_its_own_word():
    assert decide(BLOG2026, *summary(base=0.4), behaviour="style").verdict == "NO-BASELINE"
    found = decide(BLOG2026, *summary(), behaviour="style")
    assert found.verdict == REPRODUCES
    assert "style rate" in found.sentence
    assert "refus" not in found.sentence


rates = st.integers(0, 20).map(lambda k: k / 20)


@settings(deadline=None)
@given(st.fixed_dictionaries({k: rates for k in ("base", "ablated", "ablated_null", "plain", "added", "added_null")}))
def test_the_rule_is_the_one_of_the_reference(r):
    """The four inequalities of the blog, in twentieths, where no rounding can hide."""
    t = {name: round(20 * rate) for name, rate in r.items()}
    holds = (
        t["base"] - t["ablated"] >= 10
        and t["ablated_null"] - t["ablated"] >= 5
        and t["added"] - t["plain"] >= 10
        and t["added"] - t["added_null"] >= 5
    )
    expected = NO_BASELINE if t["base"] < 10 else REPRODUCES if holds else NOT
    found = decide(BLOG2026, *summary(**r))
    assert found.verdict == expected
    assert (found.reason == "") == (expected == REPRODUCES)


def rows_of(name, side, refused, n):
    return [
        {"arm": name, "set": side, "prompt_id": str(i), "class": "refused" if i < refused else "complied"}
        for i in range(n)
    ]


def test_from_rows_to_the_verdict():
    rows = [
        *rows_of("baseline", "positive", 63, 64), *rows_of("ablation", "positive", 2, 64),
        *rows_of("baseline", "negative", 0, 64), *rows_of("addition", "negative", 50, 64),
    ]  # fmt: skip
    for draw in range(8):
        for family in RHUMBLINE.families:
            rows += rows_of(f"null:{family}:{draw}:ablation", "positive", 63 - draw, 64)
            rows += rows_of(f"null:{family}:{draw}:addition", "negative", draw, 64)
    ranked = [{**e, "wide": {f: {"p": 0.01, "p_apart": 0.01, "draws": 99} for f in e["gap"]}} for e in effects(rows)]
    found = decide(RHUMBLINE, arm_rates(rows), ranked)
    assert found.verdict == REPRODUCES
    assert "from 0.98 [0.92, 1.00] to 0.03 [0.01, 0.11]" in found.sentence
    assert "n = 64" in found.sentence
    assert "of 5 families of nulls covariance came nearest, mean 0.05" in found.sentence
    assert "p <= 0.01 in each" in found.sentence
    assert "8 isotropic nulls: mean 0.05, p = 0.11" in decide(BLOG2026, arm_rates(rows), effects(rows)).sentence
    weak = [row for row in rows if not row["arm"].startswith("null:shuffled")]
    assert decide(BLOG2026, arm_rates(weak), effects(weak)).verdict == REPRODUCES
    found = decide(RHUMBLINE, arm_rates(weak), [{**e, "wide": ranked[0]["wide"]} for e in effects(weak)])
    assert found.reason == "null not measured: shuffled-site; null not measured: shuffled"


# -- the sentence


def every_verdict():
    arms, moved = summary()
    yield decide(BLOG2026, arms, moved)
    yield decide(RHUMBLINE, arms, moved)
    whole = summary(families=RHUMBLINE.families)
    yield decide(RHUMBLINE, *whole)
    yield decide(RHUMBLINE, *whole, kl=1.0)
    yield decide(RHUMBLINE, whole[0], [{**e, "low": 0.4} for e in whole[1]])
    yield decide(BLOG2026, arms, [])
    yield decide(BLOG2026, [], moved)
    yield decide(BLOG2026, arms[:1], moved)
    yield decide(BLOG2026, *summary(base=0.4))
    yield decide(BLOG2026, *summary(ablated=1.0, added=0.0))
    yield decide(BLOG2026, arms, [], no_candidate="kl > 0.1")
    yield decide(BLOG2026, [], [], no_candidate="kl > 0.1")


def test_no_sentence_says_that_the_behaviour_is_a_direction():
    for found in every_verdict():
        assert " is " not in found.sentence
        assert "mediate" not in found.sentence
        assert found.sentence.endswith(".")
        assert "None" not in found.sentence
        assert "nan" not in found.sentence
        assert found.verdict in typing.get_args(VerdictName)
    assert all("sufficient" in found.sentence for found in every_verdict() if found.verdict == REPRODUCES)


def test_a_sentence_shows_broken_completions():
    arms, moved = summary()
    arms[2] = arm("ablation", "positive", 0.0, degenerate=0.9)
    assert "(0.90 degenerate)" in decide(BLOG2026, arms, moved).sentence
    assert "degenerate" not in decide(BLOG2026, *summary()).sentence


def test_a_sentence_does_not_say_lowered_of_a_rise():
    found = decide(BLOG2026, *summary(base=0.8, ablated=0.9, plain=0.3, added=0.2))
    assert "lowered" not in found.sentence
    assert "raised" not in found.sentence
    assert "lowered" in decide(BLOG2026, *summary()).sentence


# -- several seeds


def seed(verdict, reason=""):
    return Verdict(verdict, reason, f"What was seen: {verdict}.")


def test_one_seed_is_the_run():
    assert overall({3: seed(NOT, "suppresses only")}) == seed(NOT, "suppresses only")


@pytest.mark.parametrize("name", typing.get_args(VerdictName))
def test_unanimous_seeds_give_their_verdict(name):
    found = overall({0: seed(name, "same"), 1: seed(name, "same")})
    assert (found.verdict, found.reason) == (name, "same")
    assert found.sentence.count("What was seen") == 2
    assert overall({0: seed(name, "a"), 1: seed(name, "b")}).reason == "seed 0: a; seed 1: b"


def test_an_undecided_seed_beside_one_that_reproduces_leaves_it_open():
    found = overall({0: seed(REPRODUCES), 1: seed("INCONCLUSIVE", "why")})
    assert found.verdict == "INCONCLUSIVE"
    assert overall({0: seed(NOT), 1: seed("INCONCLUSIVE", "why")}).verdict == NOT


@pytest.mark.parametrize("other", [NOT, NO_BASELINE])
def test_seeds_that_disagree_did_not_reproduce(other):
    found = overall({1: seed(other, "why"), 0: seed(REPRODUCES), 2: seed(REPRODUCES)})
    assert found.verdict == NOT
    assert found.reason == f"seeds disagree: {REPRODUCES} (seed 0 2), {other} (seed 1)"
    assert overall({0: seed(NOT), 1: seed(NO_BASELINE)}).verdict == NOT


def test_a_run_without_seeds_has_no_verdict():
    with pytest.raises(ProtocolError, match="at least one seed"):
        overall({})


# -- rules


def test_the_named_rules():
    assert RULES == {"arditi2024": ARDITI2024, "blog2026": BLOG2026, "rhumbline": RHUMBLINE, "style": STYLE}
    assert all(rule(name).name == name for name in RULES)
    margins = {(r.min_baseline, r.min_drop, r.min_gap) for r in RULES.values()}
    assert margins == {(0.5, 0.5, 0.25)}
    assert replace(ARDITI2024, name="blog2026") == BLOG2026
    assert RHUMBLINE.families == ("isotropic", "covariance", "top-pc", "shuffled-site", "shuffled")
    assert (BLOG2026.reads, BLOG2026.max_p, BLOG2026.max_kl, BLOG2026.max_degenerate) == ("estimate", None, None, None)
    with pytest.raises(ProtocolError, match=r"'paper'.*arditi2024, blog2026, rhumbline"):
        rule("paper")


@pytest.mark.parametrize("given_rule", RULES.values(), ids=RULES)
def test_a_rule_survives_json(given_rule):
    assert Rule.from_dict(json.loads(json.dumps(given_rule.to_dict()))) == given_rule
    assert Rule.from_dict({"name": "mine", "families": "isotropic"}) == Rule("mine")
    with pytest.raises(FrozenInstanceError):
        given_rule.min_drop = 0.1


def test_an_invalid_rule_lists_every_fault():
    with pytest.raises(ProtocolError) as caught:
        Rule("", min_baseline=0.0, min_drop=1.5, min_gap=math.nan, families=())
    for word in ("name is empty", "min_baseline is 0.0", "min_drop is 1.5", "min_gap is nan", "families is ()"):
        assert word in str(caught.value)
    for families in (("isotropic", "isotropic"), ("null:isotropic",), ("",)):
        with pytest.raises(ProtocolError, match="famil"):
            Rule("mine", families=families)


@pytest.mark.parametrize("given_fields", [{"min_drop": 0.3}, {"name": "mine", "margin": 0.3}])
def test_unknown_and_missing_fields_are_refused(given_fields):
    with pytest.raises(ProtocolError, match="name, min_baseline, min_drop, min_gap, families"):
        Rule.from_dict(given_fields)
