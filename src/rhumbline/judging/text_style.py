"""The style of a text: its score by marker phrases, its content without them, and its length and layout.

Independent of models and arms, and of how the markers were estimated (markers.py).
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rhumbline.errors import ProtocolError
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.normal_text import folded
from rhumbline.judging.score import Score
from rhumbline.records.outcome_rows import TextForm

_WORD = re.compile(r"\w+(?:'\w+)*")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+", re.MULTILINE)
Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of a text in its normal form, case folded, without punctuation."""
    return tuple(_WORD.findall(folded(text)))


@dataclass(frozen=True)
class MarkerJudge:
    """A judge whose score is the share of words inside marker phrases."""

    phrases: tuple[str, ...]

    def __post_init__(self):
        if any(not words(phrase) for phrase in self.phrases):
            raise ProtocolError(f"markers {list(self.phrases)}: each needs a word. Remove the empty ones.")

    def __call__(self, text: str) -> Score:
        """Judge one text; a degenerate one has the value 0."""
        broken = degeneration(text)
        if broken is not None:
            return Score(0.0, "degenerate", broken)
        of_text = words(text)
        share = sum(self.marked(of_text)) / len(of_text) if of_text else 0.0
        return Score(share, "shown" if share > 0 else "absent")

    def marked(self, of_text: Words) -> list[bool]:
        """Which of the words are inside a marker."""
        inside = [False] * len(of_text)
        markers = {words(phrase) for phrase in self.phrases}
        for n in {len(marker) for marker in markers}:
            for i in range(len(of_text) - n + 1):
                if of_text[i : i + n] in markers:
                    inside[i : i + n] = [True] * n
        return inside

    def content(self, text: str) -> Words:
        """The words that are in no marker."""
        of_text = words(text)
        return tuple(word for word, is_marked in zip(of_text, self.marked(of_text), strict=True) if not is_marked)

    def form(self, text: str) -> TextForm:
        """Length and layout of a text."""
        return TextForm(len(words(text)), len(self.content(text)), len(_BULLET.findall(text)))


# -- content ----------------------------------------------------------------------------------------------------------


def holds(answer: str, text: str) -> bool:
    """Whether the text contains all words of the answer in their order; other words can come between them."""
    remaining = iter(words(text))
    return all(word in remaining for word in words(answer))


def overlap(one: Words, other: Words) -> float:
    """|A and B| / min(|A|, |B|) of two sets of words, independent of their lengths; 0 if one is empty."""
    a, b = set(one), set(other)
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def overlap_by_chance(contents: Sequence[Words], draws: int = 500) -> float:
    """Mean overlap of two texts on different prompts, which function words alone give."""
    if len(contents) < 2:
        return 0.0
    rng = random.Random(0)
    pairs = (rng.sample(range(len(contents)), 2) for _ in range(draws))
    return math.fsum(overlap(contents[i], contents[j]) for i, j in pairs) / draws


def content_kept(judge: MarkerJudge, text: str, baseline: str, answer: str | None, chance: float) -> float:
    """Share of the content in a text: 1 or 0 if the answer is known, otherwise its overlap with the baseline text.

    The overlap is scaled so that two texts on different prompts have 0 on average, and equal texts 1.
    """
    if answer is not None:
        return float(holds(answer, text))
    return above_chance(overlap(judge.content(baseline), judge.content(text)), chance)


def above_chance(value: float, chance: float) -> float:
    """A similarity of at most 1, scaled so that 1 stays 1 and `chance` or less is 0.

    If all texts are alike (a chance of 1), only the whole similarity counts.
    """
    return max(0.0, (value - chance) / (1 - chance)) if chance < 1 else float(value >= 1)
