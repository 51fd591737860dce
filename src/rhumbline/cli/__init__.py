"""The command line: one module for each command or pair of commands.

May import every package. Commands read options, call the library and print; the library is independent of them. Results
go to standard output, progress and messages to standard error.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, NoReturn

from rich.logging import RichHandler

from rhumbline.cli import (
    analyze,
    analyze_models,
    contrast,
    data,
    edit_export,
    evaluate,
    judge,
    label,
    models,
    play,
    push,
    recompute,
    reproduce,
    runs,
    sweep_compare,
)
from rhumbline.cli.console import err, printable
from rhumbline.cli.execute import execute, flushed, lost
from rhumbline.cli.list_options import advice, command_of, list_options, with_commas
from rhumbline.cli.streams import prepared_streams

COMMANDS = (
    runs, sweep_compare, reproduce, recompute, evaluate, analyze, analyze_models, data, contrast, label, judge,
    edit_export, push, play, models,
)  # fmt: skip
"""Modules in the order of the help."""
TEXTS = ("system",)
"""Arguments that can be empty."""
LONGEST_MESSAGE = 1000
"""Characters of a message on arguments."""
ADVICE = {"chat": "A direction is passed as --direction RUN|FILE, and a prompt as --prompt TEXT."}
"""What ends the messages on the arguments of a command."""
SPINS = "1000"
"""Spins of a thread of GNU OpenMP before it sleeps. On a busy machine the default of 300,000 makes two
threads three times slower than one (docs/benchmarks.md)."""
SHELLS = ("bash", "zsh", "tcsh")
"""Shells with completion."""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute one command and return its exit code (see `rhumbline.cli.execute`)."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported
    with prepared_streams():
        top, argv = parser(), sys.argv[1:] if argv is None else argv
        top.check_texts(argv)
        top.check_command(argv)
        try:
            arguments = top.parsed(argv)
        except SystemExit as ended:  # of a wrong argument, or after help or version
            raise SystemExit(flushed(ended.code)) from None
        except OSError as error:
            raise SystemExit(lost(error)) from None
        top.check_values(arguments)
        handler = RichHandler(console=err, show_path=False)
        logging.basicConfig(level="WARNING", format="%(message)s", handlers=[handler])
        logging.getLogger("rhumbline").setLevel("INFO")
        return execute(arguments)


class Parser(argparse.ArgumentParser):
    """A parser whose messages have no control characters, and which suggests a command for an unknown one."""

    commands: "Mapping[str, Parser]" = MappingProxyType({})
    advice = ""
    """A sentence that ends the messages of this parser."""

    def parsed(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; further ones are an error of the command, not of the program."""
        lists = list_options(self, arguments)
        parsed, more = self.parse_known_args(with_commas(arguments, lists))
        if more:
            form = advice(arguments, lists)
            command_of(self, arguments).error(f"unrecognized arguments: {' '.join(more)}{f'. {form}' if form else ''}")
        return parsed

    def check_command(self, arguments: Sequence[str]) -> None:
        """Exit with code 2 and a message unless the first argument is an option or a command."""
        first = arguments[0] if arguments else ""
        if first.startswith("-") or first in self.commands:
            return
        similar = get_close_matches(first, self.commands, n=1)
        advice = f"Did you mean {similar[0]}?" if similar else f"The commands are {', '.join(self.commands)}."
        self.error(f"unknown command {first!r}. {advice}" if first else f"a command is missing. {advice}")

    def check_texts(self, arguments: Sequence[str]) -> None:
        """Exit with code 2 and a message if an argument cannot be recorded as text, or be the name of a file."""
        for argument in arguments:
            if "\0" in argument or any("\ud800" <= character <= "\udfff" for character in argument):
                self.error(f"argument {ascii(argument)[:100]}: not UTF-8 text. Rename the file or retype the value.")

    def check_values(self, arguments: argparse.Namespace) -> None:
        """Exit with code 2 and a message if the value of an argument is empty, but for texts."""
        for name, value in vars(arguments).items():
            if name not in TEXTS and (value == [] or "" in (value if isinstance(value, list) else [value])):
                self.error(f"argument {name.replace('_', '-')}: empty. Pass a value, or omit the option.")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message. argparse itself drops one that cannot be written."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with code 2. A long value is not repeated in full."""
        text = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
        super().error(printable(f"{text}. {self.advice}" if self.advice else text))


class PrintCompletion(argparse.Action):
    """Prints a script that completes commands, options and files in a shell."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print the script and exit; exit with code 2 if shtab is not installed."""
        try:
            shtab = import_module("shtab")
        except ModuleNotFoundError:
            parser.error('--print-completion needs shtab: pip install "rhumbline[completion]".')
        print(shtab.complete(parser, shell=values))
        parser.exit()


def parser() -> Parser:
    """Every command with its options."""
    top = Parser(
        prog="rhumbline",
        description="Is a behaviour of a chat model mediated by a single direction, and how confident can one be?",
    )
    top.add_argument("--version", action="version", version=f"rhumbline {version('rhumbline')}")
    completion = "print the completion script of a shell, and stop; extra `completion`"
    top.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, help=completion)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    top.commands = commands.choices

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.advice = ADVICE.get(name, "")
        added.set_defaults(command=run, name_of_command=name)
        return added

    for module in COMMANDS:
        module.add(command)
    return top
