"""Section on benchmarks: scores of lm-evaluation-harness under each arm."""

from rhumbline.records.evaluation_files import ComparedScore, Comparison
from rhumbline.report import page, side_effect_figures
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord


def benchmarks(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the scores of every evaluation of the run, compared with the baseline."""
    parts = [
        (_settings_text(evaluation), _evaluation(number, evaluation, draw))
        for number, evaluation in enumerate(run.evaluations)
        if evaluation.rows
    ]
    return page.optional_section(
        "Benchmarks",
        parts,
        "Tasks of lm-evaluation-harness on the model under each arm. Changes are paired, on the same documents. Scores "
        "of 0 and 1 have Newcombe's interval and McNemar's exact p; other scores have a bootstrap over documents.",
    )


def _settings_text(evaluation: Comparison) -> str:
    settings = evaluation.settings
    limit = "all documents" if settings.limit is None else f"the first {settings.limit} documents"
    shots = "" if settings.fewshot is None else f", {settings.fewshot} examples in the prompt"
    return f"Seed {settings.seed}; {limit}{shots}{', with the chat template' if settings.chat else ''}"


def _evaluation(number: int, evaluation: Comparison, draw: page.Canvas) -> Html:
    head = ["Task", "Score", "Arm", "Documents", "Mean", "Change [95 %]", "p (McNemar)"]
    rows = [
        [
            row.task,
            _metric_name(row),
            row.arm.label,
            row.n,
            page.number(row.score, 3),
            page.interval(row.change, row.low, row.high, 3, signed=True),
            "—" if row.p is None else f"{row.p:.2g}",
        ]
        for row in evaluation.rows
    ]
    changed = [row for row in evaluation.rows if row.change is not None]
    names = [f"{row.task}, {_metric_name(row)}" for row in changed]
    title = f"Benchmarks, seed {evaluation.settings.seed}"
    charts = draw([side_effect_figures.scores(f"benchmarks-{number}", title, changed, names)] if changed else [])
    return page.join([charts, page.table(head, rows, left=3)])


def _metric_name(row: ComparedScore) -> str:
    return row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
