"""The projection as a detector: separation of the classes on test prompts, and its change under suffixes.

The threshold is selected on validation negatives; everything else is measured on test prompts. The direction was fitted
on training prompts, and selected on validation prompts by scores other than the projection.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.subject import SITE_FAMILIES, Subject
from rhumbline.analyses.suffix_texts import by_condition, encoded, read_suffixes
from rhumbline.errors import InputError
from rhumbline.evals.monitor import Monitor
from rhumbline.evidence.statistics import auroc, auroc_interval, rank_p, wilson_of_rate
from rhumbline.inference.residuals import at_site
from rhumbline.prompts.contrasts import LABELS, Split
from rhumbline.records.analysis_files import (
    Auroc,
    MonitorCondition,
    MonitorNull,
    MonitorParameters,
    MonitorRecord,
    Rate,
    RocPoint,
    ValTest,
)
from rhumbline.records.shared import ByLabel
from rhumbline.stages.null_families import Material, draw_nulls

Scores = ByLabel[Float[np.ndarray, " prompt"]]
"""Projections of the prompts of both classes."""


def analyse(
    subject: Subject, *, fpr: float = 0.01, suffix: str | Path | None = None, draws: int = 3, nulls: int = 99
) -> MonitorRecord:
    """Measure how well the direction detects positives on test prompts, and write analyses/monitor.json.

    `fpr` is the largest share of validation negatives above the threshold. `suffix` is a file of suffixes; each is
    compared with `draws` random suffixes of the same length. `nulls` is the number of draws of each null family.
    """
    if not 0 <= fpr < 1:
        raise InputError(f"--fpr is {fpr}; use a share of 0 or more and below 1, such as 0.01.")
    monitor = Monitor(subject.model, subject.chat, subject.selected())

    def read(split: Split, suffix: str | None = None) -> Scores:
        prompts = (subject.splits.get(split, c) for c in LABELS)
        return ByLabel(*(monitor.score_ids(encoded(subject.chat, p, suffix)) for p in prompts))

    # All validation prompts: the filter by the sign of the metric would exclude the difficult ones.
    val, test = read("val"), read("test")
    threshold = threshold_at(val.negative, fpr)
    conditions = [_condition("none", {None: test}, threshold)]
    suffixed = by_condition(subject.chat, [] if suffix is None else read_suffixes(suffix), draws)
    for name, texts in suffixed.items():
        conditions.append(_condition(name, {t: read("test", t) for t in texts}, threshold))
    record = MonitorRecord(
        seed=subject.seed,
        site=subject.selected_site(),
        parameters=MonitorParameters(fpr, suffix and Path(suffix).name, draws, nulls),
        threshold=threshold,
        finest_fpr=1 / len(val.negative),
        n=ValTest(*(ByLabel(len(scores.positive), len(scores.negative)) for scores in (val, test))),
        conditions=tuple(conditions),
        nulls=_nulls(subject, nulls),
    )
    return subject.save(record)


def threshold_at(negative: Float[np.ndarray, " negative"], fpr: float) -> float:
    """The smallest observed score that at most the share `fpr` of the negatives exceeds."""
    if len(negative) == 0:
        raise InputError("the run has no validation negatives, and a threshold needs one or more. Use another run.")
    allowed = int(np.floor(fpr * len(negative) + 1e-9))
    return float(np.sort(negative)[len(negative) - 1 - allowed])


def roc(positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]) -> list[RocPoint]:
    """The corners of the ROC curve, from (0, 0) to (1, 1): shares of negatives and positives with at least a score."""
    cuts = np.unique(np.concatenate([positive, negative]))[::-1]
    points = [RocPoint(0.0, 0.0)]
    points += [RocPoint(float((negative >= c).mean()), float((positive >= c).mean())) for c in cuts]
    corners = [
        point
        for before, point, after in zip(points, points[1:], points[2:], strict=False)
        if (point.fpr - before.fpr) * (after.tpr - point.tpr) != (point.tpr - before.tpr) * (after.fpr - point.fpr)
    ]
    return [points[0], *corners, points[-1]]


def _condition(name: str, scores: Mapping[str | None, Scores], threshold: float) -> MonitorCondition:
    """Rates and AUROC with one kind of suffix, as means over its texts (None: no suffix); n counts prompts."""
    positive, negative = (np.stack([s[c] for s in scores.values()]) for c in LABELS)
    area = float(np.mean([auroc(p, n) for p, n in zip(positive, negative, strict=True)]))
    low, high = auroc_interval(area, positive.shape[1], negative.shape[1])
    return MonitorCondition(
        name=name,
        texts=tuple(t for t in scores if t is not None),
        auroc=Auroc(area, low, high, positive.shape[1] + negative.shape[1]),
        tpr=_rate_above(threshold, positive),
        fpr=_rate_above(threshold, negative),
        means=ByLabel(float(positive.mean()), float(negative.mean())),
        roc=tuple(roc(positive.flatten(), negative.flatten())),
    )


def _rate_above(threshold: float, values: Float[np.ndarray, "text prompt"]) -> Rate:
    """Share of the scores above the threshold; texts share their prompts, so they do not enlarge the sample."""
    rate, n = float((values > threshold).mean()), values.shape[1]
    low, high = wilson_of_rate(rate, n)
    return Rate(rate, low, high, n)


def _nulls(subject: Subject, draws: int) -> dict[str, MonitorNull]:
    """AUROC of null directions at the same site; their sign is arbitrary, so the better of both signs counts."""
    direction = subject.selected()

    def read(split: Split) -> list[Float[Tensor, "prompt d_model"]]:
        return [
            at_site(subject.runner, subject.sequences(split, c), direction.position, direction.layer) for c in LABELS
        ]

    positive, negative = read("train")
    material = Material(positive, negative)
    test = [h.double() for h in read("test")]
    own = auroc(*((h @ direction.vector.double()).numpy() for h in test))
    areas: dict[str, list[float]] = {}
    for null in draw_nulls(direction, material, dict.fromkeys(SITE_FAMILIES, draws), seed=subject.seed):
        area = auroc(*((h @ null.direction.vector.double()).numpy() for h in test))
        areas.setdefault(null.family, []).append(max(area, 1 - area))
    return {
        family: MonitorNull(float(np.mean(v)), float(np.max(v)), rank_p(own, v), draws=len(v))
        for family, v in areas.items()
    }
