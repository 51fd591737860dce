"""Length-matched pairs: two answers to the same prompt -> both cut to similar lengths, or None.

Lengths are in words, as `text_style.words` counts them: those that the style of a run is measured on. Independent of
models and of which answer is which.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

from rhumbline.errors import InputError
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.markers import SIMILAR
from rhumbline.judging.text_style import words
from rhumbline.records.made_contrast import MadeLosses
from rhumbline.records.user_files import control_character

Match = Literal["sentences", "words"]
"""`sentences`: either answer is cut at the end of a sentence or line. `words`: both are cut to the same words."""
LEAST_WORDS = 3
"""Words of the shorter answer of a pair, at least."""
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|\n")
_NUMBER = re.compile(r"(?:^|\s)(?:\d{1,3}|[A-Za-z])\.$")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class AnswerPair(NamedTuple):
    """The answers under two system prompts, after cutting."""

    positive: str
    negative: str


def check_match(match: str) -> None:
    """Raise InputError unless the name is one of `Match`."""
    if match not in get_args(Match):
        raise InputError(f"match is {match!r}; use {' or '.join(get_args(Match))}.")


def match_lengths(positive: str | None, negative: str | None, match: Match) -> AnswerPair | MadeLosses:
    """Both answers, cut so that the longer has at most `SIMILAR` times the words of the shorter; or why not.

    With `sentences`, the two beginnings of the answers that satisfy this with the most words are kept.
    """
    if positive is None or negative is None or not words(positive) or not words(negative):
        return MadeLosses(no_answer=1)
    # A contrast has no control characters.
    if any(degeneration(text) is not None or control_character(text) for text in (positive, negative)):
        return MadeLosses(degenerate=1)
    cut = _at_sentences if match == "sentences" else _at_words
    fitting = [pair for pair in cut(positive.strip(), negative.strip()) if _is_similar(pair)]
    if not fitting:
        return MadeLosses(length=1)
    best = max(fitting, key=lambda pair: sum(len(words(text)) for text in pair))
    if words(best.positive) == words(best.negative):
        return MadeLosses(same=1)
    return best


def _is_similar(pair: AnswerPair) -> bool:
    least, most = sorted(len(words(text)) for text in pair)
    return least >= LEAST_WORDS and most <= SIMILAR * least


def _at_sentences(positive: str, negative: str) -> Iterator[AnswerPair]:
    return (AnswerPair(one, other) for one, other in product(_beginnings(positive), _beginnings(negative)))


def _beginnings(text: str) -> list[str]:
    """The beginnings of a text that end with a sentence or a line, and the whole text if none does.

    The number of a list item ends no sentence.
    """
    ends = [match.end() for match in _END.finditer(text)]
    found = [text[:end].rstrip() for end in ends]
    return [part for part in dict.fromkeys(found) if part and not _NUMBER.search(part)] or [text]


def _at_words(positive: str, negative: str) -> Iterator[AnswerPair]:
    ends = [[match.end() for match in _WORD.finditer(text)] for text in (positive, negative)]
    n = min(map(len, ends))
    if n:
        yield AnswerPair(positive[: ends[0][n - 1]], negative[: ends[1][n - 1]])
