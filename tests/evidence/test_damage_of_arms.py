import numpy as np
import pytest
from msgspec import structs

from make_evidence import outcomes_with
from rhumbline.evidence.damage import damage_changes
from rhumbline.evidence.statistics import paired_difference


def changes(rows):
    return {(row.quantity, str(row.arm), row.side): row for row in damage_changes(rows)}


def test_changes_are_paired_with_the_baseline():
    rows = outcomes_with(base=(90, 5), ablated=(0, 25), plain=3, added=(80, 10), ablated_negatives=(13, 2))
    found = changes(rows)
    degenerate = found["degenerate", "ablation", "positive"]
    assert (degenerate.change, degenerate.n) == (pytest.approx(0.2), 100)
    assert degenerate.low < 0.2 < degenerate.high
    assert found["degenerate", "addition", "negative"].change == pytest.approx(0.1)
    assert found["behaviour", "ablation", "negative"].change == pytest.approx(0.1)
    # A change of the behaviour elsewhere is the effect.
    assert ("behaviour", "ablation", "positive") not in found
    assert not any(quantity == "correct" for quantity, *_ in found)


def test_lost_answers_are_a_fall():
    rows = [
        structs.replace(row, correct=str(row.arm) == "baseline" or int(row.prompt_id.split("-")[1]) < 60)
        if row.side == "negative"
        else row
        for row in outcomes_with()
    ]
    lost = changes(rows)["correct", "ablation", "negative"]
    assert lost.change == pytest.approx(0.4)
    assert lost.low == paired_difference(np.ones(100, bool), np.arange(100) < 60).low
    shares = [structs.replace(row, correct=0.5 if row.correct else 0.0) for row in rows]
    assert changes(shares)["correct", "ablation", "negative"].change == pytest.approx(0.2)


def test_a_few_shares_have_no_interval():
    def lost(n):
        rows = [structs.replace(row, correct=0.9 if str(row.arm) == "baseline" else 0.4) for row in outcomes_with(n=n)]
        return changes(rows)["correct", "ablation", "negative"]

    assert (lost(7).change, lost(7).low, lost(7).high) == (pytest.approx(0.5), None, None)
    assert lost(8).low == pytest.approx(0.5)


def test_unscored_and_missing_arms_are_not_damage():
    rows = [structs.replace(row, cls="unscored") if str(row.arm) == "ablation" else row for row in outcomes_with()]
    assert set(changes(rows)) == {("degenerate", "addition", "negative")}
    assert damage_changes([]) == ()
