"""Unicode normalisation of any text in linear time: a text -> its NFKC form, and its visible characters.

Sorting a sequence of combining marks takes quadratic time, so a long sequence is cut as in the Stream-Safe Text Format
(Unicode Standard Annex 15). Independent of the use of a text.
"""

import re
import unicodedata
from itertools import groupby, islice

MOST_MARKS = 30
"""Consecutive combining marks that are kept; no writing system needs as many."""
_DECOMPOSED_INTO_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that are no combining marks, with a compatibility form that begins with one: Tibetan vowels and halfwidth
katakana sound marks."""
SHORT = 500
"""Characters of a text that is normalised as it is."""
# Format characters (category Cf), fillers and variation selectors: the default-ignorable code points of Unicode, and
# control characters other than white space.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def nfkc(text: str) -> str:
    """The text with compatibility forms replaced and marks composed."""
    if len(text) > SHORT and not text.isascii():
        text = _with_few_marks(text)
    return unicodedata.normalize("NFKC", text)


def visible(text: str) -> str:
    """The text without characters that a reader does not see."""
    return _INVISIBLE.sub("", text)


def _with_few_marks(text: str) -> str:
    parts = ((group if not is_mark else islice(group, MOST_MARKS)) for is_mark, group in groupby(text, _is_mark))
    return "".join(character for part in parts for character in part)


def _is_mark(character: str) -> bool:
    """Whether normalisation can move a character, or what it is decomposed into, among its neighbours."""
    return unicodedata.combining(character) != 0 or character in _DECOMPOSED_INTO_MARKS
