"""A local engine that simulates an unreliable cluster: results out of order, repeated, and after lost attempts."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rhumbline.engines.engine import Job, JobResult, LocalPool, RunJob, Shared, Worker


@dataclass(frozen=True)
class MockPool:
    """One worker with an unreliable connection."""

    run: RunJob
    seed: int
    repeats: float
    """Share of jobs with two results."""

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[JobResult]:
        """Every job at least once, in an order that the seed draws; arguments and values are converted to JSON."""
        rng = random.Random(self.seed)
        order = [i for i in range(len(jobs)) for _ in range(1 + (rng.random() < self.repeats))]
        rng.shuffle(order)
        for index in order:
            sent = replace(jobs[index], arguments=json.loads(json.dumps(jobs[index].arguments)))
            (result,) = LocalPool(self.run).map([sent], shared)
            value = json.loads(json.dumps(result.value))
            yield result._replace(job=index, value=value, worker="mock", attempts=1 + (rng.random() < self.repeats))


@dataclass(frozen=True)
class Mock:
    """A mock cluster: remote, so that callers describe the worker instead of passing a function."""

    seed: int = 0
    repeats: float = 0.3
    is_remote: bool = True
    name: str = "mock"

    @contextmanager
    def pool(self, worker: Worker | RunJob) -> Iterator[MockPool]:
        """The worker, built here."""
        yield MockPool(worker.build() if isinstance(worker, Worker) else worker, self.seed, self.repeats)
