"""Every command ends with what to do next."""

import argparse

import pytest

from rhumbline.cli import parser
from rhumbline.cli.next_steps import print_after
from rhumbline.records.edit_file import FILE as EDIT

DECIDE_THEMSELVES = {"run", "demo", "reproduce", "label", "select"}
"""Commands whose next steps depend on their results; `select` prints JSON only."""


def leaves(command: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The command, or its actions."""
    actions = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    return [leaf for action in actions for child in action.choices.values() for leaf in leaves(child)] or [command]


COMMANDS = {
    leaf.prog.removeprefix("rhumbline "): (name, leaf)
    for name, command in parser().commands.items()
    for leaf in leaves(command)
}


def arguments(name: str, leaf: argparse.ArgumentParser, **changes) -> argparse.Namespace:
    """Arguments of a command: a value for each that has to be passed, otherwise the defaults."""
    values = {}
    for action in leaf._actions:
        value = next(iter(action.choices)) if action.choices else "given"
        value = [value] if action.nargs in ("+", "*") else value
        values[action.dest] = value if action.required or not action.option_strings else action.default
    return argparse.Namespace(**(values | {"name_of_command": name} | changes))


@pytest.mark.parametrize("command", [c for c, (name, _) in COMMANDS.items() if name not in DECIDE_THEMSELVES])
def test_a_command_prints_its_next_step_on_standard_error(command, capsys):
    name, leaf = COMMANDS[command]
    print_after(arguments(name, leaf))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Next: ")
    assert "rhumbline " in printed.err
    if any(action.dest == "json" for action in leaf._actions):
        print_after(arguments(name, leaf, json=True))
        assert capsys.readouterr().err == ""


def test_a_command_can_be_copied_whole(capsys):
    name, leaf = COMMANDS["edit"]
    out = "/a/long/directory/with a space/" + "x" * 90
    print_after(arguments(name, leaf, out=out))
    assert f"        rhumbline play '{out}'\n" in capsys.readouterr().err


def test_a_pushed_edit_is_used_as_a_model_and_a_direction_as_one(capsys, tmp_path):
    name, leaf = COMMANDS["push"]
    print_after(arguments(name, leaf, source=str(tmp_path), repository="o/n"))
    assert "rhumbline chat MODEL --direction hf:o/n" in capsys.readouterr().err
    (tmp_path / EDIT).write_text("{}")
    print_after(arguments(name, leaf, source=str(tmp_path), repository="o/n"))
    assert "rhumbline play o/n" in capsys.readouterr().err


def test_a_run_after_discover_has_the_contrast_of_the_command(capsys):
    name, leaf = COMMANDS["discover"]
    print_after(arguments(name, leaf, model="dir", contrast="my.jsonl"))
    assert "rhumbline run dir --contrast my.jsonl --out RUN" in capsys.readouterr().err
    print_after(arguments(name, leaf, model="organism:refusal", contrast=None))
    assert "rhumbline run organism:refusal --out RUN" in capsys.readouterr().err


def test_after_an_export_a_step_names_the_file_that_was_written(capsys):
    name, leaf = COMMANDS["export"]
    for to, step in {
        "direction": "rhumbline play MODEL --direction new",
        "lora": "rhumbline play new",
        "gguf": "",
        "lm-eval": "",
    }.items():
        print_after(arguments(name, leaf, to=to, out="new", run="no-run"))
        printed = capsys.readouterr().err
        assert (f"        {step}\n" in printed) if step else (printed == "")


def test_after_an_analysis_which_draws_the_report_the_run_is_verified(capsys):
    name, leaf = COMMANDS["analyze geometry"]
    print_after(arguments(name, leaf, run="there"))
    assert "rhumbline verify there" in capsys.readouterr().err


def test_after_the_list_of_judges_one_is_used(capsys):
    name, leaf = COMMANDS["judge"]
    print_after(arguments(name, leaf, run=None, list=True))
    assert "rhumbline judge RUN --judge NAME" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "sweep", "evaluate"])
def test_after_a_plan_the_command_itself_is_next(command, capsys):
    name, leaf = COMMANDS[command]
    print_after(arguments(name, leaf, plan=True))
    printed = capsys.readouterr().err
    assert "Rerun the command without --plan" in printed
    assert "rhumbline " not in printed
