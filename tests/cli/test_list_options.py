"""Lists of numbers with commas and with blanks, for every option that takes one."""

import argparse
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.cli import parser
from rhumbline.cli.list_options import list_options, with_commas
from rhumbline.cli.option_values import integers, reals
from rhumbline.errors import InputError


def commands(at: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command with its subcommands, as the arguments that name it."""
    yield path
    for action in at._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, choice in action.choices.items():
                yield from commands(choice, (*path, name))


EVERY = {path: list_options(parser(), path) for path in commands(parser())}
SEPARATORS = (["4,5"], ["4", "5"], ["4,", "5"], ["4", ",5"], ["4", ",", "5"])


def test_the_lists_are_found():
    found = {(path, option) for path, options in EVERY.items() for option in options}
    assert {
        (("run",), "--seeds"), (("run",), "--seed"), (("discover",), "--sizes"), (("analyze", "style"), "--doses"),
        (("analyze", "frontier"), "--doses"), (("analyze", "steering"), "--sizes"), (("evaluate",), "--tasks"),
    } <= found  # fmt: skip
    assert (("run",), "--nulls") not in found
    assert (("evaluate",), "--seed") not in found  # one number, not an abbreviation


@pytest.mark.parametrize("path", [path for path, lists in EVERY.items() if lists])
def test_blanks_separate_the_numbers_of_every_list(path):
    lists = EVERY[path]
    for option in lists:
        for values in SEPARATORS:
            for before in ([option, *values], [f"{option}={values[0]}", *values[1:]]):
                assert with_commas([*path, *before, "MODEL"], lists) == [*path, f"{option}=4,5", "MODEL"]
        assert with_commas([*path, "1", option, "a", "5"], lists) == [*path, "1", option, "a", "5"]  # a list of names
        assert with_commas([*path, option, "-1", "-2", "--out", "5"], lists) == [*path, f"{option}=-1,-2", "--out", "5"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-10, 10**6), min_size=1, max_size=5), st.sampled_from([",", " ", ", ", " , "]))
def test_numbers_with_either_separator(numbers, separator):
    text = separator.join(map(str, numbers))
    assert integers(text, "--seeds") == tuple(numbers) == reals(text, "--doses")
    assert with_commas(["--seeds", *text.split()], {"--seeds": "0,1"}) == [f"--seeds={','.join(map(str, numbers))}"]


@pytest.mark.parametrize("text", ["", " ", "4,,5", "4;5", ",4", "4, x"])
def test_other_texts_are_no_list(text):
    with pytest.raises(InputError, match="separated by commas"):
        integers(text, "--seeds")


def test_names_with_blanks_are_refused_with_the_form(capsys):
    with pytest.raises(SystemExit):
        parser().parsed(["evaluate", "RUN", "--tasks", "a", "b"])
    assert "unrecognized arguments: b. Separate the values of a list by commas: --tasks A,B" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser().parsed(["verify", "RUN", "b"])
    assert "Separate" not in capsys.readouterr().err


def test_an_unknown_option_is_an_error_of_the_action_that_has_the_options(call):
    code, _, messages = call("analyze", "damage", "RUN", "--nonsense")
    assert code == 2
    assert "rhumbline analyze damage: error: unrecognized arguments: --nonsense" in messages
    assert "usage: rhumbline analyze damage " in messages
