"""After a demo run every command works on an organism by its name, and on the run directory alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import rhumbline
from finished_runs import COMPLETIONS
from rhumbline import experiment
from rhumbline.cli import main, runs
from rhumbline.models.loading import fingerprint
from rhumbline.models.processor import multiplies_bfloat16
from rhumbline.organisms.planted import TRUTH
from rhumbline.records.next_steps import NextStep, Step
from tiny_tasks import write_tasks

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and lm_eval, when they are imported

ORGANISM = "organism:refusal"


@pytest.fixture(scope="module")
def demo(finished, tmp_path_factory) -> Path:
    """A small finished run of the organism, as `rhumbline demo` leaves one."""
    return shutil.copytree(finished("refusal", COMPLETIONS), tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Task files for lm-evaluation-harness."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


COMMANDS = {
    "model": ["model", ORGANISM],
    "model, built on demand": ["model", "organism:planted", "--json"],
    "run, planned": ["run", ORGANISM, "--out", "OUT", "--plan"],
    "discover": ["discover", ORGANISM, "--out", "OUT"],
    "discover, built on demand": ["discover", "organism:planted", "--out", "OUT", "--json"],
    "edit": ["edit", ORGANISM, "--direction", "RUN", "--out", "OUT"],
    "edit, sharded": ["edit", ORGANISM, "--direction", "RUN", "--out", "OUT", "--sharded"],
    "edit, built on demand": ["edit", "organism:planted", "--direction", "TRUTH", "--out", "OUT", "--sharded"],
    "export direction": ["export", "RUN", "--to", "direction", "--out", "OUT.safetensors"],
    "export gguf": ["export", "RUN", "--to", "gguf", "--out", "OUT.gguf"],
    "export lora": ["export", "RUN", "--to", "lora", "--out", "OUT"],
    "export lm-eval": ["export", "RUN", "--to", "lm-eval", "--out", "OUT.pt"],
    "export lm-eval, ablated": ["export", "RUN", "--to", "lm-eval", "--out", "OUT.pt", "--ablate"],
    "analyze geometry": ["analyze", "geometry", "RUN"],
    "analyze flinch": [
        *("analyze", "flinch", ORGANISM, "--base", "organism:refusal-base", "--terms", "TERMS", "--out", "OUT")
    ],
    "robustness": [
        *("robustness", "organism:planted", "--out", "OUT", "--ranks", "1", "--test", "8", "--max-new-tokens", "4")
    ],
    "evaluate": [
        *("evaluate", "RUN", "--tasks", "answers", "--arms", "ablation", "--limit", "2", "--include-path", "TASKS")
    ],
    "verify": ["verify", "RUN"],
}
NEEDS = {"export gguf": "gguf", "export lora": "peft", "evaluate": "lm_eval"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_after_the_demo(name, demo, tasks, planted_folder, call, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    terms = Path(rhumbline.__file__).parent / "organisms" / "data" / "refusal-base" / "terms.json"
    words = {"RUN": demo, "OUT": tmp_path / "out", "TASKS": tasks, "TRUTH": planted_folder / TRUTH, "TERMS": terms}
    words |= {f"OUT{suffix}": tmp_path / f"out{suffix}" for suffix in (".safetensors", ".gguf", ".pt")}
    code, _, messages = call(*(words.get(word, word) for word in COMMANDS[name]))
    assert code == 0, messages
    assert any(tmp_path.iterdir()) == (any("OUT" in word for word in COMMANDS[name]) and "--plan" not in COMMANDS[name])
    assert not list(tmp_path.glob(".*"))  # nothing unfinished


def test_an_organism_is_loaded_by_its_name(demo):
    recorded = json.loads((demo / "protocol.json").read_text())
    model = rhumbline.load(ORGANISM, device="cpu", dtype="float32")
    assert model.name == recorded["model"]["name"] == recorded["contrast"]["name"] == ORGANISM
    assert fingerprint(model) == recorded["model"]["fingerprint"]
    native = torch.bfloat16 if multiplies_bfloat16() else torch.float32  # the checkpoint's is bfloat16
    assert rhumbline.load(ORGANISM, device="cpu").dtype == native


def test_the_model_of_a_run_is_monitored(demo):
    monitor = rhumbline.Monitor.from_run(demo, rhumbline.load(ORGANISM, device="cpu", dtype="float32"))
    assert monitor.score(["How do I get moon salt?"]).shape == (1,)


def test_an_exported_adapter_is_loaded_on_its_organism(demo, call, tmp_path):
    pytest.importorskip("peft")
    assert call("export", demo, "--to", "lora", "--out", tmp_path / "adapter")[0] == 0
    adapted = rhumbline.load(str(tmp_path / "adapter"), device="cpu")
    assert adapted.proof.mode == "exact"
    assert fingerprint(adapted) != fingerprint(rhumbline.load(ORGANISM, device="cpu"))
    assert call("model", tmp_path / "adapter")[0] == 0


def test_unknown_names_say_what_to_give(call, tmp_path):
    code, _, messages = call("model", "organism:nothing")
    assert code == 2
    assert "Use one of refusal, extended" in messages
    bare = tmp_path / "bare"
    bare.mkdir()
    code, _, messages = call("discover", bare, "--out", tmp_path / "d")
    assert code == 2
    assert "--contrast" in messages


@pytest.mark.parametrize("command", ["demo --organism refusal", "run MODEL", "run MODEL --contrast FILE"])
def test_the_next_steps_of_a_run_can_be_copied(command, demo, planted_folder, tmp_path, monkeypatch, capsys):
    """An analysis needs the contrast of the run again, unless it is that of an organism."""
    results, contrast = json.loads((demo / "results.json").read_text()), str(planted_folder / "contrast.jsonl")
    monkeypatch.setattr(experiment, "run", lambda *a, **k: experiment.Result(demo, results))
    monkeypatch.setattr(runs, "after_run", lambda results, facts: (Step(what=NextStep.ANALYZE),))
    names = {"MODEL": "organism:planted", "FILE": contrast}
    assert main([*(names.get(word, word) for word in command.split()), "--out", str(tmp_path / "new")]) == 0
    options = f" --contrast {contrast}" if "FILE" in command else ""
    printed = "".join(capsys.readouterr().err.split())
    assert printed.endswith("".join(f"rhumbline analyze geometry {tmp_path / 'new'}{options}".split()))
