"""The section of the analysis `frontier`: the answers, the table at every dose, and behaviour against KL."""

from collections.abc import Iterator

from rhumbline.records.frontier_file import (
    REFERENCE,
    FrontierCurve,
    FrontierPoint,
    FrontierRecord,
    Group,
)
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import ChartText, CurvePoint
from rhumbline.report.figures import LIGHT, SERIES
from rhumbline.report.page import Html, interval, number

LEAST_KL = 1e-3
"""Smallest KL of the figures, nats: smaller ones are drawn there."""


def frontier(record: FrontierRecord, draw: page.Canvas) -> Html:
    """Return the answers of the rule, the tables and the curves."""
    answers = record.answers
    sentences = (
        ("Is one direction enough?", answers.one_direction, answers.one_direction_reason),
        ("Is anything better at equal cost?", answers.at_equal_cost, answers.at_equal_cost_reason),
        ("Do random vectors leave the behaviour?", answers.nulls, answers.nulls_reason),
    )
    listed = page.bullets(page.join([q, " ", page.tag("b", code), f": {reason}."]) for q, code, reason in sentences)
    return page.detail(
        "Interventions at equal damage",
        listed,
        draw(list(charts(record))),
        _summary(record),
        page.fold("Every dose", _every_dose(record)),
        _note(record),
    )


def _summary(record: FrontierRecord) -> Html:
    """One row for each intervention, the least damage first."""
    doses = record.parameters.plan.doses
    head = [
        "Intervention",
        "Uses",
        "KL at half [95 %]",
        *(f"Rate left at {dose:g}" for dose in doses),
        "At largest strength",
    ]
    order = sorted(record.curves, key=lambda c: (c.half is None, c.half.kl if c.half else 0.0))
    rows = [[c.name, c.group, _half(c), *(_at(c, dose) for dose in doses), _largest(c)] for c in order]
    return page.table(head, rows, left=2)


def _half(curve: FrontierCurve) -> Html | str:
    if curve.unavailable:
        return curve.unavailable
    return "not lost" if curve.half is None else interval(curve.half.kl, curve.half.low, curve.half.high, 3)


def _at(curve: FrontierCurve, dose: float) -> Html | str:
    point = curve.dosed.get(dose)
    if point is None:
        return "not reached" if curve.not_reached else ""
    if point.remaining is None:
        return "—"
    r = point.remaining
    return interval(r.rate, r.band_low, r.band_high)


def _largest(curve: FrontierCurve) -> str:
    point = next((p for p in curve.points if p.dose is None), None)
    if point is None or point.remaining is None:
        return ""
    return f"{number(point.remaining.rate)} at {number(point.kl.mean, 4)} nats"


def _every_dose(record: FrontierRecord) -> Html:
    head = [
        "Intervention", "Dose", "Strength", "KL, test [95 %]", "Left [band]", "On negatives [band]", "Broken",
        "Accuracy [95 %]", "Agreement",
    ]  # fmt: skip
    rows = [_row("baseline", record.baseline)]
    rows += [_row(curve.name, point) for curve in record.curves for point in curve.points]
    return page.table(head, rows)


def _row(name: str, point: FrontierPoint) -> list:
    bands = ["—" if r is None else interval(r.rate, r.band_low, r.band_high) for r in (point.remaining, point.over)]
    return [
        name,
        "" if point.dose is None else f"{point.dose:.3g}",
        ", ".join(f"{s:.3g}" for s in point.strengths),
        interval(point.kl.mean, point.kl.low, point.kl.high, 3),
        *bands,
        number(point.degenerate),
        "—" if point.accuracy is None else page.rate(point.accuracy),
        number(point.agreement),
    ]


def charts(record: FrontierRecord) -> Iterator[basic_charts.Chart | None]:
    """Draw the remaining behaviour over the KL, by group, each with the reference."""
    groups: dict[str, tuple[str, tuple[Group, ...]]] = {
        "one": ("one direction", ("one direction",)),
        "several": ("several directions and a system prompt", ("several directions", "prompt")),
        "null": ("random vectors", ("null",)),
    }
    n = 0 if record.baseline.remaining is None else record.baseline.remaining.n
    for key, (what, members) in groups.items():
        shown = [c for c in record.curves if c.name == REFERENCE or c.group in members]
        points = [p for c in shown for p in _points(record, c)]
        title = f"Remaining behaviour by KL (n = {n}): {what}"
        text = ChartText(f"frontier-{key}", title, "KL on test negatives, nats per token", "rate on positives")
        colours = {REFERENCE: LIGHT["ink"]} | {
            c.name: SERIES[k % len(SERIES)].colour for k, c in enumerate(c for c in shown if c.name != REFERENCE)
        }
        yield basic_charts.curves(text, points, colours, banded=(REFERENCE,), domain=(0, 1), log=True, size=(400, 230))


def _points(record: FrontierRecord, curve: FrontierCurve) -> Iterator[CurvePoint]:
    """The baseline at the left edge, then every point of a curve."""
    start = record.baseline.remaining
    if start is not None and curve.points:
        yield CurvePoint(curve.name, LEAST_KL, start.rate, start.band_low, start.band_high, start.n)
    for point in curve.points:
        if point.kl.mean is not None and (r := point.remaining) is not None:
            yield CurvePoint(curve.name, max(LEAST_KL, point.kl.mean), r.rate, r.band_low, r.band_high, r.n)


def _note(record: FrontierRecord) -> Html:
    plan, base = record.parameters.plan, record.baseline
    n, negatives = ((0 if r is None else r.n) for r in (base.remaining, base.over))
    return page.note(
        f"Seed {record.seed}, layer {record.site.layer}; n = {n} test positives, {negatives} test negatives, up to "
        f"{plan.max_new_tokens} new tokens. Judge: {record.judge}. The cost is the trajectory KL: the mean over tokens "
        "of KL(baseline || edited) along the baseline's own answers to negatives. Strengths are found on validation "
        f"negatives, to within {plan.tolerance:.0%} of the dose; the KL of the figures is that of {base.kl.n} test "
        "answers. KL at half: the cost at which half of the behaviour is lost, between two measured strengths "
        "interpolated. Bands and intervals of differences hold for all rates and all differences together. An "
        "intervention that reaches no dose costs less at its largest strength; that is no zero. Accuracy: cloze "
        "questions in plain text. A curve starts at the baseline, at the left edge."
    )
