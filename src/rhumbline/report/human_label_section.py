"""Section on human labels: the accuracy of the judge under each arm, and corrected rates and effects."""

from typing import Any

from rhumbline.records.human_files import Estimate, HumanLabels
from rhumbline.report import page
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord


def human_labels(run: RunRecord) -> Html:
    """Return the section; empty if no label sheet was read."""
    if run.human is None:
        return Html()
    labels = run.human
    accuracy = [
        [row.arm, row.sensitivity.labelled, _interval(row.sensitivity), _interval(row.specificity)]
        for row in labels.accuracy
    ]
    effects = [
        [_seed(row.seed), row.arm, row.side, row.name, *_both(row.judged, row.corrected)] for row in labels.effects
    ]
    rates = [[_seed(row.seed), row.arm, row.side, row.of, *_both(row.judged, row.corrected)] for row in labels.rates]
    columns = ["n", "Labels", "By the judge [95 %]", "Corrected [95 %]"]
    level = "The levels of the continuous score are not corrected. " if run.measure == "level" else ""
    return page.detail(
        "Human labels",
        page.bullets(_sheets(labels)),
        page.table(["Arm", "Labels", "Sensitivity [95 %]", "Specificity [95 %]"], accuracy),
        page.table(["Seed", "Arm", "Set", "Effect", *columns], effects, left=4),
        page.fold("Rates", page.table(["Seed", "Arm", "Set", "Share that is", *columns], rates, left=4)),
        page.note(
            f"The judge of the run ({labels.judge}) compared with labels of completions that were drawn at random from "
            "every arm, set and class. Sensitivity: share of the completions with the behaviour that the judge finds. "
            "Specificity: share of those without it in which the judge finds none. Corrected: estimated from the "
            "judge's classes of all completions and the labels of some; the labels of all seeds are used together. A "
            f"dash: a class has no label. The verdict does not depend on these numbers. {level}"
        ),
    )


def _sheets(labels: HumanLabels) -> list[str]:
    sheets = [
        f"{sheet.name}: {sheet.labelled} of {sheet.rows} rows have a label, {sheet.unclear} of them unclear."
        for sheet in labels.sheets
    ]
    return sheets + [
        f"{' and '.join(pair.judges)}: Cohen's kappa {page.number(pair.kappa)} on {page.count(pair.n, 'row')}."
        for pair in labels.agreement
    ]


def _seed(seed: int | None) -> str:
    return "all" if seed is None else str(seed)


def _both(judged: Estimate, corrected: Estimate) -> list[Any]:
    return [corrected.n, corrected.labelled, _interval(judged), _interval(corrected)]


def _interval(estimate: Estimate) -> Html:
    return page.interval(estimate.value, estimate.low, estimate.high)
