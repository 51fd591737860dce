"""The whole job on planted organisms: verdicts, resume, tampering, refusal to mix protocols."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rhumbline import contrast_from_prompts, discover, load, preset, read_contrast, run, selected_direction, verify
from rhumbline.errors import OutputError, ProtocolError
from rhumbline.inference import decoding
from rhumbline.organisms import materialise
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Addition, Dose, Nulls, Protocol, Stability
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_rows

SMALL = preset(
    "rhumbline",
    sizes=Sizes(24, 12, 20),
    nulls=Nulls(draws=2, wide=19, prompts=6, procedure_prompts=4),
    dose=Dose((0.0, 0.5, 1.0), (0.0, 1.0), draws=1, prompts=6),
    stability=Stability(refits=4, sites=2, prompts=6),
    max_new_tokens=12,
)


@pytest.fixture(scope="session")
def organism(tmp_path_factory):
    folder = tmp_path_factory.mktemp("organisms")
    return lambda name: materialise(name, folder)


@pytest.fixture(scope="session")
def finished(organism, tmp_path_factory):
    """One finished run of a planted organism, made once; tests work on copies."""
    made: dict[tuple[str, Protocol], Path] = {}

    def get(name: str, protocol: Protocol = SMALL) -> Path:
        key = (name, json.dumps(protocol.record()))
        if key not in made:
            folder = organism(name)
            out = tmp_path_factory.mktemp("runs") / name
            run(load(str(folder), device="cpu"), read_contrast(folder / "contrast.jsonl"), out, protocol)
            made[key] = out
        return made[key]

    return get


def results_of(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


def comparable(results: dict) -> dict:
    return {k: v for k, v in results.items() if k not in {"environment", "timings", "sha256"}}


def test_the_planted_direction_is_found_and_reproduces(finished, organism):
    path = finished("planted")
    results = results_of(path)
    assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES"
    truth = load_file(organism("planted") / "truth.safetensors")["direction"].flatten()
    for seed in (0, 1):
        direction = selected_direction(path, seed)
        assert abs(float(direction.vector @ truth / truth.norm())) >= 0.95
    rates = {(a["arm"], a["set"]): a["rate"] for a in results["seeds"][0]["arms"]}
    assert rates["baseline", "positive"] >= 0.95
    assert rates["ablation", "positive"] <= 0.05
    assert rates["addition", "negative"] >= 0.95
    assert rates["ablation", "negative"] <= 0.05
    assert verify(path) == []


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("weak", "NO-BASELINE-REFUSAL"),
        ("several", "NOT-SINGLE-DIRECTION"),
        ("null", "NOT-SINGLE-DIRECTION"),
    ],
)
def test_nothing_is_found_where_nothing_is(name, verdict, finished):
    path = finished(name, replace(SMALL, sizes=Sizes(48, 16, 40)))
    results = results_of(path)
    assert results["verdict"] == verdict
    assert [seed["verdict"] for seed in results["seeds"]] == [verdict] * 2
    assert (path / "report.html").stat().st_size > 10_000
    assert verify(path) == []


def test_the_presets_run(finished):
    for name in ("arditi2024", "blog2026"):
        protocol = preset(name, sizes=Sizes(24, 12, 20), max_new_tokens=12, seeds=(3,))
        results = results_of(finished("planted", protocol))
        assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES"
        assert {a["arm"].split(":")[1] for a in results["seeds"][0]["arms"] if ":" in a["arm"]} == {"isotropic"}
    assert results["seeds"][0]["selected"]["position"] == -6  # the last instruction token, before five of the template


def test_rows_hold_no_text_unless_asked(finished):
    rows = read_rows(finished("planted") / "seed-0" / "outcomes.jsonl")
    assert {"arm", "set", "prompt_id", "class", "metric", "protocol_sha256"} <= rows[0].keys()
    assert not any("completion" in row for row in rows)
    kept = finished("planted", replace(SMALL, save_completions=True, seeds=(0,)))
    rows = read_rows(kept / "seed-0" / "outcomes.jsonl")
    refused = {row["completion"] for row in rows if row["class"] == "refused"}
    assert refused
    assert all("cannot" in text for text in refused)


def test_the_evidence_is_in_the_results(finished):
    results = results_of(finished("planted"))
    assert {e["name"] for e in results["pooled"]} == {"suppression", "induction"}
    assert results["agreement"][0]["cosine"] > 0.9
    for seed in results["seeds"]:
        for effect in seed["wide"]:
            assert set(effect["families"]) == set(SMALL.nulls.families) - {"unrelated"}  # one topic only
            for record in effect["families"].values():
                assert record["floor"] == 1 / (1 + record["draws"])
                assert record["p_holm"] >= record["p"] >= record["floor"]
        assert {(n["family"], n["draw"]) for n in seed["nulls"]} >= {("shuffled", 18), ("covariance", 18)}
        assert 0 < seed["energy"] < 1
        assert seed["groups"] > 0.5
        assert seed["dose"]["fragility"]["fragility"] > 0
        assert seed["stability"]["refits"] == 4
        assert seed["stability"]["cosine"]["mean"] > 0.8
        assert {r["length"] for r in seed["readouts"]["lengths"]} == {"full"}  # 12 tokens: nothing shorter is read
        assert ("addition-prompt", "negative") in {(a["arm"], a["set"]) for a in seed["arms"]}
        assert results["rule"]["name"] == "rhumbline"
    shuffled = [n for n in results["seeds"][0]["nulls"] if n["family"] == "shuffled"]
    assert max(abs(n["cosine"]) for n in shuffled) < 0.9


def test_a_coefficient_can_be_chosen_on_validation(finished):
    protocol = replace(SMALL, seeds=(0,), addition=Addition("validation", "prompt"))
    results = results_of(finished("planted", protocol))
    assert results["seeds"][0]["coefficient"] in (0.5, 0.75, 1.0, 1.5, 2.0)
    arms = {(a["arm"], a["set"]): a["rate"] for a in results["seeds"][0]["arms"]}
    assert arms["addition", "negative"] > 0.8
    assert ("addition-all", "negative") in arms
    assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES"


def test_a_null_may_end_once_its_class_is_settled(finished, monkeypatch):
    monkeypatch.setattr(decoding, "DECIDED_EVERY", 2)  # the planted refusal has seven tokens
    whole = replace(SMALL, judge="refusal-anywhere-literal")
    early = replace(whole, early_stop=True)
    rows, cut = (read_rows(finished("planted", p) / "seed-0" / "outcomes.jsonl") for p in (whole, early))
    assert [(r["arm"], r["prompt_id"], r["class"]) for r in rows] == [
        (r["arm"], r["prompt_id"], r["class"]) for r in cut
    ]
    shorter = [c["arm"] for r, c in zip(rows, cut, strict=True) if c["new_tokens"] < r["new_tokens"]]
    assert shorter
    assert all(arm.startswith("null:") for arm in shorter)


@pytest.mark.parametrize("changes", [{"judge": "refusal-opening"}, {"save_completions": True}])
def test_early_stop_is_refused_where_it_would_change_what_is_read(changes):
    with pytest.raises(ProtocolError, match="early_stop"):
        replace(SMALL, **({"judge": "refusal-anywhere-literal", "early_stop": True} | changes))


def test_a_rank_that_the_draws_cannot_reach_is_refused():
    with pytest.raises(ProtocolError, match="cannot reach"):
        replace(SMALL, nulls=Nulls(wide=9))
    with pytest.raises(ProtocolError, match="cannot reach"):
        replace(SMALL, nulls=Nulls(wide=0))
    assert preset("blog2026").nulls.wide == 0


def test_a_finished_run_runs_again_to_the_same_results(finished, organism, tmp_path):
    path = shutil.copytree(finished("planted"), tmp_path / "copy")
    before = comparable(results_of(path))
    folder = organism("planted")
    again = run(load(str(folder), device="cpu"), read_contrast(folder / "contrast.jsonl"), path, SMALL)
    assert comparable(dict(again.results)) == before


def test_another_protocol_in_the_same_directory_is_refused(finished, organism, tmp_path):
    path = shutil.copytree(finished("planted"), tmp_path / "copy")
    folder = organism("planted")
    model, contrast = load(str(folder), device="cpu"), read_contrast(folder / "contrast.jsonl")
    with pytest.raises(ProtocolError, match=r"differs in: max_new_tokens"):
        run(model, contrast, path, replace(SMALL, max_new_tokens=13))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[5, 0] += 0.01
    with pytest.raises(ProtocolError, match=r"model.fingerprint"):
        run(model, contrast, path, SMALL)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty \(thesis.tex\)"):
        run(model, contrast, tmp_path / "busy", SMALL)
    assert [p.name for p in (tmp_path / "busy").iterdir() if not p.name.startswith(".")] == ["thesis.tex"]


# -- verify -----------------------------------------------------------------------------------------------------------


def change_row(path):
    lines = (path / "seed-0" / "outcomes.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    row["class"] = "complied" if row["class"] == "refused" else "refused"
    lines[3] = json.dumps(row)
    (path / "seed-0" / "outcomes.jsonl").write_text("\n".join(lines) + "\n")
    return "seed-0/outcomes.jsonl"


def change_score(path):
    file = path / "seed-1" / "selection.json"
    content = json.loads(file.read_text())
    next(c for c in content["candidates"] if c["bypass"] is not None)["bypass"] = -18.0
    file.write_text(json.dumps(content))
    return "seed-1/selection.json"


def change_vector(path):
    file = path / "seed-0" / "directions.safetensors"
    tensors = load_file(file)
    tensors["candidates"][0, 0, 0] += 1e-3
    save_file(tensors, file)
    return "seed-0/directions.safetensors"


def change_rate(path):
    results = results_of(path)
    results["seeds"][0]["arms"][0]["rate"] = 0.5
    (path / "results.json").write_text(json.dumps(results))
    return "baseline/positive]: rate"


def change_verdict(path):
    text = (path / "results.json").read_text().replace("SINGLE-DIRECTION-REPRODUCES", "NOT-SINGLE-DIRECTION")
    (path / "results.json").write_text(text)
    return "verdict"


def change_protocol(path):
    text = (path / "protocol.json").read_text().replace('"min_drop": 0.5', '"min_drop": 0.4')
    (path / "protocol.json").write_text(text)
    return "protocol.json"


def change_wide(path):
    text = (path / "seed-1" / "wide.json").read_text()
    (path / "seed-1" / "wide.json").write_text(text.replace("1", "2", 1))
    return "seed-1/wide.json"


def lose_a_file(path):
    (path / "seed-0" / "nulls.json").unlink()
    return "seed-0/nulls.json"


def forge_everything(path):
    """A row changed, with the file's hash and the results' own hash made to fit: the rates betray it."""
    from rhumbline.records.files import file_sha256, sha256

    change_row(path)
    results = results_of(path)
    results["files"]["seed-0/outcomes.jsonl"] = file_sha256(path / "seed-0" / "outcomes.jsonl")
    results["sha256"] = sha256({k: v for k, v in results.items() if k != "sha256"})
    (path / "results.json").write_text(json.dumps(results))
    return "the rows say"


CHANGES = [change_row, change_score, change_vector, change_rate, change_verdict, change_protocol, change_wide,
           lose_a_file, forge_everything]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_verify_finds_one_change_and_says_where(change, finished, tmp_path):
    path = shutil.copytree(finished("planted"), tmp_path / "copy")
    assert verify(path) == []
    place = change(path)
    faults = verify(path)
    assert any(place in fault for fault in faults), faults


def test_verify_wants_a_run_directory(tmp_path):
    with pytest.raises(OutputError, match="not a run directory"):
        verify(tmp_path)


# -- interruption -----------------------------------------------------------------------------------------------------

CONFIG = """
sizes = {train = 24, val = 12, test = 20}
max_new_tokens = 12
nulls = {draws = 2, wide = 19, prompts = 6, procedure_prompts = 4}
dose = {strengths = [0, 0.5, 1], coefficients = [0, 1], draws = 1, prompts = 6}
stability = {refits = 4, sites = 2, prompts = 6}
"""
"""The protocol SMALL, as an experiment file."""


def start(folder: Path, out: Path) -> subprocess.Popen:
    config = folder.with_suffix(".toml")
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "rhumbline.cli", "run", str(folder), "--contrast", str(folder / "contrast.jsonl"),
               "--out", str(out), "--device", "cpu", "--config", str(config)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


STAGES = ["seed-0/metric.json", "seed-0/directions.safetensors", "seed-0/selection.json", "seed-0/nulls.json",
          "seed-0/outcomes.jsonl", "seed-0/wide.json", "seed-1/metric.json"]  # fmt: skip


def test_a_killed_run_resumes_to_the_same_results(finished, organism, tmp_path):
    """SIGKILL after each of several artefacts, in one directory, then one run to the end."""
    folder, out = organism("planted"), tmp_path / "run"
    for artefact in STAGES:
        process = start(folder, out)
        wait_for(out / artefact, process)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "results.json").exists()
    process = start(folder, out)
    text, messages = process.communicate()
    assert process.returncode == 0, messages
    assert b"SINGLE-DIRECTION-REPRODUCES" in text
    ours, expected = comparable(results_of(out)), comparable(results_of(finished("planted")))
    for key in ("seeds", "verdict", "rule"):
        assert ours[key] == expected[key]
    assert verify(out) == []
    assert not list(out.rglob("*.tmp"))


def test_an_interrupt_exits_130_and_resumes(organism, tmp_path):
    folder, out = organism("planted"), tmp_path / "run"
    process = start(folder, out)
    wait_for(out / "seed-0" / "directions.safetensors", process)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate()
    assert process.returncode == 130, messages
    assert b"Traceback" not in messages
    process = start(folder, out)
    process.communicate()
    assert process.returncode == 0


def test_two_processes_do_not_share_a_directory(organism, tmp_path):
    folder, out = organism("planted"), tmp_path / "run"
    with RunDirectory.open(out, {"of": "this process"}):
        second = start(folder, out)
        _, messages = second.communicate()
    assert second.returncode == 2
    assert b"in use by another" in messages


# -- discover ---------------------------------------------------------------------------------------------------------


def test_discover_separates_and_generates_nothing(organism, tmp_path, monkeypatch):
    from rhumbline.inference.runner import Runner

    def forbidden(*args, **kwargs):
        raise AssertionError("discover generated")

    monkeypatch.setattr(Runner, "generate", forbidden)
    folder = organism("planted")
    model, contrast = load(str(folder), device="cpu"), read_contrast(folder / "contrast.jsonl")
    found = discover(model, contrast, tmp_path / "d", SMALL)
    best = max(found["grid"], key=lambda cell: cell["auroc"])
    assert best["auroc"] > 0.95
    assert found["split"] == "val"
    assert (tmp_path / "d" / "report.html").is_file()
    # The contrary: where labels say nothing, nothing separates.
    texts = [p.text for p in contrast.prompts if p.label == "negative"]
    shuffled = contrast_from_prompts(texts[::2], texts[1::2])
    nothing = discover(model, shuffled, tmp_path / "n", replace(SMALL, sizes=Sizes(64, 64, 8)))
    assert max(cell["auroc"] for cell in nothing["grid"]) < 0.75
