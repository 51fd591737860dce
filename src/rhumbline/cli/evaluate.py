"""The command `evaluate`."""

import argparse
import logging
from collections.abc import Sequence

from rhumbline.cli.console import NOT_MEASURED, note, number, out, print_json, say, table_of
from rhumbline.cli.option_values import check_models, load_model, read_template, source_of
from rhumbline.cli.options import (
    COUNT,
    MODEL_HELP,
    AddCommand,
    json_option,
    model_options,
    seed_of_run_option,
    template_option,
    whole,
)
from rhumbline.records.arms import BASELINE, EDITED, ArmId
from rhumbline.records.evaluation_files import ComparedScore


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "run benchmark tasks (lm-evaluation-harness) on the arms of a run, compared document by document"
    evaluate = command("evaluate", _evaluate, about)
    evaluate.add_argument("run", metavar="RUN", help="directory of a finished run")
    tasks = "tasks of lm-evaluation-harness, or of --include-path"
    evaluate.add_argument("--tasks", required=True, metavar="A,B", help=tasks)
    arms = "arms to compare with the baseline (default: %(default)s)"
    evaluate.add_argument("--arms", default="ablation,addition", metavar="A,B", help=arms)
    edited = "directory of an edited checkpoint, evaluated as a further arm"
    evaluate.add_argument("--edited", metavar="DIR", help=edited)
    evaluate.add_argument(
        "--limit", type=COUNT, metavar="N", help="documents of each task, the first ones; default: all"
    )
    fewshot = "examples in each prompt; default: the number of the task"
    evaluate.add_argument("--fewshot", type=COUNT, metavar="N", help=fewshot)
    evaluate.add_argument("--chat", action="store_true", help="render the documents with the chat of the run")
    template_option(evaluate, "with --chat: Jinja template of the run, if it is not the tokenizer's")
    evaluate.add_argument("--include-path", metavar="DIR", help="directory with task files (YAML)")
    seed_of_run_option(evaluate)
    batch = "rows of a forward pass (default: %(default)s)"
    evaluate.add_argument("--batch-size", type=whole(), default=16, metavar="N", help=batch)
    model = f"the model of the run: {MODEL_HELP}; default: the name in the run"
    evaluate.add_argument("--model", metavar="MODEL", help=model)
    evaluate.add_argument("--plan", action="store_true", help="print the documents and requests of each task, and stop")
    json_option(evaluate, "comparison.json, or the plan,")
    model_options(evaluate)


def _evaluate(a: argparse.Namespace) -> int:
    # The notes of the harness on models in memory and on defaults of task files do not concern a user of this command.
    logging.getLogger("lm_eval").setLevel("ERROR")
    from rhumbline.evals.evaluate import arm_ids, evaluate
    from rhumbline.evals.evaluation import Evaluation, planned, task_manager
    from rhumbline.models.loading import check_device
    from rhumbline.report import build as report
    from rhumbline.stages.finished_run import open_run

    run = open_run(a.run)
    tasks, arms = (tuple(filter(None, map(str.strip, text.split(",")))) for text in (a.tasks, a.arms))
    arm_ids(run, arms, a.seed)  # an unknown seed or arm is reported before a large model is loaded
    template = read_template(a.chat_template)
    evaluation = Evaluation(tasks, a.include_path, a.seed, a.limit, a.fewshot, a.chat, a.batch_size, template)
    task_manager(evaluation)  # unknown tasks and options that they do not read, before a large model is loaded
    if a.edited:
        check_models(a, a.edited)
    check_device(source_of(a, a.model or run.context.model.name).device)
    if a.plan:
        n_arms = len({BASELINE, *map(ArmId.parse, arms)} | ({EDITED} if a.edited else set()))
        tasks_planned = planned(evaluation)
        if a.json:
            print_json({"arms": n_arms, "tasks": [task._asdict() for task in tasks_planned]})
            return 0
        for task in tasks_planned:
            requests = f"{task.requests} requests x {n_arms} arms, {task.words * n_arms:,} words"
            say(f"{task.task}: {task.documents} documents, {requests}")
        return 0
    recorded = run.context.model
    if a.dtype == "auto":
        a.dtype = recorded.dtype
    comparison = evaluate(
        a.run,
        load_model(a, a.model or recorded.name),
        evaluation,
        arms,
        edited=load_model(a, a.edited) if a.edited else None,
        progress=note,
    )
    report.build(run.path)
    if a.json:
        print_json(comparison)
        return 0
    _print(comparison.rows)
    say(f"report: {run.path / 'report.html'}")
    return 0


def _print(rows: Sequence[ComparedScore]) -> None:
    table = table_of(("task", "metric", "arm"), ("n", "score", "change", "95 % interval", "p"))
    for row in rows:
        metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        cells = (row.task, metric, str(row.arm), str(row.n), number(row.score, 3))
        table.add_row(*cells, *(("", "", "") if row.arm == BASELINE else _change(row)))
    out.print(table)


def _change(row: ComparedScore) -> tuple[str, str, str]:
    """Difference from the baseline, its interval and its p."""
    if row.change is None:
        return NOT_MEASURED, "", ""
    ends = f"{number(row.low, 3, signed=True)} .. {number(row.high, 3, signed=True)}"
    return number(row.change, 3, signed=True), ends, "" if row.p is None else f"{row.p:.3g}"
