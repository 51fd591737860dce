"""The commands that look at what is there: `verify`, `report`, `model` and `select`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import err, out
from rhumbline.cli.options import MODEL_HELP, load_model, model_options


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser; `command(name, run, text)` makes one."""
    verify = command("verify", _verify, "recompute verdict and hashes: 0 when they hold, 1 when not")
    verify.add_argument("run", metavar="RUN")
    report = command("report", _report, "rebuild report.html and the figures")
    report.add_argument("run", metavar="RUN")

    model = command("model", _model, "what the instrument understood of the architecture")
    model.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    model.add_argument("--json", action="store_true", help="print the record on standard output")
    model_options(model)

    select = command("select", _select, "apply a selection rule to a table of scores")
    select.add_argument("scores", metavar="SCORES.json")
    select.add_argument("--preset", default="rhumbline", help="whose rule (default: %(default)s)")


def _verify(a: argparse.Namespace) -> int:
    from rhumbline.verification import check

    faults, notes = check(a.run)
    for note in notes:
        err.print(escape(note), soft_wrap=True)
    for fault in faults:
        err.print(f"[bold red]does not hold:[/] {escape(fault)}", soft_wrap=True)
    if faults:
        return 1
    out.print(f"{a.run}: every hash, rate, effect and the verdict hold.", markup=False, highlight=False)
    return 0


def _report(a: argparse.Namespace) -> int:
    from rhumbline.report import build as report

    folder = Path(a.run)
    page = report.build_discover(folder) if (folder / "discover.json").is_file() else report.build(folder)
    out.print(f"report: {page}", markup=False, highlight=False)
    return 0


def _model(a: argparse.Namespace) -> int:
    from rhumbline.models.architecture import architecture
    from rhumbline.records.codec import to_json

    record = to_json(architecture(load_model(a)))
    if a.json:
        print(json.dumps(record, ensure_ascii=False))
        return 0
    for name, value in record.items():
        out.print(f"[bold]{name}[/]")
        for line in value if isinstance(value, list) else [value]:
            out.print(f"  {line}", markup=False, highlight=False)
    return 0


def _select(a: argparse.Namespace) -> int:
    from rhumbline.evidence.selection_rules import choose, count_discards, read_scores
    from rhumbline.protocol import preset

    table, n_layers = read_scores(a.scores)
    choice = choose(table, n_layers, preset(a.preset).selection)

    def cell(row: Any) -> dict[str, int]:
        return {"position": int(row.position), "layer": row.layer}

    answer: dict[str, Any] = {
        "selected": cell(choice.selected) if choice.selected else None,
        "survivors": choice.survivors,
        "tied": [cell(row) for row in choice.tied],
    }
    if choice.reason is not None:
        counts = count_discards(choice.candidates)
        answer["reason"] = "no candidate passed: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
    print(json.dumps(answer))
    return 0
