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


def change_and_gap(before, own, nulls, *others):
    """The gap of an arm to draws on the same prompts; `others` are the draws of other families."""
    families = [[paired(before, null) for null in some] for some in (nulls, *others)]
    return gap_to_nulls(relative_change(before, own), families[0], families)


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


def test_the_variance_between_draws_contains_the_sampling_of_their_prompts():
    before, own = counts(100), counts(0)
    nothing = change_and_gap(before, own, [counts(90)] * 6)
    direct, mean = relative_change(before, own), relative_change(before, counts(90))
    assert nothing.low == pytest.approx(nothing.value - math.hypot(direct.value - direct.low, mean.high - mean.value))
    apart = [counts(100), counts(70)] * 6
    half = draws_half_width([0.15, -0.15] * 6)
    assert change_and_gap(before, own, apart).low == pytest.approx(0.85 - math.hypot(direct.value - direct.low, half))


def test_a_gap_to_draws_on_the_same_prompts_is_rarely_above_the_true_one():
    """Half of the draws remove the behaviour, all of them from the same half of the prompts: 0.25 on average."""
    rng, n, draws, repeats, wrong = np.random.default_rng(0), 50, 10, 200, 0
    for _ in range(repeats):
        before, is_easy = np.ones(n), rng.random(n) < 0.5
        nulls = [paired(before, (~(is_easy & (rng.random() < 0.5))).astype(float)) for _ in range(draws)]
        wrong += gap_to_nulls(relative_change(before, 0 * before), nulls, [nulls]).low > 0.75
    assert wrong <= 0.05 * repeats


def test_categories_add_to_the_interval_of_a_gap():
    names = [str(i // 10) for i in range(100)]
    before, own, kept = counts(100), counts(0), np.repeat([1.0] * 7 + [0.0] * 3, 10)
    draws = [Paired([str(i) for i in range(100)], before, kept, some) for some in ([None] * 100, names)]
    alone, together = (gap_to_nulls(relative_change(before, own), [draw] * 6) for draw in draws)
    assert together.value == alone.value
    assert together.low < alone.low - 0.1


def test_draws_on_different_prompts_are_means_over_their_own():
    before, own = counts(60, 60), counts(0, 60)
    apart = [paired(np.ones(20), np.ones(20), first=20 * draw) for draw in range(3)]
    together = [paired(before, before)] * 3
    gaps = [gap_to_nulls(relative_change(before, own), draws) for draws in (apart, together)]
    assert gaps[0] == gaps[1]
    few = gap_to_nulls(relative_change(before, own), [paired(np.ones(8), np.ones(8), 8 * draw) for draw in range(3)])
    assert few.value == gaps[0].value == 1.0
    assert few.low < gaps[0].low


def test_a_family_of_few_draws_has_the_variance_within_all_families():
    before, own, draws = counts(100), counts(0), [counts(100), counts(64)]
    others = [[counts(100)] * 2, [counts(50)] * 2, [counts(90)] * 2, [counts(100)] * 2, [counts(30)] * 2]
    two = change_and_gap(before, own, draws, *others)
    assert two.low > 0.1
    assert change_and_gap(before, own, draws).low < -1  # t with one degree of freedom
    # A family whose own draws are alike is not more certain than the others; their means do not count.
    alike = change_and_gap(before, own, [counts(100)] * 2, draws, *others[1:])
    assert alike.low < change_and_gap(before, own, [counts(100)] * 2, *others).low - 0.05


def test_one_draw_has_the_variance_within_other_families_and_no_draw_no_gap():
    before, own, draw = counts(100), counts(0), counts(90)
    alone = change_and_gap(before, own, [draw])
    assert alone.value == pytest.approx(0.9)
    assert math.isnan(alone.low)
    # One draw of every family: their differences are no variance within a family.
    assert math.isnan(change_and_gap(before, own, [draw], [counts(50)], [counts(100)]).low)
    assert change_and_gap(before, own, [draw], [counts(50)] * 5).low > 0.75
    assert change_and_gap(before, own, [draw], [counts(50), counts(100)] * 5).low < 0.5
    assert math.isnan(gap_to_nulls(relative_change(before, own), []).value)
    unscored = gap_to_nulls(relative_change(before, own), [paired(before[:0], own[:0])])
    assert math.isnan(unscored.value)


@pytest.mark.parametrize(
    ("values", "families", "is_known"),
    [
        ([], [[0.1, 0.2]], False),
        ([math.nan], [[0.1, 0.2]], False),
        ([0.1], [[0.1]], False),
        ([0.1], [[0.1], [0.2]], False),
        ([0.1, math.nan], [[0.1, math.nan], [0.1, 0.2]], True),
        ([0.1, 0.3], (), True),
    ],
)
def test_draws_without_a_known_change_have_no_interval(values, families, is_known):
    assert math.isfinite(draws_half_width(values, families)) == is_known


def test_a_draw_on_whose_prompts_nothing_was_present_counts_in_the_variance():
    draws = [paired(np.array(before), np.array(after), 2 * i) for i, (before, after) in enumerate(
        [([1.0, 1.0], [1.0, 1.0]), ([0.0, 0.0], [0.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([1.0, 1.0], [1.0, 0.0])]
    )]  # fmt: skip
    direct = relative_change(counts(20, 20), counts(0, 20))
    gap = gap_to_nulls(direct, draws)
    assert gap.value == pytest.approx(1 - 2 / 5)
    assert -1 < gap.low < gap.value


@pytest.mark.parametrize(("draws", "prompts", "most"), [(6, 2, 0.06), (10, 5, 0.04), (1, 12, 0.0)])
@pytest.mark.parametrize("base", [1.0, 0.6])
def test_a_family_that_removes_most_of_the_behaviour_in_most_draws_is_rarely_beaten(draws, prompts, most, base):
    # Three of four draws remove everything: their mean is 0.75, and a gap above 0.25 would be an error.
    rng, n, wrong, repeats = np.random.default_rng(0), 100, 0, 150

    def family(probability: float) -> list[Paired]:
        return [
            paired(before[i * prompts : (i + 1) * prompts],
                   before[i * prompts : (i + 1) * prompts] * (rng.random() > probability), i * prompts)
            for i in range(draws)
        ]  # fmt: skip

    for _ in range(repeats):
        before = (rng.random(n) < base).astype(float)
        families = [family(0.75), *(family(0.0) for _ in range(5))]
        wrong += gap_to_nulls(relative_change(before, 0 * before), families[0], families).low > 0.25
    assert wrong <= most * repeats


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
