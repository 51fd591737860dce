"""The section of the analysis `trajectory`: effects of a direction by the tokens that it is edited on."""

from collections.abc import Iterator, Mapping

from rhumbline.records.trajectory_file import (
    BlockEffect,
    Carrier,
    Change,
    NullChange,
    TrajectoryRecord,
    WindowChange,
    WindowedEffect,
)
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import Bar, ChartText
from rhumbline.report.figures import Chart
from rhumbline.report.page import Html, interval, number

TITLES: Mapping[WindowedEffect, str] = {
    "suppression": "Suppression (ablation on positives)",
    "induction": "Induction (addition on negatives)",
}
CARRIERS: Mapping[Carrier, str] = {
    "direct": "block of the baseline, ablation (direct)",
    "without block": "empty block, ablation",
    "regenerated": "block and answer under ablation",
    "through": "block under ablation, then no ablation (through the block)",
}


def window_name(row: WindowChange) -> str:
    """The tokens of a window, in words."""
    match row.window:
        case "all":
            return "all tokens"
        case "first":
            return f"first {page.count(row.tokens or 0, 'token') if row.tokens != 1 else 'token'} of the completion"
        case "after":
            return f"completion after {page.count(row.tokens or 0, 'token')}"
        case "block":
            return "think block"
        case "after block":
            return "answer after the think block"
    return row.window


def trajectory(record: TrajectoryRecord, draw: page.Canvas) -> Html:
    """Return the effects by window as a chart and as tables, and those through a think block."""
    parts: list[Html] = [draw(_charts(record))]
    for effect, title in TITLES.items():
        rows = [_row(window_name(r), r) for r in record.windows if r.effect == effect]
        parts.append(page.table([title, "Rate", "Change [95 %]", "Share of all tokens", *_NULLS], rows, left=1))
    if record.through:
        head = ["Suppression by what carries it", "Rate", "Change [95 %]", "Isotropic nulls, mean (largest)"]
        parts.append(page.table(head, [_block_row(row) for row in record.through], left=1))
    return page.detail("Trajectory", *parts, page.note(_note(record)))


_NULLS = ("Largest null family, mean", "Beyond it [95 %]", "Degenerate")


def _charts(record: TrajectoryRecord) -> Iterator[Chart | None]:
    for effect, title in TITLES.items():
        bars = []
        for row in (r for r in record.windows if r.effect == effect):
            if (own := row.own.change) is not None:
                bars.append(Bar(window_name(row), "direction", own.mean, own.low, own.high))
            bars += [Bar(window_name(row), f, n.mean, None, None) for f, n in row.nulls.items() if n.mean is not None]
        text = ChartText(f"trajectory-{effect}", f"{title}, by the tokens that are edited", "change of the rate")
        yield basic_charts.bars(text, bars)


def _row(name: str, row: WindowChange) -> list[Html | str]:
    strongest = max(row.nulls.items(), key=lambda item: _of(item[1]), default=None)
    null = "—"
    if strongest is not None:
        family, values = strongest
        null = f"{number(values.mean, signed=True)} ({family}, degenerate {number(values.degenerate)})"
    beyond = "—" if row.beyond is None else interval(row.beyond.mean, row.beyond.low, row.beyond.high)
    return [name, *_change(row.own), number(row.share), null, beyond, number(row.own.degenerate)]


def _of(null: NullChange) -> float:
    return float("-inf") if null.mean is None else null.mean


def _change(own: Change) -> tuple[Html | str, str]:
    rate = "—" if own.rate is None else page.rate(own.rate)
    return rate, "—" if own.change is None else interval(own.change.mean, own.change.low, own.change.high)


def _block_row(row: BlockEffect) -> list[Html | str]:
    nulls = f"{number(row.nulls.mean, signed=True)} ({number(row.nulls.max, signed=True)})"
    return [CARRIERS[row.carrier], *_change(row.own), nulls]


def _note(record: TrajectoryRecord) -> str:
    kind = "selected direction" if record.is_selected else "best discarded candidate"
    plan = record.parameters
    n = ", ".join(f"{TITLES[e].lower()}: {0 if r is None else r.n}" for e, r in record.baseline.items())
    base = ", ".join("—" if r is None else number(r.rate) for r in record.baseline.values())
    block = f" No window of a think block: {record.no_block}." if record.no_block else ""
    if record.block is not None:
        block = (
            f" Think block: {record.block.completed} of {record.block.prompts} baseline completions of positives close "
            "theirs and have an answer; the others are in no row of the last table."
        )
    return (
        f"Seed {record.seed}, {kind}, position {record.site.position}, layer {record.site.layer}; scored test prompts: "
        f"{n}; rates of the baseline: {base}. Up to {plan.max_new_tokens} new tokens, judge {record.judge}. An edit "
        "acts while a token is read, so it changes the choice of the next one: the last token of the prompt chooses "
        f"the first token of the completion. Nulls: {page.count(plan.draws, 'isotropic direction')} of the same norm, "
        f"and one draw of every other null family of the run, on the same tokens.{block} A window with no effect "
        "of its own can still be needed: effects of disjoint windows need not add up."
    )
