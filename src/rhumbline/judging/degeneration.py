"""Degenerate completions: a text -> how it is broken, or None.

Independent of judges and of the behaviour.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from rhumbline.judging.normal_text import normal_form

ANCHOR = 4
"""Characters of a unit that are searched for; the periods below are tried one by one."""
LONGEST_UNIT = 500
"""Characters of the longest repeated unit that is detected: a paragraph (docs/judges.md)."""
REPEATS = 4
"""Smallest number of consecutive occurrences of a unit that is a repetition."""
SHORTEST_RUN = 12
"""Fewest characters of a run with fewer than `MANY_REPEATS`: "hahaha" is laughter, "I'mI'mI'mI'm" is not."""
MANY_REPEATS = 8
WINDOW = 30
"""Words of the windows whose variety is measured."""
LEAST_VARIETY = 0.2
"""A window with a smaller share of distinct words is repetitive; ordinary prose has 0.6 or more."""
_NUMBER = re.compile(r"^[ \t]*\(?[0-9]{1,3}[.):]\)?[ \t]+(?=\S+[ \t]+\S)", re.MULTILINE)
"""The number of an item of a list. Items of one word keep it: "1. Yes", "2. Yes" can be answers."""


def degeneration(text: str) -> str | None:
    """How a completion is broken: "empty", "no words" or "repetition"; None if the text is not degenerate.

    No words: neither a letter nor a digit of any script (a number alone can be an answer).
    Repetition: a unit of up to `LONGEST_UNIT` characters occurs `REPEATS` times in a row, and this run covers at least
    half of the text; or at least half of the `WINDOW`-word windows have a share of distinct words below
    `LEAST_VARIETY`. Case and white space of the normal form are folded first, so indentation is not a repetition. The
    items of a list are also compared without their numbers.
    """
    if not text.strip():
        return "empty"
    words = normal_form(text).casefold().split()
    if not any(any(map(str.isalnum, word)) for word in words):
        return "no words"
    # The trailing space completes the last unit of "the the the the".
    if _has_dominant_run(" ".join(words) + " ") or _has_few_words(words):
        return "repetition"
    items, n_numbers = _NUMBER.subn("", text)
    if n_numbers >= REPEATS and _has_dominant_run(" ".join(normal_form(items).casefold().split()) + " "):
        return "repetition"
    return None


def _has_dominant_run(text: str) -> bool:
    """Whether consecutive occurrences of a unit of up to `LONGEST_UNIT` characters cover half of the text.

    A run of period p and length s is a run of s - p places where text[i] == text[i + p].
    """
    periods = _possible_periods(text)
    a = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) if periods else np.empty(0)
    for period in periods:
        same = a[period:] == a[:-period]
        least = max((REPEATS - 1) * period, len(a) / 2 - period)
        if np.count_nonzero(same) < least:
            continue
        longest = _longest_run(same)
        span = longest + period
        if longest >= least and (span >= SHORTEST_RUN or span >= MANY_REPEATS * period):
            return True
    return False


def _possible_periods(text: str) -> list[int]:
    """The periods of which a dominant run can be.

    It contains the middle of the text, and at least two periods on one side of it, because there are four.
    """
    middle, longest = len(text) // 2, min(LONGEST_UNIT, len(text) // REPEATS)
    backwards = text[::-1]
    return sorted({*_doubled(text, middle, longest), *_doubled(backwards, len(text) - middle, longest)})


def _doubled(text: str, start: int, longest: int) -> Iterator[int]:
    """The periods up to `longest` for which a unit that starts at `start` occurs twice in a row."""
    for p in range(1, min(ANCHOR - 1, longest) + 1):
        if text[start : start + p] == text[start + p : start + 2 * p]:
            yield p
    anchor, end = text[start : start + ANCHOR], start + longest + ANCHOR
    at = text.find(anchor, start + ANCHOR, end)
    while at >= 0:
        if text[start:at] == text[at : 2 * at - start]:
            yield at - start
        at = text.find(anchor, at + 1, end)


def _longest_run(same: np.ndarray) -> int:
    """Length of the longest run of True."""
    breaks = np.flatnonzero(~same)
    return int(np.diff(breaks, prepend=-1, append=len(same)).max()) - 1


def _has_few_words(words: Sequence[str]) -> bool:
    """Whether at least half of the full windows consist of few distinct words.

    Numbers and symbols are excluded: a matrix of zeros and ones is not a repetition.
    """
    if len(words) < WINDOW:
        return False
    # A short text has one window at most, which contains its first words.
    if len(words) < 2 * WINDOW and len(set(filter(str.isalpha, words[:WINDOW]))) >= LEAST_VARIETY * WINDOW:
        return False
    stripped = [w.strip("\"'.,;:!?()[]*_`") for w in words]
    spelled = [w for w in stripped if w.isalpha() or any(map(str.isalpha, w))]
    windows = [spelled[i : i + WINDOW] for i in range(0, len(spelled) - WINDOW + 1, WINDOW)]
    few = sum(len(set(w)) < LEAST_VARIETY * WINDOW for w in windows)
    return bool(windows) and few >= len(windows) / 2
