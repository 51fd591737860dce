"""The monitor of a run, for the code of a user."""

import shutil
from dataclasses import replace

import pytest

import rhumbline
from finished_runs import QUICK
from rhumbline.analyses import detector
from rhumbline.analyses.subject import open_subject
from rhumbline.errors import InputError, ProtocolError
from rhumbline.models.hooks import hooked
from rhumbline.organisms import Planted, build


@pytest.fixture(scope="module")
def planted(finished, tmp_path_factory):
    """A finished run of the planted organism, opened in a copy."""
    path = shutil.copytree(finished("planted", QUICK), tmp_path_factory.mktemp("planted") / "run")
    return replace(open_subject(path), page=False)


def test_a_monitor_scores_as_the_analysis_does(planted, tmp_path):
    record = detector.analyse(planted, nulls=3)
    monitor = rhumbline.Monitor.from_run(planted.directory.path, planted.model)
    assert monitor.threshold == record.threshold
    texts = {c: [p.text for p in planted.splits.get("test", c)] for c in ("positive", "negative")}
    scores = {c: monitor.score(t) for c, t in texts.items()}
    assert scores["positive"].mean() == pytest.approx(record.conditions[0].means.positive)
    assert monitor.flags(texts["positive"]).mean() == pytest.approx(record.conditions[0].tpr.rate)
    assert len(monitor.score([])) == 0
    with pytest.raises(ProtocolError, match="no threshold"):
        replace(monitor, threshold=None).flags(["a"])
    unrelated = rhumbline.load(str(build(Planted(seed=5), tmp_path / "m")), device="cpu")
    with pytest.raises(InputError, match="not the model"):
        rhumbline.Monitor.from_run(planted.directory.path, unrelated)


def test_a_monitor_ends_its_forward_pass_at_the_layer(planted):
    reached = []
    monitor = rhumbline.Monitor.from_run(planted.directory.path, planted.model)
    with hooked(planted.model, {}, lambda layer, h: reached.append(layer)):
        monitor.score(["Please tell me about the sea."])
    assert max(reached) <= monitor.direction.layer
