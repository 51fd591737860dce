"""The section of the analysis `steering`: classes of completions by the size of an added random vector."""

from rhumbline.records.analysis_files import Rate
from rhumbline.records.steering_file import SteeredRates, SteeringRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import ChartText, CurvePoint
from rhumbline.report.page import Html, interval, number


def steering(record: SteeringRecord, draw: page.Canvas) -> Html:
    """Return the rates by the size of the random vectors, as a table and as curves."""
    judged = {"harmful": "Harmful [95 %]"} if record.harm_judge else {}
    names = {"refused": "Refused [95 %]", "complied": "Complied [95 %]", "degenerate": "Degenerate [95 %]", **judged}
    rows = [
        [
            f"{row.size:g}" if row.size else "0 (baseline)",
            *(_cell(getattr(row, name)) for name in names),
            "" if row.drop is None else interval(row.drop.mean, row.drop.low, row.drop.high),
            _extremes(row),
            row.unscored,
        ]
        for row in record.rows
    ]
    head = ["Size, norms", *names.values(), "Fall of refused [95 %]", "Lowest and highest draw", "Unscored"]
    points = [
        CurvePoint(name, row.size, rate.rate, rate.low, rate.high)
        for name in names
        for row in record.rows
        if (rate := getattr(row, name)) is not None
    ]
    plan, n = record.parameters, record.rows[0].refused
    text = ChartText(
        "steering-sizes", "Completions of positives under added random vectors", "norms of the residual stream", "rate"
    )
    harm = f"; judge of harm: {record.harm_judge}" if record.harm_judge else "; harm was not judged"
    note = page.note(
        f"Seed {record.seed}, layer {record.site.layer}; {page.count(plan.draws, 'random vector')}, the same at every "
        f"size; n = {0 if n is None else n.n} test positives, up to {plan.max_new_tokens} new tokens. A size of 1 is "
        f"the mean norm of the stream at position {record.site.position}, {number(record.norm)}. Judge: {record.judge}"
        f"{harm}. Rates are over all draws; their intervals count prompts, not draws. Completions that are not refused "
        "need not be harmful, and degenerate ones are neither."
    )
    return page.detail("Random steering", page.table(head, rows), draw([basic_charts.curves(text, points)]), note)


def _cell(rate: Rate | None) -> Html | str:
    return "—" if rate is None else page.rate(rate)


def _extremes(row: SteeredRates) -> str:
    known = [rate for rate in row.by_draw if rate is not None]
    return f"{number(min(known))}, {number(max(known))}" if len(known) > 1 else ""
