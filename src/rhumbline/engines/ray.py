"""Jobs on the workers of a Ray cluster: each worker is an actor that loads what it needs once and is kept.

Ray says where and when; what is lost is sent again from here, since retries of Ray's actors are spent before a dead
node is known to be dead. A worker that dies costs the job that it held; a job that was lost too often fails alone.
What crosses the wire is text and bytes. Knows resources and failures. Does not know what a job is.
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

from rhumbline.engines.jobs import Answer, Do, EngineError, Job, Shared, Worker
from rhumbline.errors import InputError, RhumblineError

log = logging.getLogger("rhumbline")

MOST_LOSSES = 4
"""Workers that may die under one job before the job is held to be what kills them."""
LOOK_SECONDS = 2.0
"""How often the cluster's size is looked at while nothing is answered."""
PATIENCE_SECONDS = 600.0
"""How long no worker may be alive before the engine gives up."""
HEAD_SECONDS = 20.0
"""How long the head may be out of reach before it is held to be gone. Ray itself ends the process, without a word,
after 60 s, or as soon as this process asks the store of a node that is gone: nothing is asked of Ray meanwhile."""


class Replica:
    """Lives on a worker; started once, then asked."""

    def start(self, make: str, options: str) -> str:
        """Make what does the work; returns the reason why not, or nothing."""
        try:
            self.do: Do = Worker(make, json.loads(options)).made()
        except RhumblineError as error:
            return f"{socket.gethostname()}: {error}"
        return ""

    def hold(self, shared: Shared) -> None:
        """The files that the jobs from now on need."""
        self.shared = shared

    def ask(self, kind: str, arguments: str) -> tuple[str, str | None, int, str, float]:
        """(value as JSON, error, its exit code, where, seconds)."""
        start = time.perf_counter()
        value, error, code = "null", None, RhumblineError.exit_code
        try:
            value = json.dumps(self.do(kind, json.loads(arguments), self.shared))
        except RhumblineError as raised:
            error, code = str(raised), raised.exit_code
        except MemoryError:
            # This process has grown too large; a fresh one may do. What it held goes with it.
            os._exit(1)
        except Exception as raised:
            # The traceback stays on the worker (Ray's log of it); one bad job does not stop the others.
            traceback.print_exc()
            error = f"{type(raised).__name__}: {raised}"
        return value, error, code, f"{socket.gethostname()}:{os.getpid()}", time.perf_counter() - start


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker that asked for no GPU sees none. It is Ray's default, which is going to change and warns of it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("--engine ray needs the extra `ray`: pip install 'rhumbline[ray]'.") from error
    return ray


def is_loopback(address: str) -> bool:
    """Whether an address `ray://HOST:PORT` or `HOST:PORT` is this machine's own loopback."""
    host = urlsplit(address if "://" in address else f"ray://{address}").hostname or ""
    return host in ("localhost", "::1", "auto", "local") or host.startswith("127.")


class Head:
    """The head node of the cluster, looked at beside Ray, whose own calls do not come back from a head that is gone."""

    def __init__(self, address: str) -> None:
        self.address, self.is_gone = address, False

    def is_up(self) -> bool:
        """Whether it takes connections."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS):
                return True
        except OSError:
            return False

    def check(self) -> None:
        """EngineError where it is gone; waits where it is out of reach for a while."""
        end = time.monotonic() + HEAD_SECONDS
        while not self.is_up():
            if time.monotonic() > end:
                self.is_gone = True
                raise EngineError(
                    "the head node of the Ray cluster is gone. What was done is kept: start the cluster again (or "
                    "choose another engine) and give the same command; it goes on from there."
                )
            time.sleep(LOOK_SECONDS / 4)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: `ray://HOST:PORT`, that of RAY_ADDRESS, or one that is started here and ends with this process."""

    address: str | None = None
    gpus_per_replica: float = 0
    replicas: int | None = None
    """None: as many as the cluster has room for."""
    is_remote: bool = True

    @property
    def name(self) -> str:
        """For the report; the address is left out, as it is nobody's business."""
        return "ray"

    @contextmanager
    def pool(self, worker: Worker | Do) -> Iterator["RayPool"]:
        """Workers made from the description, on as many replicas as there is room for; none is left behind."""
        if not isinstance(worker, Worker):
            raise TypeError("a Ray engine makes its own workers")
        # Whoever has connected Ray in this process has also said how.
        loaded = sys.modules.get("ray")
        ours = loaded is None or not loaded.is_initialized()
        if ours:
            self._secure()
        ray = _imported()
        if ours:
            self._connect(ray)
        pool = RayPool(ray, worker, self.gpus_per_replica, self.replicas)
        try:
            if pool.capacity() < 1:
                raise EngineError(
                    f"the cluster has no room for a replica of {self.gpus_per_replica or 'no'} GPUs and one CPU; "
                    "give another --gpus-per-replica, or add nodes."
                )
            yield pool
        finally:
            pool.close()
            if ours:
                ray.shutdown()

    @property
    def _cluster(self) -> str | None:
        """Where the cluster is; None for one that is started here."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def _secure(self) -> None:
        """Authentication stays on. Ray reads its mode when it is imported: set later, workers would be refused."""
        # A cluster that is started here listens on every interface, whatever address it is given.
        if self._cluster is not None and is_loopback(self._cluster):
            return
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            raise InputError(
                f"RAY_AUTH_MODE=disabled with {self._cluster or 'a cluster of this machine'}: whoever reaches a Ray "
                "cluster may run code on it. "
                "Unset it and give the cluster's token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            )
        # Where Ray was imported before, it switches authentication on itself for a cluster that it starts.
        if self._cluster is not None or "ray" not in sys.modules:
            os.environ.setdefault("RAY_AUTH_MODE", "token")

    def _connect(self, ray: Any) -> None:
        address = self._cluster
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address:
            options["address"] = address
        else:
            # Without one Ray looks for this machine's last cluster, and knocks for minutes where that is gone.
            options |= {"address": "local", "include_dashboard": False}
        if address and "://" not in address and ":" in address:
            # Ray knocks for a quarter of an hour, and takes a loopback address for that of this node.
            port = address.rpartition(":")[2]
            head = Head(f"{ray.util.get_node_ip_address()}:{port}" if is_loopback(address) else address)
            if not head.is_up():
                raise EngineError(
                    f"no Ray cluster at {head.address}: nobody takes connections there. Is its head node up, and is "
                    "RAY_ADDRESS or --engine its address?"
                )
        try:
            ray.init(**options)
        except Exception as error:
            first = str(error).strip().splitlines()
            raise EngineError(
                f"no Ray cluster at {address or 'this machine'}: {type(error).__name__}: "
                f"{first[0] if first else 'no reason given'}. Is its head node up, and is its token in RAY_AUTH_TOKEN?"
            ) from error


class RayPool:
    """The workers, and the jobs that they hold."""

    def __init__(self, ray: Any, worker: Worker, gpus: float, replicas: int | None) -> None:
        self.ray, self.worker, self.gpus, self.replicas = ray, worker, gpus, replicas
        self.actors: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.last_group: dict[Any, str] = {}
        self.alive_at = time.monotonic()
        # Ray's client (ray://) has no address of its own, and says by itself that the connection is lost.
        address = ray.get_runtime_context().gcs_address if not ray.util.client.ray.is_connected() else None
        self.head = Head(address) if address else None

    def _check_head(self) -> None:
        if self.head is not None:
            self.head.check()

    def capacity(self) -> int:
        """Replicas that the nodes alive have room for."""
        nodes = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        cpu = [int(n.get("CPU", 0)) for n in nodes]
        gpu = [int(n.get("GPU", 0) // self.gpus) if self.gpus else c for n, c in zip(nodes, cpu, strict=True)]
        room = sum(min(pair) for pair in zip(cpu, gpu, strict=True))
        return room if self.replicas is None else min(room, self.replicas)

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[Answer]:
        """Answers as they come. Infrastructure failures send a job again; what the job itself raised is its answer."""
        lost_to = _lost_to(self.ray)
        files, holders = dict(shared or {}), set[Any]()
        queue, held = deque(range(len(jobs))), {}
        attempts: Counter[int] = Counter()
        done = 0
        try:
            while done < len(jobs):
                self._check_head()
                self._grow(len(jobs) - done)
                while queue and self.idle:
                    actor, index = self._match(queue, jobs)
                    attempts[index] += 1
                    job = jobs[index]
                    if actor not in holders:
                        # Once for each worker, and nothing stays in the store: a driver that has something in the
                        # store of a node that dies is ended by Ray, without a word.
                        holders.add(actor)
                        actor.hold.remote(self._put(files) if files else files)
                    reference = actor.ask.remote(job.kind, json.dumps(job.arguments))
                    held[reference] = (index, actor)
                ready, _ = self.ray.wait([*held, *self.starting], num_returns=1, timeout=LOOK_SECONDS)
                self._check_patience(bool(held))
                for reference in ready:
                    if reference in self.starting:
                        self._started(reference, lost_to)
                        continue
                    index, actor = held.pop(reference)
                    try:
                        value, error, code, where, seconds = self.ray.get(reference)
                    except lost_to as lost:
                        self._lose(actor)
                        if attempts[index] < MOST_LOSSES:
                            log.warning("a worker was lost (%s); its job runs again", type(lost).__name__)
                            queue.append(index)
                            continue
                        value, code, where, seconds = "null", RhumblineError.exit_code, "", 0.0
                        error = f"{attempts[index]} workers died under it ({_brief(lost)})"
                    else:
                        self.idle.append(actor)
                    done += 1
                    yield Answer(index, json.loads(value), error, where, seconds, attempts[index], code)
        finally:
            for _, actor in held.values():
                self._drop(actor)

    def _put(self, shared: dict[str, bytes]) -> Any:
        try:
            return self.ray.put(shared)
        except self.ray.exceptions.ObjectStoreFullError as error:
            size = sum(map(len, shared.values())) / 2**20
            raise EngineError(
                f"Ray's object store has no room for the {size:.0f} MiB that the jobs share. Start the nodes with a "
                "larger --object-store-memory (and /dev/shm); nothing is lost, the same command goes on."
            ) from error

    def _grow(self, wanted: int) -> None:
        room = min(self.capacity(), wanted)
        while len(self.actors) < room:
            remote = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)(Replica)
            actor = remote.remote()
            self.actors.append(actor)
            self.starting[actor.start.remote(self.worker.make, json.dumps(self.worker.options))] = actor

    def _match(self, queue: deque[int], jobs: Sequence[Job]) -> tuple[Any, int]:
        """A worker and a job: of the group that the worker had last, else of one that no worker has, else the first."""
        for actor in self.idle:
            for index in queue:
                if jobs[index].group == self.last_group.get(actor):
                    return self._take(queue, jobs, actor, index)
        actor, taken = self.idle[0], set(self.last_group.values())
        fresh = (index for index in queue if jobs[index].group not in taken)
        return self._take(queue, jobs, actor, next(fresh, queue[0]))

    def _take(self, queue: deque[int], jobs: Sequence[Job], actor: Any, index: int) -> tuple[Any, int]:
        self.idle.remove(actor)
        queue.remove(index)
        self.last_group[actor] = jobs[index].group
        return actor, index

    def _started(self, reference: Any, lost_to: tuple[type[BaseException], ...]) -> None:
        actor = self.starting.pop(reference)
        try:
            reason = self.ray.get(reference)
        except lost_to as lost:
            log.warning("a worker was lost while it started (%s)", type(lost).__name__)
            self._lose(actor)
            return
        except self.ray.exceptions.RayTaskError as error:
            raise EngineError(f"a worker cannot start: {_brief(error)}") from error
        if reason:
            raise EngineError(f"a worker cannot start: {reason}")
        self.idle.append(actor)

    def _check_patience(self, is_busy: bool) -> None:
        if is_busy or self.idle:
            self.alive_at = time.monotonic()
        elif time.monotonic() - self.alive_at > PATIENCE_SECONDS:
            raise EngineError(
                f"no worker came up within {PATIENCE_SECONDS:.0f} s. Are the nodes up? The same command goes on."
            )

    def _lose(self, actor: Any) -> None:
        # A head that dies takes its time to close its ports, and its workers are the first to go.
        time.sleep(LOOK_SECONDS)
        self._check_head()
        self._drop(actor)

    @property
    def is_headless(self) -> bool:
        """Whether the cluster is gone, and nothing may be asked of Ray."""
        return self.head is not None and self.head.is_gone

    def _drop(self, actor: Any) -> None:
        self.actors.remove(actor)
        self.last_group.pop(actor, None)
        if actor in self.idle:
            self.idle.remove(actor)
        if not self.is_headless:
            self.ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End every worker."""
        for actor in [] if self.is_headless else self.actors:
            self.ray.kill(actor, no_restart=True)
        self.actors, self.idle, self.starting = [], [], {}


def _lost_to(ray: Any) -> tuple[type[BaseException], ...]:
    """What Ray raises where a worker, its node or its memory is gone, and the job is not to blame."""
    names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
    return tuple(getattr(ray.exceptions, name) for name in names)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:300]
