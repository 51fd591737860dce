"""Jobs in this process, one after the other, by a worker that may be there already."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rhumbline.engines.jobs import Answer, Do, Job, Shared, Worker
from rhumbline.errors import RhumblineError


@dataclass(frozen=True)
class LocalPool:
    """One worker: a function of this process."""

    do: Do

    def map(self, jobs: Sequence[Job], shared: Shared | None = None) -> Iterator[Answer]:
        """Answers in the order of the jobs. Errors that were raised on purpose fail the job; others go through."""
        for index, job in enumerate(jobs):
            start = time.perf_counter()
            value, error, code = None, None, RhumblineError.exit_code
            try:
                value = self.do(job.kind, job.arguments, shared or {})
            except RhumblineError as raised:
                error, code = str(raised), raised.exit_code
            yield Answer(index, value, error, "local", time.perf_counter() - start, exit_code=code)


@dataclass(frozen=True)
class Local:
    """This process."""

    name: str = "local"
    is_remote: bool = False

    @contextmanager
    def pool(self, worker: Worker | Do) -> Iterator[LocalPool]:
        """The worker, made here unless it is made already."""
        yield LocalPool(worker.made() if isinstance(worker, Worker) else worker)
