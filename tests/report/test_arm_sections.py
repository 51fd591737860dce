import json
from dataclasses import replace

import pytest
from msgspec import UNSET
from msgspec.structs import replace as changed

from make_run import make_run
from rhumbline.evidence.verdict_rules import BLOG2026, RHUMBLINE
from rhumbline.records.results import Confounds, LevelUnit, StyleSummary
from rhumbline.report import arm_sections
from rhumbline.report.run_record import RunRecord, measure, read_run

STYLE = StyleSummary(
    LevelUnit(0.6, 0.1, 0.5, 0.4, 0.6, 0.9, 0.8, (100, 100), "baseline"),
    "completions",
    "estimated",
    (),
    None,
    0.1,
    Confounds((), ()),
    None,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(make_run(tmp_path_factory.mktemp("run"), seeds=(0,), draws=2))


def test_equal_rates_are_spread_and_single_rates_are_not():
    offsets = arm_sections._swarm([0.5, 0.5, 0.5, 0.9])
    assert len(set(offsets[:3])) == 3
    assert offsets[3] == 0
    assert max(map(abs, arm_sections._swarm([1.0] * 99))) <= 1


def test_a_continuous_score_is_shown_as_a_level_that_can_exceed_1(run):
    seed = run.seeds[0]
    assert seed.style is UNSET
    levels = replace(seed, style=STYLE, arms=tuple(changed(a, rate=1.2, low=1.1, high=1.4) for a in seed.arms))
    assert (measure([seed]), measure([levels])) == ("rate", "level")
    for shown, name, ends in ((seed, "rate", [-0.03, 1.03]), (levels, "level", [-0.03, 1.43])):
        for chart in arm_sections.arm_charts([shown], run.protocol.rule):
            spec = json.dumps(chart.spec)
            assert f'"title": "{name} of the behaviour"' in spec
            assert json.dumps(ends) in spec
            assert f"{name} of the behaviour" in chart.summary


@pytest.mark.parametrize(
    ("rule", "sign", "edges"),
    [
        (BLOG2026, -1, (0.1, 0.25)),  # absolute margins of 0.5 and 0.25
        (BLOG2026, 1, (1.1, 0.95)),
        (RHUMBLINE, -1, (0.3, 0.35)),  # shares of the behaviour, 0.6 at baseline
        (RHUMBLINE, 1, (0.8, 0.8)),  # shares of its absence, 0.4
        (replace(RHUMBLINE, version=4), -1, (0.1, 0.25)),
    ],
)
def test_the_margins_of_the_chart_are_those_that_the_rule_applies(rule, sign, edges):
    """A direction on the edge has a change, or a gap, of exactly the margin."""
    null = 0.5 if sign < 0 else 0.7
    rows = [{"row": name, "kind": name, "rate": rate} for name, rate in (("baseline", 0.6), ("direction", 0.2))]
    rows.append({"row": "isotropic", "kind": "mean", "rate": null})
    marks = arm_sections._margin_rows(rows, sign, rule, (0.0, 2.0))
    margin, gap = (next(mark for mark in marks if mark["kind"] == kind) for kind in ("margin", "gap"))
    assert (margin["rate"], gap["to"]) == pytest.approx(edges)
    assert marks[-1]["rate"] == pytest.approx(min(edges) if sign < 0 else max(edges))


def test_every_null_draw_is_in_the_charts_of_its_effect(run):
    seed = run.seeds[0]
    charts = arm_sections.null_charts([seed])
    assert len(charts) == 2
    for chart in charts:
        rows = chart.spec["data"]["values"]
        assert len(rows) == len(seed.nulls) + 1
        assert {row["cosine"] for row in rows[:-1]} == {float(f"{null.cosine:.6g}") for null in seed.nulls}
        assert rows[-1]["family"] == "direction"
