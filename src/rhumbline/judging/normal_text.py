"""The normal form of a text, in which judges look for words and phrases: a text -> a text.

Removes differences that a reader does not see: compatibility forms (full-width letters, ligatures, no-break spaces),
invisible characters, marks above or below Latin letters that have no composed form, and the shape of quotes.
"""

import re

from rhumbline.records.unicode_text import nfkc

_QUOTES = str.maketrans(dict.fromkeys("‘’‛ʼ′＇´`", "'") | dict.fromkeys("“”„‟«»″", '"'))
# Format characters (category Cf), fillers and variation selectors: the default-ignorable code points of Unicode, and
# control characters other than white space.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_CONTROLS = bytes(i for i in range(128) if _INVISIBLE.match(chr(i)))
# Underlined, struck-through or enclosed letters. Marks of other scripts have their own blocks and are kept.
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]")


def normal_form(text: str) -> str:
    """The text with one form for each character that is read in the same way; case and line breaks are kept."""
    if text.isascii():
        return text.encode().translate(None, _CONTROLS).decode().replace("`", "'")
    # Quotes first: NFKC decomposes an acute accent that stands for an apostrophe into a space and a mark.
    visible = _INVISIBLE.sub("", text).translate(_QUOTES)
    composed = _MARKS.sub("", nfkc(visible))
    # A character that NFKC produces can itself be a quote.
    return nfkc(composed.translate(_QUOTES))


def folded(text: str) -> str:
    """The normal form with folded case and one space for each gap: what phrases are compared in."""
    return " ".join(normal_form(normal_form(text).casefold()).split())
