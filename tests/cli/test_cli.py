"""The command line: exit codes, what goes to which stream, and bad input that never gives a traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from families import random_model
from paths import DATA
from rhumbline.cli import SPINS, main

GOLDEN = DATA / "golden"
SMALL = ["--preset", "arditi2024", "--sizes", "24,12,20", "--nulls", "2", "--max-new-tokens", "12", "--seeds", "0"]
SMALL += ["--device", "cpu"]


def test_a_run_from_start_to_verification(call, planted_folder, tmp_path):
    out = tmp_path / "run"
    command = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--out", out, *SMALL]
    code, text, _ = call(*command, "--json")
    assert code == 0
    results = json.loads(text)  # nothing but results on standard output
    assert results == json.loads((out / "results.json").read_text())
    assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES by the paper's criteria"
    code, text, messages = call(*command, "--expect", "NOT-SINGLE-DIRECTION")
    assert code == 1
    assert "expected NOT-SINGLE-DIRECTION" in messages
    assert "isotropic nulls" in text
    assert text.index("suppresses") < text.index("isotropic nulls")  # the claims come first
    for expected in ("SINGLE-DIRECTION-REPRODUCES", results["verdict"]):
        assert call(*command, "--expect", expected)[0] == 0
    assert call("verify", out)[0] == 0
    rows = out / "seed-0" / "outcomes.jsonl"
    rows.write_text(rows.read_text().replace('"refused"', '"complied"', 1))
    code, _, messages = call("verify", out)
    assert code == 1
    assert "seed-0/outcomes.jsonl was changed" in messages
    (out / "report.html").unlink()
    assert call("report", out)[0] == 0
    assert (out / "report.html").is_file()


def test_a_quick_run_has_a_directory_inside_that_of_the_whole_run(call, planted_folder, tmp_path):
    out = tmp_path / "run"
    command = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--out", out, *SMALL]
    code, text, messages = call(*command, "--quick", "--json")
    assert code == 0
    assert "rerun the command without --quick" in " ".join(messages.split())
    assert json.loads(text) == json.loads((out / "quick" / "results.json").read_text())
    assert not (out / "protocol.json").exists()
    assert call("verify", out / "quick")[0] == 0
    for words in (("verify", out), ("report", out)):
        code, _, messages = call(*words)
        assert code == 2
        assert f"A quick run lies in {out / 'quick'}" in " ".join(messages.split())
    code, text, _ = call(*command, "--json")  # the same directory
    assert code == 0
    assert json.loads(text) == json.loads((out / "results.json").read_text())
    assert call("verify", out)[0] == 0
    shutil.rmtree(out / "quick")  # the whole run does not depend on it
    assert call("verify", out)[0] == 0
    again = json.loads(call(*command, "--quick", "--json")[1])
    assert again["verdict"] == "SINGLE-DIRECTION-REPRODUCES by the paper's criteria"


def test_discover_and_model(call, planted_folder, tmp_path):
    contrast = planted_folder / "contrast.jsonl"
    code, text, _ = call("discover", planted_folder, "--contrast", contrast, "--out", tmp_path / "d", "--device", "cpu")
    assert code == 0
    assert "AUROC" in text
    assert "have the largest AUROC" in text
    assert not list(tmp_path.rglob("outcomes*"))
    command = ("discover", planted_folder, "--contrast", contrast, "--sizes", "20,10", "--device", "cpu", "--json")
    code, text, _ = call(*command, "--seeds", "3,4", "--out", tmp_path / "two")
    record = json.loads(text)
    assert (code, record["seeds"], record["train"]["positive"], record["n"]["negative"]) == (0, [3, 4], 20, 10)
    grids = []
    for seed in "34":
        grids.append(json.loads(call(*command, "--seeds", seed, "--out", tmp_path / seed)[1])["grid"])
    for both, *single in zip(record["grid"], *grids, strict=True):
        assert both["auroc"] == pytest.approx(sum(site["auroc"] for site in single) / 2)
    code, text, _ = call("model", planted_folder, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(text)["mode"] == "exact"
    assert call("model", planted_folder, "--device", "cpu")[0] == 0


@pytest.mark.parametrize(("name", "cell"), [("gemma-2b-it", (-2, 10)), ("yi-6b-chat", (-5, 20))])
def test_select_prints_the_authors_choice(name, cell, call):
    code, text, _ = call("select", GOLDEN / f"{name}.json")
    answer = json.loads(text)
    assert code == 0
    assert answer["selected"] == {"position": cell[0], "layer": cell[1]}
    assert answer["survivors"] > 0
    assert call("select", GOLDEN / f"{name}.json", "--preset", "blog2026")[0] == 0


def test_nobody_surviving_is_an_answer(call, tmp_path):
    table = {"n_layers": 4, "candidates": [{"position": -1, "layer": 1, "bypass": -1.0, "induce": -1.0, "kl": 0.0}]}
    (tmp_path / "t.json").write_text(json.dumps(table))
    code, text, _ = call("select", tmp_path / "t.json")
    assert code == 0
    assert json.loads(text)["selected"] is None
    assert "does not induce" in json.loads(text)["reason"]


def test_organisms_are_listed_and_written(call, tmp_path):
    code, text, _ = call("organism", "list")
    assert code == 0
    assert "refuses three quarters of either class" in " ".join(text.split())
    assert call("organism", "train", "weak", "--out", tmp_path / "weak")[0] == 0
    assert (tmp_path / "weak" / "contrast.jsonl").is_file()
    assert call("organism", "train", "nobody", "--out", tmp_path / "n")[0] == 2


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(n: int = 30, **more) -> list[dict]:
    return [{"prompt": f"{label} number {i}", "label": label, **more} for label in ("positive", "negative")
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no prompts"),
        ([{"prompt": "a", "label": "positive"}], "negative"),
        ([{"prompt": "", "label": "positive"}, {"prompt": "b", "label": "maybe"}], "line 2"),
        ([{"prompt": "a", "label": "positive", "split": s} for s in ("train", "test")], "split"),
        (pair(1), "prompts"),
    ],
)  # fmt: skip
def test_a_bad_contrast_exits_2_before_any_model_is_loaded(rows, words, call, tmp_path):
    contrast = write(tmp_path / "c.jsonl", *rows)
    model = tmp_path / "nowhere" / "at" / "all"
    code, _, messages = call("run", model, "--contrast", contrast, "--out", tmp_path / "r", *SMALL)
    assert (code, words in messages) == (2, True), messages
    assert not (tmp_path / "r").exists()


def test_bad_options_exit_2(call, planted_folder, tmp_path):
    base = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--out", tmp_path / "r"]
    for options, words in [
        (["--preset", "paper"], "unknown preset"),
        (["--judge", "oracle"], "refusal-opening"),
        (["--seeds", "a,b"], "--seeds"),
        (["--seeds", "1,1"], "seeds"),
        (["--sizes", "1,2"], "three numbers"),
        (["--nulls", "0"], "nulls.draws"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--expect", "YES"], "SINGLE-DIRECTION-REPRODUCES"),
        (["--date", "tomorrow"], "YYYY-MM-DD"),
        (["--template-kwargs", "{"], "not JSON"),
        (["--chat-template", str(tmp_path / "none")], "does not exist"),
        (["--config", str(tmp_path / "none.toml")], "does not exist"),
        (["--system", "Be brief.", "--thinking", "on", "--device", "cpu"], "ignores enable_thinking"),
    ]:
        code, _, messages = call(*base, *options)
        assert code == 2, messages
        assert words in messages
        assert not (tmp_path / "r").exists()
    with pytest.raises(SystemExit) as error:
        main(["run"])
    assert error.value.code == 2


def test_an_experiment_file(call, planted_folder, tmp_path):
    config = tmp_path / "experiment.toml"
    config.write_text(
        'preset = "blog2026"\nseeds = [5]\nmax_new_tokens = 12\n[sizes]\ntrain = 24\nval = 12\ntest = 20\n'
        "[addition]\ncoefficient = 2\n[rule]\nmin_drop = 0.75\n"
    )
    out = tmp_path / "r"
    base = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--device", "cpu"]
    assert call(*base, "--out", out, "--config", config, "--seeds", "7")[0] == 0
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["preset"] == "blog2026"
    assert protocol["seeds"] == [7]  # an option wins over the file
    assert protocol["addition"]["coefficient"] == 2.0
    assert protocol["rule"]["min_drop"] == 0.75
    config.write_text('seeds = "all"\nnonsense = 1\n[nulls]\ndraws = "many"\n[selection]\ncriterion = "best"\n')
    code, _, messages = call(*base, "--out", tmp_path / "s", "--config", config)
    assert code == 2
    for words in ("seeds = 'all'", "unknown field nonsense", "nulls.draws = 'many'", "selection.criterion"):
        assert words in messages


def test_models_that_cannot_be_used(call, planted_folder, tmp_path, tokenizer):
    contrast = planted_folder / "contrast.jsonl"

    def attempt(model, *options):
        return call("run", model, "--contrast", contrast, "--out", tmp_path / "r", *SMALL, *options)

    code, _, messages = attempt(tmp_path / "nowhere")
    assert code == 2
    assert "no such directory" in messages
    truncated = shutil.copytree(planted_folder, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert attempt(truncated)[0] == 3
    silent = tmp_path / "no-template"
    random_model("qwen2", vocab_size=len(tokenizer)).save_pretrained(silent)
    tokenizer.save_pretrained(silent)
    (silent / "chat_template.jinja").unlink()
    code, _, messages = attempt(silent)
    assert code == 2
    assert "chat template" in messages
    assert not (tmp_path / "r").exists()


def test_a_model_that_never_refuses_has_no_baseline(call, planted_folder, tmp_path, tokenizer):
    folder = tmp_path / "random"
    random_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    contrast = planted_folder / "contrast.jsonl"
    code, text, _ = call("run", folder, "--contrast", contrast, "--out", tmp_path / "r", *SMALL)
    assert code == 0
    assert "NO-BASELINE-REFUSAL" in text
    assert call("verify", tmp_path / "r")[0] == 0


def test_refusal_tokens_that_leave_no_prompt(call, planted_folder, tmp_path):
    """The model refuses, but by these tokens nothing is a refusal: an error that names the option."""
    base = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--out", tmp_path / "r", *SMALL]
    code, _, messages = call(*base, "--refusal-tokens", "Here")
    assert code == 2
    assert "--refusal-tokens" in messages


def test_places_that_cannot_be_written(call, planted_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    base = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", *SMALL]
    code, _, messages = call(*base, "--out", tmp_path / "file")
    assert code == 2
    assert "is not a directory" in messages
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_loses_nothing(call, planted_folder, tmp_path, monkeypatch):
    import errno
    import os

    from rhumbline.records import files

    out = tmp_path / "r"
    base = ["run", planted_folder, "--contrast", planted_folder / "contrast.jsonl", "--out", out, *SMALL]
    real, written = os.replace, []

    def full(source, target):
        if len(written) >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(target)
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    code, _, messages = call(*base)
    assert code == 2
    assert "No space left on device" in messages
    assert "run the same command again" in messages
    assert not list(out.rglob("*.tmp"))
    monkeypatch.setattr(files.os, "replace", real)
    assert call(*base)[0] == 0
    assert call("verify", out)[0] == 0


def test_the_embedded_tensors_have_the_dtype_asked_for(call, planted_folder):
    code, text, _ = call("model", planted_folder, "--device", "cpu", "--dtype", "bfloat16", "--json")
    assert code == 0
    assert json.loads(text)["dtype"] == str(torch.bfloat16).removeprefix("torch.")


@pytest.mark.parametrize("seed", [0, 1])
def test_select_reads_the_selection_of_a_run(seed, every_stage, call, tmp_path):
    file = every_stage / f"seed-{seed}" / "selection.json"
    recorded = json.loads(file.read_text())
    answer = json.loads(call("select", file)[1])
    assert answer["selected"] == {name: recorded["selected"][name] for name in ("position", "layer")}
    assert answer["survivors"] == recorded["survivors"] > 0
    assert json.loads(call("select", file, "--preset", "blog2026")[1])["tied"] != answer["tied"]
    code, _, messages = call("select", shutil.copy(file, tmp_path))  # not in a run: the layers are not known
    assert code == 2
    assert "n_layers" in messages


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_sleep_unless_the_user_sets_how_they_wait(given, expected, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that the value of before is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected
