"""`run --plan`: the forecast of a run, with the sample and the errors of the run, before a model is loaded."""

import json
import shutil

import pytest

from make_sets import make_sets
from rhumbline import load, open_contrast, preset
from rhumbline.cli import main
from rhumbline.cli.forecast import _stages
from rhumbline.jobs.forecast import forecast
from rhumbline.models.chat import Chat
from rhumbline.organisms import materialise
from rhumbline.prompts.contrasts import Sizes, split_contrast
from rhumbline.prompts.loss_texts import NO_TEXTS
from rhumbline.stages.run_plan import resolved


def test_a_forecast_draws_the_sample_of_the_run(tmp_path):
    model = load("organism:refusal", device="cpu", dtype="float32")
    contrast = open_contrast("refusal", make_sets(tmp_path))
    protocol = preset("rhumbline", seeds=(0,), sizes=Sizes(16, 10, 8), sampling="reference")
    stages = _stages(model.tokenizer, contrast, protocol, model.n_layers, NO_TEXTS, model.dtype)[0]
    chat, plan = Chat.of(model.tokenizer), resolved(protocol, contrast)
    lots, reference = (
        forecast(chat, split_contrast(contrast, protocol.sizes, 0, sampling), plan, model.n_layers)
        for sampling in ("lots", "reference")
    )
    assert stages == reference
    assert reference != lots


@pytest.mark.parametrize("kind", ["empty", "own code", "no weights", "unknown dtype"])
def test_the_plan_gives_the_errors_of_the_run(kind, planted_folder, call, tmp_path):
    model, options = shutil.copytree(planted_folder, tmp_path / "model"), ["--device", "cpu"]
    if kind == "empty":
        shutil.rmtree(model)
        model.mkdir()
    elif kind == "own code":
        config = json.loads((model / "config.json").read_text())
        own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
        (model / "config.json").write_text(json.dumps(config | own))
        (model / "mine.py").write_text("raise RuntimeError('this code was run')")
    elif kind == "no weights":
        (model / "model.safetensors").unlink()
    else:
        options += ["--dtype", "float31"]
    contrast = planted_folder / "contrast.jsonl"
    command = ["run", model, "--contrast", contrast, "--out", tmp_path / "run", *options]
    ran, planned = call(*command), call(*command, "--plan")
    assert ran[0] == planned[0] == (2 if kind in ("empty", "unknown dtype") else 3)
    assert str(model) in planned[2] or "float31" in planned[2]
    assert "this code was run" not in ran[2] + planned[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda:999"], "this machine has"),
        (["--out", "FILE"], "is not a directory"),
        (["--tensor-parallel", "--device", "cpu"], "cannot be combined with --engine or --device"),
    ],
)
def test_the_plan_refuses_what_the_run_refuses(options, reason, planned_out, call):
    out, file = planned_out
    options = [str(file) if option == "FILE" else option for option in options]
    command = ["run", "organism:refusal", "--out", out, *options]
    ran, planned = call(*command), call(*command, "--plan")
    assert ran[0] == planned[0] == 2
    assert reason in planned[2]
    assert reason in ran[2]


def test_neutral_prompts_that_are_not_used_are_mentioned_once(planted_folder, call, tmp_path):
    rows = (planted_folder / "contrast.jsonl").read_text()
    neutral = tmp_path / "neutral.jsonl"
    neutral.write_text(rows + json.dumps({"prompt": "Name a colour of the sea.", "label": "neutral"}) + "\n")
    words = "1 neutral prompts of the contrast are not used"
    for contrast, times in ((neutral, 1), (planted_folder / "contrast.jsonl", 0)):
        command = ["run", planted_folder, "--contrast", contrast, "--device", "cpu"]
        assert " ".join(call(*command, "--plan")[2].split()).count(words) == times
        command[0] = "discover"
        assert " ".join(call(*command, "--out", tmp_path / f"d{times}")[2].split()).count(words) == times
    planned = call("run", "organism:style", "--behaviour", "style", "--plan")
    assert planned[0] == 0
    assert "neutral" not in planned[2]


def test_responses_that_are_not_read_are_counted(planted_folder, call, tmp_path):
    rows = [
        {"prompt": f"Question {i}?", "label": label, "response": f"{label} answer {k}"}
        for i in range(6)
        for label in ("positive", "negative")
        for k in range(2)
    ]
    for kept, times in ((rows, 1), (rows[::2], 0)):
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        command = ["run", planted_folder, "--contrast", tmp_path / "texts.jsonl", "--device", "cpu"]
        for options in (["--plan"], ["--plan", "--behaviour", "style"]):
            code, _, messages = call(*command, *options)
            assert code == 0
            assert " ".join(messages.split()).count("12 responses of the contrast are not read") == times


@pytest.fixture
def planned_out(tmp_path):
    """A directory for a run, and a file where a directory is expected."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "run", tmp_path / "file"


def test_the_time_of_a_plan_includes_start_and_report(capsys, monkeypatch):
    monkeypatch.setattr("rhumbline.cli.forecast.time.process_time", lambda: 1000.0)
    assert main(["run", "organism:refusal", "--plan", "--quick"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "time: about 3" in shown  # minutes: twice 1000 s, and passes of some seconds
    assert "17 min to start" in shown
    assert "17 min for statistics and report" in shown


def test_the_plan_states_whether_the_model_fits_and_stops(tmp_path, capsys, monkeypatch):
    folder = materialise("planted", tmp_path / "models")
    command = ["run", str(folder), "--contrast", str(folder / "contrast.jsonl"), "--out", str(tmp_path / "run")]

    def loaded(*args, **kwargs):
        raise AssertionError("the model was loaded")

    with monkeypatch.context() as patched:
        patched.setattr("rhumbline.models.loading.load", loaded)
        assert main([*command, "--plan"]) == 0
    printed = capsys.readouterr().out
    for part in ("arms ", "parameters", "fits", "on this machine", "prompt tokens/s"):
        assert part in printed
    assert "DOES NOT FIT" not in printed
    assert "selection, at most: no candidate of the screen passes, and the bound on KL is then 0.2" in printed
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("rhumbline.cli.forecast._free_memory", lambda device: (1e3, "a small machine"))
    assert main([*command[:4], "--plan", "--preset", "arditi2024"]) == 0  # the full grid, and one bound
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    assert "selection, at most" not in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "--out is missing. Pass --out RUN"),
        (["--behaviour", "politeness", "--out", "OUT"], "finds refusals only, so only the name would change"),
    ],
)
def test_a_run_that_cannot_begin_is_refused_with_advice(options, advice, tmp_path, capsys):
    options = [option.replace("OUT", str(tmp_path / "run")) for option in options]
    assert main(["run", "organism:refusal", *options]) == 2
    assert advice in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
