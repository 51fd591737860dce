"""Execute a command: every exception and signal becomes a message and an exit code.

0 done, 1 an expectation or a verification failed, 2 bad input or usage, 3 the model cannot be handled, 70 an error in
rhumbline itself, 128 + n ended by signal n (130: Ctrl-C). Independent of the commands.
"""

import argparse
import errno
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rhumbline.cli.console import err, fault
from rhumbline.cli.next_steps import print_after
from rhumbline.cli.streams import discard
from rhumbline.errors import ModelError, RhumblineError

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""
EXIT_SIGNAL = 128
"""Added to the number of the signal that ended a command."""
EXIT_BROKEN_PIPE = EXIT_SIGNAL + 13
"""Of SIGPIPE, a signal that Windows does not define."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a disk; those of an open file have no name."""
INTERRUPTIONS: Mapping[str, str] = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "terminal closed"}
"""Signals that end a command, with the word of the message."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def execute(arguments: argparse.Namespace) -> int:
    """Call the command of the parsed arguments and return the exit code."""
    try:
        with interruptions():
            code = flushed(arguments.command(arguments))
            if code == 0:
                print_after(arguments)
            return code
    except RhumblineError as error:
        fault(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        ended_by = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        err.print(f"[bold yellow]{INTERRUPTIONS[ended_by.name]}.[/] Rerun the same command to resume.")
        return EXIT_SIGNAL + ended_by
    except BrokenPipeError as error:
        return lost(error)
    except OSError as error:
        if error.filename is None:
            return lost(error) if error.errno in DISK else _bug(error)
        name = str(error.filename)[:200]
        fault(f"{name}: {error.strerror}. Finished results are kept. Correct this and rerun the command.")
        return RhumblineError.exit_code
    except Exception as error:
        if not _is_out_of_memory(error):
            return _bug(error)
        fault(f"the memory is not sufficient ({_line(error)}). Finished results are kept. Free memory, then rerun.")
        return ModelError.exit_code


@contextmanager
def interruptions() -> Iterator[None]:
    """Raise an exception at SIGTERM and SIGHUP while the context is active, as Python does at SIGINT."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        numbers = [getattr(signal, name) for name in INTERRUPTIONS if name != "SIGINT" and hasattr(signal, name)]
        before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flushed(code: Any) -> Any:
    """The exit code of a command whose results are written: another one than 0 remains if they cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        code_of_loss = lost(error)
        return code or code_of_loss
    return code


def lost(error: OSError) -> int:
    """The exit code of a command whose results cannot be written to standard output, which is discarded."""
    discard(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    reason = f"a file or the output cannot be written: {error.strerror}"
    fault(f"{reason}. Finished results are kept. Correct this and rerun the command.")
    return RhumblineError.exit_code


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, ImportError):  # the import of torch could fail as well
        return "failed to map" in str(error)
    from rhumbline.inference.batching import is_out_of_memory

    return is_out_of_memory(error)


def _bug(error: Exception) -> int:
    """Write the traceback to a log, and report the error in one line."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rhumbline-", suffix=".log", encoding="utf-8", errors="backslashreplace", delete=False
        ) as log:
            log.write("".join(traceback.format_exception(error)))
        advice = f"Please report it with the log {log.name}."
    except OSError:
        advice = f"No log could be written to {tempfile.gettempdir()}. Free the disk and rerun the command to get one."
    fault(f"an error in rhumbline itself ({_line(error)}). {advice}")
    return EXIT_BUG


def _line(error: Exception) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
