"""`verify`: one change of a finished run, whatever it is, is reported with its place."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from rhumbline import verify
from rhumbline.errors import OutputError
from rhumbline.records.files import file_sha256, sha256


def results_of(path) -> dict:
    return json.loads((path / "results.json").read_text())


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
    """A changed row, with the hash of its file and that of the results changed too: the rates do not fit."""
    change_row(path)
    results = results_of(path)
    results["files"]["seed-0/outcomes.jsonl"] = file_sha256(path / "seed-0" / "outcomes.jsonl")
    results["sha256"] = sha256({k: v for k, v in results.items() if k != "sha256"})
    (path / "results.json").write_text(json.dumps(results))
    return "the rows say"


CHANGES = [change_row, change_score, change_vector, change_rate, change_verdict, change_protocol, change_wide,
           lose_a_file, forge_everything]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_verify_reports_one_change_and_its_place(change, every_stage, tmp_path):
    path = shutil.copytree(every_stage, tmp_path / "copy")
    assert verify(path) == []
    place = change(path)
    faults = verify(path)
    assert any(place in fault for fault in faults), faults


def test_verify_needs_a_run_directory(tmp_path):
    with pytest.raises(OutputError, match="not a run directory"):
        verify(tmp_path)
