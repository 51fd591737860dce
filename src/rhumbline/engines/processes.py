"""The engine `processes`: jobs on worker processes of this machine, each built once and kept.

Each worker has its share of the processor's threads, unless OMP_NUM_THREADS is set. A lost worker costs the job that
it was running, which another one runs again; a job that loses several workers fails alone. Independent of the content
of a job.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple, TypeVar, cast

from rhumbline.engines.engine import MAX_LOSSES, EngineError, Job, JobResult, RunJob, Shared, Worker
from rhumbline.errors import RhumblineError

log = logging.getLogger("rhumbline")
T = TypeVar("T")

ENVIRONMENT = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Variables of every worker, besides its number of threads. Progress bars of several processes overwrite each other."""
STOP_SECONDS = 5.0
"""Time that a worker has to end before it is terminated."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Processes:
    """Worker processes of this machine."""

    replicas: int | None = None
    """None: one for each core."""
    is_remote: bool = True
    name: str = "processes"

    @contextmanager
    def pool(self, worker: Worker | RunJob) -> Iterator["ProcessPool"]:
        """Start the workers without waiting until they are built. They are stopped when the context ends."""
        if not isinstance(worker, Worker):
            raise TypeError("the workers of other processes are built from a Worker")
        pool = ProcessPool(worker, self.replicas or cores())
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


class WorkerProcess:
    """One worker process, and the connection to it."""

    def __init__(self, worker: Worker, threads: int) -> None:
        context = get_context("spawn")
        self.connection, there = context.Pipe()
        variables = ENVIRONMENT | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        arguments = (there, worker.make, json.dumps(worker.options), variables)
        self.child: SpawnProcess = context.Process(target=_serve, args=arguments, daemon=True)
        self.child.start()
        there.close()
        self.has: Shared | None = None
        """The shared files that it has."""

    def send(self, job: Job, shared: Shared) -> None:
        """Start a job."""
        files = None if self.has is shared else dict(shared)
        self.has = shared
        self.connection.send((job.kind, json.dumps(job.arguments), files))

    def stop(self) -> None:
        """End the process. One that has no job yet may still be built, and is not awaited."""
        self.connection.close()
        if self.has is None:
            self.child.terminate()
        self.child.join(STOP_SECONDS)
        if self.child.is_alive():
            self.child.terminate()
            self.child.join()


@dataclass(frozen=True, eq=False)
class Call:
    """The jobs of one call of `begin`."""

    jobs: Sequence[Job]
    files: Shared
    when_idle: bool
    arrived: Callable[[JobResult], None] | None
    attempts: Counter[int] = field(default_factory=Counter[int])
    results: deque[JobResult] = field(default_factory=deque[JobResult])
    """Those that were not read yet."""


class Task(NamedTuple):
    """One job of a call."""

    call: Call
    job: int
    """Index among the jobs of the call."""


class ProcessPool:
    """The workers, and the jobs of all calls that are in progress."""

    def __init__(self, worker: Worker, size: int) -> None:
        self.worker, self.size = worker, size
        self.processes: list[WorkerProcess] = []
        self.queue: deque[Task] = deque()
        self.running: dict[Connection, tuple[Task, WorkerProcess]] = {}

    def start(self) -> None:
        """Start the workers that are missing."""
        while len(self.processes) < self.size:
            self.processes.append(WorkerProcess(self.worker, max(1, cores() // self.size)))

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[JobResult]:
        """Results in order of completion. A job whose worker is lost is run again; an error of the job is a result."""
        return self.begin(jobs, shared)

    def begin(
        self,
        jobs: Sequence[Job],
        shared: Shared | None = None,
        *,
        when_idle: bool = False,
        arrived: Callable[[JobResult], None] | None = None,
    ) -> Iterator[JobResult]:
        """Start jobs behind those of earlier calls, or behind all others (`when_idle`); their results as of `map`.

        `arrived` is called with every result without an error when it arrives.
        """
        call = Call(jobs, dict(shared or {}), when_idle, arrived)
        self.queue.extend(Task(call, job) for job in range(len(jobs)))
        self._send()
        return self._results(call)

    def _results(self, call: Call) -> Iterator[JobResult]:
        try:
            while call.results or self._tasks(call):
                if not call.results:
                    self._send()
                    self._receive()
                while call.results:
                    yield call.results.popleft()
        finally:
            self._stop(call)

    def _tasks(self, call: Call) -> list[Task]:
        """The unfinished jobs of a call."""
        running = [task for task, _ in self.running.values()]
        return [task for task in [*self.queue, *running] if task.call is call]

    def _send(self) -> None:
        """Start as many jobs as there are idle workers."""
        if self.queue:
            self.start()  # in place of those that were lost
        busy = [process for _, process in self.running.values()]
        for process in [process for process in self.processes if process not in busy][: len(self.queue)]:
            task = next((task for task in self.queue if not task.call.when_idle), self.queue[0])
            self.queue.remove(task)
            task.call.attempts[task.job] += 1
            self.running[process.connection] = (task, process)
            with suppress(OSError):  # that it ended is read below
                process.send(task.call.jobs[task.job], task.call.files)

    def _receive(self) -> None:
        """Wait for a worker, and store its result with the call that it belongs to."""
        for ready in wait(list(self.running)):
            task, process = self.running.pop(cast(Connection, ready))
            attempts = task.call.attempts[task.job]
            try:
                value, error, code, seconds = process.connection.recv()
            except (EOFError, OSError):
                self._drop(process)
                if attempts < MAX_LOSSES:
                    log.warning("a worker process was lost; its job runs again")
                    self.queue.append(task)
                    continue
                value, code, seconds = "null", RhumblineError.exit_code, 0.0
                error = f"{attempts} worker processes were lost while they ran it"
            if value is None:
                raise EngineError(f"a worker cannot start: {error}", code)
            name = f"process {process.child.pid}"
            result = JobResult(task.job, json.loads(value), error, name, seconds, attempts, code)
            task.call.results.append(result)
            if task.call.arrived is not None and error is None:
                task.call.arrived(result)

    def _stop(self, call: Call) -> None:
        """Stop the unfinished jobs of a call, with the workers that run them."""
        self.queue = deque(task for task in self.queue if task.call is not call)
        for connection, (task, process) in [*self.running.items()]:
            if task.call is call:
                del self.running[connection]
                process.child.terminate()
                self._drop(process)

    def _drop(self, process: WorkerProcess) -> None:
        self.processes.remove(process)
        process.stop()

    def close(self) -> None:
        """Stop all workers, also those that run jobs of calls whose results were not read."""
        for _, process in self.running.values():
            process.child.terminate()
        for process in [*self.processes]:
            self._drop(process)


def _serve(connection: Connection, make: str, options: str, variables: Mapping[str, str]) -> None:
    """The process of a worker: build it and run jobs until the connection is closed.

    An answer is (value as JSON, error, its exit code, seconds); the value is None if the worker cannot be built.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends its workers itself
    _set_up(variables)
    # Standard output belongs to the command.
    sys.stdout = sys.stderr
    run_job, refused, refused_code = _attempt(Worker(make, json.loads(options)).build)
    files: Shared = {}
    while True:
        try:
            kind, arguments, sent = connection.recv()
        except (EOFError, OSError):
            return
        files, start = files if sent is None else sent, time.perf_counter()
        if run_job is None:
            connection.send((None, refused, refused_code, 0.0))
            continue
        value, error, code = _attempt(partial(_as_json, run_job, kind, arguments, files))
        connection.send((value or "null", error, code, time.perf_counter() - start))


def _set_up(variables: Mapping[str, str]) -> None:
    """Set the variables of a worker. A script of the user may have imported torch, which then has read its threads."""
    is_given, torch = "OMP_NUM_THREADS" in os.environ, sys.modules.get("torch")
    os.environ.update(variables)
    if torch is not None and not is_given:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))


def _as_json(run_job: RunJob, kind: str, arguments: str, files: Shared) -> str:
    return json.dumps(run_job(kind, json.loads(arguments), files))


def _attempt(call: Callable[[], T]) -> tuple[T | None, str | None, int]:
    """The result of a call, or its error with the exit code. The process ends if the memory is not sufficient."""
    try:
        return call(), None, RhumblineError.exit_code
    except RhumblineError as raised:
        return None, str(raised), raised.exit_code
    except MemoryError:
        # A new process can have enough memory, so the job is run again.
        os._exit(1)
    except Exception as raised:
        traceback.print_exc()
        return None, f"{type(raised).__name__}: {raised}", RhumblineError.exit_code
