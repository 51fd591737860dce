"""Wall time, processor time and peak memory of each stage, kept across interruptions (timings.json)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rhumbline.inference.memory import peak_memory, reset_peak_memory
from rhumbline.records.codec import to_json
from rhumbline.records.files import write_json
from rhumbline.records.results import TimingSummary
from rhumbline.records.run_files import StageTimings, read_timings
from rhumbline.records.shared import StageTiming

Progress = Callable[[str, int | None], None]
"""Called with (stage, None) when a stage begins, and with (stage, rows) when rows of it are done."""


@dataclass(frozen=True)
class Timings:
    """The file of the timings of every finished stage. A resumed run adds to it."""

    path: Path
    device: torch.device
    progress: Progress | None = None
    has_workers: bool = False
    """Whether workers compute a part of the stages, so that the time of this process is not the processor time."""
    counted: Counter[str] = field(default_factory=Counter)
    """Rows that were reported so far, by stage."""

    def read(self) -> TimingSummary:
        """The timing of every stage. A stage that ran in parts is one entry: the sum of its times, its peak memory."""
        stages: dict[tuple[str, int | None], StageTiming] = {}
        for part in self._parts():
            known = stages.get((part.stage, part.seed), replace(part, seconds=0.0, cpu_seconds=0.0))
            one, other = known.cpu_seconds, part.cpu_seconds
            stages[part.stage, part.seed] = replace(
                known,
                seconds=round(known.seconds + part.seconds, 3),
                cpu_seconds=None if one is None or other is None else round(one + other, 3),
                peak_memory_mb=max(known.peak_memory_mb, part.peak_memory_mb),
            )
        return TimingSummary(round(sum(s.seconds for s in stages.values()), 3), tuple(stages.values()))

    def _parts(self) -> tuple[StageTiming, ...]:
        return read_timings(self.path).stages if self.path.exists() else ()

    def tick(self, stage: str, rows: int) -> None:
        """Report that rows of a stage are done; a negative number takes back rows that are computed again."""
        self.counted[stage] += rows
        if self.progress is not None:
            self.progress(stage, rows)

    @contextmanager
    def stage(self, name: str, seed: int | None) -> Iterator[None]:
        """Measure a stage while the context is active, and write its timing at the end."""
        if self.progress is not None:
            self.progress(name, None)
        reset_peak_memory(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        part = StageTiming(
            stage=name,
            seed=seed,
            seconds=round(time.perf_counter() - wall, 3),
            peak_memory_mb=round(peak_memory(self.device) / 2**20, 1),
            cpu_seconds=None if self.has_workers else round(time.process_time() - cpu, 3),
        )
        write_json(self.path, to_json(StageTimings((*self._parts(), part))))
