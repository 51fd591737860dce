"""Dose finding: the cost that is found is that of the dose, and a dose beyond reach is never reached."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.evidence.dosing import MOST_EVALUATIONS, DoseSearch, cost_at_half

DOSES = (0.02, 0.1, 0.5)


def finished(cost, largest=1.0, first=0.25, doses=DOSES, tolerance=0.05):
    search = DoseSearch(doses, largest, first, tolerance)
    while wanted := search.proposals():
        assert all(0 < s <= largest for s in wanted)
        search.add({s: cost(s) for s in wanted})
    assert len(search.known) <= (MOST_EVALUATIONS + 1) * len(doses)
    return search


@settings(deadline=None, max_examples=100)
@given(st.floats(-4, 4), st.floats(0.5, 4), st.floats(0.3, 3), st.sampled_from([1.0, 64.0]))
def test_every_dose_within_reach_is_reached_within_the_tolerance(scale, power, ceiling, largest):
    """For costs that grow by any power and level off."""

    def cost(s):
        return ceiling * -math.expm1(-(10**scale) * s**power)

    search = finished(cost, largest)
    for dose in DOSES:
        reached = search.reached(dose)
        if cost(largest) >= dose:
            assert reached is not None
            assert abs(cost(reached.strength) - dose) <= 0.05 * dose
            assert reached.cost == cost(reached.strength)
        elif cost(largest) < 0.95 * dose:
            assert reached is None
            assert search.at_largest() == (largest, cost(largest))


def test_a_cost_that_jumps_over_a_dose_does_not_reach_it():
    search = finished(lambda s: 0.001 if s < 0.3 else 0.2)
    assert [search.reached(dose) for dose in DOSES] == [None, None, None]
    assert search.at_largest() == (1.0, 0.2)


def test_a_cost_of_zero_reaches_nothing_and_one_that_is_not_finite_is_too_large():
    assert [finished(lambda s: 0.0).reached(dose) for dose in DOSES] == [None, None, None]
    search = finished(lambda s: 4 * s * s if s < 0.6 else math.nan)
    assert all(search.reached(dose) for dose in DOSES)


def test_of_several_strengths_the_smallest_counts():
    """The cost rises, falls and rises again."""
    reached = finished(lambda s: 0.6 * math.sin(5 * s) ** 2, doses=(0.3,)).reached(0.3)
    assert reached is not None
    assert reached.strength == pytest.approx(math.pi / 20, rel=0.05)


def test_the_cost_at_half_is_interpolated_and_absent_where_nothing_is_halved():
    assert cost_at_half([(0.1, 0.8), (0.3, 0.2)], 1.0) == pytest.approx(0.2)
    assert cost_at_half([(0.1, 0.0)], 0.8) == pytest.approx(0.05)
    assert cost_at_half([(0.1, 0.8), (0.3, 0.6)], 1.0) is None
    assert cost_at_half([(0.1, 0.0)], 0.0) is None
    assert cost_at_half([], 1.0) is None
