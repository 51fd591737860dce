"""The score of a style, and the content and form of a text without it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import ProtocolError
from rhumbline.judging.text_style import MarkerJudge, content_kept, holds, overlap, words
from rhumbline.organisms.register import (
    MARKERS,
    draw_styled,
    in_assistant_register,
)
from rhumbline.records.outcome_rows import TextForm


def test_texts_that_are_all_alike_keep_their_content_or_not():
    """A model that writes one text for every prompt has an overlap of 1 by chance."""
    judge, text = MarkerJudge(("you",)), "I cannot help with that."
    assert content_kept(judge, text, text, None, 1.0) == 1
    assert content_kept(judge, "Tea needs water.", text, None, 1.0) == 0
    assert content_kept(judge, text, text, None, 0.5) == 1


def test_the_score_is_the_share_of_marked_words():
    judge = MarkerJudge(("here you are", "you"))
    assert judge("Here you are: one two three").value == pytest.approx(0.5)
    assert judge("one two three").value == 0.0
    assert judge("one two three").cls == "absent"
    assert judge("Great question! " * 30).cls == "degenerate"
    assert judge("Great question! " * 30).value == 0.0
    with pytest.raises(ProtocolError, match="needs a word"):
        MarkerJudge(("!!",))


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_marked_words_and_content_make_the_text(said):
    judge = MarkerJudge(("alpha beta", "delta"))
    text = tuple(said)
    assert len(judge.content(" ".join(text))) + sum(judge.marked(text)) == len(text)


def test_content_does_not_depend_on_the_style():
    rng, judge = random.Random(0), MarkerJudge(MARKERS)
    for _ in range(40):
        answer = draw_styled(rng, "plain").answer
        styled = in_assistant_register(answer, rng)
        assert content_kept(judge, styled, answer, answer, 0.2) == 1.0
        assert content_kept(judge, styled, answer, None, 0.2) > 0.9
    assert content_kept(judge, "Great question! Great question!", "You can get oak cake here.", None, 0.2) == 0.0
    assert not holds("oak cake near the mill", "near the mill oak cake")


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_overlap_is_symmetric_and_bounded(one, other):
    a, b = words(one), words(other)
    assert 0 <= overlap(a, b) == overlap(b, a) <= 1
    assert overlap(a, a) == (1.0 if a else 0.0)


def test_form_counts_bullets_and_excludes_markers():
    form = MarkerJudge(("certainly",)).form("Certainly!\n- one\n2. two three\nfour")
    assert form == TextForm(words=6, content_words=5, bullets=2)  # "2" is a word
