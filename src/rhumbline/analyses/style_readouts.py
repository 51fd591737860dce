"""Readouts of a style in completions, and what they say about doses: token ids and texts in, `StyleDose` out.

The detectors are fitted on training responses and score a completion by a model of other topics. Independent of how
arms were made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.statistics import LEAST_RESAMPLED, bootstrap_mean, wilson
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.runner import Runner
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.embeddings import SentenceEmbeddings
from rhumbline.judging.markers import estimate_markers
from rhumbline.judging.style_classifier import Classifier, Features, fit
from rhumbline.judging.text_style import MarkerJudge, above_chance, content_kept, holds, overlap_by_chance, words
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.analysis_files import Mean, Rate
from rhumbline.records.shared import ByLabel
from rhumbline.records.style_doses_file import (
    Intervention,
    StyleAnswer,
    StyleCondition,
    StyleDetector,
    StyleDose,
    StyleDosesPlan,
    StyleFinding,
)

PerPrompt = Float[np.ndarray, " prompt"]
"""A value for each prompt; NaN if it is not known."""
DRAWS = 4000
"""Bootstrap draws of an interval."""
FEATURES: tuple[Features, Features] = ("characters", "function words")


@dataclass(frozen=True)
class Completions:
    """The completions of some prompts under one arm."""

    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    """The answers; empty without one."""


@dataclass(frozen=True)
class ArmReadouts:
    """The readouts of every prompt under one arm."""

    detector: PerPrompt
    function_words: PerPrompt
    markers: PerPrompt
    words: PerPrompt
    content: PerPrompt
    """NaN for the baseline."""
    correct: PerPrompt
    """NaN without a known answer."""
    degenerate: PerPrompt
    surprise: PerPrompt
    """NaN for an empty completion."""
    similarity: PerPrompt | None
    """None for the baseline, and without an embedding model."""


@dataclass(frozen=True)
class StyleReaders:
    """The fitted readers of one contrast."""

    classifiers: tuple[Classifier, Classifier]
    markers: MarkerJudge
    chance: float
    """Content overlap of training responses to different prompts."""
    embeddings: SentenceEmbeddings | None = None
    similarity_by_chance: float = 0.0
    """Mean cosine of training responses to different prompts."""

    @classmethod
    def fit(
        cls, positive: Sequence[Prompt], negative: Sequence[Prompt], embeddings: SentenceEmbeddings | None = None
    ) -> "tuple[StyleReaders, list[StyleDetector]]":
        """The readers of training rows with responses, and how well they separate held-out topics."""
        texts = ByLabel(*([p.response or "" for p in some] for some in (positive, negative)))
        topics: ByLabel[Sequence[str | None]] = ByLabel([p.category for p in positive], [p.category for p in negative])
        fitted = [fit(texts.positive, texts.negative, topics, features) for features in FEATURES]
        found = estimate_markers(texts.positive, texts.negative, topics.positive)
        judge = MarkerJudge(tuple(m.phrase for m in found))
        chance = overlap_by_chance([judge.content(text) for text in (*texts.positive, *texts.negative)])
        detectors = [
            StyleDetector(features, one.auroc, one.n, one.folds)
            for features, (_, one) in zip(FEATURES, fitted, strict=True)
        ]
        cosine = 0.0 if embeddings is None else embeddings.by_chance(texts.positive)
        return cls((fitted[0][0], fitted[1][0]), judge, chance, embeddings, cosine), detectors

    def detect(self, texts: Sequence[str], prompts: Sequence[Prompt], which: int = 0) -> PerPrompt:
        """Probability of the first style in each text, by the classifier without its topic."""
        scores = (self.classifiers[which].score(t, p.category) for t, p in zip(texts, prompts, strict=True))
        return np.array(list(scores))

    def content(self, texts: Sequence[str], others: Sequence[str]) -> PerPrompt:
        """Share of the content words of the other texts that each text has."""
        pairs = zip(texts, others, strict=True)
        return np.array([content_kept(self.markers, text, other, None, self.chance) for text, other in pairs])

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> PerPrompt | None:
        """The cosine of each text and the other one, scaled as `content`; None without an embedding model."""
        if self.embeddings is None:
            return None
        cosines = self.embeddings.similarity(texts, others).tolist()
        return np.array([above_chance(cosine, self.similarity_by_chance) for cosine in cosines])

    def read(
        self,
        runner: Runner,
        prompts: Sequence[Prompt],
        sequences: Sequence[Sequence[int]],
        of_arm: Completions,
        baseline: Completions | None,
    ) -> ArmReadouts:
        """Every readout of one arm; the surprise is read without interventions."""
        texts, nan = of_arm.texts, np.full(len(prompts), math.nan)
        written = [i for i, ids in enumerate(of_arm.ids) if len(ids)]
        surprise = nan.copy()
        if written:
            likelihoods = log_likelihoods(runner, [sequences[i] for i in written], [of_arm.ids[i] for i in written])
            surprise[written] = -likelihoods[0].numpy()
        known = [(holds(p.answer, t) if p.answer else math.nan) for p, t in zip(prompts, texts, strict=True)]
        return ArmReadouts(
            detector=self.detect(texts, prompts),
            function_words=self.detect(texts, prompts, 1),
            markers=np.array([sum(self.markers.marked(words(t))) / max(1, len(words(t))) for t in texts]),
            words=np.array([float(len(words(t))) for t in texts]),
            content=nan if baseline is None else self.content(texts, baseline.texts),
            correct=np.array(known, float),
            degenerate=np.array([float(degeneration(t) is not None) for t in texts]),
            surprise=surprise,
            similarity=None if baseline is None else self.similarity(texts, baseline.texts),
        )


@dataclass(frozen=True)
class Gap:
    """Detector of the unedited completions under both system prompts, on the same prompts."""

    positive: PerPrompt
    negative: PerPrompt

    @property
    def mean(self) -> Mean:
        """First minus second system prompt."""
        return mean_of(self.positive - self.negative)

    def moved(self, arm: PerPrompt, intervention: Intervention, level: float) -> Mean:
        """Change of the detector towards the other system prompt in units of the gap, which is resampled too.

        None without a positive gap.
        """
        change = arm - self.negative if intervention == "addition" else self.positive - arm
        gap = self.positive - self.negative
        if not gap.mean() > 0:
            return Mean(None, None, None, len(gap))
        rows = np.random.default_rng(0).integers(len(gap), size=(DRAWS, len(gap)))
        gaps = gap[rows].mean(1)
        draws = change[rows].mean(1)[gaps > 0] / gaps[gaps > 0]
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return Mean(float(change.mean() / gap.mean()), float(low), float(high), len(gap))


def mean_of(values: PerPrompt) -> Mean:
    """The mean of the known values with its bootstrap interval."""
    return Mean(*bootstrap_mean(values[~np.isnan(values)], np.random.default_rng(0), draws=DRAWS))


def rate_of(values: PerPrompt) -> Rate:
    """The share of ones among the known values."""
    known = values[~np.isnan(values)]
    return Rate(float(known.mean()), *wilson(int(known.sum()), len(known)), len(known))


def dose_of(condition: StyleCondition, readouts: ArmReadouts, gap: Gap, level: float) -> StyleDose:
    """The condition with the means of its readouts."""
    is_baseline = condition.intervention is None
    return StyleDose(
        **vars(condition),
        detector=mean_of(readouts.detector),
        function_words=mean_of(readouts.function_words),
        markers=mean_of(readouts.markers),
        words=mean_of(readouts.words),
        content=None if is_baseline else mean_of(readouts.content),
        correct=None if np.isnan(readouts.correct).all() else rate_of(readouts.correct),
        degenerate=rate_of(readouts.degenerate),
        surprise=mean_of(readouts.surprise),
        similarity=None if readouts.similarity is None else mean_of(readouts.similarity),
        moved=None if condition.intervention is None else gap.moved(readouts.detector, condition.intervention, level),
    )


# -- findings ---------------------------------------------------------------------------------------------------------


def answer(
    intervention: Intervention, doses: Sequence[StyleDose], plan: StyleDosesPlan, gap: Mean, reference: Mean
) -> StyleAnswer:
    """The finding for one intervention, from its doses, its nulls and the baseline of its side.

    Undecided with fewer than `LEAST_RESAMPLED` prompts, whose intervals are too narrow.
    """
    if not (gap.low or 0.0) > 0:
        return StyleAnswer(intervention, StyleFinding.NO_BASELINE, None)
    if gap.n < LEAST_RESAMPLED:
        return StyleAnswer(intervention, StyleFinding.UNDECIDED, None)
    own = [d for d in doses if d.intervention == intervention and d.family is None]
    (baseline,) = (d for d in doses if d.intervention is None and d.side == own[0].side)
    kept = [d for d in own if _keeps_text(d, baseline, plan, reference)]
    if not kept:
        return StyleAnswer(intervention, StyleFinding.DAMAGED, None)
    best = max(kept, key=lambda d: _value(d.moved))
    nulls = [d for d in doses if d.family is not None and d.intervention == intervention]
    passing = [d for d in kept if _low(d.moved) > plan.margin and _exceeds(d, nulls)]
    if passing:
        passed = max(passing, key=lambda d: _value(d.moved))
        return StyleAnswer(intervention, StyleFinding.MOVED, passed.dose)
    if all(d.moved is not None and (d.moved.high or 0.0) < plan.margin for d in kept):
        return StyleAnswer(intervention, StyleFinding.NOT_MOVED, best.dose)
    return StyleAnswer(intervention, StyleFinding.UNDECIDED, best.dose)


def _exceeds(dose: StyleDose, nulls: Sequence[StyleDose]) -> bool:
    """Whether a dose, with its interval, exceeds every null of the same dose and rank; False without nulls."""
    same = [_value(n.moved) for n in nulls if (n.dose, n.rank) == (dose.dose, dose.rank)]
    return bool(same) and _low(dose.moved) > max(same)


def _keeps_text(dose: StyleDose, baseline: StyleDose, plan: StyleDosesPlan, reference: Mean) -> bool:
    """Whether the texts at a dose keep their content, compared with the other system prompt, and their form."""
    content = plan.least_content * _value(reference)
    return _value(dose.kept) >= content and dose.degenerate.rate <= baseline.degenerate.rate + plan.most_degenerate


def _value(mean: Mean | None) -> float:
    return -math.inf if mean is None or mean.mean is None else mean.mean


def _low(mean: Mean | None) -> float:
    return -math.inf if mean is None or mean.low is None else mean.low
