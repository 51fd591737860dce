"""Unicode normalisation of any text in linear time: a text -> its NFKC form.

Sorting a sequence of combining marks takes quadratic time, so a long sequence is cut as in the Stream-Safe Text Format
(Unicode Standard Annex 15). Independent of the use of a text.
"""

import unicodedata
from itertools import groupby, islice

MOST_MARKS = 30
"""Consecutive combining marks that are kept; no writing system needs as many."""
_DECOMPOSED_INTO_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that are no combining marks, with a compatibility form that begins with one: Tibetan vowels and halfwidth
katakana sound marks."""
SHORT = 500
"""Characters of a text that is normalised as it is."""


def nfkc(text: str) -> str:
    """The text with compatibility forms replaced and marks composed."""
    if len(text) > SHORT and not text.isascii():
        text = _with_few_marks(text)
    return unicodedata.normalize("NFKC", text)


def _with_few_marks(text: str) -> str:
    parts = ((group if not is_mark else islice(group, MOST_MARKS)) for is_mark, group in groupby(text, _is_mark))
    return "".join(character for part in parts for character in part)


def _is_mark(character: str) -> bool:
    """Whether normalisation can move a character, or what it is decomposed into, among its neighbours."""
    return unicodedata.combining(character) != 0 or character in _DECOMPOSED_INTO_MARKS
