"""Intervals beyond 0 and 1: no mark is drawn outside of its chart, and a note states what such an end means."""

import re

import pytest

from rhumbline.records.claims import Claim, ClaimKind, ClaimState, beyond_one
from rhumbline.report.basic_charts import Bar, ChartText, CurvePoint, bars, curves, extended, intervals
from rhumbline.report.claims_table import CHART, claim_chart

TEXT = ChartText("some", "Some", "x", "y")


def claim(kind, value, low, high):
    return Claim(kind=kind, state=ClaimState.SHOWN, value=value, low=low, high=high, bound=0.5, n=20)


def reach(claimed):
    """The ends of the interval in the chart, in pixels."""
    (x1, x2) = re.search(r'class="range" x1="([\d.-]+)" x2="([\d.-]+)"', str(claim_chart(claimed, [])), re.S).groups()
    return float(x1), float(x2)


@pytest.mark.parametrize("draw", [curves, intervals])
def test_the_axis_of_a_chart_reaches_the_ends_of_its_intervals(draw):
    within, beyond = CurvePoint("a", 1, 0.5, 0.2, 0.9), CurvePoint("a", 2, 0.5, -0.6, 1.3)
    assert '"domain": [0, 1]' in repr_of(draw(TEXT, [within], domain=(0, 1)))
    assert '"domain": [-0.6, 1.3]' in repr_of(draw(TEXT, [within, beyond], domain=(0, 1)))


def test_an_axis_of_few_whole_numbers_has_one_tick_for_each():
    few = repr_of(curves(TEXT, [CurvePoint("a", rank, 0.5) for rank in (0, 1, 2)]))
    assert '"values": [0, 1, 2]' in few
    many = repr_of(curves(TEXT, [CurvePoint("a", layer, 0.5) for layer in range(30)]))
    assert ('"tickMinStep": 1' in many, '"values": [0, 1' in many) == (True, False)
    assert '"format": "d"' not in repr_of(curves(TEXT, [CurvePoint("a", x, 0.5) for x in (0.0, 0.5)]))


def repr_of(chart):
    return str(chart.spec).replace("'", '"')


def test_a_scale_is_extended_to_known_values():
    scale = extended((-0.25, 1), [None, float("nan"), -0.8, 0.4])
    assert scale.to_dict()["domain"] == [-0.8, 1]
    assert extended((0, 1), [None]).to_dict()["domain"] == [0, 1]
    drawn = bars(TEXT, [Bar("a", "b", 0.1, -0.8, 0.4)], scale=scale)
    assert '"domain": [-0.8, 1]' in repr_of(drawn)


def test_the_interval_of_a_share_ends_at_one_and_that_of_a_gap_does_not():
    right = CHART[0] - 6
    assert reach(claim(ClaimKind.SUPPRESSES, 0.9, 0.7, 1.4)) == reach(claim(ClaimKind.SUPPRESSES, 0.9, 0.7, 1.0))
    assert reach(claim(ClaimKind.SUPPRESSES, 0.9, 0.7, 1.0))[1] == right
    gap, level = claim(ClaimKind.BEATS_NULLS, 0.9, 0.7, 1.4), claim(ClaimKind.INDUCES, 1.1, 1.0, 1.4)
    for one in (gap, level):
        low, high = reach(one)
        assert high == right
        assert low == pytest.approx(6 + (right - 6) * one.low / 1.4, abs=0.1)


def test_a_note_states_why_an_interval_ends_above_one():
    within = [claim(ClaimKind.SUPPRESSES, 0.9, 0.7, 1.0), claim(ClaimKind.LEAVES_INTACT, 1.2, 1.0, 1.4)]
    assert beyond_one(within) is None
    assert "A gap can exceed 1" in (beyond_one([*within, claim(ClaimKind.BEATS_NULLS, 0.9, 0.7, 1.1)]) or "")
