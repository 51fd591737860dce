"""The section of the analysis `circuit`: shares that heads and MLPs carry, and completions under suffixes."""

from collections.abc import Iterator

from rhumbline.records.circuit_file import CircuitPart, CircuitRecord, PatchedCondition, PatchedQuantity, PatchedSet
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import Bar, ChartText, CurvePoint
from rhumbline.report.figures import Chart
from rhumbline.report.page import Html, number

QUANTITIES: tuple[PatchedQuantity, ...] = ("projection", "metric", "metric along the direction")


def circuit(record: CircuitRecord, draw: page.Canvas) -> Html:
    """Return the shares by the number of patched parts, the parts, and the completions under suffixes."""
    parts: list[Html] = [draw(_charts(record))]
    parts += [_shares(condition) for condition in record.conditions]
    listed = [[part_name(part), number(part.difference, signed=True)] for part in record.parts]
    parts.append(page.fold("Heads and MLPs in their order", page.table(["Part", "Contribution"], listed)))
    if record.completions:
        rows = [
            [
                c.name,
                "—" if c.rate is None else page.rate(c.rate),
                "—" if c.change is None else page.mean(c.change),
                number(c.degenerate),
                0 if c.rate is None else c.rate.n,
            ]
            for c in record.completions
        ]
        parts.append(page.table(["Completions with", "Rate [95 %]", "Decrease [95 %]", "Degenerate", "n"], rows))
    return page.detail("Circuit", *parts, page.note(_note(record)))


def part_name(part: CircuitPart) -> str:
    """A head or a writer, in words."""
    head = "" if part.head is None else f" head {part.head}"
    return f"layer {part.layer} {part.module}{head}"


def set_name(one: PatchedSet) -> str:
    """Which parts are replaced, in words."""
    return f"all {one.size}" if one.senders == "all" else f"{one.senders} {one.size}"


def _charts(record: CircuitRecord) -> Iterator[Chart | None]:
    for condition in record.conditions:
        if condition.name.startswith("random"):
            continue
        points = [
            CurvePoint(
                f"{share.quantity}, {one.senders}", one.size, share.share.mean, share.share.low, share.share.high
            )
            for one in condition.sets
            if one.senders != "all"
            for share in one.shares
        ]
        name = condition.name.replace(" ", "-")
        title = f"Share of the difference that patched parts carry, {condition.name}"
        yield basic_charts.curves(ChartText(f"circuit-{name}", title, "heads and MLPs", "share"), points)
    bars = [Bar(part_name(p), "contribution", p.difference, None, None) for p in record.parts[:12]]
    title = "Contributions to the projection, positives minus negatives of validation"
    yield basic_charts.bars(ChartText("circuit-parts", title, "contribution"), bars)


def _shares(condition: PatchedCondition) -> Html:
    rows = []
    for one in condition.sets:
        by = {share.quantity: share for share in one.shares}
        cells: list[Html | str] = []
        for quantity in QUANTITIES:
            share = by.get(quantity)
            if share is None:
                cells.append("—")
                continue
            most = "" if share.largest is None else f" (largest {number(share.largest)})"
            cells.append(page.join([page.mean(share.share), most]))
        rows.append([set_name(one), *cells])
    gap = f"projection {number(condition.projection.mean)}, metric {number(condition.metric.mean)}"
    head = [f"{condition.name}, n = {condition.metric.n}; differences: {gap}", *map(str.capitalize, QUANTITIES)]
    return page.table(head, rows)


def _note(record: CircuitRecord) -> str:
    draws = page.count(record.parameters.draws, "draw")
    return (
        f"Seed {record.seed}, position {record.site.position}, layer {record.site.layer}; heads and MLPs before it: "
        f"{record.available}. Their writes at the last {page.count(record.tokens, 'token')} of a prompt are replaced "
        "by those of the source: a negative of about the same length, or, with a suffix, the same prompt without it; "
        "everything after is computed again. Share: how much of the difference between prompt and source disappears, "
        "ratio of means with a bootstrap interval over prompts. Along the direction: only this component of the writes "
        f"is replaced. Random: sets of other heads and MLPs, {draws} for each size. Differences that are not above 0 "
        "have no shares. What a part writes at earlier tokens is not replaced."
    )
