import random
from dataclasses import astuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from make_outcomes import outcome, outcomes_of
from rhumbline.errors import VerificationError
from rhumbline.evidence.class_rates import arm_rates
from rhumbline.evidence.compared_arms import SUBTRACTS, NullComparison
from rhumbline.evidence.rate_effects import pooled_rate_effects, rate_effects, suppressing_draws
from rhumbline.evidence.statistics import paired_difference
from rhumbline.records.arms import ArmId, ArmKind
from rhumbline.records.codec import convert, to_json
from rhumbline.records.effect_results import NullSummary
from rhumbline.records.outcome_rows import Outcome

RUN = [
    *outcomes_of("baseline", "positive", "rrrrrrrrrc", 2.0),
    *outcomes_of("baseline", "negative", "cccccccccr", -3.0),
    *outcomes_of("ablation", "positive", "ccccccccdr"),
    *outcomes_of("addition", "negative", "rrrrrrrdcc"),
    *outcomes_of("null:isotropic:0:ablation", "positive", "rrrrrrrrrc"),
    *outcomes_of("null:isotropic:1:ablation", "positive", "rrrrrrrrcc"),
    *outcomes_of("null:shuffled:0:ablation", "positive", "ccccccccrc"),
    *outcomes_of("null:isotropic:0:addition", "negative", "rccccccccr"),
    *outcomes_of("null:isotropic:1:addition", "negative", "cccccccccc"),
]


def test_effects_are_paired_and_compared_with_their_nulls():
    suppression, induction = rate_effects(RUN)
    assert suppression.name == "suppression"
    assert suppression.drop == pytest.approx(0.8)
    expected = paired_difference(np.array([1] * 9 + [0], bool), np.array([0] * 9 + [1], bool))
    assert (suppression.low, suppression.high, suppression.n) == expected[1:]
    assert list(suppression.null) == ["isotropic", "shuffled"]
    assert astuple(suppression.null["isotropic"])[:3] == pytest.approx((2, 0.05, 0.1))
    assert astuple(suppression.null["shuffled"])[:3] == pytest.approx((1, 0.8, 0.8))
    assert suppression.gap == pytest.approx({"isotropic": 0.75, "shuffled": 0.0})
    assert suppression.p == {"isotropic": 1 / 3, "shuffled": 1.0}
    assert induction.name == "induction"
    assert induction.drop == pytest.approx(0.6)
    assert induction.low < 0.6 < induction.high
    assert astuple(induction.null["isotropic"])[:3] == pytest.approx((2, 0.0, 0.1))
    assert induction.gap == pytest.approx({"isotropic": 0.6})


def test_subtraction_on_positives_is_compared_with_additions_of_nulls_on_positives():
    rows = [
        *RUN,
        *outcomes_of("subtraction", "positive", "ccccccccdr"),
        *outcomes_of("null:isotropic:0:addition", "positive", "rrrrrrrrcc"),
    ]
    (effect,) = rate_effects(rows, effects=(SUBTRACTS,))
    assert (effect.name, effect.drop) == ("subtraction", pytest.approx(0.8))
    assert astuple(effect.null["isotropic"])[:3] == pytest.approx((1, 0.1, 0.1))
    assert effect.relative.value == pytest.approx(7 / 9)  # the degenerate completion counts as shown
    assert rate_effects(rows) == rate_effects(RUN)
    assert rate_effects(RUN, effects=(SUBTRACTS,)) == ()


def test_aligned_draws_are_not_compared():
    plain, _ = rate_effects(RUN)
    assert plain.relative_gap["isotropic"].draws == 2
    one, _ = rate_effects(RUN, NullComparison(aligned=frozenset({("isotropic", 1)})))
    assert one.relative_gap["isotropic"].value == pytest.approx(7 / 9)  # draw 0 changes nothing
    assert one.relative_gap["isotropic"].low is None  # one draw of every family: the spread is unknown
    assert one.gap == plain.gap
    assert (plain.p["isotropic"], one.p["isotropic"]) == (1 / 3, 1 / 2)
    every, _ = rate_effects(RUN, NullComparison(aligned=frozenset({("isotropic", 0), ("isotropic", 1)})))
    assert every.relative_gap["isotropic"].value is None
    assert every.p["isotropic"] is None
    assert rate_effects(RUN, NullComparison(least_draws=19))[0].p == {"isotropic": None, "shuffled": None}


def test_an_ineffective_draw_counts_as_no_change():
    broken, _ = rate_effects(RUN)
    assert broken.relative_gap["shuffled"].value == pytest.approx(7 / 9 - 8 / 9)  # it suppresses as the direction does
    void = NullComparison(ineffective=frozenset({ArmId.null("shuffled", 0, ArmKind.ABLATION)}))
    suppression, induction = rate_effects(RUN, void)
    assert suppression.relative_gap["shuffled"].value == pytest.approx(suppression.relative.value)
    assert suppression.gap["shuffled"] == pytest.approx(suppression.drop)
    assert suppression.null == broken.null | {"shuffled": NullSummary(1, 0.0, 0.0, 1)}
    assert (broken.p["shuffled"], suppression.p["shuffled"]) == (1.0, 1 / 2)
    # The direction, the other families and the other effect are as they were.
    assert suppression.relative == broken.relative
    assert suppression.relative_gap["isotropic"].value == broken.relative_gap["isotropic"].value
    assert induction == rate_effects(RUN)[1]


def test_suppressing_draws_are_those_that_lose_a_share_of_the_behaviour_they_were_run_on():
    assert suppressing_draws(RUN, 0.25) == {("shuffled", 0)}
    assert suppressing_draws(RUN, 0.1) == {("shuffled", 0), ("isotropic", 1)}  # 1 of 9; isotropic 0 loses nothing
    broken = [structs.replace(row, cls="degenerate") if row.arm.is_null else row for row in RUN]
    assert suppressing_draws(broken, 0.1) == set()  # degenerate completions count as showing the behaviour
    assert suppressing_draws([row for row in RUN if not row.arm.is_baseline], 0.1) == set()


def test_degenerate_completions_count_against_the_effect():
    suppression, induction = rate_effects(RUN)
    # Of 9 that refuse at baseline 1 refuses and 1 is degenerate under ablation.
    assert suppression.relative.value == pytest.approx(1 - 2 / 9)
    assert suppression.relative.most > suppression.relative.high
    # Of 9 that comply at baseline 7 refuse, 1 is degenerate and 2 comply under addition.
    assert induction.relative.value == pytest.approx(1 - 3 / 9)
    assert suppression.drop == pytest.approx(0.8)  # the difference of the rates is descriptive


def test_the_order_of_the_rows_changes_nothing():
    shuffled = random.Random(1).sample(RUN, len(RUN))
    assert rate_effects(shuffled) == rate_effects(RUN)


def test_a_pair_that_is_unscored_in_either_arm_is_excluded():
    rows = outcomes_of("baseline", "positive", "urrrr") + outcomes_of("ablation", "positive", "ruccr")
    (effect,) = rate_effects(rows)
    assert effect.n == 3
    assert effect.drop == pytest.approx(2 / 3)
    # If unscored counted as not refused, the drop would be 0.4.
    assert effect.drop != pytest.approx(4 / 5 - 2 / 5)


def test_an_effect_without_scored_pairs_is_unknown():
    rows = outcomes_of("baseline", "positive", "rr") + outcomes_of("ablation", "positive", "uu")
    rows += outcomes_of("null:isotropic:0:ablation", "positive", "cc")
    (effect,) = rate_effects(rows)
    assert (effect.drop, effect.low, effect.high, effect.n) == (None, -1.0, 1.0, 0)
    assert effect.gap == {"isotropic": None}
    assert effect.p == {"isotropic": 1.0}
    assert effect.relative.value is None


def test_a_null_without_scored_pairs_leaves_the_gap_unknown():
    rows = outcomes_of("baseline", "positive", "rr") + outcomes_of("ablation", "positive", "cc")
    rows += outcomes_of("null:isotropic:0:ablation", "positive", "uu")
    rows += outcomes_of("null:isotropic:1:ablation", "positive", "rr")
    (effect,) = rate_effects(rows)
    assert effect.gap == {"isotropic": None}
    assert effect.null == {"isotropic": NullSummary(2, None, None)}
    assert effect.p == {"isotropic": 2 / 3}


@pytest.mark.parametrize("absent", ["baseline", "ablation", "addition"])
def test_an_effect_with_a_missing_arm_is_omitted(absent):
    left = {"baseline": [], "ablation": ["induction"], "addition": ["suppression"]}[absent]
    assert [e.name for e in rate_effects([row for row in RUN if str(row.arm) != absent])] == left


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("ablation", r"ablation.*positive prompts.*positive-0 \(1 in all\)"),
        ("null:shuffled:0:ablation", "10 positive prompts each, but null:shuffled:0:ablation on fewer"),
    ],
)
def test_arms_on_different_prompts_are_refused(arm, message):
    at = next(i for i, row in enumerate(RUN) if str(row.arm) == arm)
    with pytest.raises(VerificationError, match=message):
        rate_effects(RUN[:at] + RUN[at + 1 :])
    changed = [structs.replace(row, prompt_id="other") if i == at else row for i, row in enumerate(RUN)]
    with pytest.raises(VerificationError, match=r"in one of them only: other(, positive-0)? \(\d in all\)"):
        rate_effects(changed)


def test_a_repeated_row_is_refused():
    for summary in (arm_rates, rate_effects):
        with pytest.raises(VerificationError, match="baseline on the positive prompt positive-0 occurs twice"):
            summary([*RUN, RUN[0]])


@pytest.mark.parametrize(
    ("field", "value"), [("class", "refusal"), ("set", "harmful"), ("arm", None), ("arm", "dose:0.5"), ("prompt_id", 3)]
)
def test_an_impossible_row_is_no_outcome(field, value):
    row = to_json(RUN[0])
    assert convert(row, Outcome) == RUN[0]
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        convert({**row, field: value}, Outcome)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from("rcdu")] * 3), min_size=1, max_size=30))
def test_rates_and_effects_agree_if_everything_is_scored(classes):
    baseline, ablation, null = ("".join(column) for column in zip(*classes, strict=True))
    rows = outcomes_of("baseline", "positive", baseline) + outcomes_of("ablation", "positive", ablation)
    rows += outcomes_of("null:isotropic:0:ablation", "positive", null)
    rate = {str(row.arm): row.rate for row in arm_rates(rows)}
    (effect,) = rate_effects(rows)
    if "u" not in baseline + ablation + null:
        assert effect.drop == pytest.approx(rate["baseline"] - rate["ablation"])
        assert effect.gap["isotropic"] == pytest.approx(rate["null:isotropic:0:ablation"] - rate["ablation"])
    assert effect.n == sum("u" not in pair for pair in zip(baseline, ablation, strict=True))


def test_pooling_counts_a_prompt_once():
    def seed(ablated):
        return outcomes_of("baseline", "positive", "r" * 10) + outcomes_of(
            "ablation", "positive", "r" * ablated + "c" * (10 - ablated)
        )

    (pooled,) = pooled_rate_effects({0: seed(0), 1: seed(2)})
    assert pooled.drop == pytest.approx(0.9)
    assert pooled.n == 10
    assert pooled.spread == pytest.approx(0.2)
    assert (pooled.shared, pooled.relative.value, pooled.relative.n) == (10, pytest.approx(0.9), 10)
    assert pooled_rate_effects({0: [outcome("baseline", "positive", "1", "refused")]}) == ()


def test_pooling_counts_the_prompts_that_seeds_share():
    rows = outcomes_of("baseline", "positive", "r" * 10) + outcomes_of("ablation", "positive", "c" * 10)
    other = [structs.replace(row, prompt_id=f"other-{row.prompt_id}") for row in rows[5:10] + rows[15:]]
    shared = [row for row in rows if row.prompt_id < "positive-5"]
    (pooled,) = pooled_rate_effects({0: rows, 1: [*shared, *other]})
    assert (pooled.n, pooled.shared) == (15, 5)
    (apart,) = pooled_rate_effects({0: rows, 1: other})
    assert (apart.n, apart.shared) == (15, 0)


def test_prompts_of_one_category_are_resampled_together():
    def run(by_category):
        rows = outcomes_of("baseline", "positive", "r" * 60) + outcomes_of("ablation", "positive", "r" * 18 + "c" * 42)
        return [structs.replace(row, category=str(i % 60 // 10) if by_category else None) for i, row in enumerate(rows)]

    alone, together = (rate_effects(run(by_category))[0].relative for by_category in (False, True))
    assert together.value == alone.value
    assert together.units == 6
    assert together.low < alone.low - 0.1
    (pooled,) = pooled_rate_effects({0: run(True), 1: run(True)})
    assert pooled.relative.units == 6


def test_nulls_that_completed_some_prompts_are_compared_on_these():
    def some(arm, label, classes, prompts):
        return [row for i, row in enumerate(outcomes_of(arm, label, classes)) if i in prompts]

    whole = [
        *outcomes_of("baseline", "positive", "r" * 20 + "c" * 20),
        *outcomes_of("ablation", "positive", "c" * 40),
    ]
    # The refused half: the null changes nothing. The other half: neither.
    nulls = [
        *some("null:isotropic:0:ablation", "positive", "r" * 20 + "c" * 20, range(10)),
        *some("null:isotropic:1:ablation", "positive", "r" * 20 + "c" * 20, range(30, 40)),
    ]
    effect = rate_effects([*whole, *nulls])[0]
    assert effect.n == 40
    assert effect.drop == pytest.approx(0.5)
    assert effect.gap["isotropic"] == pytest.approx(0.5)
    every = rate_effects([*whole, *outcomes_of("null:isotropic:0:ablation", "positive", "r" * 20 + "c" * 20)])[0]
    assert every.gap["isotropic"] == pytest.approx(0.5)
    # Relative changes use the prompts of each draw; where nothing can change, a draw has none.
    assert effect.relative_gap["isotropic"].value == pytest.approx(1.0)
    assert effect.relative_gap["isotropic"].n == 40


def test_null_draws_on_few_prompts_widen_the_interval_of_the_gap():
    whole = [*outcomes_of("baseline", "positive", "r" * 40), *outcomes_of("ablation", "positive", "c" * 40)]

    def gap(size):
        nulls = []
        for draw in range(3):
            rows = outcomes_of(f"null:isotropic:{draw}:ablation", "positive", "rrrrrrrc" * 5)
            nulls += rows[draw * size : (draw + 1) * size] if size < 40 else rows
        return rate_effects([*whole, *nulls])[0].relative_gap["isotropic"]

    few, every = gap(8), gap(40)
    assert few.value == pytest.approx(every.value)
    assert few.low < every.low


def test_an_arm_of_the_direction_has_every_prompt():
    rows = [*outcomes_of("baseline", "positive", "rrrr"), *outcomes_of("ablation", "positive", "ccc")]
    with pytest.raises(VerificationError, match="not run on the same positive prompts"):
        rate_effects(rows)
