"""`evaluate`: benchmark tasks on the arms of a run. Options and printing; computes nothing itself."""

import argparse
import json
import logging
from collections.abc import Callable, Iterable

from rich.table import Table

from rhumbline.cli.console import NOT_MEASURED, err, out
from rhumbline.cli.options import load_model, model_options
from rhumbline.records.evaluation_files import ComparedScore


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

    # The harness warns about models in memory and about defaults of task files.
    logging.getLogger("lm_eval").setLevel("ERROR")
    from rhumbline.evals.evaluate import Benchmarks, Settings, evaluate, planned, task_manager
    from rhumbline.records.codec import to_json
    from rhumbline.stages.finished_run import open_run

    run = open_run(a.run)
    settings = Settings(run.artefacts(a.seed).seed, a.limit, a.fewshot, a.chat)
    tasks, arms = (tuple(filter(None, text.split(","))) for text in (a.tasks, a.arms))
    benchmarks = Benchmarks(tasks, a.include_path, a.batch_size)
    task_manager(benchmarks)  # an unknown task is an error before a large model is loaded
    if a.plan:
        n_arms = len({"baseline", *arms}) + bool(a.edited)
        for task in planned(benchmarks, settings):
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
    comparison = evaluate(
        a.run,
        load_model(a, a.model or recorded.name),
        benchmarks,
        arms,
        settings,
        edited=load_model(a, a.edited) if a.edited else None,
        progress=lambda text: err.print(f"[dim]{text}[/]"),
    )
    report.build(run.path)
    if a.json:
        print(json.dumps(to_json(comparison), ensure_ascii=False))
        return 0
    _print(comparison.rows)
    out.print(f"report: {run.path / 'report.html'}", markup=False, highlight=False)
    return 0


def _print(rows: Iterable[ComparedScore]) -> None:
    table = Table(box=None)
    for column in ("task", "metric", "arm"):
        table.add_column(column)
    for column in ("n", "score", "change", "95 % interval", "p"):
        table.add_column(column, justify="right")
    for row in rows:
        change = ("", "", "")
        if row.change is not None:
            p = "" if row.p is None else f"{row.p:.3g}"
            change = (f"{row.change:+.3f}", f"{row.low:+.3f} .. {row.high:+.3f}", p)
        name = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        score = NOT_MEASURED if row.score is None else f"{row.score:.3f}"
        table.add_row(row.task, name, str(row.arm), str(row.n), score, *change)
    out.print(table)
