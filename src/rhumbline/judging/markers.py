"""Marker phrases: two sets of training texts -> the phrases that distinguish the first from the second.

Guarantees: if the labels are random, any marker is estimated with a probability of at most `LEVEL`, for all texts.
Content that occurs next to a marker by chance is not a marker, nor is a phrase that is only more frequent because the
texts are longer. Independent of judges, models and the origin of texts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from scipy import stats

from rhumbline.judging.text_style import Words, words
from rhumbline.records.shared import Marker

LONGEST_MARKER = 8
"""Words of the longest phrase that can be a marker."""
LEVEL = 0.01
"""Largest probability of any marker if the labels are random."""
SMALLEST_LOG_ODDS = 2.0
"""Smallest log-odds of a marker, positives against negatives, nats."""
SMALLEST_SHARE = 0.05
"""Smallest share of positive texts with a marker."""
LEAST_TOPICS = 3
"""Topics that a marker must occur in, if that many are known: a word of one topic is content."""
MOST_MARKERS = 200
"""Largest number of markers."""
CONFOUNDED = 1.5
"""Ratio of the mean lengths of the classes, in words, from which length is confounded with the style."""
LEAST_MATCHED = 24
"""Smallest number of pairs of texts of similar length that take the place of all texts."""
SIMILAR = 1.25
"""Largest ratio of the lengths of such a pair."""
ALWAYS = 0.9
"""A part nearly always occurs in a phrase if the phrase has this share of the part's excess in the positives."""


def estimate_markers(
    positive: Sequence[str], negative: Sequence[str], topics: Sequence[str | None] | None = None
) -> list[Marker]:
    """Phrases that distinguish positive from negative texts, sorted by p-value. `topics` are those of the positives.

    The test is Fisher's exact one (one-sided) on the texts with the phrase, at `LEVEL` divided by the number of phrases
    tried (Bonferroni). These are the phrases that enough texts of both classes together contain, so their number does
    not depend on the labels and the level is exact. The size is the log-odds log((a + 1/2) / (n - a + 1/2)) minus the
    same of the negatives (Monroe, Colaresi and Quinn 2008, Political Analysis 16:372, with a flat prior). It is not
    used as a test, because its z decreases as the effect grows (Hauck and Donner 1977, JASA 72:851).

    If the positives are longer than the negatives by more than `CONFOUNDED`, the phrase must also be more frequent per
    word: the a texts among a + b are tested against the positives' share of all words (one-sided binomial test).

    A marker is whole (`_Counts.is_whole`). A shorter phrase is a marker only if it still is one outside the longer
    markers, so a word that content needs as well is not a marker alone.
    """
    sides = _Texts(positive), _Texts(negative)
    known = {t for t in topics or () if t}
    by_topic = topics if topics and len(known) >= LEAST_TOPICS else None
    counts = _Counts.of(*sides, by_topic)
    texts_with = counts.positive + counts.negative
    tried = sum(n >= counts.least for n in texts_with.values())
    qualified = {gram for gram in counts.positive if counts.qualifies(gram, tried)}
    whole: set[Words] = set()
    for gram in sorted(qualified, key=len):
        if counts.is_whole(gram, whole):
            whole.add(gram)
    kept: list[Marker] = []
    for length in range(LONGEST_MARKER, 0, -1):
        some = {gram for gram in whole if len(gram) == length}
        if not some:
            continue
        # Words inside longer markers no longer count.
        left = _Counts.of(*sides, by_topic, some)
        again = {gram for gram in some if left.qualifies(gram, tried)}
        kept += [left.marker(gram) for gram in again]
        for texts in sides:
            texts.cover(again, length)
    return sorted(kept, key=lambda m: (m.p or 0.0, m.phrase))[:MOST_MARKERS]


def length_matched(positive: Sequence[str], negative: Sequence[str]) -> list[tuple[int, int]] | None:
    """Pairs of texts of similar length, by their indices; None if the lengths are not confounded, or for few pairs.

    Every negative, from the longest on, is paired with the shortest positive left that is at most `SIMILAR` times as
    long, or as short.
    """
    sizes = [[len(words(text)) for text in texts] for texts in (positive, negative)]
    if not is_confounded(*sizes):
        return None
    left = sorted(range(len(positive)), key=lambda i: sizes[0][i])
    pairs = []
    for j in sorted(range(len(negative)), key=lambda j: -sizes[1][j]):
        n = sizes[1][j]
        i = next((i for i in left if n <= SIMILAR * sizes[0][i] and sizes[0][i] <= SIMILAR * n), None)
        if i is not None:
            left.remove(i)
            pairs.append((i, j))
    return sorted(pairs) if len(pairs) >= LEAST_MATCHED else None


def is_confounded(positive: Sequence[float], negative: Sequence[float]) -> bool:
    """Whether the mean lengths of two classes, in words, differ by more than `CONFOUNDED`."""
    one, other = (sum(some) / max(1, len(some)) for some in (positive, negative))
    return max(one, other) > CONFOUNDED * min(one, other)


class _Texts:
    """The words of some texts, and which of them are in no marker so far."""

    def __init__(self, texts: Sequence[str]):
        self.words = [words(text) for text in texts]
        self.free = [[True] * len(text) for text in self.words]

    def grams(self, among: set[Words] | None) -> Iterator[set[Words]]:
        """The phrases of every text outside the markers so far; `among`: only these phrases."""
        lengths = range(1, LONGEST_MARKER + 1) if among is None else sorted({len(gram) for gram in among})
        for text, free in zip(self.words, self.free, strict=True):
            spans = ((i, i + n) for n in lengths for i in range(len(text) - n + 1))
            grams = {text[i:j] for i, j in spans if all(free[i:j])}
            yield grams if among is None else grams & among

    def cover(self, grams: set[Words], length: int) -> None:
        """Mark the words inside these phrases of one length."""
        for text, free in zip(self.words, self.free, strict=True):
            for i in range(len(text) - length + 1):
                if text[i : i + length] in grams and all(free[i : i + length]):
                    free[i : i + length] = [False] * length


@dataclass(frozen=True)
class _Counts:
    """Number of positive and negative texts with each phrase, of n and m texts."""

    n: int
    m: int
    positive: Counter[Words]
    negative: Counter[Words]
    topics: dict[Words, set[str | None]] | None
    """Topics of the positive texts with each phrase; None: topics are not used."""
    least: float
    """Smallest number of texts with a phrase."""
    share: float | None
    """Share of all words that are in positive texts, if these are longer by more than `CONFOUNDED`."""

    @classmethod
    def of(
        cls,
        positive: _Texts,
        negative: _Texts,
        topics: Sequence[str | None] | None,
        among: set[Words] | None = None,
    ) -> "_Counts":
        of_positive = list(positive.grams(among))
        with_phrase = Counter(gram for grams in of_positive for gram in grams)
        others = Counter(gram for grams in negative.grams(among) for gram in grams)
        n, m = len(positive.words), len(negative.words)
        by_topic: dict[Words, set[str | None]] | None = None
        if topics:
            by_topic = {}
            for grams, topic in zip(of_positive, topics, strict=True):
                for gram in grams:
                    by_topic.setdefault(gram, set()).add(topic)
        long, short = (sum(map(len, texts.words)) / max(1, len(texts.words)) for texts in (positive, negative))
        share = n * long / (n * long + m * short) if long > CONFOUNDED * short else None
        return cls(n, m, with_phrase, others, by_topic, max(2.0, SMALLEST_SHARE * n), share)

    def qualifies(self, gram: Words, tried: int) -> bool:
        """Whether a phrase is frequent enough, large enough and significant."""
        a, b = self.positive[gram], self.negative[gram]
        if a < self.least or _log_odds(a, self.n, b, self.m) < SMALLEST_LOG_ODDS:
            return False
        if self.topics is not None and len(self.topics[gram]) < LEAST_TOPICS:
            return False
        per_word = 0.0 if self.share is None else float(stats.binom.sf(a - 1, a + b, self.share))
        return max(per_word, fisher(a, self.n, b, self.m)) * tried <= LEVEL

    def is_whole(self, gram: Words, whole: set[Words]) -> bool:
        """Whether a phrase is more than a marker with content next to it; `whole` holds the shorter whole phrases.

        Excess is the share of positive texts with a phrase minus that of the negatives. A phrase is whole if the excess
        of each of its beginnings and ends occurs nearly always inside it: "mill i hope" is not whole if "i hope" also
        follows other words. If it contains whole phrases, one of these must also occur nearly always inside it: "can
        often get" is not whole if "often" also occurs elsewhere. Content that nearly always occurs next to a marker
        cannot be distinguished from it.
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
        odds, p = _log_odds(a, self.n, b, self.m), fisher(a, self.n, b, self.m)
        return Marker(phrase=" ".join(gram), log_odds=odds, p=p, positive=a, negative=b)


def _parts(gram: Words) -> Iterable[Words]:
    return (gram[i : i + n] for n in range(1, len(gram)) for i in range(len(gram) - n + 1))


@cache
def fisher(a: int, n: int, b: int, m: int) -> float:
    """Fisher's exact p, one-sided: the probability that a or more of a + b texts are among n of n + m."""
    return float(stats.hypergeom.sf(a - 1, n + m, a + b, n))


def _log_odds(a: int, n: int, b: int, m: int) -> float:
    return math.log((a + 0.5) / (n - a + 0.5)) - math.log((b + 0.5) / (m - b + 0.5))
