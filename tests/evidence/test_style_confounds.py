import numpy as np
from msgspec import structs

from make_outcomes import outcome
from rhumbline.evidence.style_confounds import confounds
from rhumbline.records.outcome_rows import TextForm


def outcomes(seed=0, n=80):
    """Completions whose score is their length; those under ablation are 20 words shorter."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, shorter in (("baseline", 0), ("ablation", 20)):
        for i, length in enumerate(rng.integers(20, 60, size=n) - shorter):
            form = TextForm(words=int(length), content_words=int(length), bullets=0)
            rows.append(outcome(arm, "positive", str(i), "shown", score=length / 100, form=form))
    return rows


def test_an_effect_of_length_alone_vanishes_with_length_held_fixed():
    tables = confounds(outcomes())
    (adjusted,) = tables.adjusted
    assert adjusted.drop > 0.15
    assert abs(adjusted.adjusted) < 0.01
    assert next(c.r for c in tables.correlations if c.other == "content_words") > 0.99


def test_prompts_match_if_their_completions_have_similar_form():
    rows = outcomes(n=10)
    (adjusted,) = confounds(rows).adjusted
    assert adjusted.matched_n < adjusted.n
    same = [structs.replace(row, form=TextForm(10, 10, 0)) for row in rows]
    assert confounds(same).adjusted[0].matched_n == 10
    bulleted = [structs.replace(row, form=TextForm(10, 10, int(str(row.arm) == "ablation"))) for row in rows]
    assert (confounds(bulleted).adjusted[0].matched, confounds(bulleted).adjusted[0].matched_n) == (None, 0)


def test_topics_have_the_correlation_ratio():
    rows = [
        outcome("baseline", "positive", str(i), "shown", score=float(i % 2), form=TextForm(9, 9, 0)) for i in range(8)
    ]
    by_topic = [structs.replace(row, category="ab"[i % 2]) for i, row in enumerate(rows)]
    assert next(c.r for c in confounds(by_topic).correlations if c.other == "topic") == 1.0
    mixed = [structs.replace(row, category="ab"[i // 4]) for i, row in enumerate(rows)]
    assert next(c.r for c in confounds(mixed).correlations if c.other == "topic") == 0.0


def test_an_unscored_completion_is_excluded():
    rows = outcomes(n=10)
    rows[0] = structs.replace(rows[0], cls="unscored", score=None)
    tables = confounds(rows)
    assert {c.n for c in tables.correlations} == {9}
    assert [effect.n for effect in tables.adjusted] == [9]
