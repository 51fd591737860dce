"""The answer of a command to a hostile line: what is measured, and what every answer must be."""

import re
import signal
from contextlib import contextmanager
from pathlib import Path

CODES = {0, 1, 2, 3}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
SECONDS = 120
"""Wall-clock limit of one command in the process of the tests; a machine can be busy."""
LONGEST = 6000
"""Characters of a message, at most: a hostile value is not repeated in full."""


class Accepted(BaseException):
    """A command took all of its arguments and is about to load a model."""


@contextmanager
def limited(seconds: float = SECONDS):
    """An exception after this time, even inside of a system call."""

    def end(number, frame):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def names_input(message: str, option: str, value: str, names: tuple[str, ...]) -> bool:
    """Whether a message names the option or its value, as a person can recognise it."""
    squeezed = re.sub(r"\s+", "", message).casefold()
    wanted = [option.lstrip("-"), option.lstrip("-").replace("-", "_"), *names]
    if value.strip():
        wanted += [ascii(value)[1:-1][:20], Path(value[:200]).name[:30], ascii(value.rpartition(":")[2])[1:-1][:20]]
    return any(re.sub(r"\s+", "", word).casefold() in squeezed for word in wanted if word)
