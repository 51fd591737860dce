"""Timings: parts of a stage are one entry, across interruptions, and a stage that fails has no entry."""

import pytest
import torch

from rhumbline.records.codec import to_json
from rhumbline.records.files import write_json
from rhumbline.records.run_files import StageTimings
from rhumbline.records.shared import StageTiming
from rhumbline.stages.timings import Timings


def test_parts_of_a_stage_are_one_entry(tmp_path):
    parts = [
        StageTiming("selection", 0, 1.5, 100.0, 1.0),
        StageTiming("selection", 1, 1.0, 50.0, 0.5),
        StageTiming("selection", 0, 2.25, 80.0, 2.0),
    ]
    write_json(tmp_path / "timings.json", to_json(StageTimings(tuple(parts))))
    summary = Timings(tmp_path / "timings.json", torch.device("cpu")).read()
    assert summary.total_seconds == 4.75
    assert summary.stages == (StageTiming("selection", 0, 3.75, 100.0, 3.0), parts[1])


def test_the_processor_time_is_not_known_where_workers_took_part(tmp_path):
    path, cpu = tmp_path / "timings.json", torch.device("cpu")
    for has_workers in (False, True):
        with Timings(path, cpu, has_workers=has_workers).stage("selection", 0):
            pass
    with Timings(path, cpu).stage("extraction", 0):
        pass
    selection, extraction = Timings(path, cpu).read().stages
    assert selection.cpu_seconds is None
    assert extraction.cpu_seconds is not None
    assert StageTimings((selection, extraction)).stages[0].seconds >= 0


def test_progress_is_reported_and_every_finished_stage_is_written(tmp_path):
    calls = []
    timings = Timings(tmp_path / "timings.json", torch.device("cpu"), lambda stage, rows: calls.append((stage, rows)))
    assert timings.read().stages == ()
    with timings.stage("extraction", 0):
        timings.tick("extraction", 8)
    with pytest.raises(KeyboardInterrupt), timings.stage("selection", 0):
        raise KeyboardInterrupt
    assert calls == [("extraction", None), ("extraction", 8), ("selection", None)]
    assert [(s.stage, s.seed) for s in timings.read().stages] == [("extraction", 0)]
