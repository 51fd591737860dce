"""The first day of a researcher, offline: hub-layout data sets, the trained organism, three judges, the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from make_judge import RUBRIC, Endpoint, make_classifier
from make_sets import make_sets
from rhumbline import verify
from rhumbline.cli import main
from rhumbline.organisms import materialise
from rhumbline.prompts import declared_sets as declared

HUB = {"jailbreakbench": ("harmful", "csv"), "alpaca": ("train", "parquet")}


def hub_repository(folder: Path, name: str, split: str, form: str, mirror: Path) -> Path:
    """A data set repository as the hub lays it out: a card that names the files of its splits."""
    import pyarrow
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    path = folder / "data" / f"{split}-00000-of-00001.{form}"
    if form == "csv":
        path.write_bytes((mirror / "harmful-behaviors.csv").read_bytes())
    else:
        parquet.write_table(pyarrow.Table.from_pylist(json.loads((mirror / "alpaca_data.json").read_text())), path)
    config = declared.source(name).config or "default"
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
        f"    path: {path.relative_to(folder)}\n---\n"
    )
    return folder


@pytest.mark.slow
def test_the_complete_path(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    organism = materialise("refusal", tmp_path / "organisms")
    rows = [json.loads(line) for line in (organism / "contrast.jsonl").read_text().splitlines()]
    both = tuple(list(dict.fromkeys(r["prompt"] for r in rows if r["label"] == c)) for c in ("positive", "negative"))
    mirror = make_sets(tmp_path / "sets", advbench=60, tdc=20, jbb=24, alpaca=200, prompts=both)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    local = {
        name: replace(declared.source(name), hub=str(hub_repository(tmp_path / "hub" / name, name, *where, mirror)))
        for name, where in HUB.items()
    }
    for name in ("harmful-behaviors.csv", "alpaca_data.json"):  # these two come from the hub alone
        (mirror / name).unlink()
    known = {**declared.sources(), **local}
    monkeypatch.setattr("rhumbline.prompts.declared_sets.sources", lambda: known)

    out = tmp_path / "run"
    command = ["run", organism, "--contrast", "refusal", "--data-dir", mirror, "--preset", "blog2026", "--seeds", "0"]
    command += ["--sizes", "48,16,24", "--max-new-tokens", "40", "--save-completions", "--device", "cpu", "--out", out]
    assert main([str(word) for word in command]) == 0
    protocol = json.loads((out / "protocol.json").read_text())
    read = {s["source"]: s for s in protocol["contrast"]["pools"]["sources"]}
    assert str(tmp_path / "hub") in read["alpaca"]["from"]
    assert read["advbench"]["from"] == "harmful_behaviors.csv"
    results = json.loads((out / "results.json").read_text())
    baseline = next(a for a in results["seeds"][0]["arms"] if (a["arm"], a["set"]) == ("baseline", "positive"))
    assert baseline["rate"] > 0.5  # the keyword judge, which the verdict rests on

    texts = [json.loads(line) for line in (out / "seed-0" / "outcomes.jsonl").read_text().splitlines()]
    # A tiny classifier that copies the keyword judge on the null arms.
    train = [r for r in texts if r["arm"].startswith("null")]
    classifier = make_classifier(tmp_path / "judge", organism, train, [r["class"] == "refused" for r in train])
    file = tmp_path / "classifier.toml"
    answers = '[answers]\nrefused = "refused"\ncomplied = "complied"\n'
    given = f"template = {json.dumps(RUBRIC)}\n"
    file.write_text(f'asks = "refusal"\nform = "classifier"\nmodel = "{classifier}"\n{given}{answers}')
    assert main(["judge", str(out), "--judge", str(file), "--device", "cpu"]) == 0
    with Endpoint() as server:
        file = tmp_path / "endpoint.toml"
        answers = '[answers]\nyes = "refused"\nno = "complied"\n'
        file.write_text(f'asks = "refusal"\nform = "endpoint"\nmodel = "m"\nurl = "{server.url}"\n{given}{answers}')
        assert main(["judge", str(out), "--judge", str(file)]) == 0
    summary = json.loads((out / "judgements" / "summary.json").read_text())
    assert set(summary["judges"]) == {"classifier", "endpoint"}
    assert ["classifier", "endpoint"] in [p["judges"] for p in summary["agreement"]]
    assert main(["report", str(out)]) == 0
    assert "Judges after the run" in (out / "report.html").read_text()
    assert verify(out) == []
    capsys.readouterr()
