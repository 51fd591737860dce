"""Candidates that rounding could select: those scored again give the selection of all scored again."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.evidence.rounding import SMALLEST, contenders, rounding_bound
from rhumbline.evidence.selection_rules import ARDITI2024, BLOG2026, STYLE, choose
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Candidate, Rounding

LAYERS = 20
BOUNDS = Rounding(bypass=0.05, induce=0.04, kl=0.01)
RULES = (ARDITI2024, BLOG2026, replace(ARDITI2024, criterion="largest-swing"), replace(ARDITI2024, min_induce=None))


def row(layer, bypass, induce=1.0, kl=0.01):
    return Candidate(Position(-1), layer, bypass, induce, kl)


scores = st.tuples(
    st.sampled_from([-1.0, -0.98, -0.95, -0.9, -0.5, 0.5]) | st.floats(-1, 1),
    st.sampled_from([-0.03, 0.0, 0.02, 0.5]) | st.floats(-1, 1),
    st.sampled_from([0.01, 0.093, 0.1, 0.105, 0.3]) | st.floats(0, 0.3),
)
changes = st.tuples(*(st.floats(-1, 1),) * 3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(scores, changes), min_size=1, max_size=12), st.sampled_from(RULES))
def test_contenders_scored_again_give_the_selection_of_all_scored_again(rows, rule):
    table = [row(i, *old) for i, (old, _) in enumerate(rows)]
    again = [
        replace(
            before,
            bypass=before.bypass + BOUNDS.bypass * change[0],
            induce=before.induce + BOUNDS.induce * change[1],
            kl=before.kl + BOUNDS.kl * change[2],
        )
        for before, (_, change) in zip(table, rows, strict=True)
    ]
    close = {candidate.layer for candidate in contenders(table, LAYERS, rule, BOUNDS)}
    some = [new if new.layer in close else old for old, new in zip(table, again, strict=True)]
    expected, selected = choose(again, LAYERS, rule).selected, choose(some, LAYERS, rule).selected
    assert (expected and expected.layer) == (selected and selected.layer)


def test_a_candidate_at_a_bound_is_a_contender_only_if_it_would_be_the_best():
    best, at_the_bound = row(3, -2.0), row(5, -1.0, kl=0.1)
    assert contenders([best, at_the_bound], LAYERS, ARDITI2024, BOUNDS) == []
    better = replace(at_the_bound, bypass=-3.0)
    assert contenders([best, better], LAYERS, ARDITI2024, BOUNDS) == [best, better]
    assert contenders([better], LAYERS, ARDITI2024, BOUNDS) == [better]


def test_without_rounding_only_equal_candidates_are_contenders():
    assert contenders([row(3, -2.0), row(4, -1.999)], LAYERS, ARDITI2024, Rounding()) == []
    assert len(contenders([row(3, -2.0), row(4, -2.0)], LAYERS, ARDITI2024, Rounding())) == 2


def test_a_rule_that_needs_completions_has_the_candidates_at_its_bounds_as_contenders():
    inside, at_the_bound = row(3, -2.0), row(5, 1.0, kl=0.1)
    assert contenders([inside, at_the_bound], LAYERS, STYLE, BOUNDS) == [at_the_bound]


@pytest.mark.parametrize("scale", [1e-4, 0.02])
@pytest.mark.parametrize("prompts", [8, 32])
def test_the_bound_covers_the_change_of_other_candidates(scale, prompts):
    rng = np.random.default_rng(0)
    changes = scale * rng.standard_normal((500, 2, prompts))
    bounds = np.array([rounding_bound(some, 32) for some in changes])
    others = np.abs(scale * rng.standard_normal((500, 32)).mean(1))
    assert (others <= bounds).all()
    assert np.median(bounds) < scale * 1.5


def test_the_bound_ignores_scores_that_are_not_finite():
    assert rounding_bound(np.full((2, 4), np.nan), 4) == rounding_bound(np.zeros((2, 4)), 4) == SMALLEST
    assert rounding_bound(np.array([[0.1, 0.1], [np.nan, 5.0]]), 2) == pytest.approx(0.1 + 4 * 0.1 / 2**0.5)
