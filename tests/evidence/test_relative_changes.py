import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.evidence.relative_changes import (
    Change,
    Paired,
    draws_half_width,
    gap_to_nulls,
    paired_ratio,
    record,
    relative_change,
)


def paired(before: np.ndarray, after: np.ndarray, first: int = 0) -> Paired:
    """A draw that completed the prompts from the number `first` on."""
    return Paired([str(first + i) for i in range(len(before))], before, after, [None] * len(before))


def change_and_gap(before, own, nulls, every=()):
    """The gap of an arm to draws on the same prompts."""
    draws = ([paired(before, null) for null in some] for some in (nulls, every))
    return gap_to_nulls(relative_change(before, own), *draws)


def counts(present: int, n: int = 100) -> np.ndarray:
    return np.array([1.0] * present + [0.0] * (n - present))


@pytest.mark.parametrize(
    ("before", "after", "low", "high"),
    [
        (62, 2, 0.884, 0.991),
        (60, 0, 0.936, 1.0),
        (100, 68, 0.222, 0.406),
        (100, 0, 0.962, 1.0),
        (100, 100, -0.019, 0.019),
    ],
)
def test_the_interval_of_bonett_and_price(before, after, low, high):
    change = relative_change(counts(before), counts(after))
    assert change.value == pytest.approx(1 - after / before)
    assert (change.low, change.high) == pytest.approx((low, high), abs=1e-3)


def test_a_rise_is_a_negative_change_and_nothing_present_is_not_known():
    rise = relative_change(counts(50), counts(75))
    assert rise.value == pytest.approx(-0.5)
    assert rise.high < 0
    assert math.isnan(relative_change(counts(0), counts(10)).value)


def test_the_interval_covers_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    for n, before, kept in ((16, 0.9, 0.3), (32, 0.6, 0.5), (100, 0.95, 0.5)):
        covered, too_high = 0, 0
        for _ in range(400):
            b = (rng.random(n) < before).astype(float)
            a = b * (rng.random(n) < kept)
            if b.sum():
                change = relative_change(b, a)
                covered += change.low <= 1 - kept <= change.high
                too_high += change.low > 1 - kept
        assert covered >= 0.91 * 400
        assert too_high <= 0.04 * 400


def test_correlated_prompts_of_a_category_widen_the_interval():
    # Three of ten categories keep the behaviour as a whole.
    before, after = counts(100), np.repeat([1.0] * 3 + [0.0] * 7, 10)
    alone = relative_change(before, after)
    together = relative_change(before, after, [str(i // 10) for i in range(100)])
    assert together.value == alone.value
    assert together.high - together.low > 1.8 * (alone.high - alone.low)
    assert (together.units, alone.units) == (10, None)
    # The same number, spread evenly over the categories, carries no such correlation.
    even = relative_change(before, np.tile([1.0] * 3 + [0.0] * 7, 10), [str(i // 10) for i in range(100)])
    assert (even.low, even.high) == (alone.low, alone.high)


def test_few_categories_and_missing_ones_are_not_resampled():
    before, after = counts(100), counts(30)
    alone = relative_change(before, after)
    assert relative_change(before, after, [str(i // 25) for i in range(100)]) == alone
    assert relative_change(before, after, [None] * 100) == alone
    assert relative_change(before, after, [str(i) for i in range(100)]) == alone


def test_the_interval_of_a_gap_contains_the_variance_between_draws():
    before, own = counts(100), counts(0)
    alike = change_and_gap(before, own, [counts(90)] * 3)
    apart = change_and_gap(before, own, [counts(100), counts(100), counts(70)])
    assert alike.value == pytest.approx(apart.value)
    assert alike.low > 0.75
    assert apart.low < 0.5  # t with 2 degrees of freedom
    many = change_and_gap(before, own, [counts(100), counts(100), counts(70)] * 5)
    assert apart.low < many.low < alike.low


def test_draws_on_different_prompts_are_means_over_their_own():
    before, own = counts(60, 60), counts(0, 60)
    apart = [paired(np.ones(20), np.ones(20), first=20 * draw) for draw in range(3)]
    together = [paired(before, before)] * 3
    gaps = [gap_to_nulls(relative_change(before, own), draws) for draws in (apart, together)]
    assert gaps[0] == gaps[1]
    few = gap_to_nulls(relative_change(before, own), [paired(np.ones(8), np.ones(8), 8 * draw) for draw in range(3)])
    assert few.value == gaps[0].value == 1.0
    assert few.low < gaps[0].low


def test_two_draws_are_decided_with_the_draws_of_all_families():
    before, own, draws = counts(100), counts(0), [counts(100), counts(64)]
    others = [counts(100)] * 10
    two = change_and_gap(before, own, draws, every=[*draws, *others])
    assert two.low > 0.25  # t with one degree of freedom would reach below -1
    assert change_and_gap(before, own, [counts(100)] * 2, every=[*draws, *others]).low < 1 - 0.1
    # Three draws have their own variance.
    three = [*draws, counts(82)]
    assert change_and_gap(before, own, three, every=others).low == change_and_gap(before, own, three).low


def test_one_draw_has_the_variance_of_all_families_and_no_draw_no_gap():
    before, own, draw = counts(100), counts(0), counts(90)
    alone = change_and_gap(before, own, [draw])
    assert alone.value == pytest.approx(0.9)
    assert math.isnan(alone.low)
    alike = change_and_gap(before, own, [draw], every=[draw] * 6)
    apart = change_and_gap(before, own, [draw], every=[draw, counts(50), counts(100)])
    assert apart.value == alike.value == alone.value
    assert alike.low > 0.75
    assert apart.low < 0.3
    assert math.isnan(change_and_gap(before, own, [], every=[draw]).value)
    unscored = gap_to_nulls(relative_change(before, own), [paired(before[:0], own[:0])])
    assert math.isnan(unscored.value)


@pytest.mark.parametrize(
    ("values", "every", "is_known"),
    [
        ([], [0.1, 0.2], False),
        ([math.nan], [0.1, 0.2], False),
        ([0.1], [0.1], False),
        ([0.1, math.nan], [0.1, 0.2], True),
    ],
)
def test_draws_without_a_known_change_have_no_interval(values, every, is_known):
    assert math.isfinite(draws_half_width(values, every)) == is_known


def test_a_record_without_most_has_its_upper_end_in_high():
    against = Change(0.3, 0.1, 0.4, 10)
    assert record(against, against).most is None
    assert record(against, against._replace(high=0.6)).most == 0.6
    for unknown in (math.inf, math.nan):  # nothing is refuted by `high` then
        unbounded = record(against, against._replace(high=unknown))
        assert (unbounded.high, unbounded.most) == (None, None)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_interval_contains_the_ratio(n, data):
    before = data.draw(st.integers(1, n))
    after = data.draw(st.integers(0, n))
    both = data.draw(st.integers(max(0, before + after - n), min(before, after)))
    low, high = paired_ratio(before, after, both)
    assert 0 <= low <= after / before + 1e-9
    assert after / before - 1e-9 <= high
