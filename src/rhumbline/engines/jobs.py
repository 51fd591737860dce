"""Engines map independent jobs: where the work of a run or a sweep takes place.

    local.py   in this process, one job after the other
    ray.py     on the workers of a Ray cluster (extra `ray`)
    mock.py    in this process, out of order, with jobs that fail and repeat: for tests

A job is named by what it depends on (`Job.key`), is independent of its neighbours, and may be run twice. Promises: the
first answer to a job stands and is on disk before it counts (`answered`), so a killed run goes on and nothing is
answered twice differently; a worker that dies costs the jobs that it held. What crosses a machine is JSON and bytes.
Knows nothing of models, prompts or directions.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rhumbline.errors import InputError, RhumblineError
from rhumbline.records.files import appending, finite, read_json, sha256, write_json

Shared = Mapping[str, bytes]
"""Files that all jobs of one call need, by name."""
Do = Callable[[str, Mapping[str, Any], Shared], Any]
"""What a worker does: (kind, arguments, shared files) -> a JSON value."""


class EngineError(RhumblineError):
    """The engine cannot go on: no worker is left, or a job was lost too often. The same command goes on."""


class JobError(RhumblineError):
    """A job failed by itself; another try would fail again. Its exit code is that of what the job raised."""

    def __init__(self, message: str, exit_code: int = RhumblineError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Job:
    """One piece of work."""

    kind: str
    arguments: Mapping[str, Any]
    """JSON."""
    depends: Mapping[str, Any] = field(default_factory=dict)
    """What else its answer depends on (protocol, code, inputs): JSON, goes into the key and not to the worker."""
    group: str = ""
    """Jobs of one group like the same worker (it has their model)."""
    name: str = ""
    """For people; default: the kind."""

    @property
    def key(self) -> str:
        """Hash of everything that the answer depends on."""
        return sha256({"kind": self.kind, "arguments": self.arguments, "depends": self.depends})


class Answer(NamedTuple):
    """What became of a job."""

    job: int
    """Its index among those that were mapped."""
    value: Any
    """JSON; None where it failed."""
    error: str | None = None
    """Why it failed."""
    worker: str = ""
    seconds: float = 0.0
    attempts: int = 1
    exit_code: int = RhumblineError.exit_code
    """Of what it raised, where it failed."""


@dataclass(frozen=True)
class Worker:
    """How to make a worker, in words that any machine understands."""

    make: str
    """`package.module:callable`; called once on the worker with `options`, it returns what the worker does."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """JSON."""

    def made(self) -> Do:
        """The worker, made here."""
        module, name = self.make.split(":")
        return getattr(import_module(module), name)(dict(self.options))


@runtime_checkable
class Pool(Protocol):
    """Workers that are up."""

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[Answer]:
        """Answers in the order in which they come; one job may be answered more than once."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Where jobs run."""

    @property
    def name(self) -> str:
        """For the report."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether workers are other processes, which need to be told how to be made."""
        ...

    def pool(self, worker: Worker | Do) -> AbstractContextManager[Pool]:
        """Workers of one kind, while open. Only an engine in this process takes one that is made already."""
        ...


class Log(NamedTuple):
    """Where a line is written for every job that ended."""

    path: Path

    def add(self, job: Job, answer: Answer) -> None:
        """One JSON line; progress of all workers in one place."""
        line = {
            "job": job.name or job.kind,
            "key": job.key[:16],
            "worker": answer.worker,
            "seconds": round(answer.seconds, 3),
            "attempts": answer.attempts,
            "error": answer.error,
        }
        with appending(self.path) as f:
            f.write(json.dumps(finite(line), ensure_ascii=False) + "\n")


def answered(
    pool: Pool,
    jobs: Sequence[Job],
    folder: Path,
    shared: Shared | None = None,
    *,
    log: Log | None = None,
    told: Callable[[Job, Answer], None] = lambda job, answer: None,
) -> list[Any]:
    """The value of every job, in order. What is on disk is not run again, and a repeated answer is dropped.

    Raises JobError for the first job that failed, once the answers of the others are on disk.
    """
    paths = [folder / f"{job.key}.json" for job in jobs]
    found: dict[int, Any] = {i: read_json(path)["value"] for i, path in enumerate(paths) if path.is_file()}
    waiting = [i for i in range(len(jobs)) if i not in found]
    failed: dict[int, Answer] = {}
    if waiting:
        for answer in pool.map([jobs[i] for i in waiting], shared):
            index = waiting[answer.job]
            if index in found:
                continue
            if log is not None:
                log.add(jobs[index], answer)
            if answer.error is not None:
                failed[index] = answer
                continue
            write_json(paths[index], {"key": jobs[index].key, "value": answer.value})
            found[index] = read_json(paths[index])["value"]
            failed.pop(index, None)
            told(jobs[index], answer)
    if failed:
        index, answer = min(failed.items())
        raise JobError(
            f"{len(failed)} of {len(jobs)} jobs failed; the first, {jobs[index].name or jobs[index].kind}: "
            f"{answer.error}. What was answered is kept; the same command goes on.",
            answer.exit_code,
        )
    lost = [i for i in range(len(jobs)) if i not in found]
    if lost:
        raise EngineError(f"{len(lost)} of {len(jobs)} jobs were never answered. The same command goes on.")
    return [found[i] for i in range(len(jobs))]


def engine(name: str, *, gpus_per_replica: float = 0, replicas: int | None = None) -> Engine:
    """An engine by name: `local`, `ray` (started here, or the cluster of RAY_ADDRESS), `ray://HOST:PORT`."""
    from rhumbline.engines.local import Local

    if name == "local":
        if replicas is not None or gpus_per_replica:
            raise InputError("--replicas and --gpus-per-replica belong to --engine ray; local has one worker.")
        return Local()
    if name == "ray" or name.startswith("ray://"):
        from rhumbline.engines.ray import Ray

        return Ray(name if "://" in name else None, gpus_per_replica, replicas)
    raise InputError(f"--engine {name} is unknown; use local, ray or ray://HOST:PORT.")
