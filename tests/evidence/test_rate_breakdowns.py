import pytest

from make_outcomes import outcome
from rhumbline.evidence.compared_arms import EVERY_DRAW
from rhumbline.evidence.rate_breakdowns import (
    effects_by_condition,
    rates_by_baseline_class,
    rates_by_category,
    rates_by_condition,
)
from rhumbline.records.arms import ArmId
from rhumbline.records.outcome_rows import ConditionOutcome


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            ("refused", "refused", "complied"),
            ("complied", "refused", "refused"),
            [("refused", 2, 0.5), ("not refused", 1, 1.0)],
        ),
        (("shown", "shown", "absent"), ("absent", "shown", "absent"), [("shown", 2, 0.5), ("not shown", 1, 0.0)]),
        (("refused", "unscored", "unscored"), ("complied",) * 3, [("refused", 1, 0.0), ("not refused", 0, None)]),
    ],
)
def test_positives_are_separated_by_their_class_at_baseline(before, after, expected):
    rows = [outcome("baseline", "positive", str(i), cls) for i, cls in enumerate(before)]
    rows += [outcome("ablation", "positive", str(i), cls) for i, cls in enumerate(after)]
    assert [(row.baseline, row.n, row.rate) for row in rates_by_baseline_class(rows)] == expected


def test_categories_count_their_own_prompts():
    rows = [
        outcome("baseline", "positive", "a", "refused", category="x"),
        outcome("baseline", "positive", "b", "complied", category="y"),
        outcome("baseline", "positive", "c", "unscored", category="y"),
        outcome("null:isotropic:0:ablation", "positive", "d", "refused", category="y"),
        outcome("baseline", "negative", "e", "refused", category="z"),  # a single category of negatives
    ]
    assert [(row.category, row.n, row.rate) for row in rates_by_category(rows)] == [("x", 1, 1.0), ("y", 1, 0.0)]


def under_conditions(classes):
    """Rows of positives from their classes by condition and arm."""
    return [
        ConditionOutcome(
            condition=condition, arm=ArmId.parse(arm), side="positive", prompt_id=str(i), cls=cls, new_tokens=4,
            category=None,
        )
        for (condition, arm), some in classes.items()
        for i, cls in enumerate(some)
    ]  # fmt: skip


def test_conditions_are_compared_with_their_own_baseline():
    classes = {
        ("clerk", "baseline"): ("refused", "refused"),
        ("clerk", "ablation"): ("complied", "refused"),
        ("none", "baseline"): ("complied", "refused"),
    }
    rows = under_conditions(classes)
    table = {(row.condition, str(row.arm)): (row.rate, row.change) for row in rates_by_condition(rows)}
    assert table == {
        ("clerk", "baseline"): (1.0, None),
        ("clerk", "ablation"): (0.5, -0.5),
        ("none", "baseline"): (0.5, None),
    }


def test_a_condition_whose_completions_are_mostly_in_an_uncovered_language_is_not_measured():
    def rate(languages):
        rows = [
            ConditionOutcome(
                condition="clerk", arm=ArmId.parse("baseline"), side="positive", prompt_id=str(i), new_tokens=4,
                cls="unscored" if language else "refused", category=None, uncovered=language,
            )
            for i, language in enumerate(languages)
        ]  # fmt: skip
        (row,) = rates_by_condition(rows)
        return row.n, row.rate

    assert rate(["es", "es", None]) == (0, None)
    assert rate(["es", None, None]) == (2, 1.0)


def test_effects_under_a_condition_are_compared_with_the_nulls_under_it():
    """Under `clerk` a null suppresses as much as the direction; under `none` no null does."""
    own = {(c, "baseline"): ("refused",) * 20 for c in ("clerk", "none")}
    own |= {(c, "ablation"): ("complied",) * 20 for c in ("clerk", "none")}
    nulls = {(c, f"null:isotropic:{d}:ablation"): (cls,) * 20 for d in range(3)
             for c, cls in (("clerk", "complied"), ("none", "refused"))}  # fmt: skip
    rows = under_conditions(own | nulls)
    gaps = {e.condition: e.effects[0].relative_gap["isotropic"].value for e in effects_by_condition(rows, EVERY_DRAW)}
    assert gaps == {"clerk": pytest.approx(0.0), "none": pytest.approx(1.0)}
    assert {row.arm.is_null for row in rates_by_condition(rows)} == {False}
    # A run of an older version has no nulls there, and nothing is compared.
    assert effects_by_condition(under_conditions(own), EVERY_DRAW) == ()
