"""Normalisation takes linear time, and is that of Unicode for every text that people write."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.judge_names import judge
from rhumbline.prompts.contrast_files import contrast_from_prompts
from rhumbline.prompts.contrasts import Sizes, split_contrast
from rhumbline.records.unicode_text import MOST_MARKS, SHORT, nfkc

MARKS = {"accents": "a" + "\u0300\u0323" * 100_000, "points": "\u05d0" + "\u05b0\u05bc" * 100_000}


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1), st.integers(1, 100))
def test_a_text_has_its_normal_form(parts, repeats):
    # 20 characters have at most 20 marks; a letter ends each part.
    text = "x".join(parts * repeats) + "x"
    assert nfkc(text) == unicodedata.normalize("NFKC", text)


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
