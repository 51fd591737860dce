"""Normalisation takes linear time, and is that of Unicode for every text that people write."""

import time
import unicodedata
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.judge_names import judge
from rhumbline.prompts.contrast_files import contrast_from_prompts
from rhumbline.prompts.contrasts import Sizes, split_contrast
from rhumbline.records import unicode_text
from rhumbline.records.unicode_text import MOST_MARKS, SHORT, _is_mark, nfkc

MARKS = {"accents": "a" + "\u0300\u0323" * 100_000, "points": "\u05d0" + "\u05b0\u05bc" * 100_000}


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1), st.integers(1, 100))
def test_a_text_has_its_normal_form(parts, repeats):
    # 20 characters have at most 20 marks; a letter ends each part.
    text = "x".join(parts * repeats) + "x"
    assert nfkc(text) == unicodedata.normalize("NFKC", text)


def marks(text):
    """The longest sequence of marks that normalisation sorts."""
    decomposed = (d for character in text for d in unicodedata.normalize("NFKD", character))
    groups = groupby(decomposed, lambda d: unicodedata.combining(d) != 0)
    return max((sum(1 for _ in group) for is_mark, group in groups if is_mark), default=0)


@pytest.mark.parametrize(
    "unit", ["\uff9e", "\u0f73", "\u0301\uff9e", "\u0f71\u0f73\u0f75\u0f81", "\uff9f\u0f74"], ids=ascii
)
def test_marks_that_arise_in_normalisation_are_cut_too(unit, monkeypatch):
    """Work: sorting takes quadratic time in the longest sequence of marks, which must not grow with the text."""
    passed: list[str] = []

    def normalize(form, text):
        passed.append(text)
        return text

    text = "a" + unit * (100_000 // len(unit))
    assert marks(text) >= 99_999
    monkeypatch.setattr(unicode_text.unicodedata, "normalize", normalize)
    nfkc(text)
    monkeypatch.undo()
    assert len(passed) == 1
    assert marks(passed[0]) <= 2 * MOST_MARKS


def test_every_character_that_begins_with_a_mark_is_one():
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    found = [c for c in characters if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])]
    assert all(map(_is_mark, found))
    assert sum(map(_is_mark, characters)) == len(found)


def test_a_long_sequence_of_marks_is_cut():
    text = "b" * SHORT + "e" + "\u0323" * (MOST_MARKS + 5)
    assert nfkc(text) == unicodedata.normalize("NFKC", text[:-5])
    assert nfkc(text[:-5]) == unicodedata.normalize("NFKC", text[:-5])


@pytest.mark.parametrize("text", MARKS.values(), ids=MARKS)
def test_marks_without_end_take_no_time(text):
    begin = time.process_time()
    contrast = contrast_from_prompts([text, "open", "close", "turn"], ["read", "write", f"{text}x", "look"])
    split_contrast(contrast, Sizes(1, 1, 1), 0)
    degeneration(text)
    assert judge(text).cls in ("complied", "degenerate", "unscored")
    assert time.process_time() - begin < 10
