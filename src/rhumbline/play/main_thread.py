"""Calls from other threads, executed in the main thread. Limits on chat templates act there only.

Independent of what is called.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

SECONDS = 0.5
"""Between two looks at the queue, so that Ctrl-C ends the wait on every system."""


class Calls:
    """A queue of calls; `execute` makes them one after another in its own thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function, called by `execute`; in the main thread it is called at once."""
        if threading.current_thread() is threading.main_thread():
            return function(*arguments)
        result: Future[Any] = Future()

        def compute() -> None:
            try:
                result.set_result(function(*arguments))
            except Exception as error:
                result.set_exception(error)

        self._queue.put(compute)
        return result.result()

    def execute(self) -> None:
        """Make the calls until `stop`."""
        while True:
            try:
                compute = self._queue.get(timeout=SECONDS)
            except queue.Empty:
                continue
            if compute is None:
                return
            compute()

    def stop(self) -> None:
        """End `execute` after the calls that are queued already."""
        self._queue.put(None)
