"""`evaluate`: benchmark tasks on the arms of a run. Options and printing; computes nothing itself."""

import argparse
import json
import logging
from collections.abc import Callable
from typing import Any

from rich.table import Table

from rhumbline.cli.console import err, out
from rhumbline.cli.options import load_model, model_options


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    evaluate = command("evaluate", _evaluate, "benchmark tasks on the arms of a run, compared document by document")
    evaluate.add_argument("run", metavar="RUN", help="finished run directory")
    evaluate.add_argument(
        "--tasks", required=True, metavar="A,B", help="names of lm-evaluation-harness, or of your own"
    )
    evaluate.add_argument("--arms", default="ablation,addition", metavar="A,B", help="beside the baseline")
    evaluate.add_argument("--edited", default=None, metavar="DIR", help="an edited checkpoint as one more arm")
    evaluate.add_argument("--limit", type=int, default=None, metavar="N", help="the first N documents of each task")
    evaluate.add_argument("--fewshot", type=int, default=None, metavar="N", help="default: what the task says")
    evaluate.add_argument("--chat", action="store_true", help="ask through the chat template")
    evaluate.add_argument("--include-path", default=None, metavar="DIR", help="folder with task files (YAML)")
    evaluate.add_argument("--seed", type=int, default=None, help="of the run; default: its first")
    evaluate.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")
    evaluate.add_argument("--model", default=None, metavar="MODEL", help="where the run's model is now")
    evaluate.add_argument("--plan", action="store_true", help="say what would be asked, and stop")
    evaluate.add_argument("--json", action="store_true", help="print comparison.json on standard output")
    model_options(evaluate)


def _evaluate(a: argparse.Namespace) -> int:
    from rhumbline.report import build as report

    # Its notes on models in memory and on defaults of task files are for those who call it themselves.
    logging.getLogger("lm_eval").setLevel("ERROR")
    from rhumbline.evals.evaluate import Settings, evaluate, planned, task_manager
    from rhumbline.stages.finished_run import open_run

    run = open_run(a.run)
    settings = Settings(run.artefacts(a.seed).seed, a.limit, a.fewshot, a.chat)
    tasks, arms = (tuple(filter(None, text.split(","))) for text in (a.tasks, a.arms))
    manager = task_manager(tasks, a.include_path)  # before a large model is loaded
    if a.plan:
        n_arms = len({"baseline", *arms}) + bool(a.edited)
        for task in planned(tasks, manager, settings):
            out.print(
                f"{task.task}: {task.documents} documents, {task.requests} requests x {n_arms} arms, "
                f"{task.words * n_arms:,} words",
                markup=False,
                highlight=False,
            )
        return 0
    recorded = run.context.model
    if a.dtype == "auto":
        a.dtype = recorded.dtype
    found = evaluate(
        a.run,
        load_model(a, a.model or recorded.name),
        tasks,
        arms,
        settings,
        include_path=a.include_path,
        edited=load_model(a, a.edited) if a.edited else None,
        batch_size=a.batch_size,
        progress=lambda text: err.print(f"[dim]{text}[/]"),
    )
    report.build(run.path)
    if a.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    _print(found["rows"])
    out.print(f"report: {run.path / 'report.html'}", markup=False, highlight=False)
    return 0


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for column in ("task", "metric", "arm"):
        table.add_column(column)
    for column in ("n", "score", "change", "95 % interval", "p"):
        table.add_column(column, justify="right")
    for row in rows:
        change = ("", "", "")
        if row["change"] is not None:
            p = "" if row["p"] is None else f"{row['p']:.3g}"
            change = (f"{row['change']:+.3f}", f"{row['low']:+.3f} .. {row['high']:+.3f}", p)
        name = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
        table.add_row(row["task"], name, row["arm"], str(row["n"]), f"{row['score']:.3f}", *change)
    out.print(table)
