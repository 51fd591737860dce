"""Texts without characters that control a terminal."""

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal or reverse the direction of text, and surrogates, which cannot be written."""


def printable(text: str) -> str:
    """The text with control characters as escape sequences; line breaks and tabs remain."""
    return CONTROL.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text
    )
