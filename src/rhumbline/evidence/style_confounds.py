"""Confounds of a continuous score: outcomes -> its correlations with length, layout and topic, and adjusted effects.

Length counts words outside the markers, because the words of the markers are the style itself.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.level_effects import Scores, score_of
from rhumbline.evidence.statistics import finite_or_none
from rhumbline.records.arms import BASELINE
from rhumbline.records.outcome_rows import Outcome, TextForm
from rhumbline.records.results import AdjustedEffect, Confounds, ScoreCorrelation

Formed = tuple[Outcome, TextForm]
"""An outcome with the length and layout of its completion."""


def confounds(outcomes: Sequence[Outcome]) -> Confounds:
    """Correlations of the baseline score, and the effects with length, layout and topic held fixed.

    Correlations are Pearson's r over baseline completions of both classes; for topics the correlation ratio. `adjusted`
    is the coefficient of the arm in a least squares fit of the score on arm, content words, bullets and topic.
    `matched` is the drop on prompts whose two completions have equal bullets and content lengths within a quarter. The
    unit is the score, not the level.
    """
    formed = [(row, row.form) for row in outcomes if row.form is not None]
    base = [(row, form) for row, form in formed if row.arm == BASELINE and row.cls != "unscored"]
    scores = np.array([score_of(row) for row, _ in base], dtype=float)
    lengths: dict[Literal["words", "content_words", "bullets"], list[int]] = {
        "words": [form.words for _, form in base],
        "content_words": [form.content_words for _, form in base],
        "bullets": [form.bullets for _, form in base],
    }
    correlations = [
        ScoreCorrelation(other=name, n=len(base), r=finite_or_none(_pearson(np.array(values, float), scores)))
        for name, values in lengths.items()
    ]
    topics = [row.category for row, _ in base]
    if len({topic for topic in topics if topic}) > 1:
        r = finite_or_none(_correlation_ratio(topics, scores))
        correlations.append(ScoreCorrelation(other="topic", n=len(base), r=r))
    adjusted = [effect for arms in EFFECTS if (effect := _adjusted_effect(arms, formed)) is not None]
    return Confounds(tuple(correlations), tuple(adjusted))


def _adjusted_effect(arms: ComparedArms, formed: Sequence[Formed]) -> AdjustedEffect | None:
    """One effect with the covariates held fixed; None without prompts that are scored in both arms."""
    before, after = (
        {
            row.prompt_id: (row, form)
            for row, form in formed
            if (row.arm, row.side) == (arm, arms.label) and row.cls != "unscored"
        }
        for arm in (BASELINE, arms.arm)
    )
    prompts = sorted(before.keys() & after.keys())
    if not prompts:
        return None
    rows = [*(before[i] for i in prompts), *(after[i] for i in prompts)]
    scores = np.array([score_of(row) for row, _ in rows])
    change = arms.sign * (scores[: len(prompts)] - scores[len(prompts) :])
    close = [i for i, prompt in enumerate(prompts) if _matches(before[prompt][1], after[prompt][1])]
    return AdjustedEffect(
        name=arms.name,
        drop=finite_or_none(float(change.mean())),
        adjusted=finite_or_none(-arms.sign * _coefficient_of_arm(rows, scores)),
        matched=finite_or_none(float(change[close].mean())) if close else None,
        matched_n=len(close),
        n=len(prompts),
    )


def _coefficient_of_arm(rows: Sequence[Formed], scores: Scores) -> float:
    """Least squares coefficient of the second half of the rows, with length, bullets and topic as covariates."""
    treated = np.repeat([0.0, 1.0], len(rows) // 2)
    length = np.array([form.content_words for _, form in rows], float)
    bullets = np.array([form.bullets for _, form in rows], float)
    topics = sorted({row.category or "" for row, _ in rows})
    dummies = [np.array([(row.category or "") == topic for row, _ in rows], float) for topic in topics]
    design = np.stack([treated, length - length.mean(), bullets - bullets.mean(), *dummies], 1)
    return float(np.linalg.lstsq(design, scores, rcond=None)[0][0])


def _matches(before: TextForm, after: TextForm) -> bool:
    """Whether two completions have equal bullets, and content lengths within a quarter of the first."""
    difference = abs(before.content_words - after.content_words)
    return before.bullets == after.bullets and difference <= before.content_words / 4


def _pearson(x: Scores, y: Scores) -> float:
    """Pearson's r; NaN without variance or for fewer than three values."""
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _correlation_ratio(topics: Sequence[str | None], y: Scores) -> float:
    """Root of the share of the variance that lies between topics; NaN without variance."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return math.nan
    groups: dict[str | None, list[float]] = {}
    for topic, value in zip(topics, y, strict=True):
        groups.setdefault(topic, []).append(float(value))
    between = sum(len(g) * (float(np.mean(g)) - float(y.mean())) ** 2 for g in groups.values())
    return math.sqrt(between / total)
