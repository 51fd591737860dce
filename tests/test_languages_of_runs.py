"""A run whose completions are in a language that the judge does not cover is not measured, and says so."""

import json
import shutil
from pathlib import Path

import pytest

from rhumbline.judging.score import OTHER_LANGUAGE
from rhumbline.records.arms import BASELINE
from rhumbline.records.directory import RunDirectory
from rhumbline.verification import assemble


@pytest.fixture
def run_copy(every_stage, tmp_path) -> Path:
    return Path(shutil.copytree(every_stage, tmp_path / "copy"))


def in_japanese(run: Path, every: int) -> None:
    """Rewrite every k-th outcome of each seed as one that the judge could not read."""
    for path in run.glob("seed-*/outcomes.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[::every]:
            row.update({"class": "unscored", "score": None, "evidence": OTHER_LANGUAGE, "uncovered": "ja"})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_in_an_uncovered_language_tests_nothing(run_copy):
    in_japanese(run_copy, every=1)
    summary = assemble(RunDirectory.read(run_copy))
    assert summary.verdict == "NOT-TESTED"
    for seed in summary.seeds:
        for row in seed.arms:
            assert (row.rate, row.n, list(row.uncovered)) == (None, 0, ["ja"])
    (warning, *_) = (text for text in summary.warnings if "a language that the judge does not cover (ja" in text)
    assert "no rate is measured" in warning


def test_some_completions_in_an_uncovered_language_are_left_out(run_copy):
    before = assemble(RunDirectory.read(run_copy))
    assert not any("does not cover" in text for text in before.warnings)
    in_japanese(run_copy, every=5)
    summary = assemble(RunDirectory.read(run_copy))
    (row,) = (r for r in summary.seeds[0].arms if r.arm == BASELINE and r.side == "positive")
    assert row.rate is not None
    assert row.unscored == sum(row.uncovered.values()) > 0
    assert any("these are in no rate" in text for text in summary.warnings)
