"""Wall time, processor time and peak memory of each stage, kept across interruptions. Knows nothing else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rhumbline.inference.memory import peak_memory, reset_peak_memory
from rhumbline.records.files import read_json, write_json

Progress = Callable[[str, int | None], None]
"""Told (stage, None) when a stage begins and (stage, rows) when rows of it are done."""


@dataclass(frozen=True)
class Timings:
    """The file that holds what every finished stage took; a resumed run adds to it."""

    path: Path
    device: torch.device
    progress: Progress | None = None

    def read(self) -> dict[str, Any]:
        """{"total_seconds", "stages": [{"stage", "seed", "seconds", "cpu_seconds", "peak_memory_mb"}]}.

        A stage that ran in several parts is one entry: its times summed, its largest memory.
        """
        stages: dict[tuple[str, int | None], dict[str, Any]] = {}
        for taken in self._all():
            known = stages.setdefault((taken["stage"], taken["seed"]), {**taken, "seconds": 0.0, "cpu_seconds": 0.0})
            for key in ("seconds", "cpu_seconds"):
                known[key] = round(known[key] + taken[key], 3)
            known["peak_memory_mb"] = max(known["peak_memory_mb"], taken["peak_memory_mb"])
        return {"total_seconds": round(sum(s["seconds"] for s in stages.values()), 3), "stages": list(stages.values())}

    def _all(self) -> list[dict[str, Any]]:
        return read_json(self.path)["stages"] if self.path.exists() else []

    def tick(self, stage: str, rows: int) -> None:
        """Tell the progress of a stage."""
        if self.progress is not None:
            self.progress(stage, rows)

    @contextmanager
    def stage(self, name: str, seed: int | None) -> Iterator[None]:
        """Measure what runs inside, and write it down once it is done."""
        if self.progress is not None:
            self.progress(name, None)
        reset_peak_memory(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        taken = {
            "stage": name,
            "seed": seed,
            "seconds": round(time.perf_counter() - wall, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory_mb": round(peak_memory(self.device) / 2**20, 1),
        }
        write_json(self.path, {"stages": [*self._all(), taken]})
