"""benchmarks/compare_runs.py: equal numbers are no difference, another number is one, whatever else differs."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from compare_runs import differences, main

SELECTION = {
    "protocol_sha256": "aa",
    "reason": "no candidate passed: 1 kl too large, 1 not finite",
    "candidates": [
        {"position": -1, "layer": 2, "bypass": 1.0, "discarded": "kl too large (0.23 > 0.1)"},
        {"position": -1, "layer": 3, "bypass": None, "discarded": "not finite (bypass)"},
    ],
}


def write(run: Path, *, codes: bool = False, bypass: float = 1.0, weight: float = 0.5) -> Path:
    """A small run directory, with reasons as sentences (version 0.1) or as codes."""
    selection = json.loads(json.dumps(SELECTION))
    selection["candidates"][0]["bypass"] = bypass
    results = {"verdict": "DAMAGED", "sentence": "An old sentence.", "timings": {"total_seconds": 1.0}}
    if codes:
        selection |= {"protocol_sha256": "bb", "reason": "all candidates discarded"}
        for row, reason in zip(selection["candidates"], ("kl too large", "not finite"), strict=True):
            row["discarded"] = reason
        results = {
            "verdict": "DAMAGED",
            "sentence": "A new sentence.",
            "timings": {"total_seconds": 2.0},
            "reasons": [],
        }
    (run / "seed-0").mkdir(parents=True)
    (run / "seed-0" / "selection.json").write_text(json.dumps(selection))
    (run / "results.json").write_text(json.dumps(results))
    (run / "seed-0" / "outcomes.jsonl").write_text('{"arm": "baseline", "metric": 1.5}\n')
    save_file({"nulls": np.array([weight, np.nan])}, run / "seed-0" / "nulls.safetensors")
    return run


def test_a_run_of_version_0_1_equals_the_same_run_with_codes(tmp_path):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", codes=True)
    assert differences(old, new) == []
    assert main([str(old), str(new)]) == 0
    assert differences(old, new, sentences=True) == ['results.json.sentence: "An old sentence." -> "A new sentence."']


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bypass": 1.0000000000000002}, "seed-0/selection.json.candidates[0].bypass: 1.0 -> 1.0000000000000002"),
        ({"weight": 0.25}, "seed-0/nulls.safetensors.nulls[0]: 0.5 -> 0.25"),
    ],
)
def test_another_number_is_a_difference(tmp_path, change, line):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", codes=True, **change)
    assert differences(old, new) == [line]
    assert main([str(old), str(new)]) == 1


def test_a_missing_file_and_another_reason_are_differences(tmp_path):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", codes=True)
    (new / "seed-0" / "outcomes.jsonl").unlink()
    text = (new / "seed-0" / "selection.json").read_text()
    (new / "seed-0" / "selection.json").write_text(text.replace('"not finite"', '"too late"'))
    assert differences(old, new) == [
        f"seed-0/outcomes.jsonl is only in {old}",
        'seed-0/selection.json.candidates[1].discarded: "not finite" -> "too late"',
    ]
