"""Levels of a continuous score: effects in units of the gap between the classes, and the verdict from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.evidence import continuous_scores
from rhumbline.evidence.continuous_scores import Levels, confounds, neutral_level
from rhumbline.evidence.verdict import decide
from rhumbline.evidence.verdict_rules import STYLE


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The rule decides by wide margins here: a few hundred bootstrap draws give the same verdicts."""
    monkeypatch.setattr(continuous_scores, "DRAWS", 200)


def rows_of(positive, negative, ablation, addition, null=0.0, n=60, seed=0):
    """Outcome rows with normal scores around the given means; the null arms move by a share of the gap."""
    rng = np.random.default_rng(seed)
    noise = {side: rng.normal(0, 0.03, n) for side in ("positive", "negative")}
    gap = positive - negative
    means = {
        ("baseline", "positive"): positive,
        ("baseline", "negative"): negative,
        ("ablation", "positive"): ablation,
        ("ablation", "negative"): negative,
        ("addition", "negative"): addition,
        **{(f"null:{f}:{k}:ablation", "positive"): positive - null * gap for f in STYLE.families for k in range(3)},
        **{(f"null:{f}:{k}:addition", "negative"): negative + null * gap for f in STYLE.families for k in range(3)},
    }
    return [
        {"arm": arm, "set": side, "prompt_id": str(i), "class": "shown", "score": mean + noise[side][i], "metric": None}
        for (arm, side), mean in means.items()
        for i in range(n)
    ]


def ruled(rows, **changes):
    levels = Levels.of(rows)
    effects = levels.effects()
    for effect in effects:
        effect["wide"] = {f: {"p": 0.01, "p_apart": 0.01, "draws": 99} for f in STYLE.families}
    return decide(STYLE, levels.arms(), effects, "style", unit=levels.unit()._asdict(), **changes)


CASES = {
    "moves both ways": ((0.4, 0.0, 0.0, 0.36), "SINGLE-DIRECTION-REPRODUCES"),
    "suppresses only": ((0.4, 0.0, 0.0, 0.04), "NOT-SINGLE-DIRECTION"),
    "induces only": ((0.4, 0.0, 0.38, 0.36), "NOT-SINGLE-DIRECTION"),
    "classes alike": ((0.2, 0.2, 0.2, 0.2), "NO-BASELINE"),
}


@pytest.mark.parametrize(("means", "expected"), CASES.values(), ids=CASES)
def test_the_rule_reads_levels(means, expected):
    assert ruled(rows_of(*means)).verdict == expected


def test_nulls_that_move_it_too_are_no_evidence_for_a_direction():
    assert ruled(rows_of(0.4, 0.0, 0.0, 0.36, null=0.9)).verdict == "NOT-SINGLE-DIRECTION"


def test_scores_without_any_gap_are_no_baseline_and_no_crash():
    rows = [{**row, "score": 0.25} for row in rows_of(0.3, 0.3, 0.3, 0.3, n=10)]
    assert ruled(rows).verdict == "NO-BASELINE"
    assert neutral_level(Levels.of(rows).unit(), rows[:3])["level"] == 0.0


def test_lost_content_is_damage():
    rows = rows_of(0.4, 0.0, 0.0, 0.36)
    for row in rows:
        row["correct"] = 0.2 if row["arm"] == "addition" else 1.0
    assert ruled(rows).verdict == "DAMAGED"


@given(st.floats(0.01, 50), st.floats(-5, 5))
@settings(max_examples=4, deadline=None)
def test_levels_do_not_depend_on_the_scale_of_the_score(factor, shift):
    rows = rows_of(0.4, 0.1, 0.15, 0.3)
    scaled = [{**row, "score": row["score"] * factor + shift} for row in rows]
    for one, other in zip(Levels.of(rows).effects(), Levels.of(scaled).effects(), strict=True):
        assert one["drop"] == pytest.approx(other["drop"], rel=1e-6)
        assert one["low"] == pytest.approx(other["low"], rel=1e-6)


def test_texts_make_the_unit_where_the_contrast_has_them():
    levels = Levels.of(rows_of(0.4, 0.4, 0.2, 0.4), {"positive": [0.5] * 20, "negative": [0.1] * 20})
    (suppression, _) = levels.effects()
    assert suppression["drop"] == pytest.approx(0.5)
    assert levels.unit().source == "texts"
    assert neutral_level(levels.unit(), []) is None


def test_length_that_comes_with_the_arm_is_held_fixed():
    rng = np.random.default_rng(0)
    rows = []
    for arm, shorter, own in (("baseline", 0, 0.0), ("ablation", 20, 0.0)):
        for i in range(80):
            length = int(rng.integers(20, 60)) - shorter
            shape = {"words": length, "content_words": length, "bullets": 0}
            # The score is the length: nothing is left of the effect once it is held fixed.
            row = {"arm": arm, "set": "positive", "prompt_id": str(i), "class": "shown", "score": length / 100 - own}
            rows.append({**row, "form": shape, "category": None})
    found = confounds(rows)
    (adjusted,) = found["adjusted"]
    assert adjusted["drop"] > 0.15
    assert abs(adjusted["adjusted"]) < 0.01
    assert next(c["r"] for c in found["correlations"] if c["with"] == "content_words") > 0.99
