"""Two answers to a prompt are cut to similar lengths, or left out with the reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.judging.markers import CONFOUNDED, SIMILAR, is_confounded
from rhumbline.judging.matched_answers import LEAST_WORDS, AnswerPair, match_lengths
from rhumbline.judging.text_style import words
from rhumbline.records.made_contrast import MadeLosses

LONG = "Certainly! I would be happy to help. Put the bread in a dry tin. Close it well. Let me know if you need more."
SHORT = "Put it in a dry tin. Close it."

SENTENCE = st.lists(
    st.sampled_from(("tea", "don’t", "ﬁre", "naïve", "3.5", "1.", "e.g.", "*", "ÉCOLE", "x-y", "水")), max_size=9
)
TEXT = st.lists(st.tuples(SENTENCE, st.sampled_from((". ", "! ", "?\n", "\n\n", '." ', " "))), max_size=6).map(
    lambda parts: "".join(" ".join(some) + end for some, end in parts)
)  # fmt: skip


@pytest.mark.parametrize("match", ["sentences", "words"])
@given(TEXT, TEXT)
@settings(max_examples=150, deadline=None)
def test_the_answers_of_a_pair_have_similar_lengths_and_are_beginnings(match, one, other):
    pair = match_lengths(one, other, match)
    if isinstance(pair, MadeLosses):
        assert pair.total == 1
        return
    least, most = sorted(len(words(text)) for text in pair)
    assert LEAST_WORDS <= least <= most <= SIMILAR * least < CONFOUNDED * least
    assert one.strip().startswith(pair.positive)
    assert other.strip().startswith(pair.negative)
    assert not is_confounded([most], [least])


def test_sentences_are_kept_whole_and_as_many_as_possible():
    other = "Put it in a dry tin. Close it. Then eat it soon. Keep it out of the sun."
    assert match_lengths(LONG, other, "sentences") == AnswerPair(LONG[: LONG.index(" Let")], other)
    shorter = "Put it in a dry tin. Close it. Then eat it soon."
    assert match_lengths(LONG, shorter, "sentences") == AnswerPair(LONG[: LONG.index(" Close")], shorter)
    listed = match_lengths("1. Bread is good with butter.\n2. Eat it.", "It is good with butter. Do.", "sentences")
    assert listed == AnswerPair("1. Bread is good with butter.", "It is good with butter. Do.")


def test_words_cut_where_no_sentences_match():
    assert match_lengths(LONG, "In a dry tin.", "words") == AnswerPair("Certainly! I would be", "In a dry tin")
    assert match_lengths("One very long sentence that never ends", "A tin it is.", "sentences") == MadeLosses(length=1)


def test_what_is_left_out_has_a_reason():
    assert match_lengths(None, SHORT, "words") == match_lengths(SHORT, " ", "words") == MadeLosses(no_answer=1)
    assert match_lengths(SHORT, "the the the the the the the the", "words") == MadeLosses(degenerate=1)
    assert match_lengths(SHORT, f"{SHORT} \x1b[2J And more.", "words") == MadeLosses(degenerate=1)
    assert match_lengths(SHORT, SHORT.upper(), "words") == MadeLosses(same=1)
    assert match_lengths("No tin.", SHORT, "words") == MadeLosses(length=1)
    total = MadeLosses(no_answer=1) + MadeLosses(same=2)
    assert (total.total, str(total), str(MadeLosses())) == (3, "1 no answer, 2 same", "none")
