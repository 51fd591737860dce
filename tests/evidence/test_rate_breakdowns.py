import pytest

from make_outcomes import outcome
from rhumbline.evidence.rate_breakdowns import rates_by_baseline_class, rates_by_category, rates_by_condition
from rhumbline.records.arms import ArmId
from rhumbline.records.seed_files import ConditionOutcome


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


def test_conditions_are_compared_with_their_own_baseline():
    classes = {
        ("clerk", "baseline"): ("refused", "refused"),
        ("clerk", "ablation"): ("complied", "refused"),
        ("none", "baseline"): ("complied", "refused"),
    }
    rows = [
        ConditionOutcome(
            condition=condition, arm=ArmId.parse(arm), side="positive", prompt_id=str(i), cls=cls, new_tokens=4,
            category=None,
        )
        for (condition, arm), both in classes.items()
        for i, cls in enumerate(both)
    ]  # fmt: skip
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
