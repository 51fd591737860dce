"""What every `rhumbline analyze NAME RUN` has in common: its options, the opened run, and what is printed."""

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from rhumbline.cli.console import print_json, progress, say
from rhumbline.cli.option_values import prepare, read_template
from rhumbline.cli.options import (
    MODEL_HELP,
    data_dir_option,
    device_option,
    remote_code_option,
    seed_of_run_option,
    template_option,
    whole,
)
from rhumbline.records.analysis_files import Need

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R")
"""Record of an analysis."""
P = TypeVar("P", bound="DataclassInstance")
"""Plan of an analysis."""
Numbers = Mapping[str, tuple[str, int]]
"""Fields of a plan that are options: the help text and the least value of each."""


def run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every analysis of a run."""
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    group = parser.add_argument_group("run", "model and prompts of the run, which its directory does not contain")
    contrast = "contrast of the run, a file or a name; default: that of the organism"
    group.add_argument("--contrast", metavar="FILE|NAME", help=contrast)
    data_dir_option(group)
    group.add_argument("--model", metavar="MODEL", help=f"model of the run: {MODEL_HELP}; default: the name in the run")
    seed_of_run_option(group)
    template_option(group, "Jinja template of the run, if it is not the tokenizer's")
    device_option(group)
    remote_code_option(group)


def number_options(parser: argparse.ArgumentParser, plan: object, numbers: Numbers, quick: object = None) -> None:
    """An option for each of the `numbers` of a plan; the help states its value in the plan, and with `--quick`."""
    for name, (text, least) in numbers.items():
        values = defaults(*([getattr(some, name)] for some in (plan, quick) if some is not None))
        parser.add_argument(f"--{name.replace('_', '-')}", type=whole(least), metavar="N", help=f"{text} ({values})")


def defaults(numbers: Iterable[float], quick: Iterable[float] | None = None) -> str:
    """The default of an option, and the value with `--quick` if it is another one."""
    usual, fewer = (None if some is None else listed_numbers(some) for some in (numbers, quick))
    return f"default: {usual}" if fewer in (None, usual) else f"default: {usual}; {fewer} with --quick"


def listed_numbers(values: Iterable[float]) -> str:
    """Numbers as the value of an option."""
    return ",".join(f"{value:g}" for value in values)


def quick_option(parser: argparse._ActionsContainer) -> None:
    """`--quick` of an analysis."""
    text = "fewer prompts, draws and tokens, for a first answer; options that are given keep their values"
    parser.add_argument("--quick", action="store_true", help=text)


def plan_of(a: argparse.Namespace, plan: P, numbers: Iterable[str], **others: Any) -> P:
    """The plan with the numbers that the user passed, and with the other fields that are not None."""
    passed = {name: getattr(a, name) for name in numbers} | others
    return replace(plan, **{name: value for name, value in passed.items() if value is not None})


def _open(a: argparse.Namespace, tick: Callable[[int], None], needs: Collection[Need]) -> Any:
    """The run of a command, with its model and prompts."""
    from rhumbline.analyses.subject import open_subject
    from rhumbline.analyses.suffix_texts import read_suffixes
    from rhumbline.stages.finished_run import RunInputs, open_run

    template = read_template(a.chat_template)
    if vars(a).get("suffix") is not None:
        read_suffixes(a.suffix)  # a faulty file is reported before a large model is loaded
    prepare(a.model or open_run(a.run).context.model.name)
    inputs = RunInputs(data_dir=a.data_dir, device=a.device, template=template, trust_remote_code=a.trust_remote_code)
    return open_subject(a.run, a.model, a.contrast, seed=a.seed, inputs=inputs, tick=tick, needs=needs)


def execute(a: argparse.Namespace, compute: Callable[[Any], R], show: Callable[[R], None], *needs: Need) -> int:
    """Open the run, compute the record of an analysis, and print it.

    A run that lacks one of `needs` is refused before its model is loaded.
    """
    with progress() as shown:
        shown("opening the run", None)
        subject = _open(a, lambda rows: shown("", rows), needs)
        shown("measuring", None)
        record = compute(subject)
    path = subject.directory.file_of(type(record))
    if a.json:
        print_json(subject.directory.load(path))
        return 0
    show(record)
    say(f"record: {path}")
    say(f"report: {subject.directory.path / 'report.html'}")
    return 0
