"""Sweeps: faults of the file, isolation of failures, resume, the comparison and its tables."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from make_run import make_run
from make_seed import HOSTILE
from mock_engine import Mock
from rhumbline.cli import main
from rhumbline.errors import InputError, OutputError
from rhumbline.jobs import sweeps
from rhumbline.jobs.sweeps import Sweep, read_sweep, run_sweep
from rhumbline.models.sources import Source, own_contrast
from rhumbline.organisms import materialise
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory, locked
from rhumbline.records.files import read_json
from rhumbline.records.results import Results
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report.comparison import ComparisonRow, gather, named, rows_of, write_tables
from rhumbline.report.comparison_page import build

QUICK = """
[model]
device = "cpu"
[protocol]
max_new_tokens = 8
sizes = {train = 12, val = 6, test = 8}
nulls = {families = ["isotropic"], draws = 1, wide = 0}
rule = "blog2026"
dose = {strengths = [], coefficients = []}
stability = {refits = 0}
"""


def sweep_file(folder: Path, text: str, quick: str = QUICK) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text + quick)
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of one planted organism, a directory that holds no model, and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "broken").mkdir()
    sweep = read_sweep(sweep_file(folder, 'models = ["broken", "organism:planted"]\n'))
    return sweep, folder / "out", run_sweep(sweep, folder / "out")


def test_one_broken_model_does_not_stop_the_rest(swept):
    _, out, found = swept
    assert [row.verdict for row in found.rows] == ["SINGLE-DIRECTION-REPRODUCES by the blog's criteria"] * 2
    assert [f.run for f in found.failures] == [f"broken--own--rhumbline--seed-{s}" for s in (0, 1)]
    assert all("comes without a contrast" in f.reason for f in found.failures)
    text = found.page.read_text()
    assert "comes without a contrast" in text
    table = read_json(out / "comparison.json")
    assert table["rows"] == [to_json(row) for row in found.rows]
    assert [f["run"] for f in table["failures"]] == [f.run for f in found.failures]
    lines = [json.loads(line) for line in (out / "jobs.log").read_text().splitlines()]
    assert {line["job"]: line["error"] is None for line in lines} == {
        name: "planted" in name for name in (cell.name for cell in swept[0].cells())
    }
    assert "seed-0" in str(sorted((out / "logs").iterdir()))


def test_a_resumed_sweep_has_the_same_results(swept):
    sweep, out, found = swept
    stamp = (out / "runs" / found.rows[0].run / "results.json").stat().st_mtime_ns
    shutil.rmtree(out / "runs" / found.rows[1].run / "seed-1")
    (out / "runs" / found.rows[1].run / "results.json").unlink()
    again = run_sweep(sweep, out)
    assert (out / "runs" / found.rows[0].run / "results.json").stat().st_mtime_ns == stamp
    assert [without_cost(r) for r in again.rows] == [without_cost(r) for r in found.rows]


def test_an_unreliable_engine_changes_no_row(swept, tmp_path):
    sweep, _, found = swept
    other = run_sweep(sweep, tmp_path / "out", Mock(3, repeats=0.7))
    assert [without_cost(r) for r in other.rows] == [without_cost(r) for r in found.rows]
    assert without_cost_section(other.page) == without_cost_section(found.page)
    assert {row.engine for row in other.rows} == {"mock"}


def without_cost(row: ComparisonRow) -> ComparisonRow:
    return replace(row, seconds=0.0, cpu_seconds=0.0, peak_memory_mb=0.0, engine="")


def without_cost_section(page: Path) -> str:
    before, _, rest = page.read_text().partition('<section id="cost">')
    return before + rest.partition("</section>")[2]


def test_two_sweeps_in_one_directory_are_refused(swept):
    sweep, out, _ = swept
    with locked(out), pytest.raises(OutputError, match="in use by another rhumbline process"):
        run_sweep(sweep, out)


def test_a_lock_file_without_its_process_is_ignored(tmp_path):
    (tmp_path / ".lock").write_text("left behind")
    with locked(tmp_path):
        pass


def test_the_directory_of_a_run_is_refused_for_a_sweep(swept):
    sweep, out, found = swept
    with pytest.raises(OutputError, match="is the directory of a run"):
        run_sweep(sweep, out / "runs" / found.rows[0].run)


def test_another_protocol_in_a_finished_sweep_is_listed(swept):
    sweep, out, _ = swept
    other = Sweep(sweep.models[1:], seeds=(0,), model=sweep.model, protocol={**sweep.protocol, "max_new_tokens": 9})
    found = run_sweep(other, out)
    assert found.rows == []
    assert "holds a run of another protocol (it differs in: max_new_tokens)" in found.failures[0].reason


@pytest.mark.parametrize("changed", ["dtype", "contrast"])
def test_other_options_or_another_contrast_in_a_finished_sweep_are_listed(changed, swept, monkeypatch):
    sweep, out, _ = swept
    loading = replace(sweep.model, dtype="bfloat16") if changed == "dtype" else sweep.model
    if changed == "contrast":
        monkeypatch.setattr(
            sweeps, "contrast_for", lambda *_: replace(own_contrast("organism:planted"), sha256="0" * 64)
        )
    for _ in range(2):  # the second attempt does not take the first for finished
        again = run_sweep(Sweep(sweep.models[1:], seeds=(0,), model=loading, protocol=sweep.protocol), out)
        assert again.rows == []
        assert "holds a run of another protocol" in again.failures[0].reason
        assert {"dtype": "model.dtype", "contrast": "contrast.sha256"}[changed] in again.failures[0].reason


def test_replaced_weights_of_a_local_model_are_listed(tmp_path, monkeypatch):
    """Also with the size and the time of the old file; a touched file is loaded, compared and then taken as known."""
    materialise("planted", tmp_path)
    sweep = read_sweep(sweep_file(tmp_path, 'models = ["planted"]\nseeds = [0]\n'))
    weights, loaded = tmp_path / "planted" / "model.safetensors", []
    load_source = sweeps.load_source
    monkeypatch.setattr(sweeps, "load_source", lambda source: loaded.append(source) or load_source(source))
    (first,) = run_sweep(sweep, tmp_path / "out").rows
    assert (run_sweep(sweep, tmp_path / "out").rows, len(loaded)) == ([first], 1)
    weights.touch()
    (again,) = run_sweep(sweep, tmp_path / "out").rows
    assert without_cost(again) == without_cost(first)
    assert run_sweep(sweep, tmp_path / "out").failures == []
    assert len(loaded) == 2
    replace_weights(weights)
    for _ in range(2):  # the second attempt does not take the first for finished
        swept = run_sweep(sweep, tmp_path / "out")
        assert swept.rows == []
        assert "holds a run of other weights under this name" in swept.failures[0].reason
        assert "remove this directory" in swept.failures[0].reason


def test_weights_that_are_replaced_during_a_sweep_are_compared_by_the_next_one(tmp_path, monkeypatch):
    materialise("planted", tmp_path)
    sweep = read_sweep(sweep_file(tmp_path, 'models = ["planted"]\nseeds = [0]\n'))

    def load_and_replace(source):
        model = load_source(source)
        replace_weights(tmp_path / "planted" / "model.safetensors")
        return model

    load_source = sweeps.load_source
    monkeypatch.setattr(sweeps, "load_source", load_and_replace)
    assert len(run_sweep(sweep, tmp_path / "out").rows) == 1
    assert "other weights" in run_sweep(sweep, tmp_path / "out").failures[0].reason


def replace_weights(path: Path) -> None:
    """Other weights in a new file with the size and the modification time of the old one."""
    tensors, facts = load_file(path), path.stat()
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, path.with_suffix(".new"), metadata={"format": "pt"})
    assert path.with_suffix(".new").stat().st_size == facts.st_size
    os.utime(path.with_suffix(".new"), ns=(facts.st_atime_ns, facts.st_mtime_ns))
    path.with_suffix(".new").replace(path)


def test_finished_runs_of_a_model_that_is_gone_are_kept_and_named(tmp_path):
    materialise("planted", tmp_path)
    sweep = replace(
        read_sweep(sweep_file(tmp_path, 'models = ["planted"]\nseeds = [0]\n')), contrasts=("organism:planted",)
    )
    found, said = run_sweep(sweep, tmp_path / "out"), []
    shutil.rmtree(tmp_path / "planted")
    assert run_sweep(sweep, tmp_path / "out", progress=said.append).rows == found.rows
    assert any("not on this machine: their weights are not compared" in text for text in said)


def test_every_fault_of_a_sweep_file_is_listed_at_once(tmp_path):
    text = 'modles = ["x"]\nseeds = [0, 0]\npresets = "rhumbline"\n[model]\nprecision = 1\n[protocol]\nseeds = [1]\n'
    with pytest.raises(InputError) as caught:
        read_sweep(sweep_file(tmp_path, text, ""))
    for fault in ("unknown field modles", "seeds has an entry twice", "presets = 'rhumbline'", "model.precision",
                  "protocol.seeds", "models is missing"):  # fmt: skip
        assert fault in str(caught.value)
    with pytest.raises(InputError, match="unknown field max_tokens"):
        read_sweep(sweep_file(tmp_path, 'models = ["x"]\n[protocol]\nmax_tokens = 3\n', "")).cells()
    with pytest.raises(InputError, match="would have the name"):
        Sweep(("a/b", "a-b")).cells()


def test_options_of_the_models_are_read_as_a_source_and_checked(tmp_path):
    loading = '[model]\ndtype = "float32"\ncoarse = true\n'
    sweep = read_sweep(sweep_file(tmp_path, 'models = ["x"]\n' + loading, ""))
    assert {cell.source for cell in sweep.cells()} == {Source("x", dtype="float32", coarse=True)}
    with pytest.raises(InputError, match=r"\[model\].*Expected `bool`.*coarse"):
        read_sweep(sweep_file(tmp_path, 'models = ["x"]\n' + loading.replace("true", "3"), ""))


# -- the comparison ---------------------------------------------------------------------------------------------------


def test_the_table_has_the_numbers_of_the_runs(tmp_path):
    run = make_run(tmp_path / "a", seeds=(0, 1), evidence=True)
    results = RunDirectory.read(run).read_record(Results)
    for row, seed in zip(rows_of(run), results.seeds, strict=True):
        suppression, induction = seed.effects
        assert row.suppression == suppression.drop
        assert (row.induction_low, row.induction_high) == (induction.low, induction.high)
        assert row.layer_share == seed.selected.layer / results.model.n_layers
        assert row.suppression_p == max(suppression.p.values())
        assert row.suppression_gap == min(suppression.gap.values())
        assert (row.fragility, row.half_strength) == (seed.dose.fragility.fragility, seed.dose.fragility.half)
        assert row.same_site == seed.stability.chosen[0].share
        assert row.kl == seed.shift.kl
    with pytest.raises(OutputError, match=r"no protocol\.json"):
        rows_of(tmp_path)


def test_the_processor_time_of_a_run_with_workers_is_not_shown(tmp_path):
    """The log of jobs is in the directory of every run that had workers, of older versions too."""
    alone, shared = make_run(tmp_path / "alone", seeds=(0,)), make_run(tmp_path / "shared", seeds=(0,))
    (shared / "jobs.log").write_text("")
    rows, _ = gather(named([alone, shared]))
    assert [row.cpu_seconds for row in rows] == [rows[0].seconds, None]
    assert "their processor time and memory were not measured" in build(rows, [], tmp_path / "both").read_text()
    assert "not measured" not in build(rows[:1], [], tmp_path / "one").read_text()


def test_different_weights_under_one_name_are_noted(tmp_path):
    rows, _ = gather(named([make_run(tmp_path / "a", seeds=(0,)), make_run(tmp_path / "b", seeds=(1,))]))
    assert "loaded different weights" not in build(rows, [], tmp_path / "same").read_text()
    rows[1] = replace(rows[1], fingerprint="0" * 64)
    text = build(rows, [], tmp_path / "other").read_text()
    assert "loaded different weights" in text
    assert f"{'9f' * 6} in a; {'0' * 12} in b" in text


def test_tables_are_one_table_in_three_forms(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", verdict=VerdictName.NO_BASELINE_REFUSAL)]
    rows, failures = gather(named([*runs, tmp_path / "nothing"]))
    assert [f.run for f in failures] == ["nothing"]
    write_tables(rows, failures, tmp_path / "out")
    assert parquet.read_table(tmp_path / "out" / "comparison.parquet").to_pylist() == [to_json(row) for row in rows]
    with open(tmp_path / "out" / "comparison.csv", newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["verdict"] for row in table] == [row.verdict for row in rows]
    assert [row["suppression"] for row in table] == ["" if r.suppression is None else str(r.suppression) for r in rows]
    # A column without a single value has the same type as in other tables.
    write_tables(rows[-2:], [], tmp_path / "empty")
    one, two = (parquet.read_schema(tmp_path / d / "comparison.parquet") for d in ("out", "empty"))
    assert one == two


def test_markup_and_formulas_in_names_stay_text(tmp_path):
    rows, _ = gather(named([make_run(tmp_path / "h", hostile=True)]))
    rows[0] = replace(rows[0], model="=1+1")
    text = build(rows, [], tmp_path / "out").read_text()
    assert HOSTILE not in text
    assert "<img src=x" not in text
    write_tables(rows, [], tmp_path / "out")
    assert "'=1+1" in (tmp_path / "out" / "comparison.csv").read_text()


def test_runs_with_one_name_are_distinguished_by_their_paths(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert list(named(paths)) == ["x/run", "y/run"]
    with pytest.raises(InputError, match="given twice"):
        named([paths[0], paths[0]])


# -- the command line -------------------------------------------------------------------------------------------------


def test_compare_and_plan(tmp_path, capsys):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4
    assert main(["compare", str(runs[0]), str(tmp_path / "none"), "--out", str(tmp_path / "out2")]) == 1
    assert "failed:" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none"), "--out", str(tmp_path / "out3")]) == 2
    assert "is a finished run" in capsys.readouterr().err
    assert not (tmp_path / "out3").exists()
    path = str(sweep_file(tmp_path, 'models = ["organism:planted", "someone/not-here"]\n'))
    assert main(["sweep", path, "--plan", "--out", str(runs[0])]) == 2  # a run directory
    capsys.readouterr()
    assert main(["sweep", path, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [job["note"][:6] for job in plan["jobs"]] == ["an org"] * 2 + ["not av"] * 2
    assert main(["sweep", path]) == 2
    assert "--out" in capsys.readouterr().err
