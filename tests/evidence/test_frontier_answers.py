"""The answers of the frontier as pure functions: what each needs, and that contrary intervals do not give it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.evidence.frontier_answers import CostedRate, answers, banded_rate, gain, half_damage, simultaneous
from rhumbline.evidence.statistics import wilson
from rhumbline.records.analysis_files import MeanRate
from rhumbline.records.frontier_file import BandedRate, Comparison, FrontierRule

BASE = BandedRate(1.0, 0.9, 1.0, 64, 0.85, 1.0)
ALL, NONE = MeanRate(1.0, 0.8, 1.0, 64), MeanRate(0.0, -0.15, 0.15, 64)
LARGE, WIDE = MeanRate(0.5, 0.25, 0.7, 64), MeanRate(0.1, -0.1, 0.3, 64)


def answered(several=NONE, other=NONE, null=NONE, best=ALL, baseline=BASE):
    comparisons = [Comparison("som", 0.1, several), Comparison("leace", 0.1, other)]
    return answers(baseline, [best], comparisons, [(0.02, NONE), (0.1, null)], FrontierRule())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("ONE-IS-ENOUGH", "NOTHING-BETTER", "FLAT")),
        ({"several": LARGE}, ("MORE-HELPS", "SOMETHING-BETTER", "FLAT")),
        ({"several": WIDE}, ("UNDETERMINED", "UNDETERMINED", "FLAT")),
        ({"other": LARGE}, ("ONE-IS-ENOUGH", "SOMETHING-BETTER", "FLAT")),
        ({"other": WIDE}, ("ONE-IS-ENOUGH", "UNDETERMINED", "FLAT")),
        # One direction without an effect is not enough, even if several have none.
        ({"best": NONE}, ("UNDETERMINED", "NOTHING-BETTER", "FLAT")),
        ({"null": LARGE}, ("ONE-IS-ENOUGH", "NOTHING-BETTER", "NOT-FLAT")),
        ({"null": WIDE}, ("ONE-IS-ENOUGH", "NOTHING-BETTER", "UNDETERMINED")),
        ({"baseline": replace(BASE, rate=0.3)}, ("NO-BASELINE",) * 3),
        ({"baseline": None}, ("NO-BASELINE",) * 3),
    ],
)
def test_each_answer_needs_its_intervals(changes, expected):
    found = answered(**changes)
    assert (found.one_direction, found.at_equal_cost, found.nulls) == expected


def test_without_measurements_nothing_is_answered():
    found = answers(BASE, [], [], [], FrontierRule())
    assert (found.one_direction, found.at_equal_cost, found.nulls) == ("UNDETERMINED",) * 3


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 100))
def test_a_band_contains_the_interval_and_grows_with_the_number_of_rates(n, rates, seed):
    """Also at rates of 0 and 1, where one end of both is the rate; with one rate, the band is the interval."""
    shown = np.random.default_rng(seed).integers(0, 2, size=(1, n)).astype(float)
    one, some, more = (banded_rate(shown, simultaneous(0.95, k)) for k in (1, rates + 1, 2 * rates + 1))
    for band in (one, some, more):
        assert band is not None
        ends = (band.band_low, band.low, band.rate, band.high, band.band_high)
        assert ends == pytest.approx(sorted(ends), abs=1e-12)
        assert band.rate == shown.mean()
        assert (band.low, band.high) == pytest.approx(wilson(int(shown.sum()), n))
    assert (one.band_low, one.band_high) == (one.low, one.high)
    widths = [band.band_high - band.band_low for band in (one, some, more)]
    assert widths[0] < widths[1] < widths[2]


def test_completions_without_a_class_are_in_no_rate():
    nan = np.nan
    assert banded_rate(np.array([[nan, nan]]), 0.95) is None
    assert gain(np.array([[1.0, nan]]), np.array([[nan, 0.0]]), 0.95) is None
    some = gain(np.array([[1.0, 1.0, nan]]), np.array([[0.0, nan, 0.0]]), 0.95)
    assert some is not None
    assert (some.mean, some.n) == (1.0, 1)


def test_the_damage_at_half_lies_between_the_measured_costs():
    tokens = np.full(10, 4.0)

    def point(kl, rate):
        shown = (np.arange(20) < 20 * rate).astype(float)[None]
        return CostedRate(np.full((1, 10), 4 * kl), tokens, shown)

    def half(*points):
        return half_damage(points, np.ones((1, 20)), np.random.default_rng(0))

    found = half(point(0.1, 0.9), point(0.3, 0.1))
    assert found is not None
    assert found.kl == pytest.approx(0.2)
    assert 0.1 < found.low < found.kl < found.high < 0.3
    assert found.reached == 1
    assert half(point(0.1, 0.9), point(0.3, 0.6)) is None
    near = half(point(0.1, 0.5))
    assert near is not None
    assert 0.2 < near.reached < 0.8
