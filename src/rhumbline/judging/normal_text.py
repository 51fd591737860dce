"""The normal form of a text, in which judges look for words and phrases: a text -> a text.

Removes differences that a reader does not see: compatibility forms (full-width letters, ligatures, no-break spaces),
invisible characters, marks above or below Latin letters that have no composed form, and the shape of quotes.
"""

import re

from rhumbline.records.unicode_text import nfkc, visible

_QUOTES = str.maketrans(dict.fromkeys("‘’‛ʼ′＇´`", "'") | dict.fromkeys("“”„‟«»″", '"'))
_CONTROLS = bytes(i for i in range(128) if not visible(chr(i)))
# Underlined, struck-through or enclosed letters. Marks of other scripts have their own blocks and are kept.
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]")


def normal_form(text: str) -> str:
    """The text with one form for each character that is read in the same way; case and line breaks are kept."""
    if text.isascii():
        return text.encode().translate(None, _CONTROLS).decode().replace("`", "'")
    # Quotes first: NFKC decomposes an acute accent that stands for an apostrophe into a space and a mark.
    seen = visible(text).translate(_QUOTES)
    composed = _MARKS.sub("", nfkc(seen))
    # A character that NFKC produces can itself be a quote.
    return nfkc(composed.translate(_QUOTES))


def folded(text: str) -> str:
    """The normal form with folded case and one space for each gap: what phrases are compared in."""
    return " ".join(normal_form(normal_form(text).casefold()).split())
