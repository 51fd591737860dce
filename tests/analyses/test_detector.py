"""The projection as a detector: known and random directions, thresholds and ROC curves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.analyses import detector
from rhumbline.analyses.detector import roc, threshold_at
from rhumbline.errors import ProtocolError
from rhumbline.evidence.statistics import auroc
from rhumbline.inference.interventions import Direction


def with_random_direction(subject):
    """The same run with a random direction, orthogonal to its own."""
    r, rng = subject.selected(), torch.Generator().manual_seed(3)
    random = torch.randn(r.vector.shape, generator=rng)
    random -= (random @ r.vector) * r.vector
    return replace(subject, direction=Direction.from_vector(random * r.norm, r.position, r.layer))


def test_the_direction_separates_test_prompts_and_a_random_one_does_not(planted):
    record = detector.analyse(planted, fpr=0.05, nulls=19)
    (plain,) = record.conditions
    assert plain.auroc.low > 0.9
    assert plain.tpr.rate > 0.9
    assert plain.fpr.rate <= 0.2
    (random,) = detector.analyse(with_random_direction(planted), nulls=3).conditions
    assert random.auroc.low < 0.75 < plain.auroc.low


def test_suffixes_are_read_on_both_classes(planted, tmp_path):
    file = tmp_path / "s.txt"
    file.write_text("a short answer\n")
    record = detector.analyse(planted, suffix=file, nulls=3)
    assert [c.name for c in record.conditions] == ["none", "suffix 1", "random 1"]
    assert len(record.conditions[2].texts) == 3
    # Three suffixes on the same prompts do not enlarge the sample.
    assert {c.tpr.n for c in record.conditions} == {40}


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0, 0.99))
def test_a_threshold_respects_its_false_positive_rate(scores, fpr):
    negative = np.array(scores)
    cut = threshold_at(negative, fpr)
    assert (negative > cut).mean() <= fpr + 1e-9
    below = np.sort(negative)[::-1]
    tighter = below[below < cut]
    assert len(tighter) == 0 or (negative > tighter[0]).mean() > fpr - 1e-9


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_the_area_under_the_corners_is_the_auroc(a, b):
    positive, negative = np.array(a, float), np.array(b, float)
    points = roc(positive, negative)
    area = np.trapezoid([p.tpr for p in points], [p.fpr for p in points])
    assert area == pytest.approx(auroc(positive, negative))


def test_a_run_without_a_direction_is_refused(planted):
    with pytest.raises(ProtocolError, match="no candidate passed"):
        detector.analyse(replace(planted, direction=None))
