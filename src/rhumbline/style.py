"""The style of a text: a continuous score by marker phrases, the content beside it, and what could be mistaken for it.

Promises: markers are given or estimated from the texts that are handed in (training texts, never test); content is read
without the markers. Knows words. Does not know models, arms or which texts come from where.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rhumbline.errors import ProtocolError
from rhumbline.judging import Score, degeneration

LONGEST_MARKER = 8
"""Words of the longest phrase that can be a marker."""
SMALLEST_Z = 4.0
"""Least z of a marker's log-odds."""
SMALLEST_LOG_ODDS = 2.0
"""Least log-odds (nats) of a marker, positives against negatives."""
SMALLEST_SHARE = 0.05
"""Least share of positive texts with a marker."""
LEAST_TOPICS = 3
"""Topics that a marker must occur in, where that many are known: a word of one topic is content."""
MOST_MARKERS = 200
"""Markers that are kept, the surest first."""
ALWAYS = 0.9
"""A part nearly always stands in a phrase if this share of the texts with the part have the phrase."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+", re.MULTILINE)
Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of a text, case folded, without punctuation."""
    return tuple(word.casefold().replace("’", "'") for word in _WORD.findall(text))


class Marker(NamedTuple):
    """A phrase that the positives use more."""

    phrase: str
    log_odds: float
    """Smoothed by half a count; by presence in a text."""
    z: float
    positive: int
    """Positive texts with it."""
    negative: int


def estimate_markers(
    positive: Sequence[str], negative: Sequence[str], topics: Sequence[str | None] | None = None
) -> list[Marker]:
    """Phrases whose presence tells positive texts from negative ones, the surest first.

    With a of n positives and b of m negatives holding the phrase, log((a + 1/2) / (n - a + 1/2)) less the same of the
    negatives, and z by its standard error (Monroe, Colaresi and Quinn 2008, Political Analysis 16:372, with a flat
    prior). `topics` are those of the positives.

    A phrase is a marker only if one of its parts nearly always stands in it, so that content next to a marker stays
    content; and a shorter one only if it still is one outside the longer ones, so that a word that content needs too is
    no marker alone.
    """
    said = [words(text) for text in positive], [words(text) for text in negative]
    free = [[True] * len(text) for text in said[0]], [[True] * len(text) for text in said[1]]
    known = {t for t in topics or () if t}
    by_topic = topics if topics and len(known) >= LEAST_TOPICS else None
    found = _qualified(said, free, by_topic)
    whole = {gram for gram, marker in found.items() if _is_whole(gram, marker, found)}
    kept: list[Marker] = []
    for length in range(LONGEST_MARKER, 0, -1):
        # What the longer ones cover no longer counts.
        again = _qualified(said, free, by_topic, {gram for gram in whole if len(gram) == length})
        kept += again.values()
        for texts, places in zip(said, free, strict=True):
            for text, place in zip(texts, places, strict=True):
                _cover(text, place, again, length)
    return sorted(kept, key=lambda m: (-m.z, m.phrase))[:MOST_MARKERS]


_Texts = tuple[list[Words], list[Words]]
_Places = tuple[list[list[bool]], list[list[bool]]]


def _qualified(
    said: _Texts, free: _Places, topics: Sequence[str | None] | None, among: set[Words] | None = None
) -> dict[Words, Marker]:
    """The phrases at free places that the positives use that much more."""
    held = [
        [_grams(*pair) for pair in zip(texts, places, strict=True)] for texts, places in zip(said, free, strict=True)
    ]
    a, b = (Counter(gram for grams in side for gram in grams if among is None or gram in among) for side in held)
    found = {}
    for gram, count in a.items():
        if count < max(2, SMALLEST_SHARE * len(said[0])):
            continue
        odds, z = _log_odds(count, len(said[0]), b[gram], len(said[1]))
        if odds < SMALLEST_LOG_ODDS or z < SMALLEST_Z:
            continue
        if topics and len({t for grams, t in zip(held[0], topics, strict=True) if gram in grams}) < LEAST_TOPICS:
            continue
        found[gram] = Marker(" ".join(gram), odds, z, count, b[gram])
    return found


def _is_whole(gram: Words, marker: Marker, found: Mapping[Words, Marker]) -> bool:
    """Whether one of the markers inside nearly always stands in this phrase."""
    inside = [found[part].positive for part in _parts(gram) if part in found]
    return not inside or marker.positive >= ALWAYS * min(inside)


def _cover(text: Words, place: list[bool], grams: Mapping[Words, Marker], length: int) -> None:
    for i in range(len(text) - length + 1):
        if text[i : i + length] in grams and all(place[i : i + length]):
            place[i : i + length] = [False] * length


def _grams(text: Words, free: Sequence[bool]) -> set[Words]:
    """The phrases of a text at free places."""
    spans = ((i, i + n) for n in range(1, LONGEST_MARKER + 1) for i in range(len(text) - n + 1))
    return {text[i:j] for i, j in spans if all(free[i:j])}


def _parts(gram: Words) -> Iterable[Words]:
    return (gram[i : i + n] for n in range(1, len(gram)) for i in range(len(gram) - n + 1))


def _log_odds(a: int, n: int, b: int, m: int) -> tuple[float, float]:
    counts = (a + 0.5, n - a + 0.5, b + 0.5, m - b + 0.5)
    odds = math.log(counts[0] / counts[1]) - math.log(counts[2] / counts[3])
    return odds, odds / math.sqrt(sum(1 / c for c in counts))


@dataclass(frozen=True)
class MarkerJudge:
    """Share of a text's words that stand in marker phrases: `judge(text) -> Score`."""

    phrases: tuple[str, ...]

    def __post_init__(self):
        if any(not words(phrase) for phrase in self.phrases):
            raise ProtocolError(f"markers {list(self.phrases)}: each needs a word.")

    def __call__(self, text: str) -> Score:
        """Judge one text; a degenerate one has the value 0."""
        broken = degeneration(text)
        if broken is not None:
            return Score(0.0, "degenerate", broken)
        said = words(text)
        share = sum(self.marked(said)) / len(said) if said else 0.0
        return Score(share, "shown" if share > 0 else "absent")

    def marked(self, said: Words) -> list[bool]:
        """Which of the words stand in a marker."""
        inside = [False] * len(said)
        wanted = {words(phrase) for phrase in self.phrases}
        for n in {len(gram) for gram in wanted}:
            for i in range(len(said) - n + 1):
                if said[i : i + n] in wanted:
                    inside[i : i + n] = [True] * n
        return inside

    def content(self, text: str) -> Words:
        """The words that stand in no marker."""
        said = words(text)
        return tuple(word for word, marked in zip(said, self.marked(said), strict=True) if not marked)


# -- content ----------------------------------------------------------------------------------------------------------


def holds(answer: str, text: str) -> bool:
    """Whether all words of the answer stand in the text, in their order; other words may stand between them."""
    said = iter(words(text))
    return all(word in said for word in words(answer))


def overlap(one: Words, other: Words) -> float:
    """|A and B| / min(|A|, |B|) of the sets of words: a longer text is no better. 0 of nothing."""
    a, b = set(one), set(other)
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def overlap_by_chance(contents: Sequence[Words], draws: int = 500) -> float:
    """Mean overlap of two texts that answer different prompts: what function words alone give."""
    if len(contents) < 2:
        return 0.0
    rng = random.Random(0)
    pairs = (rng.sample(range(len(contents)), 2) for _ in range(draws))
    return math.fsum(overlap(contents[i], contents[j]) for i, j in pairs) / draws


def content_kept(judge: MarkerJudge, text: str, baseline: str, answer: str | None, chance: float) -> float:
    """How much of the content a text has: 1 or 0 where the `answer` is known, otherwise its overlap with the baseline.

    The overlap is scaled so that two texts about different things have 0 on average and equal ones 1.
    """
    if answer is not None:
        return float(holds(answer, text))
    return max(0.0, (overlap(judge.content(baseline), judge.content(text)) - chance) / (1 - chance))


# -- what could be mistaken for style ---------------------------------------------------------------------------------


class Form(NamedTuple):
    """Length and layout of a text."""

    words: int
    content_words: int
    """Words outside the markers."""
    bullets: int
    """Lines that begin a list item."""


def form(judge: MarkerJudge, text: str) -> Form:
    """Length and layout of a text."""
    return Form(len(words(text)), len(judge.content(text)), len(_BULLET.findall(text)))
