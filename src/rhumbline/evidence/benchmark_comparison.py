"""Benchmark comparison: scores of documents under several arms -> paired changes from the baseline.

Scores that are 0 or 1 on every document are compared by McNemar's exact test and Newcombe's paired interval, others by
a paired bootstrap of documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from msgspec import UNSET

from rhumbline.errors import VerificationError
from rhumbline.evidence.statistics import bootstrap_mean, finite_or_none, mcnemar, paired_difference
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.directory import RunDirectory
from rhumbline.records.evaluation_files import (
    ComparedScore,
    Comparison,
    DocumentScores,
    EvaluationSettings,
    TaskResult,
)

DRAWS = 2000
"""Bootstrap draws of an interval."""

Samples = Mapping[str, Sequence[DocumentScores]]
"""Documents of every task."""


def compare(directory: RunDirectory, folder: Path) -> Comparison:
    """The comparison of one evaluation, from the scores of its documents."""
    rows: list[ComparedScore] = []
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        results = [directory.read_as(TaskResult, path) for path in sorted(task.glob("*.json"))]
        by_arm = {r.arm: r.samples for r in sorted(results, key=lambda r: r.arm != BASELINE)}
        if BASELINE in by_arm:
            rows += compared_scores(by_arm)
    settings = directory.read_as(EvaluationSettings, folder / "settings.json")
    return Comparison(directory.protocol_sha256, replace(settings, protocol_sha256=UNSET), tuple(rows))


def compared_scores(by_arm: Mapping[ArmId, Samples]) -> list[ComparedScore]:
    """Every score of every task under every arm, compared with the baseline on the same documents.

    Each task of a group has rows of its own. Raises VerificationError if arms were evaluated on different documents.
    """
    compared = []
    for task, documents in by_arm[BASELINE].items():
        for metric, filter_name in _numeric_scores(documents):
            before = _values(documents, metric, filter_name)
            for arm, samples in by_arm.items():
                after = _values(samples.get(task, ()), metric, filter_name)
                if before.keys() != after.keys():
                    raise VerificationError(
                        f"Arms {BASELINE} and {arm} were not evaluated on the same documents of {task}. Rerun the same "
                        "command, or remove the evaluation."
                    )
                values = np.array([after[key] for key in before])
                compared.append(
                    ComparedScore(
                        task,
                        metric,
                        filter_name,
                        arm,
                        n=len(values),
                        score=float(values.mean()) if len(values) else None,
                        **(
                            _change(np.array(list(before.values())), values) if arm != BASELINE else _NO_CHANGE
                        )._asdict(),
                    )
                )
    return compared


class _Change(NamedTuple):
    """Mean score of an arm minus that of the baseline."""

    change: float | None
    low: float | None
    high: float | None
    p: float | None
    test: Literal["mcnemar", "bootstrap"] | None


_NO_CHANGE = _Change(None, None, None, None, None)


def _change(before: np.ndarray, after: np.ndarray) -> _Change:
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        pair = paired_difference(after == 1, before == 1)
        change = finite_or_none(pair.mean)
        return _Change(change, pair.low, pair.high, mcnemar(before == 1, after == 1), "mcnemar")
    mean = bootstrap_mean(after - before, np.random.default_rng(0), draws=DRAWS)
    return _Change(*(finite_or_none(x) for x in (mean.mean, mean.low, mean.high)), p=None, test="bootstrap")


def _numeric_scores(documents: Sequence[DocumentScores]) -> list[tuple[str, str]]:
    """Metric and filter of every score that is a finite number on all documents."""
    kinds: dict[tuple[str, str], bool] = {}
    for document in documents:
        for metric, value in document.scores.items():
            key = (metric, document.filter)
            kinds[key] = kinds.get(key, True) and isinstance(value, int | float) and math.isfinite(value)
    return [key for key, is_numeric in kinds.items() if is_numeric]


def _values(documents: Sequence[DocumentScores], metric: str, filter_name: str) -> dict[tuple[int, str], float]:
    """Score by document; a document is identified by its number and its hash."""
    return {
        (document.doc_id, document.doc_hash): float(document.scores[metric])
        for document in documents
        if document.filter == filter_name and metric in document.scores
    }
