"""The command line: thin commands over the stages. Results go to standard output, everything else to standard error.

Knows options, exit codes and how to print. Computes nothing itself. One module for each group of commands.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from rich.logging import RichHandler
from rich.markup import escape

from rhumbline.cli import (
    analyses,
    datasets,
    evaluations,
    files,
    judges,
    looks,
    organisms,
    reproductions,
    runs,
    style,
    sweeps,
)
from rhumbline.cli.console import err
from rhumbline.errors import RhumblineError

EXIT_INTERRUPTED = 130
GROUPS = (runs, sweeps, reproductions, looks, evaluations, analyses, style, datasets, judges, files, organisms)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 expectation or verification failed, 2 bad input or usage,
    3 the model cannot be handled, 130 interrupted.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    try:
        return arguments.command(arguments)
    except RhumblineError as error:
        err.print(f"[bold red]rhumbline:[/] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        err.print("[bold yellow]interrupted.[/] The same command goes on where it was.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(
        prog="rhumbline",
        description="Is a behaviour of a chat model mediated by a single direction, and how sure may one be?",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    for group in GROUPS:
        group.add(command)
    return top
