"""Print what to do after a command, on standard error."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rich.markup import escape

from rhumbline.cli.console import err
from rhumbline.errors import RhumblineError
from rhumbline.records.directory import RunDirectory
from rhumbline.records.edit_file import FILE as EDIT
from rhumbline.records.next_steps import Line, NextStep, Step, lines
from rhumbline.records.protocol_file import ProtocolContext
from rhumbline.records.shared import ORGANISM

Named = tuple[NextStep, tuple[str, str, str]]
"""A step, with its run directory, its model, and what else its command names."""


def _of_run(a: argparse.Namespace, *steps: NextStep) -> list[Named]:
    return [(step, (a.run, getattr(a, "model", None) or _model_of(a.run), "DIR")) for step in steps]


def _model_of(run: str) -> str:
    """The model of a run directory, or a placeholder."""
    try:
        return RunDirectory.read(Path(run)).read_protocol(ProtocolContext).model.name
    except RhumblineError:  # a bare direction
        return "MODEL"


def _run_on(a: argparse.Namespace, model: str) -> list[Named]:
    """A run on a model with the contrast of the command; organisms come with one."""
    contrast = getattr(a, "contrast", None) or ("" if model.startswith(ORGANISM) else "FILE")
    return [(NextStep.RUN, (contrast, model, "RUN"))]


def _after_plan(a: argparse.Namespace) -> list[Named]:
    del a
    return [(NextStep.WITHOUT_PLAN, ("", "MODEL", "DIR"))]


def _after_edit(a: argparse.Namespace) -> list[Named]:
    return [(NextStep.PLAY_EDITED, (a.direction, a.model, a.out)), (NextStep.SHARE, (a.out, a.model, "DIR"))]


def _after_export(a: argparse.Namespace) -> list[Named]:
    """What rhumbline reads: a direction, or an adapter as a model. The command itself says how other programs do."""
    if a.to == "lora":
        return [(NextStep.PLAY_EDITED, ("", "", a.out))]
    return [(NextStep.PLAY, (a.out, _model_of(a.run), "DIR"))] if a.to == "direction" else []


def _after_push(a: argparse.Namespace) -> list[Named]:
    is_edited = (Path(a.source) / EDIT).is_file()
    return [(NextStep.PLAY_EDITED if is_edited else NextStep.USE_SHARED, ("", "MODEL", a.repository))]


def _after_chat(a: argparse.Namespace) -> list[Named]:
    is_whole = a.direction and a.layer is None and a.position is None
    return [(NextStep.EDIT, (a.direction, a.model, "DIR"))] if is_whole else _run_on(a, a.model)


AFTER: Mapping[str, Callable[[argparse.Namespace], list[Named]]] = {
    "discover": lambda a: _run_on(a, a.model),
    "sweep": lambda a: [(NextStep.VERIFY, (f"{a.out}/runs/NAME" if a.out else "RUN", "MODEL", "DIR"))],
    "compare": lambda a: [(NextStep.VERIFY, (a.runs[0], "MODEL", "DIR"))],
    "verify": lambda a: _of_run(a, NextStep.REPORT, NextStep.PLAY, NextStep.SHARE),
    "report": lambda a: _of_run(a, NextStep.VERIFY),
    "evaluate": lambda a: _of_run(a, NextStep.VERIFY, NextStep.SHARE),
    "analyze": lambda a: _of_run(a, NextStep.VERIFY) if hasattr(a, "run") else _run_on(a, a.model),
    "judge": lambda a: _of_run(a, NextStep.REPORT) if a.run else [(NextStep.JUDGE, ("RUN", "MODEL", "NAME"))],
    "edit": _after_edit,
    "export": _after_export,
    "push": _after_push,
    "robustness": lambda a: _run_on(a, a.models[0]),
    "chat": _after_chat,
    "play": _after_chat,
    "model": lambda a: _run_on(a, a.model),
    "organism": lambda a: [(NextStep.RUN, ("", getattr(a, "out", "organism:NAME"), "RUN"))],
    "contrast": lambda a: [(NextStep.RUN_STYLE, (a.out, a.model, "RUN"))],
    "data": lambda a: [(NextStep.RUN_OWN, ("", "MODEL", getattr(a, "name", "NAME")))],
}
"""What to do after each command. `run`, `demo` and `reproduce` depend on the verdict, and `label` states it itself;
`select` prints JSON only."""


def print_after(a: argparse.Namespace) -> None:
    """Print what to do after a command that has ended well, unless it prints JSON."""
    after = AFTER.get(getattr(a, "name_of_command", ""))
    if getattr(a, "plan", False):
        after = _after_plan
    named = [] if after is None or getattr(a, "json", False) else after(a)
    print_next(line for step, names in named for line in lines([Step(what=step)], *names))


def print_next(steps: Iterable[Line]) -> None:
    """Print next steps; a command stands alone on its line, so that it can be copied."""
    for k, (command, why) in enumerate(steps):
        shown = f"[dim]{'Next:' if k == 0 else '     '}[/] {escape(why)}"
        err.print(f"{shown}\n        [bold]{escape(command)}[/]" if command else shown, soft_wrap=True, highlight=False)
