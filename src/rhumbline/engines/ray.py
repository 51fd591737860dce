"""The engine `ray`: jobs on the workers of a Ray cluster. A worker is an actor that is built once and kept.

Lost jobs are sent again from here, because Ray can use up its own retries before it has noticed that a node is lost. A
lost worker costs the job that it was running; a job that loses several workers fails alone. Processes exchange text and
bytes. Independent of the content of a job.
"""

import json
import logging
import os
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rhumbline.engines.engine import MAX_LOSSES, EngineError, Job, JobResult, RunJob, Shared, Worker
from rhumbline.errors import InputError, RhumblineError

log = logging.getLogger("rhumbline")

POLL_SECONDS = 2.0
"""Interval at which the size of the cluster is read while no result arrives."""
WORKER_SECONDS = 600.0
"""Time without any worker after which the engine raises an error."""
HEAD_SECONDS = 20.0
"""Time for which the head node can be unreachable. After 60 s, or at a call to the object store of a lost node, Ray
terminates the process without a message; so no call is made to Ray meanwhile."""


class Actor:
    """The process of a worker."""

    def start(self, make: str, options: str) -> tuple[str, int]:
        """Build the worker; its error (otherwise an empty text) and the exit code."""
        try:
            self.run_job: RunJob = Worker(make, json.loads(options)).build()
        except RhumblineError as error:
            return f"{socket.gethostname()}: {error}", error.exit_code
        return "", RhumblineError.exit_code

    def receive(self, shared: Shared) -> None:
        """Store the shared files of the following jobs."""
        self.shared = shared

    def run(self, kind: str, arguments: str) -> tuple[str, str | None, int, str, float]:
        """(value as JSON, error, its exit code, host and process, seconds)."""
        start = time.perf_counter()
        value, error, code = "null", None, RhumblineError.exit_code
        try:
            value = json.dumps(self.run_job(kind, json.loads(arguments), self.shared))
        except RhumblineError as raised:
            error, code = str(raised), raised.exit_code
        except MemoryError:
            # A new process can have enough memory, so the job is sent again.
            os._exit(1)
        except Exception as raised:
            # The traceback is written to Ray's log of the worker; the other jobs continue.
            traceback.print_exc()
            error = f"{type(raised).__name__}: {raised}"
        return value, error, code, f"{socket.gethostname()}:{os.getpid()}", time.perf_counter() - start


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker without GPUs sees no GPU. This is Ray's default, and Ray warns that the default will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("--engine ray needs the extra `ray`: pip install 'rhumbline[ray]'.") from error
    return ray


def is_loopback(address: str) -> bool:
    """Whether `ray://HOST:PORT` or `HOST:PORT` is the loopback address of this machine."""
    host = urlsplit(address if "://" in address else f"ray://{address}").hostname or ""
    return host in ("localhost", "::1", "auto", "local") or host.startswith("127.")


class Head:
    """The head node of the cluster, checked without Ray, whose calls do not return if the head is lost."""

    def __init__(self, address: str) -> None:
        self.address, self.is_lost = address, False

    def is_up(self) -> bool:
        """Whether it accepts connections."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=POLL_SECONDS):
                return True
        except OSError:
            return False

    def check(self) -> None:
        """Wait while the head is unreachable; EngineError after HEAD_SECONDS."""
        end = time.monotonic() + HEAD_SECONDS
        while not self.is_up():
            if time.monotonic() > end:
                self.is_lost = True
                raise EngineError(
                    "the head node of the Ray cluster is lost. Completed jobs are stored. Start the cluster again, or "
                    "select another engine, and rerun the same command to resume."
                )
            time.sleep(POLL_SECONDS / 4)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: at `ray://HOST:PORT`, that of RAY_ADDRESS, or a new one that ends with this process."""

    address: str | None = None
    gpus_per_replica: float = 0
    replicas: int | None = None
    """None: as many as fit on the cluster."""
    is_remote: bool = True
    name: str = "ray"
    """Without the address, which is private."""

    @contextmanager
    def pool(self, worker: Worker | RunJob) -> Iterator["RayPool"]:
        """Workers on all nodes with room for a replica; all are stopped at the end."""
        if not isinstance(worker, Worker):
            raise TypeError("the workers of a Ray engine are built from a Worker")
        # If Ray is connected in this process already, the connection and its settings are kept.
        loaded = sys.modules.get("ray")
        is_new = loaded is None or not loaded.is_initialized()
        if is_new:
            self._secure()
        ray = _import_ray()
        if is_new:
            self._connect(ray)
        pool = RayPool(ray, worker, self.gpus_per_replica, self.replicas)
        try:
            if pool.capacity() < 1:
                raise EngineError(
                    f"the cluster has no room for a replica with {self.gpus_per_replica or 'no'} GPUs and one CPU. "
                    "Pass another --gpus-per-replica, or add nodes."
                )
            yield pool
        finally:
            pool.close()
            if is_new:
                ray.shutdown()

    @property
    def _cluster(self) -> str | None:
        """Address of the cluster; None for a new one."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def _secure(self) -> None:
        """Keep authentication enabled. Ray reads its mode at import, so a later change would make it reject workers."""
        # A new cluster listens on every interface, whatever address it is given.
        if self._cluster is not None and is_loopback(self._cluster):
            return
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            raise InputError(
                f"RAY_AUTH_MODE=disabled with {self._cluster or 'a cluster of this machine'}: every machine that "
                "reaches a Ray cluster can run code on it. Unset it, and set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to "
                "the token of the cluster."
            )
        # If Ray was imported before, it enables authentication itself for a cluster that it starts.
        if self._cluster is not None or "ray" not in sys.modules:
            os.environ.setdefault("RAY_AUTH_MODE", "token")

    def _connect(self, ray: Any) -> None:
        # Without an address, Ray searches for the last cluster of this machine, for minutes if that is lost.
        address = self._cluster or "local"
        dashboard = {} if self._cluster else {"include_dashboard": False}
        if "://" not in address and ":" in address:
            # Ray tries to connect for a quarter of an hour, and reads a loopback address as that of this node.
            port = address.rpartition(":")[2]
            head = Head(f"{ray.util.get_node_ip_address()}:{port}" if is_loopback(address) else address)
            if not head.is_up():
                raise EngineError(
                    f"no Ray cluster at {head.address}: it accepts no connections. Check that the head node is running "
                    "and that RAY_ADDRESS or --engine is its address."
                )
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **dashboard)
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "no reason given")
            raise EngineError(
                f"no Ray cluster at {self._cluster or 'this machine'}: {type(error).__name__}: {first}. Check that the "
                "head node is running and that RAY_AUTH_TOKEN is its token."
            ) from error


class RayPool:
    """The workers, and the jobs that they are running."""

    def __init__(self, ray: Any, worker: Worker, gpus: float, replicas: int | None) -> None:
        self.ray, self.worker, self.gpus, self.replicas = ray, worker, gpus, replicas
        self.actors: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.last_group: dict[Any, str] = {}
        self.alive_at = time.monotonic()
        # What Ray raises if a worker, its node or its memory is lost; the job is not the cause.
        names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        self.losses = tuple(getattr(ray.exceptions, name) for name in names)
        # Ray's client (ray://) has no address of its own, and reports a lost connection itself.
        address = ray.get_runtime_context().gcs_address if not ray.util.client.ray.is_connected() else None
        self.head = Head(address) if address else None

    def _check_head(self) -> None:
        if self.head is not None:
            self.head.check()

    def capacity(self) -> int:
        """Number of replicas for which the live nodes have room."""
        nodes = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        cpu = [int(n.get("CPU", 0)) for n in nodes]
        gpu = [int(n.get("GPU", 0) // self.gpus) if self.gpus else c for n, c in zip(nodes, cpu, strict=True)]
        room = sum(min(pair) for pair in zip(cpu, gpu, strict=True))
        return room if self.replicas is None else min(room, self.replicas)

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[JobResult]:
        """Results in order of completion. A job whose worker is lost is sent again; an error of the job is a result."""
        files, holders = dict(shared or {}), set[Any]()
        queue, running = deque(range(len(jobs))), {}
        attempts: Counter[int] = Counter()
        done = 0
        try:
            while done < len(jobs):
                self._check_head()
                self._grow(len(jobs) - done)
                while queue and self.idle:
                    actor, index = self._match(queue, jobs)
                    attempts[index] += 1
                    if actor not in holders:
                        # Sent once to each worker and not kept in the store: Ray terminates a driver that has an
                        # object in the store of a lost node, without a message.
                        holders.add(actor)
                        actor.receive.remote(self._put(files) if files else files)
                    reference = actor.run.remote(jobs[index].kind, json.dumps(jobs[index].arguments))
                    running[reference] = (index, actor)
                ready, _ = self.ray.wait([*running, *self.starting], num_returns=1, timeout=POLL_SECONDS)
                self._check_workers(bool(running))
                for reference in ready:
                    if reference in self.starting:
                        self._started(reference)
                        continue
                    index, actor = running.pop(reference)
                    try:
                        value, error, code, where, seconds = self.ray.get(reference)
                        self.idle.append(actor)
                    except self.losses as lost:
                        self._lose(actor)
                        if attempts[index] < MAX_LOSSES:
                            log.warning("a worker was lost (%s); its job runs again", type(lost).__name__)
                            queue.append(index)
                            continue
                        value, code, where, seconds = "null", RhumblineError.exit_code, "", 0.0
                        error = f"{attempts[index]} workers were lost while they ran it ({_brief(lost)})"
                    done += 1
                    yield JobResult(index, json.loads(value), error, where, seconds, attempts[index], code)
        finally:
            for _, actor in running.values():
                self._drop(actor)

    def _put(self, shared: dict[str, bytes]) -> Any:
        try:
            return self.ray.put(shared)
        except self.ray.exceptions.ObjectStoreFullError as error:
            size = sum(map(len, shared.values())) / 2**20
            raise EngineError(
                f"Ray's object store has no room for the {size:.0f} MiB that the jobs share. Start the nodes with a "
                "larger --object-store-memory (and /dev/shm), and rerun the same command to resume."
            ) from error

    def _grow(self, needed: int) -> None:
        """Start workers until there is one for each unfinished job, or no more room."""
        room = min(self.capacity(), needed)
        while len(self.actors) < room:
            remote = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)(Actor)
            actor = remote.remote()
            self.actors.append(actor)
            self.starting[actor.start.remote(self.worker.make, json.dumps(self.worker.options))] = actor

    def _match(self, queue: deque[int], jobs: Sequence[Job]) -> tuple[Any, int]:
        """An idle worker and a queued job: of the worker's last group, else of a group of no worker, else the first."""
        pairs = ((a, i) for a in self.idle for i in queue if jobs[i].group == self.last_group.get(a))
        groups = set(self.last_group.values())
        new = (i for i in queue if jobs[i].group not in groups)
        actor, index = next(pairs, None) or (self.idle[0], next(new, queue[0]))
        self.idle.remove(actor)
        queue.remove(index)
        self.last_group[actor] = jobs[index].group
        return actor, index

    def _started(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            reason, code = self.ray.get(reference)
        except self.losses as lost:
            log.warning("a worker was lost while it started (%s)", type(lost).__name__)
            self._lose(actor)
            return
        except self.ray.exceptions.RayTaskError as error:
            raise EngineError(f"a worker cannot start: {_brief(error)}") from error
        if reason:
            raise EngineError(f"a worker cannot start: {reason}", code)
        self.idle.append(actor)

    def _check_workers(self, is_busy: bool) -> None:
        if is_busy or self.idle:
            self.alive_at = time.monotonic()
        elif time.monotonic() - self.alive_at > WORKER_SECONDS:
            raise EngineError(
                f"no worker started within {WORKER_SECONDS:.0f} s. Check that the nodes are running. Rerun the same "
                "command to resume."
            )

    def _lose(self, actor: Any) -> None:
        # The workers of a lost head stop before its ports close.
        time.sleep(POLL_SECONDS)
        self._check_head()
        self._drop(actor)

    def _drop(self, actor: Any) -> None:
        self.actors.remove(actor)
        self.last_group.pop(actor, None)
        if actor in self.idle:
            self.idle.remove(actor)
        self._kill(actor)

    def _kill(self, actor: Any) -> None:
        """Stop a worker, unless the cluster is lost and no call to Ray may be made."""
        if self.head is None or not self.head.is_lost:
            self.ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Stop all workers."""
        for actor in self.actors:
            self._kill(actor)
        self.actors, self.idle, self.starting = [], [], {}


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:300]
