"""The command line: one module for each command or pair of commands.

May import every package. Commands read options, call the library and print; the library is independent of them. Results
go to standard output, progress and messages to standard error.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from rich.logging import RichHandler

from rhumbline.cli import (
    analyze,
    data,
    edit_export,
    evaluate,
    judge,
    model,
    organism,
    reproduce,
    robustness,
    runs,
    select,
    sweep_compare,
    verify_report,
)
from rhumbline.cli.console import err, fault
from rhumbline.errors import RhumblineError

EXIT_INTERRUPTED = 130
COMMANDS = (
    *(runs, sweep_compare, reproduce, verify_report, model, select, evaluate, analyze, robustness, data, judge),
    *(edit_export, organism),
)
"""Modules in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute one command and return its exit code.

    0 done, 1 an expectation or a verification failed, 2 bad input or usage, 3 the model cannot be handled, 130
    interrupted.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    logging.getLogger("rhumbline").setLevel("INFO")
    try:
        return arguments.command(arguments)
    except RhumblineError as error:
        fault(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        err.print("[bold yellow]interrupted.[/] Rerun the same command to resume.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(
        prog="rhumbline",
        description="Is a behaviour of a chat model mediated by a single direction, and how confident can one be?",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(command=run)
        return added

    for module in COMMANDS:
        module.add(command)
    return top
