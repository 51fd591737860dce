"""Options that take a list: `--seeds 4 5` is read as `--seeds 4,5`.

The metavar of a list has a comma. Numbers can be separated by blanks, because no other argument is a number; names are
separated by commas only. Independent of the commands.
"""

import argparse
import re
from collections.abc import Mapping, Sequence

from rhumbline.cli.options import DECIMAL

NUMBERS = re.compile(rf",?\s*{DECIMAL}(?:\s*,\s*{DECIMAL})*,?|,")
"""Numbers separated by commas; also with a comma at the end, as in `4, 5`, or a comma alone, as in `4 , 5`."""


def command_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the passed command, or of its action, such as that of `analyze geometry`."""
    for argument in arguments:
        groups = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parser = next((choices[argument] for choices in groups if argument in choices), parser)
    return parser


def list_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, str]:
    """The options of the passed command that take a list, also abbreviated, each with its metavar."""
    names = command_of(parser, arguments)._option_string_actions
    lists = {name: str(a.metavar) for name, a in names.items() if a.nargs is None and "," in str(a.metavar)}
    short = {name[:end]: metavar for name, metavar in lists.items() for end in range(len("--x"), len(name))}
    return lists | {s: m for s, m in short.items() if sum(name.startswith(s) for name in names) == 1}


def with_commas(arguments: Sequence[str], lists: Mapping[str, str]) -> list[str]:
    """The arguments with every list of numbers in the argument of its option, as in `--seeds=4,5`."""
    joined: list[str] = []
    is_list = False
    for argument in arguments:
        is_list = is_list and NUMBERS.fullmatch(argument) is not None
        if is_list:
            separator = "" if joined[-1][-1] in "=," or argument.startswith(",") else ","
            joined[-1] += f"{separator}{argument}"
        elif joined and joined[-1] in lists and NUMBERS.fullmatch(argument):
            joined[-1], is_list = f"{joined[-1]}={argument}", True
        else:
            joined.append(argument)
            option, _, value = argument.partition("=")
            is_list = option in lists and NUMBERS.fullmatch(value) is not None
    return joined


def advice(arguments: Sequence[str], lists: Mapping[str, str]) -> str:
    """How the values of the passed lists are separated; empty if none is passed."""
    passed = [f"{option} {metavar}" for option, metavar in lists.items() if option in arguments]
    return f"Separate the values of a list by commas: {', '.join(passed)}" if passed else ""
