"""Marker phrases: two sets of training texts in, the phrases that tell the first from the second out.

Promises: where the labels mean nothing, a phrase is found with a chance of at most `LEVEL`, whatever the texts; content
that stands beside a marker by chance is none. Knows words. Does not know judges, models or which texts come from where.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from scipy import stats

from rhumbline.judging.text_style import Words, words

LONGEST_MARKER = 8
"""Words of the longest phrase that can be a marker."""
LEVEL = 0.01
"""Largest chance of finding any marker where the labels mean nothing."""
SMALLEST_LOG_ODDS = 2.0
"""Least log-odds (nats) of a marker, positives against negatives."""
SMALLEST_SHARE = 0.05
"""Least share of positive texts with a marker."""
LEAST_TOPICS = 3
"""Topics that a marker must occur in, where that many are known: a word of one topic is content."""
MOST_MARKERS = 200
"""Markers that are kept, the surest first."""
ALWAYS = 0.9
"""A part nearly always stands in a phrase if the phrase has this share of the part's excess in the positives."""


class Marker(NamedTuple):
    """A phrase that the positives use more."""

    phrase: str
    log_odds: float
    """Smoothed by half a count; by presence in a text."""
    p: float
    """Fisher's, one-sided, before the correction for the phrases tried."""
    positive: int
    """Positive texts with it, outside longer markers."""
    negative: int


def estimate_markers(
    positive: Sequence[str], negative: Sequence[str], topics: Sequence[str | None] | None = None
) -> list[Marker]:
    """Phrases whose presence tells positive texts from negative ones, the surest first.

    By Fisher's exact test (one-sided) on the texts with the phrase, at LEVEL over the number of phrases tried
    (Bonferroni): those that enough texts hold, of both classes together, so that the number does not depend on the
    labels and the level is exact. The log-odds log((a + 1/2) / (n - a + 1/2)) less the same of the negatives (Monroe,
    Colaresi and Quinn 2008, Political Analysis 16:372, with a flat prior) say how much, not how surely: their z shrinks
    as the effect grows (Hauck and Donner 1977, JASA 72:851). `topics` are those of the positives.

    A phrase is a marker only if it is whole (`_Counts.is_whole`), and a shorter one only if it still is one outside the
    longer ones, so that a word that content needs too is no marker alone.
    """
    said = _Texts(positive), _Texts(negative)
    known = {t for t in topics or () if t}
    by_topic = topics if topics and len(known) >= LEAST_TOPICS else None
    counts = _Counts.of(*said, by_topic)
    held = counts.positive + counts.negative
    tried = sum(n >= counts.least for n in held.values())
    found = {gram for gram in counts.positive if counts.qualifies(gram, tried)}
    whole: set[Words] = set()
    for gram in sorted(found, key=len):
        if counts.is_whole(gram, whole):
            whole.add(gram)
    kept: list[Marker] = []
    for length in range(LONGEST_MARKER, 0, -1):
        some = {gram for gram in whole if len(gram) == length}
        if not some:
            continue
        # What the longer ones cover no longer counts.
        left = _Counts.of(*said, by_topic, some)
        again = {gram for gram in some if left.qualifies(gram, tried)}
        kept += [left.marker(gram) for gram in again]
        for texts in said:
            texts.cover(again, length)
    return sorted(kept, key=lambda m: (m.p, m.phrase))[:MOST_MARKERS]


class _Texts:
    """The words of some texts, and which of them stand in no marker so far."""

    def __init__(self, texts: Sequence[str]):
        self.words = [words(text) for text in texts]
        self.free = [[True] * len(text) for text in self.words]

    def grams(self, among: set[Words] | None) -> Iterator[set[Words]]:
        """The phrases of every text at free places."""
        lengths = range(1, LONGEST_MARKER + 1) if among is None else sorted({len(gram) for gram in among})
        for text, free in zip(self.words, self.free, strict=True):
            spans = ((i, i + n) for n in lengths for i in range(len(text) - n + 1))
            held = {text[i:j] for i, j in spans if all(free[i:j])}
            yield held if among is None else held & among

    def cover(self, grams: set[Words], length: int) -> None:
        """Take the places of phrases of this length."""
        for text, free in zip(self.words, self.free, strict=True):
            for i in range(len(text) - length + 1):
                if text[i : i + length] in grams and all(free[i : i + length]):
                    free[i : i + length] = [False] * length


@dataclass(frozen=True)
class _Counts:
    """In how many of n positive and m negative texts every phrase stands."""

    n: int
    m: int
    positive: Counter[Words]
    negative: Counter[Words]
    topics: dict[Words, set[str | None]] | None
    """Those of the positive texts with a phrase, where they are asked for."""
    least: float
    """Texts that a phrase must stand in."""

    @classmethod
    def of(
        cls,
        positive: _Texts,
        negative: _Texts,
        topics: Sequence[str | None] | None,
        among: set[Words] | None = None,
    ) -> "_Counts":
        held = list(positive.grams(among))
        found = Counter(gram for grams in held for gram in grams)
        others = Counter(gram for grams in negative.grams(among) for gram in grams)
        n, m = len(positive.words), len(negative.words)
        by_topic: dict[Words, set[str | None]] | None = None
        if topics:
            by_topic = {}
            for grams, topic in zip(held, topics, strict=True):
                for gram in grams:
                    by_topic.setdefault(gram, set()).add(topic)
        return cls(n, m, found, others, by_topic, max(2.0, SMALLEST_SHARE * n))

    def qualifies(self, gram: Words, tried: int) -> bool:
        """Whether the positives use a phrase that much more, and that surely."""
        a, b = self.positive[gram], self.negative[gram]
        if a < self.least or _log_odds(a, self.n, b, self.m) < SMALLEST_LOG_ODDS:
            return False
        if self.topics is not None and len(self.topics[gram]) < LEAST_TOPICS:
            return False
        return fisher(a, self.n, b, self.m) * tried <= LEVEL

    def is_whole(self, gram: Words, whole: set[Words]) -> bool:
        """Whether a phrase is more than a marker with content beside it; `whole` are the shorter ones that are.

        Excess is the share of positive texts with a phrase less that of the negatives. A phrase is whole if each of its
        beginnings and ends nearly always stands in it, as far as it is in excess: "mill i hope" is none where "i hope"
        follows other words too. And one of the whole phrases inside, if there are any, must nearly always stand in it:
        "can often get" is none where "often" stands elsewhere too. Content that nearly always stands beside a marker
        cannot be told from it.
        """
        own = self._excess(gram)
        edges = [part for k in range(1, len(gram)) for part in (gram[:k], gram[k:])]
        if any(own < ALWAYS * self._excess(part) for part in edges):
            return False
        inside = [self._excess(part) for part in _parts(gram) if part in whole]
        return not inside or own >= ALWAYS * min(inside)

    def _excess(self, gram: Words) -> float:
        return self.positive[gram] / self.n - self.negative[gram] / self.m

    def marker(self, gram: Words) -> Marker:
        a, b = self.positive[gram], self.negative[gram]
        return Marker(" ".join(gram), _log_odds(a, self.n, b, self.m), fisher(a, self.n, b, self.m), a, b)


def _parts(gram: Words) -> Iterable[Words]:
    return (gram[i : i + n] for n in range(1, len(gram)) for i in range(len(gram) - n + 1))


@cache
def fisher(a: int, n: int, b: int, m: int) -> float:
    """Fisher's exact p, one-sided: by chance a or more of the a + b texts with a phrase are among n of the n + m."""
    return float(stats.hypergeom.sf(a - 1, n + m, a + b, n))


def _log_odds(a: int, n: int, b: int, m: int) -> float:
    return math.log((a + 0.5) / (n - a + 0.5)) - math.log((b + 0.5) / (m - b + 0.5))
