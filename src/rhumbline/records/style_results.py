"""Parts of results.json: the continuous score of one seed."""

import math
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.shared import (
    ClassifierFit,
    EffectName,
    Marker,
)


@dataclass(frozen=True)
class LevelUnit:
    """The unit of levels: the gap between the classes at baseline. All numbers are None if a class is empty."""

    positive: float | None
    """Mean score of the positives."""
    negative: float | None
    """Mean score of the negatives."""
    gap: float | None
    """positive - negative, in scores."""
    low: float | None
    high: float | None
    auroc: float | None
    """Probability that a positive has the larger score."""
    auroc_low: float | None
    n: tuple[int, int]
    """Scored positives and negatives."""
    source: Literal["baseline", "texts"]
    """Completions at baseline, or the responses that the contrast carries."""

    @property
    def scale(self) -> float:
        """One level in scores: the gap, or 1 if it is not positive or not known."""
        return self.gap if self.gap is not None and self.gap > 0 else 1.0

    def level_of(self, score: float) -> float | None:
        """The level of a score; None if it is not known."""
        if self.negative is None or not math.isfinite(score):
            return None
        return (score - self.negative) / self.scale


class ScoreCorrelation(Struct, frozen=True, kw_only=True):
    """Correlation of the baseline score with something else."""

    other: Literal["words", "content_words", "bullets", "topic"] = field(name="with")
    """What it is correlated with."""
    n: int
    """Baseline completions."""
    r: float | None
    """Pearson's r (of topics the correlation ratio); null without variance or of fewer than three."""


@dataclass(frozen=True)
class AdjustedEffect:
    """An effect with length, layout and topic held fixed, in scores."""

    name: EffectName
    drop: float | None
    """Mean change of the score; None if it is not finite."""
    adjusted: float | None
    """Coefficient of the arm in a least squares fit on arm, content words, bullets and topic."""
    matched: float | None
    """Mean change on prompts whose two completions match in layout and length; None without any."""
    matched_n: int
    """Number of these prompts."""
    n: int
    """Prompts that are scored in both arms."""


@dataclass(frozen=True)
class Confounds:
    """Length, layout and topic as alternative explanations of the score."""

    correlations: tuple[ScoreCorrelation, ...]
    """Correlations of the baseline score with length, layout and topic."""
    adjusted: tuple[AdjustedEffect, ...]
    """The effects with these held fixed."""


@dataclass(frozen=True)
class NeutralLevel:
    """The neutral class on the scale of the two others."""

    n: int
    """Scored completions."""
    score: float | None
    """Mean score; None without any."""
    level: float | None
    """The same as a level."""
    projection: float | None
    """Mean projection on the selected direction; None without a direction at a prompt position."""


@dataclass(frozen=True)
class StyleSummary:
    """The continuous score of one seed: its unit, its judges and its confounds."""

    unit: LevelUnit
    """The unit of levels."""
    texts: Literal["responses", "completions"]
    """Training texts that the judges were fitted on."""
    how: Literal["given", "estimated"]
    """Where the markers come from."""
    markers: tuple[Marker, ...]
    """The markers, sorted by p-value; empty if none was estimated."""
    classifier: ClassifierFit | None
    """The style classifier; None if none was fitted."""
    chance: float
    """Mean content overlap of texts on different prompts, 0 to 1."""
    confounds: Confounds
    """Alternative explanations of the score."""
    neutral: NeutralLevel | None
    """The neutral class; None if the contrast has none."""
