"""Standard streams: what cannot be written to standard error is dropped, and a full standard output is an error.

A message that is lost changes no exit code; results that are lost do. Independent of the commands.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any


class _Messages:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _dropping(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _dropping(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _dropping(stream: IO[str]) -> Iterator[None]:
    try:
        yield
    except OSError:
        discard(stream)


@contextmanager
def prepared_streams() -> Iterator[None]:
    """Streams that a command can use while the context is active: open, and able to write any character."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks must not end a command
            stream.reconfigure(errors="backslashreplace")
    before = sys.stderr
    sys.stderr = messages = _Messages(before)
    try:
        yield
    finally:
        messages.flush()
        if sys.stderr is messages:
            sys.stderr = before


def _open_closed_streams() -> None:
    """Streams that the caller closed, which Python sets to None, read nothing and write to nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def discard(stream: IO[str]) -> None:
    """A stream that cannot be written goes nowhere from now on, so that the flush at the end does not fail again."""
    with suppress(OSError, ValueError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
