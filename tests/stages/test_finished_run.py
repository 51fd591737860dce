"""An opened run: its directions and coefficient, and the proof that model, prompts and template are the run's."""

import json
import shutil

import pytest

from finished_runs import COMPLETIONS
from rhumbline import load, selected_direction
from rhumbline.errors import InputError, OutputError, ProtocolError
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.files import read_json
from rhumbline.stages.finished_run import RunInputs, open_run


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished("refusal", COMPLETIONS))


def changed(run, tmp_path, name, **fields):
    """A copy of the run in which fields of one artefact differ."""
    folder = shutil.copytree(run.path, tmp_path / "run")
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return open_run(folder)


def test_a_run_has_its_directions(run):
    direction = run.direction()
    assert direction is not None
    assert (direction.vector == selected_direction(run.path).vector).all()
    assert run.direction(0).layer == run.artefacts().selection.selected.layer
    assert [(null.family, null.draw) for null in run.nulls()] == [("isotropic", 0)]
    assert run.coefficient() == 1
    assert run.results.verdict == "SINGLE-DIRECTION-REPRODUCES by the paper's criteria"
    with pytest.raises(ProtocolError, match="no seed 5; it has 0"):
        run.artefacts(5)
    with pytest.raises(OutputError, match="not a run directory"):
        open_run(run.path / "seed-0")


def test_the_coefficient_is_the_one_on_disk(run, tmp_path):
    """A coefficient of 0 is 0; only a missing one is 1."""
    none = changed(run, tmp_path, "seed-0/selection.json", coefficient=0.0)
    assert none.coefficient() == 0
    arms = [none.arms().arm(ArmId.parse(name)) for name in ("addition", "null:isotropic:0:addition")]
    assert [arm.interventions[0].coefficient for arm in arms] == [0, 0]
    shutil.rmtree(tmp_path / "run")
    assert changed(run, tmp_path, "seed-0/selection.json", coefficient=None).coefficient() == 1


def test_a_run_is_opened_with_its_own_model_and_prompts(run):
    opened = run.with_model()
    assert opened.model.name == "organism:refusal"
    assert opened.chat.record() == run.context.chat
    assert opened.splits.ids() == read_json(run.path / "seed-0" / "splits.json")["ids"]


def test_another_model_contrast_or_template_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="the weights differ"):
        run.model(RunInputs(dtype="bfloat16"))
    with pytest.raises(InputError, match="the weights differ"):
        run.check_model(load("organism:planted", device="cpu"))
    with pytest.raises(InputError, match="is not that of"):
        run.contrast("organism:planted")
    model = load("organism:refusal", device="cpu", dtype="float32")
    with pytest.raises(InputError, match="chat template is not that of"):
        run.chat(model, "{{ messages[0].content }}")
    model.tokenizer.chat_template = "{{ messages[0].content }} -"
    with pytest.raises(InputError, match="chat template is not that of"):
        run.chat(model)
    other = changed(run, tmp_path, "protocol.json", contrast={**run.directory.protocol["contrast"], "name": "own"})
    with pytest.raises(InputError, match="--contrast FILE"):
        other.contrast()


def test_a_run_that_has_not_ended_is_not_opened_with_its_model(run, tmp_path):
    folder = shutil.copytree(run.path, tmp_path / "run")
    (folder / "results.json").unlink()
    with pytest.raises(InputError, match="it has no results"):
        open_run(folder).with_model()
    assert open_run(folder).direction() is not None


def test_a_seed_without_a_direction_has_the_baseline_alone(run, tmp_path):
    without = changed(run, tmp_path, "seed-0/selection.json", selected=None)
    assert without.direction() is None
    assert without.nulls() == []
    assert without.arms().every() == [BASELINE]
