"""The whole run reads the baseline rows of a quick run in its directory; the results are those without them."""

import json
from dataclasses import replace

import pytest

from rhumbline import load, preset, read_contrast, run
from rhumbline.presets.protocols import quick
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.directory import QUICK, RunDirectory
from rhumbline.records.files import file_sha256
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.seed_files import SplitIds
from rhumbline.settings import SideEffectSettings

WHOLE = preset(
    "arditi2024",
    seeds=(0,),
    sampling="lots",
    sizes=Sizes(12, 4, 8),
    max_new_tokens=12,
    side_effects=SideEffectSettings(documents=0),
)
FIRST = Sizes(8, 4, 5)


@pytest.fixture(scope="module")
def start(planted_folder):
    """A function that runs a protocol; it returns the results and the rows of each stage."""
    model, contrast = load(str(planted_folder), device="cpu"), read_contrast(planted_folder / "contrast.jsonl")

    def started(out, protocol: Protocol):
        counted: dict[str, int] = {}

        def progress(stage: str, rows: int | None) -> None:
            counted[stage] = counted.get(stage, 0) + (rows or 0)

        return run(model, contrast, out, protocol, page=False, progress=progress), counted

    return started


@pytest.fixture(scope="module")
def plain(start, tmp_path_factory):
    """The whole run without a quick one."""
    return start(tmp_path_factory.mktemp("plain"), WHOLE)


def rows_of(out) -> dict[tuple[str, str, str], Outcome]:
    rows = RunDirectory.read(out).read_rows(Outcome, 0)
    return {(str(row.arm), row.side, row.prompt_id): row for row in rows}


def test_baseline_rows_are_reused_and_equal(start, plain, tmp_path):
    result, counted = plain
    first, _ = start(tmp_path / QUICK, replace(quick(WHOLE), reads=FIRST))
    _, fewer = start(tmp_path, WHOLE)
    expected, actual = rows_of(result.path), rows_of(tmp_path)
    assert actual.keys() == expected.keys()
    for key, row in expected.items():
        assert (actual[key].cls, actual[key].by_length) == (row.cls, row.by_length)
        assert actual[key].metric == pytest.approx(row.metric, abs=1e-3)
    assert counted["arms"] - fewer["arms"] == 2 * FIRST.test
    # The prompts are the first ones of the same sample.
    some, all_ = (RunDirectory.read(path).read_record(SplitIds, 0).ids for path in (first.path, tmp_path))
    for split in ("train", "val", "test"):
        assert some[split].positive == all_[split].positive[: getattr(FIRST, split)]


def test_reused_rows_have_the_metric_of_the_whole_run(start, plain, tmp_path):
    """A quick run finds another threshold of the metric, as it reads fewer training prompts."""
    start(tmp_path / QUICK, replace(quick(WHOLE), reads=FIRST))
    quick_run, moved = tmp_path / QUICK, 2.5
    metric, rows = quick_run / "seed-0" / "metric.json", quick_run / "seed-0" / "outcomes.jsonl"
    metric.write_text(json.dumps(json.loads(metric.read_text()) | {"threshold": moved}))
    shifted = [row | {"metric": row["metric"] - moved} for row in map(json.loads, rows.read_text().splitlines())]
    rows.write_text("".join(json.dumps(row) + "\n" for row in shifted))
    results = json.loads((quick_run / "results.json").read_text())
    results["files"]["seed-0/outcomes.jsonl"] = file_sha256(rows)
    (quick_run / "results.json").write_text(json.dumps(results))
    start(tmp_path, WHOLE)
    expected, actual = rows_of(plain[0].path), rows_of(tmp_path)
    assert all(actual[key].metric == pytest.approx(row.metric, abs=1e-3) for key, row in expected.items())


@pytest.mark.parametrize("change", [{"max_new_tokens": 3}, {"judge": "refusal-opening"}])
def test_rows_that_would_differ_are_not_reused(start, plain, tmp_path, change):
    # No completion of the model has fewer than three tokens, so this limit cuts all of them.
    _, counted = plain
    start(tmp_path / QUICK, replace(quick(WHOLE), reads=FIRST, **change))
    assert start(tmp_path, WHOLE)[1] == counted


def test_changed_files_are_not_reused(start, plain, tmp_path):
    _, counted = plain
    start(tmp_path / QUICK, replace(quick(WHOLE), reads=FIRST))
    path = tmp_path / QUICK / "seed-0" / "outcomes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"class": "complied"}) + "\n" for row in rows))
    assert start(tmp_path, WHOLE)[1] == counted
