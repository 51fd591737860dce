"""Engines run independent jobs: `Local` in this process, `Processes` (processes.py) on workers of this machine, `Ray`
(ray.py) on those of a cluster.

A job is identified by everything that its result depends on (`Job.key`) and may run more than once. Guarantees: the
first result of a job is stored before it is used, so a stopped run resumes and no job has two results; a lost worker
costs only the jobs that it was running. Processes exchange JSON and bytes. Independent of the content of a job.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rhumbline.errors import InputError, RhumblineError
from rhumbline.records.files import appending, finite, read_json, sha256, write_json

MAX_LOSSES = 4
"""Workers that a job can lose before it fails, because it probably terminates them."""
Shared = Mapping[str, bytes]
"""Files that all jobs of one call read, by name."""
RunJob = Callable[[str, Any, Shared], Any]
"""Runs a job on a worker: (kind, arguments, shared files) -> result. Arguments and result are JSON values."""


class EngineError(RhumblineError):
    """The engine cannot continue: no worker is left, or jobs were lost. Rerun the same command to resume.

    The exit code is that of the error of a worker that cannot start.
    """

    def __init__(self, message: str, exit_code: int = RhumblineError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JobError(RhumblineError):
    """A job raised an error that it would raise again. The exit code is that of the error."""

    def __init__(self, message: str, exit_code: int = RhumblineError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Job:
    """An independent unit of work."""

    kind: str
    arguments: Any
    """JSON value."""
    depends: Any = None
    """JSON value of everything else that the result depends on (protocol, inputs): hashed, not sent to the worker."""
    group: str = ""
    """Jobs of one group preferably run on the same worker, which then has their model loaded."""
    name: str = ""
    """Name in messages; empty: the kind."""

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on."""
        return sha256({"kind": self.kind, "arguments": self.arguments, "depends": self.depends or {}})


class JobResult(NamedTuple):
    """The result of a job, or its error."""

    job: int
    """Index among the jobs of the call."""
    value: Any
    """JSON value; None after an error."""
    error: str | None = None
    worker: str = ""
    seconds: float = 0.0
    attempts: int = 1
    exit_code: int = RhumblineError.exit_code
    """That of the error."""


@dataclass(frozen=True)
class Worker:
    """How a worker is built, as plain values that can be sent to any machine."""

    make: str
    """`package.module:callable`. Called on the worker with `options`, it returns the function that runs the jobs."""
    options: Any = field(default_factory=dict)
    """JSON value."""

    def build(self) -> RunJob:
        """Build the worker in this process."""
        module, name = self.make.split(":")
        return getattr(import_module(module), name)(self.options)


@runtime_checkable
class Pool(Protocol):
    """Running workers."""

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[JobResult]:
        """Results in order of completion; a job can have several."""
        ...


@runtime_checkable
class OverlappingPool(Pool, Protocol):
    """Workers that compute the jobs of several calls at the same time."""

    def begin(
        self, jobs: Sequence[Job], shared: Shared | None, *, when_idle: bool, arrived: Callable[[JobResult], None]
    ) -> Iterator[JobResult]:
        """Start jobs; their results as those of `map`.

        `when_idle`: only workers for which no other call has a job compute them. `arrived` is called with every result
        without an error when it arrives, also while results of another call are read.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Where jobs run."""

    @property
    def name(self) -> str:
        """Name in the report."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether workers are other processes, which are built from a `Worker`."""
        ...

    def pool(self, worker: Worker | RunJob) -> AbstractContextManager[Pool]:
        """Workers of one kind, while the context is active. A function is accepted only if the engine is not remote."""
        ...


# -- this process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalPool:
    """One worker: a function of this process."""

    run: RunJob

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[JobResult]:
        """Results in the order of the jobs, each computed when it is read.

        A RhumblineError is the result of its job; any other error is raised.
        """
        for index, job in enumerate(jobs):
            start = time.perf_counter()
            value, error, code = None, None, RhumblineError.exit_code
            try:
                value = self.run(job.kind, job.arguments, shared or {})
            except RhumblineError as raised:
                error, code = str(raised), raised.exit_code
            yield JobResult(index, value, error, "local", time.perf_counter() - start, exit_code=code)


@dataclass(frozen=True)
class Local:
    """This process, which runs one job after another."""

    name: str = "local"
    is_remote: bool = False

    @contextmanager
    def pool(self, worker: Worker | RunJob) -> Iterator[LocalPool]:
        """The worker as given, or built here."""
        yield LocalPool(worker.build() if isinstance(worker, Worker) else worker)


# -- stored results ---------------------------------------------------------------------------------------------------


def run_jobs(
    pool: Pool,
    jobs: Sequence[Job],
    folder: Path,
    shared: Shared | None = None,
    *,
    log: Path | None = None,
    report: Callable[[Job, JobResult], None] = lambda job, result: None,
) -> list[Any]:
    """The value of every job, in order. Results in `folder` are not computed again; repeated results are dropped.

    Raises JobError for the first failed job, after the results of the others are stored.
    """
    return begin_jobs(pool, jobs, folder, shared, log=log, report=report)()


def begin_jobs(
    pool: Pool,
    jobs: Sequence[Job],
    folder: Path,
    shared: Shared | None = None,
    *,
    when_idle: bool = False,
    log: Path | None = None,
    report: Callable[[Job, JobResult], None] = lambda job, result: None,
) -> Callable[[], list[Any]]:
    """Start the jobs of `run_jobs`; the returned function waits for their values, and reports all of them.

    A pool whose calls do not overlap computes the jobs when the function is called.
    """
    paths = [stored_result(folder, job) for job in jobs]
    values: dict[int, Any] = {i: read_json(path)["value"] for i, path in enumerate(paths) if path.is_file()}
    missing = [i for i in range(len(jobs)) if i not in values]
    failed: dict[int, JobResult] = {}
    unreported: list[tuple[Job, JobResult]] | None = []
    """Results that arrived before they are awaited; None from then on."""

    def keep(result: JobResult) -> None:
        index = missing[result.job]
        if index in values:
            return
        if log is not None:
            log_result(log, jobs[index], result)
        if result.error is not None:
            failed[index] = result
            return
        write_json(paths[index], {"key": jobs[index].key, "value": result.value})
        values[index] = read_json(paths[index])["value"]
        failed.pop(index, None)
        if unreported is None:
            report(jobs[index], result)
        else:
            unreported.append((jobs[index], result))

    todo = [jobs[i] for i in missing]
    if isinstance(pool, OverlappingPool) and todo:
        results = pool.begin(todo, shared, when_idle=when_idle, arrived=keep)
    else:
        results = pool.map(todo, shared) if todo else iter(())

    def finish() -> list[Any]:
        nonlocal unreported
        early, unreported = unreported or [], None
        for job, result in early:
            report(job, result)
        for result in results:
            keep(result)
        if failed:
            index, result = min(failed.items())
            raise JobError(
                f"{len(failed)} of {len(jobs)} jobs failed; the first, {jobs[index].name or jobs[index].kind}: "
                f"{result.error}. Completed jobs are stored. Rerun the same command to resume.",
                result.exit_code,
            )
        if len(values) < len(jobs):
            raise EngineError(
                f"{len(jobs) - len(values)} of {len(jobs)} jobs have no result. Rerun the same command to resume."
            )
        return [values[i] for i in range(len(jobs))]

    return finish


def stored_result(folder: Path, job: Job) -> Path:
    """The file of the result of a job."""
    return folder / f"{job.key}.json"


def log_result(path: Path, job: Job, result: JobResult) -> None:
    """Append one JSON line about a finished job to a log that all workers share."""
    line = {
        "job": job.name or job.kind,
        "key": job.key[:16],
        "worker": result.worker,
        "seconds": round(result.seconds, 3),
        "attempts": result.attempts,
        "error": result.error,
    }
    with appending(path) as file:
        file.write(json.dumps(finite(line), ensure_ascii=False) + "\n")


def engine(name: str, *, gpus_per_replica: float = 0, replicas: int | None = None) -> Engine:
    """An engine by name: `local`, `processes`, `ray` (the cluster of RAY_ADDRESS, or a new one), `ray://HOST:PORT`."""
    if gpus_per_replica and not name.startswith("ray"):
        raise InputError("--gpus-per-replica requires --engine ray.")
    if name == "local":
        if replicas is not None:
            raise InputError("--replicas requires --engine processes or ray. The engine local has one worker.")
        return Local()
    if name == "processes":
        from rhumbline.engines.processes import Processes

        return Processes(replicas)
    if name == "ray" or re.fullmatch(r"ray://[\w.-]+:[0-9]{1,5}", name):
        from rhumbline.engines.ray import Ray

        return Ray(name if "://" in name else None, gpus_per_replica, replicas)
    raise InputError(f"--engine {name} is unknown. Use local, processes, ray or ray://HOST:PORT.")
