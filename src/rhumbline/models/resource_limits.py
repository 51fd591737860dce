"""Limits of time and memory for a chat template or a regular expression, which may come from a stranger.

Independent of templates and tokenizers. Enforced in the main thread on Linux; elsewhere a rendering is not limited.
`play` therefore renders prompts in the main thread.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 2.0
"""Most processor time of one rendering; a busy machine changes it little. Published templates need milliseconds."""
GRACE = 10.0
"""Further processor time after which the operating system ends the process. One operation of the interpreter, such as
the comparison of nested lists that share their parts, cannot be stopped in another way."""
BYTES = 2**29
"""Most memory that one rendering may add to the process."""


class LimitExceeded(Exception):
    """A rendering took too long."""


class _Stop(BaseException):
    """Not an Exception, because the compiler of Jinja ignores these while it evaluates constants."""


@contextmanager
def limited(seconds: float = SECONDS, n_bytes: int = BYTES, grace: float = GRACE) -> Iterator[None]:
    """Raise LimitExceeded or MemoryError if the context takes too long or allocates too much."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource
    import signal

    def stop(number: int, frame: Any) -> None:
        raise _Stop

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + n_bytes
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds + grace)  # SIGPROF ends a process that does not handle it
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except _Stop:
        raise LimitExceeded(f"it took more than {seconds:g} s of processor time") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
