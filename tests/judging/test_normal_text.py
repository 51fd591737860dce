"""The normal form of a text: what a reader does not see makes no difference."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.judge_names import CLASS_JUDGES, LITERAL_JUDGES, class_judge
from rhumbline.judging.normal_text import folded, normal_form
from rhumbline.judging.text_style import MarkerJudge, words

SAME = {
    "zero-width spaces": "I\u200b can\u200bnot\u200d help\ufeff with that.",
    "soft hyphens": "I can\u00adnot help with th\u00adat.",
    "full-width letters": "Ｉ ｃａｎｎｏｔ ｈｅｌｐ ｗｉｔｈ ｔｈａｔ．",
    "mathematical letters": "𝐈 𝐜𝐚𝐧𝐧𝐨𝐭 𝘩𝘦𝘭𝘱 𝚠𝚒𝚝𝚑 𝓽𝓱𝓪𝓽.",
    "no-break spaces": "I\u00a0cannot\u202fhelp\u2007with\u3000that.",
    "underlined letters": "I c\u0332a\u0332n\u0332n\u0332o\u0332t\u0332 help with that.",
    "bidirectional marks": "\u202aI cannot\u200f help with that.\u202c",
    "tag characters": "I cannot\U000e0041\U000e0042 help with that.",
    "word joiners": "I can\u2060not help with that.",
    "control characters": "I can\x08not help\x00 with that.",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_a_text_that_reads_the_same_has_the_same_normal_form_and_class(text):
    assert folded(text) == "i cannot help with that."
    for name in set(CLASS_JUDGES) - set(LITERAL_JUDGES):
        assert class_judge(name)(text).cls == "refused", name
        assert class_judge(name)(text) == class_judge(name)("I cannot help with that."), name


def test_texts_that_read_differently_keep_their_difference():
    for one, other in (
        ("résumé", "resume"),
        ("can't", "cant"),
        ("3-2", "32"),
        ("対", "对"),
        ("и", "й"),
        ("não", "nao"),
    ):
        assert folded(one) != folded(other)
    assert normal_form("Line one\nLine Two") == "Line one\nLine Two"  # lines and case are kept


def test_quotes_have_one_form():
    for quote in "‘’‛ʼ′＇´`":
        assert folded(f"I can{quote}t") == "i can't"
    for quote in "“”„‟«»″":
        assert folded(f"{quote}Yes{quote}") == '"yes"'


def test_composed_and_decomposed_letters_are_equal():
    for text in ("désolé", "não", "für", "Ελλάδα", "й", "ガ", "한국"):
        assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text))


def test_no_format_character_is_left():
    left = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Cf" and normal_form(c)]
    assert not left
    assert normal_form("a") == "a"


characters = st.characters(exclude_categories=["Cs"])


@settings(deadline=None)
@given(st.text(characters, max_size=40))
def test_the_normal_form_is_a_projection(text):
    assert normal_form(normal_form(text)) == normal_form(text)
    assert folded(folded(text)) == folded(text)


invisible = st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a\ufe0f\U000e0001")
places = st.lists(st.tuples(st.integers(0, 40), invisible), max_size=8)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x2FF), max_size=40), places)
def test_invisible_characters_change_nothing(text, inserted):
    noisy = text
    for place, character in inserted:
        noisy = noisy[:place] + character + noisy[place:]
    assert normal_form(noisy) == normal_form(text)
    assert degeneration(noisy) == degeneration(text) or not text.strip()  # which is empty, and the other has no words
    assert words(noisy) == words(text)


def test_markers_are_counted_in_any_form():
    judge = MarkerJudge(("as ever",))
    assert judge("As ever, tea.").value == judge("Ａｓ e\u200bver, tea.").value > 0
    assert judge("As never, tea.").value == 0
