from dataclasses import asdict

import numpy as np
import pytest
from msgspec import structs

from rhumbline.errors import VerificationError
from rhumbline.evidence.benchmark_comparison import compared_scores
from rhumbline.evidence.statistics import mcnemar
from rhumbline.records.arms import ABLATION, BASELINE
from rhumbline.records.evaluation_files import DocumentScores


def documents(**scores: list) -> list[DocumentScores]:
    """One document for each place of the lists of scores."""
    n = len(next(iter(scores.values())))
    return [
        DocumentScores(doc_id=i, doc_hash=f"h{i}", filter="none", scores={m: v[i] for m, v in scores.items()})
        for i in range(n)
    ]


def test_the_test_depends_on_the_kind_of_score():
    before, after = [1, 1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]
    by_arm = {
        arm: {"t": documents(acc=values, f1=[v / 2 for v in values], list=[[1, 2]] * 8)}
        for arm, values in ((BASELINE, before), (ABLATION, after))
    }
    rows = {(row.metric, row.arm): row for row in compared_scores(by_arm)}
    assert {metric for metric, _ in rows} == {"acc", "f1"}  # a score that is not a number is not compared
    acc, f1 = rows["acc", ABLATION], rows["f1", ABLATION]
    assert (acc.test, f1.test) == ("mcnemar", "bootstrap")
    assert acc.p == mcnemar(np.array(before) == 1, np.array(after) == 1)
    assert acc.change == 2 * f1.change == -3 / 8
    assert f1.low < f1.change < f1.high
    baseline = asdict(rows["acc", BASELINE])
    assert {baseline[name] for name in ("change", "low", "high", "p", "test")} == {None}


def test_other_documents_are_not_compared():
    one, other = documents(acc=[1, 0]), documents(acc=[1, 0])
    other[1] = structs.replace(other[1], doc_hash="changed")
    with pytest.raises(VerificationError, match="same documents of t"):
        compared_scores({BASELINE: {"t": one}, ABLATION: {"t": other}})
    with pytest.raises(VerificationError, match="same documents"):
        compared_scores({BASELINE: {"t": one}, ABLATION: {}})
