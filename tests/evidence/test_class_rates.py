import math
import random

from msgspec import structs

from make_outcomes import outcomes_of
from rhumbline.evidence.class_rates import arm_rates, class_rate, degenerate_share
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
