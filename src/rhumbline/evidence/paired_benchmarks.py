"""Comparisons: per-document scores of benchmarks under several arms in, paired differences out. Imports no torch.

A score that is 0 or 1 on every document is compared by the exact test of McNemar and Newcombe's paired interval, any
other by a paired bootstrap of documents.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhumbline.errors import VerificationError
from rhumbline.evidence.statistics import bootstrap_mean, mcnemar, paired_difference
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import finite

DRAWS = 2000
"""Bootstrap samples of an interval."""

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Task: its documents, {"doc_id", "doc_hash", "filter", "scores": {metric: value}}."""


def compare(directory: RunDirectory, folder: Path) -> dict[str, Any]:
    """The comparison of the folder of one evaluation, from the scores of its documents: {"settings", "rows"}."""
    rows = []
    for of_task in sorted(p for p in folder.iterdir() if p.is_dir()):
        records = [directory.load(p) for p in sorted(of_task.glob("*.json"))]
        by_arm = {r["arm"]: r["samples"] for r in sorted(records, key=lambda r: r["arm"] != "baseline")}
        if "baseline" in by_arm:
            rows += comparison(by_arm)
    settings = directory.load(folder / "settings.json")
    return {"settings": {k: v for k, v in settings.items() if k != "protocol_sha256"}, "rows": finite(rows)}


def comparison(by_arm: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """Every score of every task under every arm, beside the baseline's on the same documents.

    [{"task", "metric", "filter", "arm", "n", "score", "change", "low", "high", "p", "test"}]: `score` the mean over the
    documents, `change` from the baseline; p and test only where every score is 0 or 1. The baseline itself has no
    change. Several tasks of a group are rows of their own.
    """
    base = by_arm["baseline"]
    found = []
    for task, documents in base.items():
        for metric, name in _scores(documents):
            before = _values(documents, metric, name)
            for arm, samples in by_arm.items():
                after = _values(samples.get(task, ()), metric, name)
                if before.keys() != after.keys():
                    raise VerificationError(
                        f"arms 'baseline' and {arm!r} were not evaluated on the same documents of {task}; run the same "
                        "command again, or remove the evaluation."
                    )
                row = {"task": task, "metric": metric, "filter": name, "arm": arm, "n": len(after)}
                changed = _change(np.array(list(before.values())), np.array([after[k] for k in before]))
                found.append(row | (changed if arm != "baseline" else {**changed, **_NOTHING}))
    return found


_NOTHING = {"change": None, "low": None, "high": None, "p": None, "test": None}


def _scores(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Metric and filter of every score that is a number on each document."""
    kinds: dict[tuple[str, str], bool] = {}
    for document in documents:
        for metric, value in document["scores"].items():
            key = (metric, document["filter"])
            kinds[key] = kinds.get(key, True) and isinstance(value, int | float) and math.isfinite(value)
    return [key for key, numeric in kinds.items() if numeric]


def _values(documents: Sequence[Mapping[str, Any]], metric: str, name: str) -> dict[tuple[int, str], float]:
    """Score by document; the hash says that it is the same document."""
    return {
        (d["doc_id"], d["doc_hash"]): float(d["scores"][metric])
        for d in documents
        if d["filter"] == name and metric in d["scores"]
    }


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    score = float(after.mean()) if len(after) else None
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        pair = paired_difference(after == 1, before == 1)
        p = mcnemar(before == 1, after == 1)
        return {"score": score, "change": pair.mean, "low": pair.low, "high": pair.high, "p": p, "test": "mcnemar"}
    mean = bootstrap_mean(after - before, np.random.default_rng(0), draws=DRAWS)
    ends = {"change": mean.mean, "low": mean.low, "high": mean.high}
    return {"score": score, **ends, "p": None, "test": "bootstrap"}
