"""The whole job on planted organisms: verdicts, what a run holds, interruptions, and protocols that do not mix."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finished_runs import EVERY_STAGE, QUICK
from paths import HELPERS
from rhumbline import contrast_from_prompts, discover, load, preset, read_contrast, run, selected_direction, verify
from rhumbline.edits.read_direction import read_directions
from rhumbline.errors import OutputError, ProtocolError
from rhumbline.inference import decoding
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.sources import Source
from rhumbline.play.opening import DirectionOptions, open_session
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.claims import ClaimKind
from rhumbline.records.files import read_rows
from rhumbline.settings import (
    AblationSettings,
    AdditionSettings,
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    StabilitySettings,
)
from rhumbline.stages.seed_run import read_positions


def results_of(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


def comparable(results: dict) -> dict:
    return {k: v for k, v in results.items() if k not in {"environment", "timings", "sha256"}}


def job(organism, name: str = "planted"):
    """The model and the contrast of an organism, as a user loads them."""
    folder = organism(name)
    return load(str(folder), device="cpu"), read_contrast(folder / "contrast.jsonl")


def test_the_planted_direction_is_found_and_reproduces(every_stage, organism):
    results = results_of(every_stage)
    assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES"
    truth = load_file(organism("planted") / "truth.safetensors")["direction"].flatten()
    for seed in (0, 1):
        direction = selected_direction(every_stage, seed)
        assert abs(float(direction.vector @ truth / truth.norm())) >= 0.95
    rates = {(a["arm"], a["set"]): a["rate"] for a in results["seeds"][0]["arms"]}
    assert rates["baseline", "positive"] >= 0.95
    assert rates["ablation", "positive"] <= 0.05
    assert rates["addition", "negative"] >= 0.95
    assert rates["ablation", "negative"] <= 0.05
    assert verify(every_stage) == []


def test_every_stage_spares_tokens(organism, tmp_path):
    """The planted direction is written at the last tokens, so the first ones do not matter."""
    protocol = replace(EVERY_STAGE, seeds=(0,), ablation=AblationSettings(spared=1))
    run(*job(organism), tmp_path / "run", protocol, page=False)
    assert results_of(tmp_path / "run")["verdict"] == "SINGLE-DIRECTION-REPRODUCES"
    assert verify(tmp_path / "run") == []
    # What acts outside of the run says that it acts everywhere, and the page has the arms of the run.
    imported = read_directions(tmp_path / "run")
    assert "spare the first token" in "".join(imported.origin.caveats)
    model, _ = job(organism)
    session = open_session(model, Source(model.name), DirectionOptions(str(tmp_path / "run"), force=True), imported)
    assert [change.spared for arm in session.arms(session.settings())[1] for change in arm.interventions] == [1]


def test_a_candidate_within_the_bound_of_the_verdict_is_tested_if_none_is_within_that_of_the_selection(
    organism, tmp_path
):
    """With a first bound that no ablation meets; without the second bound nothing is tested."""
    rule = replace(EVERY_STAGE.selection, max_kl=1e-4, max_kl_otherwise=0.2)
    small = replace(QUICK, sizes=Sizes(24, 8, 8), full_grid=False, screen=6)
    rows: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    ticks = [lambda stage, n, some=some: some.update({stage: n or 0}) for some in rows]
    two_bounds = replace(small, selection=rule)
    seed = run(*job(organism, "refusal"), tmp_path / "run", two_bounds, progress=ticks[0]).results["seeds"][0]
    assert seed["selected"] is not None
    assert verify(tmp_path / "run") == []
    report = (tmp_path / "run" / "report.html").read_text()
    assert "no candidate within the bound on KL (0.0001) passes the rule" in report
    alone = replace(small, selection=replace(rule, max_kl_otherwise=None))
    nothing = run(*job(organism, "refusal"), tmp_path / "alone", alone, page=False, progress=ticks[1])
    seed = nothing.results["seeds"][0]
    assert (seed["verdict"], seed["selected"]) == ("NOT-TESTED", None)
    # The scores do not depend on the bound, so the second one costs at most the rounding of some of them.
    assert 0 < rows[1]["selection"] <= rows[0]["selection"] < 1.2 * rows[1]["selection"]


ONE_SEED = replace(
    EVERY_STAGE,
    seeds=(0,),
    sizes=Sizes(48, 16, 40),
    dose=DoseSettings((), ()),
    stability=StabilitySettings(refits=0),
)
"""The default rule with its nulls, on enough prompts for a verdict against the direction."""


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("weak", "NO-BASELINE-REFUSAL"),
        ("several", "NOT-SINGLE-DIRECTION"),
        ("null", "NOT-TESTED"),
    ],
)
def test_a_model_without_a_single_direction_gets_another_verdict(name, verdict, organism, tmp_path):
    results = run(*job(organism, name), tmp_path / "run", ONE_SEED).results
    assert results["verdict"] == verdict
    assert [seed["verdict"] for seed in results["seeds"]] == [verdict]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert verify(tmp_path / "run") == []


PRESETS = {"arditi2024": range(-5, 0), "blog2026": [-1]}
"""The positions that each preset reads; the template has five tokens after the instruction."""
CRITERIA = {"arditi2024": "by the paper's criteria", "blog2026": "by the blog's criteria"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_of_refusal_runs(name, organism, tmp_path):
    protocol = preset(name, sizes=Sizes(24, 12, 20), max_new_tokens=12, seeds=(3,))
    results = run(*job(organism), tmp_path / "run", protocol, page=False).results
    assert results["verdict"] == f"SINGLE-DIRECTION-REPRODUCES {CRITERIA[name]}"
    (seed,) = results["seeds"]
    assert {a["arm"].split(":")[1] for a in seed["arms"] if ":" in a["arm"]} == {"isotropic"}
    assert seed["selected"]["position"] in PRESETS[name]


@pytest.mark.parametrize(("name", "position"), [("last-token", -1), ("last-instruction", -6)])
def test_both_readings_of_the_final_instruction_token_can_be_selected(name, position, organism):
    model, _ = job(organism)
    chat = Chat.of(model.tokenizer)
    assert [int(p) for p in read_positions(ExtractionSettings(name), chat)] == [position]


def test_rows_hold_no_text_unless_asked(every_stage, texts_run):
    rows = read_rows(every_stage / "seed-0" / "outcomes.jsonl")
    assert {"arm", "set", "prompt_id", "class", "metric", "protocol_sha256"} <= rows[0].keys()
    assert not any("completion" in row or "prompt" in row for row in rows)
    rows = read_rows(texts_run / "seed-0" / "outcomes.jsonl")
    refused = {row["completion"] for row in rows if row["class"] == "refused"}
    assert refused
    assert all("cannot" in text for text in refused)


def test_the_evidence_is_in_the_results(every_stage):
    results = results_of(every_stage)
    assert {e["name"] for e in results["pooled"]} == {"suppression", "induction"}
    assert all(0 <= e["shared"] <= e["n"] for e in results["pooled"])
    assert results["agreement"][0]["cosine"] > 0.9
    for seed in results["seeds"]:
        for effect in seed["wide"]:
            assert set(effect["families"]) == set(EVERY_STAGE.nulls.families)
            for record in effect["families"].values():
                assert record["comparable"] >= 19
                assert record["floor"] == 1 / (1 + record["comparable"])
                assert record["p"] == (1 + record["beaten"]) / (1 + record["comparable"])
                assert record["p_holm"] >= record["p"] >= record["floor"]
        assert {(n["family"], n["draw"]) for n in seed["nulls"]} >= {("shuffled", 18), ("covariance", 18)}
        assert 0 < seed["energy"] < 1
        assert seed["groups"] > 0.5
        assert seed["spread"]["halves"]["mean"] > 0.5
        assert [claim["claim"] for claim in seed["claims"]] == [str(kind) for kind in ClaimKind]
        assert seed["dose"]["fragility"]["fragility"] > 0
        assert seed["stability"]["refits"] == 4
        assert seed["second"]["selected"] != seed["selected"]
        assert seed["claims"][-1]["status"] == "undecided"  # one axis was planted, and no second direction passes
        assert seed["stability"]["cosine"]["mean"] > 0.8
        assert {r["length"] for r in seed["readouts"]["lengths"]} == {"full"}  # 12 tokens: no shorter text is read
        assert ("addition-prompt", "negative") in {(a["arm"], a["set"]) for a in seed["arms"]}
        assert results["rule"]["name"] == "rhumbline"
    shuffled = [n for n in results["seeds"][0]["nulls"] if n["family"] == "shuffled"]
    assert max(abs(n["cosine"]) for n in shuffled) < 0.9


def test_a_coefficient_can_be_chosen_on_validation(organism, tmp_path):
    protocol = replace(
        QUICK, sizes=Sizes(24, 12, 20), max_new_tokens=12, addition=AdditionSettings("validation", "prompt")
    )
    results = run(*job(organism), tmp_path / "run", protocol, page=False).results
    (seed,) = results["seeds"]
    assert seed["coefficient"] in (0.5, 0.75, 1.0, 1.5, 2.0)
    arms = {(a["arm"], a["set"]): a["rate"] for a in seed["arms"]}
    assert arms["addition", "negative"] > 0.8
    assert ("addition-all", "negative") in arms
    assert results["verdict"] == "SINGLE-DIRECTION-REPRODUCES by the paper's criteria"


def test_a_null_may_end_once_its_class_is_settled(organism, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "DECIDED_EVERY", 2)  # the planted refusal has seven tokens
    whole = replace(QUICK, max_new_tokens=12, judge="refusal-anywhere-literal", nulls=NullSettings(draws=2, wide=0))
    early = replace(whole, early_stop=True)
    for name, protocol in (("whole", whole), ("early", early)):
        run(*job(organism), tmp_path / name, protocol, page=False)
    rows, cut = (read_rows(tmp_path / name / "seed-0" / "outcomes.jsonl") for name in ("whole", "early"))
    assert [(r["arm"], r["prompt_id"], r["class"]) for r in rows] == [
        (r["arm"], r["prompt_id"], r["class"]) for r in cut
    ]
    shorter = [c["arm"] for r, c in zip(rows, cut, strict=True) if c["new_tokens"] < r["new_tokens"]]
    assert shorter
    assert all(arm.startswith("null:") for arm in shorter)


@pytest.mark.parametrize("changes", [{"judge": "refusal-opening"}, {"save_completions": True}])
def test_early_stop_is_refused_where_it_would_change_what_is_read(changes):
    with pytest.raises(ProtocolError, match="early_stop"):
        replace(EVERY_STAGE, **({"judge": "refusal-anywhere-literal", "early_stop": True} | changes))


def test_a_rank_that_the_draws_cannot_reach_is_refused():
    with pytest.raises(ProtocolError, match="needs 19 draws of each null family"):
        replace(EVERY_STAGE, nulls=NullSettings(wide=9))
    with pytest.raises(ProtocolError, match="needs 19 draws of each null family"):
        replace(EVERY_STAGE, nulls=NullSettings(wide=0))
    assert preset("blog2026").nulls.wide == 0


def test_a_finished_run_runs_again_to_the_same_results(every_stage, organism, tmp_path):
    path = shutil.copytree(every_stage, tmp_path / "copy")
    before = comparable(results_of(path))
    again = run(*job(organism), path, EVERY_STAGE, page=False)
    assert comparable(dict(again.results)) == before


def test_another_protocol_in_the_same_directory_is_refused(every_stage, organism, tmp_path):
    path = shutil.copytree(every_stage, tmp_path / "copy")
    model, contrast = job(organism)
    with pytest.raises(ProtocolError, match=r"differs in: max_new_tokens"):
        run(model, contrast, path, replace(EVERY_STAGE, max_new_tokens=13))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[5, 0] += 0.01
    with pytest.raises(ProtocolError, match=r"model.fingerprint"):
        run(model, contrast, path, EVERY_STAGE)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty \(thesis.tex\)"):
        run(model, contrast, tmp_path / "busy", EVERY_STAGE)
    assert [p.name for p in (tmp_path / "busy").iterdir() if not p.name.startswith(".")] == ["thesis.tex"]


# -- interruption -----------------------------------------------------------------------------------------------------

CONFIG = """
sizes = {train = 24, val = 12, test = 20}
max_new_tokens = 12
nulls = {draws = 2, wide = 19, prompts = 6, procedure_prompts = 4, completed = 0, interim = 0, screen = 0}
dose = {strengths = [0, 0.5, 1], coefficients = [-1, 0, 1], draws = 1, prompts = 6}
stability = {refits = 4, sites = 2, prompts = 6}
"""
"""The protocol EVERY_STAGE, as an experiment file."""
KILLED_AFTER = [
    *("seed-0/metric.json", "seed-0/directions.safetensors", "seed-0/selection.json", "seed-0/nulls.json"),
    *("seed-0/outcomes.jsonl", "seed-0/wide.json"),
]
INTERRUPTED_AFTER = "seed-1/metric.json"


@pytest.fixture(scope="module")
def interrupted(organism, tmp_path_factory) -> tuple[Path, dict]:
    """One command in one directory: killed after several artefacts, interrupted after another, then run to its end."""
    folder, workplace = organism("planted"), tmp_path_factory.mktemp("interrupted")
    signals = [(artefact, int(signal.SIGKILL)) for artefact in KILLED_AFTER]
    signals.append((INTERRUPTED_AFTER, int(signal.SIGINT)))
    (workplace / "signals.json").write_text(json.dumps(signals))
    (workplace / "experiment.toml").write_text(CONFIG)
    command = ["run", folder, "--contrast", folder / "contrast.jsonl", "--out", workplace / "run", "--device", "cpu",
               "--config", workplace / "experiment.toml"]  # fmt: skip
    script = [sys.executable, HELPERS / "interrupted_runs.py", workplace, *command]
    done = subprocess.run([str(word) for word in script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workplace / "run", json.loads(done.stdout)


def test_a_killed_run_resumes_to_the_same_results(interrupted, every_stage):
    out, ends = interrupted
    killed = ends["stopped"][: len(KILLED_AFTER)]
    assert [(end["status"], end["finished"]) for end in killed] == [(-signal.SIGKILL, False)] * len(KILLED_AFTER)
    assert ends["last"]["status"] == 0, ends["last"]["printed"]
    assert "SINGLE-DIRECTION-REPRODUCES" in ends["last"]["printed"]
    ours, expected = comparable(results_of(out)), comparable(results_of(every_stage))
    for key in ("protocol_sha256", "seeds", "verdict", "rule"):
        assert ours[key] == expected[key]
    assert verify(out) == []
    assert not list(out.rglob("*.tmp"))


def test_an_interrupt_exits_130_without_a_traceback(interrupted):
    _, ends = interrupted
    end = ends["stopped"][-1]
    assert end["status"] == 130, end["printed"]
    assert not end["finished"]
    assert "Traceback" not in end["printed"]


def test_two_processes_do_not_share_a_directory(interrupted):
    _, ends = interrupted
    assert ends["locked"]["status"] == 2
    assert "in use by another" in " ".join(ends["locked"]["printed"].split())


# -- discover ---------------------------------------------------------------------------------------------------------


def test_discover_separates_and_generates_nothing(organism, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("discover generated")

    monkeypatch.setattr(Runner, "generate", forbidden)
    model, contrast = job(organism)
    found = discover(model, contrast, tmp_path / "d", EVERY_STAGE)
    best = max(found["grid"], key=lambda cell: cell["auroc"])
    assert best["auroc"] > 0.95
    assert found["split"] == "val"
    assert (tmp_path / "d" / "report.html").is_file()
    # The contrary: where labels say nothing, nothing separates.
    texts = [p.text for p in contrast.prompts if p.label == "negative"]
    shuffled = contrast_from_prompts(texts[::2], texts[1::2])
    nothing = discover(model, shuffled, tmp_path / "n", replace(EVERY_STAGE, sizes=Sizes(64, 64, 8)))
    assert max(cell["auroc"] for cell in nothing["grid"]) < 0.75
