"""Jobs of a stage: the expensive parts of a stage, cut into jobs that depend on artefacts only.

The size of a job is a constant, so every engine runs the same forward passes. Jobs run in this process or on the
workers of a pool (jobs/replicas.py). Their results are stored in `.jobs` until the seed is finished.
Arguments and results are records; they are JSON values between processes. Independent of what a job computes.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Generic, TypeVar

from rhumbline.engines.engine import Job, LocalPool, Pool, begin_jobs, stored_result
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import JOB_LOG
from rhumbline.records.files import file_sha256, read_json
from rhumbline.stages.seed_run import SeedRun

CANDIDATES_PER_JOB, NULLS_PER_JOB, REFITS_PER_JOB, DOCUMENTS_PER_JOB = 8, 16, 2, 4
"""Sizes of the jobs of the other stages (docs/guide/scale.md: a job should take seconds, and a stage have several)."""
FOLDER = ".jobs"
"""Folder of the results of jobs, next to the artefacts of a seed."""
INPUTS = ("style.json", "classifier.safetensors", "metric.json", "extraction.json", "selection.json", "nulls.json",
          "directions.safetensors", "nulls.safetensors")  # fmt: skip
"""Artefacts that a job can read. Those that exist are sent to the worker."""

A = TypeVar("A")
Result = TypeVar("Result")


@dataclass(frozen=True)
class JobKind(Generic[A, Result]):
    """A kind of job: `prepare(run)(arguments)` is its result."""

    name: str
    arguments: type[A]
    """Record of the arguments."""
    result: type[Result]
    """Record of the result."""
    prepare: Callable[[SeedRun], Callable[[A], Result]]
    """Called once for all jobs of this kind that a worker runs: what they share is computed here."""


@dataclass(frozen=True)
class RemoteArguments:
    """Arguments of a job on another worker."""

    seed: int
    tokens: int
    """Tokens of a forward pass, as measured by the run."""
    arguments: Any
    """JSON value of the record of the kind."""


@dataclass(frozen=True)
class JobOutput:
    """What a job returns, here or on another worker, and what is stored of it."""

    value: Any
    """JSON value of the result of the kind."""
    rows: dict[str, int]
    """Rows that were computed, by the stage under which the runner reported them. The first job of a kind on a worker
    counts those of `prepare` too."""


@dataclass(frozen=True)
class Span:
    """Consecutive items, first <= i < end."""

    first: int
    end: int

    @property
    def range(self) -> range:
        """The indices of the items."""
        return range(self.first, self.end)


def spans(n: int, size: int) -> list[Span]:
    """0..n in spans of `size`."""
    return [Span(start, min(start + size, n)) for start in range(0, n, size)]


def shares(sizes: Sequence[int], most: int) -> list[list[int]]:
    """The indices of consecutive items in parts of nearly equal size: as few as have `most` or less on average."""
    total = sum(sizes)
    n_parts = -(-total // most)
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    for i, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        # An item belongs to the part in which its middle is.
        parts[int((end - size / 2) * n_parts / total)].append(i)
    return [part for part in parts if part]


@dataclass(frozen=True)
class SeedJobs:
    """Runs the jobs of one seed."""

    run: SeedRun
    pool: Pool | None = None
    """Workers; None: jobs run in this process."""
    prepared: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def compute(self, kind: JobKind[A, Result], arguments: Any) -> Any:
        """The output of one job, computed here from the artefacts on disk; arguments and output are JSON values."""
        before = self.run.timings.counted.copy()
        if kind.name not in self.prepared:
            self.prepared[kind.name] = kind.prepare(self.run)
        value = to_json(self.prepared[kind.name](convert(arguments, kind.arguments)))
        return to_json(JobOutput(value, dict(self.run.timings.counted - before)))

    def request(self, kind: JobKind[A, Result], arguments: Sequence[A]) -> list[Result]:
        """The results of several jobs, in order. Stored results are not computed again."""
        return self.begin(kind, arguments)()

    def begin(
        self, kind: JobKind[A, Result], arguments: Sequence[A], *, when_idle: bool = False
    ) -> Callable[[], list[Result]]:
        """The same for jobs that workers compute meanwhile; the returned function waits for the results.

        `when_idle`: only workers that have no other job compute them. Without workers, the jobs are computed when the
        function is called.
        """
        run, pool = self.run, self.pool
        artefacts = {f"{run.folder.name}/{name}": run.folder / name for name in INPUTS}
        inputs = {name: path for name, path in artefacts.items() if path.is_file()}
        depends = {
            "protocol": run.directory.protocol_sha256,
            "seed": run.seed,
            "tokens": run.tokens,
            "inputs": {name: file_sha256(path) for name, path in inputs.items()},
        }
        values = [to_json(a) for a in arguments]
        if pool is None:
            jobs = [Job(kind.name, value, depends) for value in values]
            stored = self._stored(jobs)
            # The runner of this process reports the rows.
            here = LocalPool(lambda name, value, shared: self.compute(kind, value))
            finish = begin_jobs(here, jobs, run.folder / FOLDER)
        else:
            remote = [to_json(RemoteArguments(run.seed, run.tokens, value)) for value in values]
            jobs = [Job(kind.name, value, depends, name=f"{kind.name} {i}") for i, value in enumerate(remote)]
            stored = self._stored(jobs)
            inputs["protocol.json"] = run.directory.path / "protocol.json"
            finish = begin_jobs(
                pool,
                jobs,
                run.folder / FOLDER,
                {name: path.read_bytes() for name, path in inputs.items()},
                when_idle=when_idle,
                log=run.directory.path / JOB_LOG,
                report=lambda job, result: self._report(result.value),
            )

        def results() -> list[Result]:
            for output in stored:
                self._report(output)
            return [convert(convert(result, JobOutput).value, kind.result) for result in finish()]

        return results

    def _stored(self, jobs: Sequence[Job]) -> list[Any]:
        """The outputs of the jobs that an earlier command has computed, as JSON values."""
        paths = dict.fromkeys(stored_result(self.run.folder / FOLDER, job) for job in jobs)
        return [read_json(path)["value"] for path in paths if path.is_file()]

    def _report(self, output: Any) -> None:
        """Report the rows of a job that another process or command has computed; its output is a JSON value."""
        for stage, rows in convert(output, JobOutput).rows.items():
            self.run.timings.tick(stage, rows)

    def clear(self) -> None:
        """Remove the stored results, once all artefacts are written."""
        shutil.rmtree(self.run.folder / FOLDER, ignore_errors=True)
