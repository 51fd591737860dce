import math
import random

import pytest
from msgspec import UNSET, structs

from make_outcomes import outcomes_of
from rhumbline.evidence.class_rates import (
    arm_rates,
    class_rate,
    degenerate_share,
    measured_classes,
    measured_outcomes,
)
from rhumbline.evidence.statistics import exact_interval, wilson
from rhumbline.records.arms import ArmId
from rhumbline.records.effect_results import ArmRate


def test_arms_are_counted_and_listed_in_a_fixed_order():
    rows = [
        *outcomes_of("baseline", "positive", "rrrrrrrrrc", 2.0),
        *outcomes_of("baseline", "negative", "cccccccccr", -3.0),
        *outcomes_of("ablation", "positive", "ccccccccdr"),
        *outcomes_of("addition", "negative", "rrrrrrrdcc"),
        *(
            row
            for null in ("isotropic:0", "isotropic:1", "isotropic:10", "shuffled:0")
            for row in outcomes_of(f"null:{null}:ablation", "positive", "rc")
        ),
        *(
            row
            for null in ("isotropic:0", "isotropic:1")
            for row in outcomes_of(f"null:{null}:addition", "negative", "rc")
        ),
    ]
    table = arm_rates(random.Random(0).sample(rows, len(rows)))
    assert [(str(row.arm), row.side) for row in table] == [
        ("baseline", "positive"),
        ("baseline", "negative"),
        ("ablation", "positive"),
        ("addition", "negative"),
        ("null:isotropic:0:ablation", "positive"),
        ("null:isotropic:0:addition", "negative"),
        ("null:isotropic:1:ablation", "positive"),
        ("null:isotropic:1:addition", "negative"),
        ("null:isotropic:10:ablation", "positive"),
        ("null:shuffled:0:ablation", "positive"),
    ]
    assert table == arm_rates(rows)
    assert table[0] == ArmRate(
        arm=ArmId.parse("baseline"), side="positive", n=10, rate=0.9, low=wilson(9, 10).low, high=wilson(9, 10).high,
        exact_low=exact_interval(9, 10).low, exact_high=exact_interval(9, 10).high, correct=None,
        degenerate=0.0, unscored=0, metric=2.0, metric_n=10,
    )  # fmt: skip
    assert (table[3].rate, table[3].degenerate, table[3].metric) == (0.7, 0.1, None)


def test_unscored_completions_are_in_no_rate_and_degenerate_ones_are_not_refusals():
    (row,) = arm_rates(outcomes_of("baseline", "positive", "rrduu"))
    assert (row.n, row.unscored, row.rate, row.degenerate) == (3, 2, 2 / 3, 1 / 3)
    (row,) = arm_rates(outcomes_of("baseline", "positive", "uu"))
    assert (row.n, row.unscored, row.rate, row.degenerate) == (0, 2, None, None)
    assert (row.low, row.high) == (0.0, 1.0)
    assert class_rate(["unscored"]) == (0, None, 0.0, 1.0)
    assert degenerate_share(["unscored"]) is None


def test_the_mean_metric_is_over_the_rows_that_have_one():
    rows = outcomes_of("baseline", "positive", "rrrr")
    metrics = (1.0, None, math.nan, 4.0)
    (rate,) = arm_rates([structs.replace(row, metric=m) for row, m in zip(rows, metrics, strict=True)])
    assert (rate.metric, rate.metric_n, rate.n) == (2.5, 2, 4)


def test_right_answers_are_a_share_of_the_known_ones():
    rows = outcomes_of("baseline", "negative", "cccc")
    known = (True, False, None, True)
    (rate,) = arm_rates([structs.replace(row, correct=c) for row, c in zip(rows, known, strict=True)])
    assert rate.correct == 2 / 3
    (rate,) = arm_rates(rows)
    assert rate.correct is None


def test_an_arm_whose_completions_are_mostly_in_uncovered_languages_is_not_measured():
    foreign = [structs.replace(row, uncovered="ja") for row in outcomes_of("baseline", "positive", "uuuuuu")]
    english = [
        structs.replace(row, prompt_id=f"e{i}") for i, row in enumerate(outcomes_of("baseline", "positive", "rrccc"))
    ]
    other = outcomes_of("ablation", "positive", "ccccc")
    rates = {str(row.arm): row for row in arm_rates(measured_outcomes([*foreign, *english, *other]))}
    assert (rates["baseline"].n, rates["baseline"].rate, rates["baseline"].unscored) == (0, None, 11)
    assert rates["baseline"].uncovered == {"ja": 6}
    assert (rates["ablation"].n, rates["ablation"].rate) == (5, 0.0)
    # Half of them leaves a rate of the others.
    (row,) = arm_rates(measured_outcomes([*foreign[:5], *english]))
    assert (row.n, row.rate, row.unscored, row.uncovered) == (5, 0.4, 5, {"ja": 5})


@pytest.mark.parametrize(("unread", "n"), [(5, 5), (6, 0)])
def test_an_arm_whose_completions_mostly_have_no_answer_is_not_measured(unread, n):
    """An ablation that leaves 90 of 100 answers unfinished would else remove all refusals of the other 10."""
    rows = outcomes_of("ablation", "positive", "u" * unread + "c" * (11 - unread if n == 0 else n))
    (row,) = arm_rates(measured_outcomes(rows))
    assert (row.n, row.unscored) == (n, len(rows) - n)
    assert (row.rate is None) == (n == 0)
    classes = [row.cls for row in rows]
    assert class_rate(measured_classes(classes)).n == n


def test_classes_that_a_literal_judge_gave_are_not_measured_either():
    foreign = [structs.replace(row, uncovered="zh") for row in outcomes_of("baseline", "positive", "cccc")]
    (row,) = arm_rates(measured_outcomes(foreign))
    assert (row.n, row.rate) == (0, None)
    (row,) = arm_rates(foreign)
    assert row.rate == 0.0


def test_refusals_that_repeat_themselves_are_counted():
    rows = outcomes_of("baseline", "positive", "rrc")
    (row,) = arm_rates([structs.replace(rows[0], repeats=True), *rows[1:]])
    assert (row.repeats, row.degenerate, row.rate) == (1, 0.0, 2 / 3)
    assert arm_rates(rows)[0].repeats is UNSET
