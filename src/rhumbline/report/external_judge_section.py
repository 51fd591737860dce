"""Section on external judges: rates of each judge on the direction's own arms, and the agreement of judges."""

from collections.abc import Iterable

from rhumbline.records.shared import KappaPair
from rhumbline.report import page
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord


def external_judges(run: RunRecord) -> Html:
    """Return the section; empty if no external judge was applied to the run."""
    if run.judgements is None or not run.judgements.judges:
        return Html()
    rows = [
        [
            name,
            "refused" if judge.asks == "refusal" else "unsafe",
            row.seed,
            row.arm,
            row.side,
            row.n,
            page.interval(row.rate, row.low, row.high),
            page.number(row.safety_score),
            row.unscored,
        ]
        for name, judge in run.judgements.judges.items()
        for row in judge.rows
        if row.arm.is_own
    ]
    head = ["Judge", "Share that is", "Seed", "Arm", "Set", "n", "Rate [95 %]", "Safety score", "Unscored"]
    return page.section(
        "Judges after the run",
        page.table(head, rows, left=5),
        page.fold("Agreement of every two judges", _agreement(run.judgements.agreement)),
        page.note(
            "The verdict does not depend on these judges. Unscored: the judge gave no readable reply; the completion "
            "is in no rate. Safety score: 1 - unsafe. Agreement: whether two judges agree that the completion of a "
            "positive complies or is unsafe, over the direction's own arms."
        ),
    )


def _agreement(pairs: Iterable[KappaPair]) -> Html:
    rows = [[*pair.judges, pair.n, page.number(pair.kappa), f"{pair.agreement:.0%}"] for pair in pairs]
    return page.table(["Judge", "Judge", "n", "Cohen's kappa", "Agree on"], rows, left=2)
