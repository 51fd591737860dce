"""Finished runs are opened for analyses: their own model and prompts, or an error."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import rhumbline
from finished_runs import QUICK
from make_sets import make_sets
from rhumbline import verify
from rhumbline.analyses import detector, geometry
from rhumbline.analyses.subject import AnalysisPrompts, open_subject
from rhumbline.errors import InputError, OutputError, ProtocolError
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.windows import Window
from rhumbline.organisms import Planted, build
from rhumbline.prompts.contrasts import split_contrast
from rhumbline.prompts.named_sets import open_contrast
from rhumbline.report import build as report
from rhumbline.stages.finished_run import RunInputs


def test_a_model_or_contrast_that_is_not_the_runs_is_refused(planted, tmp_path):
    path, contrast = planted.directory.path, tmp_path / "other.jsonl"
    other = rhumbline.load(str(build(Planted(seed=5), tmp_path / "m")), device="cpu")
    with pytest.raises(InputError, match="not the model"):
        open_subject(path, other)
    contrast.write_text('{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "negative"}\n')
    with pytest.raises(InputError, match="not that of"):
        open_subject(path, planted.model, contrast)
    with pytest.raises(InputError, match="no seed 9"):
        open_subject(path, planted.model, seed=9)
    with pytest.raises(OutputError, match="not a run directory"):
        open_subject(tmp_path, planted.model)
    # Model and contrast of an organism are found by its name.
    again = open_subject(path)
    assert torch.equal(again.selected().vector, planted.selected().vector)


def test_a_run_on_a_named_contrast_is_opened_by_its_name(planted, tmp_path):
    mirror = make_sets(tmp_path / "sets")
    contrast = open_contrast("refusal", mirror)
    assert QUICK.sampling == "reference"
    rhumbline.run(planted.model, contrast, tmp_path / "run", replace(QUICK, refusal_tokens=("I",)), page=False)
    again = open_subject(tmp_path / "run", planted.model, "refusal", inputs=RunInputs(data_dir=mirror))
    assert again.splits.ids() != split_contrast(contrast, QUICK.sizes, 0, "lots").ids()
    with pytest.raises(InputError, match="Pass the file or the name of the contrast of the run"):
        open_subject(tmp_path / "run", planted.model)


# -- runs that read responses


@pytest.mark.parametrize(
    "options",
    [["geometry"], ["base", "--base", "organism:planted"], ["suffix", "--suffix", "FILE"], ["directions"], ["monitor"]],
    ids=lambda options: options[0],
)
def test_analyses_of_prompts_refuse_a_run_that_read_responses(options, response_run, call, tmp_path):
    (tmp_path / "suffixes.txt").write_text("a short answer\n")
    name, *rest = [str(tmp_path / "suffixes.txt") if word == "FILE" else word for word in options]
    code, _, message = call("analyze", name, response_run, *rest)
    assert code == 2
    assert "read its direction from responses" in message
    assert "--positions post-instruction" in message


def test_a_monitor_refuses_a_run_that_read_responses(response_run, planted):
    with pytest.raises(InputError, match="a monitor reads prompts"):
        rhumbline.Monitor.from_run(response_run, planted.model)


# -- the run directory


def test_analyses_are_in_the_report_and_do_not_affect_verification(planted):
    geometry.analyse(planted, splits=2)
    detector.analyse(replace(planted, page=True), nulls=3)
    path = planted.directory.path
    page = (path / "report.html").read_text()
    assert "<h2>Geometry</h2>" in page
    assert "<h2>Monitor</h2>" in page
    assert (path / "figures" / "monitor-roc.svg").is_file()
    assert verify(path) == []
    foreign = path / "analyses" / "geometry.json"
    kept = foreign.read_text()
    foreign.write_text(json.dumps({**json.loads(kept), "protocol_sha256": "0" * 64}))
    with pytest.raises(ProtocolError, match="another protocol"):
        report.build(path)
    foreign.unlink()
    report.build(path)
    assert "<h2>Geometry</h2>" not in (path / "report.html").read_text()


# -- measurements


def test_arms_with_the_same_interventions_are_measured_once(planted):
    rows = []
    subject = replace(planted, tick=rows.append)
    prompts = AnalysisPrompts.of(subject, 4).test
    d = subject.selected()
    arms = [
        *(Arm("a", (Ablate(d, a, spared=s),)) for a in (0.5, 1.0) for s in (0, 1)),
        Arm("b", (Ablate(d),), Window(prompt=False)),
        Arm("c", (Ablate(Direction.from_vector(-d.vector, d.position, d.layer)),)),
        *(Arm("d", (Add(d, c),)) for c in (-1.0, 1.0)),
    ]
    alone = torch.cat([AnalysisPrompts.of(planted, 4).test.metric([arm]) for arm in arms])
    rows.clear()
    renamed = [replace(arm, name="other") for arm in arms]
    together = prompts.metric([*arms, *renamed])
    torch.testing.assert_close(together, torch.cat([alone, alone]), atol=1e-3, rtol=0)
    assert sum(rows) == len(arms) * len(prompts.positive)
    prompts.metric(arms)
    assert sum(rows) == len(arms) * len(prompts.positive)  # no further pass
    prompts.induced(arms[-1:])  # the same arm on other prompts is another measurement
    assert sum(rows) == len(arms) * len(prompts.positive) + len(prompts.negative)


# -- the metric of the run


def test_the_metric_is_that_of_the_run_with_its_threshold(planted, tmp_path):
    """The sign of the metric predicts the behaviour only relative to the threshold that the run found."""
    path = shutil.copytree(planted.directory.path, tmp_path / "run")
    file = path / "seed-0" / "metric.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threshold": 1.5}))
    moved, sequences = open_subject(path), planted.sequences("test", "positive")[:3]
    plain, shifted = (s.scorer.read(sequences, [BASELINE]).metric for s in (planted, moved))
    torch.testing.assert_close(shifted, plain - 1.5)
    assert planted.metric.threshold == 0
    assert moved.tokens == planted.tokens != ()


def test_the_kl_divergence_leaves_out_the_tokens_that_the_rule_of_the_run_leaves_out(planted):
    selection = {**planted.directory.protocol["selection"], "kl_outside": True}
    outside = replace(
        planted, directory=replace(planted.directory, protocol={**planted.directory.protocol, "selection": selection})
    )
    assert planted.scorer.excluded == ()
    assert outside.scorer.excluded == planted.tokens


def test_edits_are_those_that_the_run_tests(planted):
    protocol = {
        **planted.directory.protocol,
        "ablation": {"spared": 2},
        "addition": {**planted.directory.protocol["addition"], "positions": "prompt"},
    }
    other, r = replace(planted, directory=replace(planted.directory, protocol=protocol)), planted.selected()
    assert (planted.ablation(r).spared, other.ablation(r).spared) == (0, 2)
    assert (planted.addition(r).positions, other.addition(r).positions) == ("all", "prompt")
    assert other.addition(r).coefficient == planted.coefficient
