"""Selection rules: the published selections, the reason of every discarded candidate, and faults of tables."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import DATA
from rhumbline.errors import ProtocolError
from rhumbline.evidence import verdict_rules
from rhumbline.evidence.selection_rules import (
    ARDITI2024,
    BLOG2026,
    RHUMBLINE,
    STYLE,
    SelectionRule,
    choose,
    choose_again,
    count_discards,
    describe_discard,
    read_scores,
    rule_applied,
    screened,
)
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.seed_files import Candidate, Estimates, Selection
from rhumbline.records.shared import ByLabel

GOLDEN = DATA / "golden"


@pytest.mark.parametrize("name", ["gemma-2b-it", "yi-6b-chat"])
def test_the_authors_choice_is_reproduced(name):
    table, n_layers = read_scores(GOLDEN / f"{name}.json")
    published = json.loads((GOLDEN / f"{name}.json").read_text())["selected"]
    selected = choose(table, n_layers, ARDITI2024).selected
    assert selected is not None
    assert {"position": int(selected.position), "layer": selected.layer} == published


def test_the_literal_reading_of_the_layer_cut_fails_on_yi():
    table, n_layers = read_scores(GOLDEN / "yi-6b-chat.json")
    right = choose(table, n_layers, ARDITI2024)
    # layer < 0.8 L instead of layer < int(0.8 L): one more layer is let in.
    literal = choose(table, n_layers, replace(ARDITI2024, max_layer_share=(int(0.8 * n_layers) + 1) / n_layers))
    assert 0.8 * n_layers > int(0.8 * n_layers)
    assert right.selected is not None
    assert literal.selected is not None
    assert (int(right.selected.position), right.selected.layer) == (-5, 20)
    assert (int(literal.selected.position), literal.selected.layer) != (-5, 20)
    assert literal.selected.layer == int(0.8 * n_layers)


def cell(position=-1, layer=3, bypass=-5.0, induce=2.0, kl=0.01, **more):
    return Candidate(Position(position), layer, bypass, induce, kl, **more)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (cell(layer=8), "too late (layer 8 >= 8)"),
        (cell(kl=0.2), "kl too large (0.2 > 0.1)"),
        (cell(induce=-0.1), "does not induce (-0.1 < 0)"),
        (cell(bypass=math.nan), "not finite"),
        (cell(induce=math.inf), "not finite"),
        (cell(kl=None), "not scored (kl)"),
        (
            cell(bypass=None, induce=None, kl=None, norm=0.0, discarded=Discard.NO_DIFFERENCE),
            "no difference (norm 0)",
        ),
    ],
)
def test_every_discarded_candidate_has_its_reason(row, reason):
    choice = choose([row], 10, ARDITI2024)
    assert choice.selected is None
    assert choice.survivors == 0
    (discarded,) = choice.candidates
    assert describe_discard(discarded, 10, ARDITI2024) == reason
    assert reason.startswith(str(discarded.discarded))
    assert choice.reason is NoCandidate.ALL_DISCARDED
    survivor = cell(position=-2, bypass=100.0)
    assert choose([row, survivor], 10, ARDITI2024).selected == survivor  # however bad: it passed


def test_a_swing_within_its_noise_is_not_selected():
    large, small = cell(layer=1, induce=9.0, swing_low=-0.1), cell(layer=2, swing_low=0.1)
    assert choose([large, small], 10, BLOG2026).selected == small
    nothing = choose([large], 10, BLOG2026)
    assert nothing.selected is None
    assert describe_discard(nothing.candidates[0], 10, BLOG2026) == "within noise (lower end -0.1 <= 0)"
    # A table without intervals, and a rule without the condition, are as before.
    assert choose([cell(layer=1, induce=9.0), small], 10, BLOG2026).selected.layer == 1
    assert choose([large, small], 10, replace(BLOG2026, above_noise=False)).selected == large


@pytest.mark.parametrize("row", [cell(kl=0.1), cell(induce=0.0), cell(layer=7)])
def test_the_bounds_themselves_pass(row):
    assert choose([row], 10, ARDITI2024).selected == row


def test_ties_go_to_the_earliest_position_then_the_lowest_layer():
    rows = [cell(-1, 2), cell(-3, 5), cell(-3, 4), cell(-2, 1)]
    choice = choose(rows, 10, ARDITI2024)
    assert (int(choice.selected.position), choice.selected.layer) == (-3, 4)
    assert len(choice.tied) == 3
    near = choose([cell(-1, 2, -5.0), cell(-2, 2, -4.96), cell(-3, 2, -4.0)], 10, ARDITI2024)
    assert [(int(t.position), t.layer) for t in near.tied] == [(-2, 2)]


def test_the_blogs_rule_takes_the_largest_swing():
    rows = [
        cell(-1, 2, bypass=-8.0, induce=1.0),
        cell(-1, 3, bypass=-6.0, induce=6.0),
        cell(-1, 9, bypass=-1.0, induce=9.0),
    ]
    assert choose(rows, 10, BLOG2026).selected.layer == 3
    assert choose(rows, 10, ARDITI2024).selected.layer == 2


scores = st.one_of(st.none(), st.floats(-20, 20), st.sampled_from([math.nan, math.inf]))


@given(
    st.dictionaries(
        st.tuples(st.integers(-4, -1), st.integers(0, 9)), st.tuples(scores, scores, scores), min_size=1, max_size=40
    )
)
def test_a_choice_satisfies_its_rule_and_nothing_better_does(table):
    rows = [Candidate(Position(p), layer, *s) for (p, layer), s in table.items()]
    choice = choose(rows, 10, ARDITI2024)
    passing = [
        r
        for r in rows
        if r.layer < 8
        and all(s is not None and math.isfinite(s) for s in (r.bypass, r.induce, r.kl))
        and r.kl <= 0.1
        and r.induce >= 0
    ]
    assert choice.survivors == len(passing)
    assert (choice.selected is None) == (not passing)
    if passing:
        assert choice.selected.bypass == min(r.bypass for r in passing)
        assert choice.selected.discarded is None
    assert all((r.discarded is None) == (replace(r, discarded=None) in passing) for r in choice.candidates)
    again = choose(choice.candidates, 10, ARDITI2024)
    assert again == choice  # a table that was read back gives the same choice


def test_bad_tables_list_every_fault(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(
        json.dumps(
            {
                "n_layers": 4,
                "candidates": [
                    {"position": 0, "layer": 1, "bypass": 1, "induce": 1, "kl": 1},
                    {"position": -1, "layer": 9, "bypass": "x", "induce": 1, "kl": 1},
                ],
            }
        )
    )
    with pytest.raises(ProtocolError, match=r"candidate 0: position is 0.*candidate 1: layer is 9.*bypass is 'x'"):
        read_scores(path)
    for text, words in [("{", "not JSON"), ("[]", "expected an object"), ('{"candidates": []}', "n_layers")]:
        path.write_text(text)
        with pytest.raises(ProtocolError, match=words):
            read_scores(path)
    with pytest.raises(ProtocolError, match="does not exist"):
        read_scores(tmp_path / "nowhere.json")


def test_impossible_rules_are_refused():
    with pytest.raises(ProtocolError, match=r"max_layer_share.*max_kl"):
        SelectionRule("bad", "lowest-bypass", max_layer_share=1.5, max_kl=-1.0)


def test_discards_are_counted_by_reason():
    table = choose([cell(layer=8), cell(kl=0.2), cell(position=-2, layer=9), cell()], 10, ARDITI2024).candidates
    assert count_discards(table) == {Discard.KL_TOO_LARGE: 1, Discard.TOO_LATE: 2}


def test_a_screen_keeps_the_best_of_two_orders():
    estimates = [Estimates(bypass, induce) for bypass, induce in ((0, 0), (-5, -9), (-1, 3), (-2, 0), (1, 9), (2, 2))]
    assert screened(estimates, 2) == [1, 4]  # the lowest bypass, and the largest swing
    assert screened(estimates, 3) == [1, 3, 4]
    assert screened(estimates, 99) == list(range(6))
    assert screened([None, Estimates(float("nan"), 1.0), estimates[0]], 2) == [2]


def test_without_induce_and_kl_a_candidate_that_removes_the_behaviour_survives():
    table = [Candidate(Position(0), 2, -1.0, -0.2, 0.6, content=1.0, moved=0.9)]
    assert choose(table, 10, STYLE).selected is None
    selected = choose(table, 10, STYLE.without_induce_and_kl()).selected
    assert selected is not None
    assert selected.layer == 2
    (lost,) = choose([replace(table[0], content=0.5)], 10, STYLE.without_induce_and_kl()).candidates
    assert lost.discarded is Discard.LOSES_CONTENT


# -- the second bound on KL -------------------------------------------------------------------------------------------


def with_kl(*values):
    """Candidates whose bypass falls as their KL rises, at layers 1, 2, ..."""
    return [Candidate(Position(-1), 1 + i, -1.0 - i, 1.0, kl, 1.0) for i, kl in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "layer", "survivors"),
    [
        ((0.05, 0.15), 1, 1),  # within the first bound, although another one has a lower bypass
        ((0.15, 0.19, 0.25), 2, 2),
        ((0.25, 0.5), None, 0),
    ],
)
def test_a_larger_bound_on_kl_counts_only_if_no_candidate_is_within_the_first(values, layer, survivors):
    result = choose(with_kl(*values), 10, RHUMBLINE)
    assert (result.selected and result.selected.layer, result.survivors) == (layer, survivors)
    if max(values) > RHUMBLINE.max_kl:
        assert Discard.KL_TOO_LARGE in {row.discarded for row in choose(with_kl(*values), 10, ARDITI2024).candidates}
    recorded = Selection(
        selected=None, reason=None, survivors=survivors, tied=(), n=ByLabel(4, 4), candidates=result.candidates
    )
    assert choose_again(recorded, 10, RHUMBLINE).selected == result.selected
    applied = rule_applied(recorded, 10, RHUMBLINE)
    assert (applied.max_kl, applied.max_kl_otherwise) == (0.1 if min(values) <= 0.1 else 0.2, None)


def test_the_paper_has_one_bound_on_kl():
    assert ARDITI2024.attempts() == (ARDITI2024,)
    assert replace(RHUMBLINE, max_kl=0.3).attempts() == (replace(ARDITI2024, name="rhumbline", max_kl=0.3),)
    assert RHUMBLINE.without_induce_and_kl().attempts()[0].max_kl is None
    with pytest.raises(ProtocolError, match="max_kl_otherwise"):
        replace(RHUMBLINE, max_kl_otherwise=0.0)


def test_the_bounds_of_the_default_preset_are_those_of_its_verdict():
    assert RHUMBLINE.max_kl_otherwise == verdict_rules.RHUMBLINE.max_kl
