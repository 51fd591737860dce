"""A local engine with the manners of a bad cluster: answers out of order, repeated, and after lost attempts."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rhumbline.engines.jobs import Answer, Do, Job, Shared, Worker
from rhumbline.engines.local import LocalPool


@dataclass(frozen=True)
class MockPool:
    """One worker, and an unreliable line to it."""

    do: Do
    seed: int
    repeats: float
    """Share of jobs that are answered twice."""

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[Answer]:
        """Every job at least once, in an order that the seed draws; arguments and values go through JSON."""
        rng = random.Random(self.seed)
        order = [i for i in range(len(jobs)) for _ in range(1 + (rng.random() < self.repeats))]
        rng.shuffle(order)
        for index in order:
            job = jobs[index]
            sent = Job(job.kind, json.loads(json.dumps(job.arguments)), job.depends, job.group, job.name)
            (answer,) = LocalPool(self.do).map([sent], shared)
            value = json.loads(json.dumps(answer.value))
            yield answer._replace(job=index, value=value, worker="mock", attempts=1 + (rng.random() < self.repeats))


@dataclass(frozen=True)
class Mock:
    """Stands in for a cluster; `is_remote` makes callers describe the worker instead of handing it over."""

    seed: int = 0
    repeats: float = 0.3
    is_remote: bool = True
    name: str = "mock"

    @contextmanager
    def pool(self, worker: Worker | Do) -> Iterator[MockPool]:
        """The worker, made here."""
        yield MockPool(worker.made() if isinstance(worker, Worker) else worker, self.seed, self.repeats)
