"""The style of a text: a continuous score by marker phrases, the content beside it, and what could be mistaken for it.

Promises: content is read without the markers. Knows words. Does not know models or arms, nor how the markers were found
(markers.py).
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rhumbline.errors import ProtocolError
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.score import Score

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+", re.MULTILINE)
Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of a text, case folded, without punctuation."""
    return tuple(word.casefold().replace("’", "'") for word in _WORD.findall(text))


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
