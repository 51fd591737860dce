import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline.evidence.detectable_effects import (
    detectable,
    least_detectable,
    prompts_for_change,
    prompts_to_decide,
)
from rhumbline.evidence.relative_changes import paired_ratio
from rhumbline.evidence.statistics import difference_of_rates
from rhumbline.records.shared import ByLabel


@pytest.mark.parametrize("n", [10, 32, 100])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_least_detectable_change_has_the_stated_power(n, margin):
    fall = least_detectable(n, margin)
    assert fall is not None

    def power(change):
        counts = np.arange(n + 1)
        shown = np.array([1 - paired_ratio(n, k, k).high > margin for k in counts.tolist()])
        return float(stats.binom.pmf(counts, n, 1 - change)[shown].sum())

    assert power(fall) >= 0.8 - 1e-6
    assert power(fall - 0.02) < 0.8
    assert fall > margin


def test_more_prompts_detect_smaller_changes_and_too_few_detect_none():
    changes = [least_detectable(n) for n in (10, 50, 200)]
    assert changes == sorted(changes, reverse=True)
    assert least_detectable(3, 0.5) is None
    record = detectable(ByLabel(positive=100, negative=3), 0.5, 99)
    assert record.rank_floor == 0.01
    assert record.rule["negative"] is None
    assert record.any["positive"] == least_detectable(100)
    assert detectable(ByLabel(100, 100), 0.5, 0).rank_floor is None


@settings(deadline=None)
@given(st.floats(0.6, 1.0), st.floats(0.0, 0.4))
def test_that_many_prompts_put_the_interval_on_one_side(before, after):
    n = prompts_to_decide(before, after, 0.5)
    if n is None:
        assert abs(before - after - 0.5) < 0.02
        return
    difference = difference_of_rates(before, after, n)
    assert difference.low >= 0.5 or difference.high < 0.5


def test_no_number_of_prompts_decides_a_difference_at_the_margin():
    assert prompts_to_decide(1.0, 0.5, 0.5) is None


@pytest.mark.parametrize(("before", "change"), [(1.0, 0.6), (0.6, 0.7), (0.9, 0.3)])
def test_that_many_prompts_put_the_relative_change_on_one_side(before, change):
    n = prompts_for_change(before, change, 0.5)
    assert n is not None
    after = n * before * (1 - change)
    low, high = paired_ratio(n * before, after, after)
    assert 1 - high >= 0.5 or 1 - low < 0.5
    assert prompts_for_change(before, 0.5, 0.5) is None
