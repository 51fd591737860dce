"""The command line: one module for each command or pair of commands.

May import every package. Commands read options, call the library and print; the library is independent of them. Results
go to standard output, progress and messages to standard error.
"""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

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
from rhumbline.cli.console import err, printable
from rhumbline.cli.execute import execute

COMMANDS = (
    *(runs, sweep_compare, reproduce, verify_report, model, select, evaluate, analyze, robustness, data, judge),
    *(edit_export, organism),
)
"""Modules in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute one command and return its exit code (see `rhumbline.cli.execute`)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks must not end a command
            stream.reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    return execute(arguments)


class Parser(argparse.ArgumentParser):
    """A parser whose messages have no control characters."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with code 2."""
        super().error(printable(message))


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = Parser(
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
