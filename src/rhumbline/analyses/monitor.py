"""The projection as a detector: how well it tells unseen prompts apart, and what a suffix does to it.

The threshold is chosen on validation negatives, everything else is measured on test prompts. The direction was fitted
on training prompts, and chosen on validation ones by other scores than this.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rhumbline.analyses.subject import Subject
from rhumbline.analyses.suffixes import encoded, random_suffixes, read_suffixes
from rhumbline.errors import InputError
from rhumbline.evals.monitor import Monitor
from rhumbline.evidence.statistics import auroc, auroc_interval, rank_p, wilson_of_rate
from rhumbline.prompts.contrasts import LABELS, Label, Split
from rhumbline.stages.nulls import Material, draw_nulls

NAME = "monitor"
FAMILIES = ("isotropic", "covariance", "shuffled-site")
"""Nulls whose projections are read on the same prompts."""


def analyse(
    subject: Subject, *, fpr: float = 0.01, suffix: str | Path | None = None, draws: int = 3, nulls: int = 99
) -> dict[str, Any]:
    """Measure and write how the direction detects unseen positives.

    `fpr` is the share of validation negatives that the threshold lets through; `suffix` a file of suffixes, beside
    which `draws` random ones of the same length are read; `nulls` draws of each null family.
    """
    if not 0 <= fpr < 1:
        raise InputError(f"--fpr is {fpr}; give a share of 0 or more and below 1, such as 0.01.")
    monitor = Monitor(subject.model, subject.chat, subject.selected())
    # All validation prompts: the filter by the metric's sign would leave out the hard ones.
    val = {c: monitor.score_ids(encoded(subject.chat, subject.splits.get("val", c))) for c in LABELS}
    threshold = threshold_at(val["negative"], fpr)
    prompts = {c: subject.splits.get("test", c) for c in LABELS}

    def read(suffix: str | None) -> dict[Label, np.ndarray]:
        return {c: monitor.score_ids(encoded(subject.chat, prompts[c], suffix)) for c in LABELS}

    plain = read(None)
    conditions = [_condition("none", [], [plain], threshold)]
    for k, text in enumerate([] if suffix is None else read_suffixes(suffix), 1):
        for name, texts in ((f"suffix {k}", [text]), (f"random {k}", random_suffixes(subject.chat, text, draws, k))):
            conditions.append(_condition(name, texts, [read(t) for t in texts], threshold))
    record = {
        "threshold": threshold,
        "finest_fpr": 1 / len(val["negative"]),
        "n": {"val": {c: len(v) for c, v in val.items()}, "test": {c: len(v) for c, v in plain.items()}},
        "conditions": conditions,
        "nulls": _nulls(subject, monitor, nulls),
    }
    return subject.save(
        NAME, {"fpr": fpr, "suffix": suffix and Path(suffix).name, "draws": draws, "nulls": nulls}, record
    )


def threshold_at(negative: Float[np.ndarray, " negative"], fpr: float) -> float:
    """The smallest observed score above which at most the share `fpr` of the negatives lies."""
    if len(negative) == 0:
        raise InputError("a threshold needs validation negatives, and the run has none.")
    allowed = int(np.floor(fpr * len(negative) + 1e-9))
    return float(np.sort(negative)[len(negative) - 1 - allowed])


def roc(positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]) -> list[dict[str, float]]:
    """The corners of the ROC curve, from (0, 0) to (1, 1): share of negatives and of positives above each score."""
    cuts = np.unique(np.concatenate([positive, negative]))[::-1]
    points = [{"fpr": 0.0, "tpr": 0.0}]
    points += [{"fpr": float((negative >= c).mean()), "tpr": float((positive >= c).mean())} for c in cuts]
    kept = points[:1]
    for before, now, after in zip(points, points[1:], [*points[2:], None], strict=False):
        turns = after is None or (now["fpr"] - before["fpr"]) * (after["tpr"] - now["tpr"]) != (
            now["tpr"] - before["tpr"]
        ) * (after["fpr"] - now["fpr"])
        if turns:
            kept.append(now)
    return kept


def _condition(
    name: str, texts: Sequence[str], read: Sequence[Mapping[Label, np.ndarray]], threshold: float
) -> dict[str, Any]:
    """Rates and AUROC under one kind of suffix, each the mean over its texts; n counts prompts, not texts."""
    positive, negative = (np.stack([r[c] for r in read]) for c in LABELS)
    area = float(np.mean([auroc(p, n) for p, n in zip(positive, negative, strict=True)]))
    low, high = auroc_interval(area, positive.shape[1], negative.shape[1])
    rates = {}
    for key, values in (("tpr", positive), ("fpr", negative)):
        caught, n = float((values > threshold).mean()), values.shape[1]
        # Texts share their prompts, so a mean over texts is no larger a sample.
        ends = wilson_of_rate(caught, n)
        rates[key] = {"rate": caught, "low": ends.low, "high": ends.high, "n": n}
    return {
        "name": name,
        "texts": list(texts),
        "auroc": {"value": area, "low": low, "high": high, "n": positive.shape[1] + negative.shape[1]},
        **rates,
        "means": {"positive": float(positive.mean()), "negative": float(negative.mean())},
        "roc": roc(positive.flatten(), negative.flatten()),
    }


def _nulls(subject: Subject, monitor: Monitor, draws: int) -> dict[str, Any]:
    """The AUROC of null directions at the same site; their sign is free, so the better of both counts."""
    direction = monitor.direction

    def read(split: Split) -> list[Any]:
        return [subject.runner.stream(subject.sequences(split, c), direction.position, direction.layer) for c in LABELS]

    material = Material(*read("train"))
    test = [h.double() for h in read("test")]
    own = auroc(*((h @ direction.vector.double()).numpy() for h in test))
    found: dict[str, Any] = {}
    for null in draw_nulls(direction, material, dict.fromkeys(FAMILIES, draws), seed=subject.seed):
        area = auroc(*((h @ null.direction.vector.double()).numpy() for h in test))
        found.setdefault(null.family, []).append(max(area, 1 - area))
    return {
        f: {"draws": len(v), "mean": float(np.mean(v)), "max": float(np.max(v)), "p": rank_p(own, v)}
        for f, v in found.items()
    }
