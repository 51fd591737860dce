"""Sections on the arms of a run: every arm with the margins of the rule, null draws by their cosine, and the table."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt
from msgspec import UNSET

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.verdict_rules import Rule
from rhumbline.records.arms import BASELINE, SUBTRACTION
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.results import SeedResult
from rhumbline.report import page
from rhumbline.report.figures import (
    LIGHT,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    lane_of,
    printable,
    scale_of,
    tips,
    where,
)
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord, measure, measured_arm

# -- every arm --------------------------------------------------------------------------------------------------------


def arms_figure(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rates or levels of every arm, as a figure."""
    rule = run.protocol.rule
    charts = arm_charts(run.seeds, rule)
    if not charts:
        return page.section("Arms", page.note("No arm was measured."))
    marks = "■ baseline, with its 95 % interval. "
    lines = f"Dashed line: the lowest baseline that the rule accepts ({number(rule.min_baseline)}). "
    if any(seed.selected for seed in run.seeds):
        marks = (
            "■ baseline and ● direction, each with its 95 % interval, one below the other for each seed. Open marks: "
            "one null draw each; ❙ the mean of their family in a seed. The numbers are those of the seeds, in order. "
        )
        if run.has_baseline:
            unit = " of the behaviour, or of its absence, at baseline" if rule.is_relative else ""
            lines = (
                f"Dashed line: the baseline moved by the margin of the rule ({number(rule.min_drop)}{unit}). Brackets: "
                f"the mean of a null family moved by its margin ({number(rule.min_gap)}{unit}). Shaded: the values "
                "that the rule requires of the direction. "
            )
    note = page.how_to_read(marks, lines, "Point at a mark to see its numbers.")
    return page.section("Arms", draw(charts), *_subtractions(run), note)


def _subtractions(run: RunRecord) -> list[Html]:
    """Return the effect of the subtraction on positives in every seed, beside that of its nulls."""
    texts = []
    for seed in run.seeds:
        effect = seed.subtraction
        before, after = (measured_arm(seed, arm, "positive") for arm in (BASELINE, SUBTRACTION))
        if effect is UNSET or before is None or after is None:
            continue
        most = max((null.mean for null in effect.null.values() if null.mean is not None), default=None)
        compared = "" if most is None else f" The largest mean fall under a null family is {number(most)}."
        ends = f"[{number(after.low)}, {number(after.high)}], n = {effect.n}"
        texts.append(f"Seed {seed.seed}: {number(before.rate)} to {number(after.rate)} {ends}.{compared}")
    if not texts:
        return []
    start = "Subtraction on positive prompts (x - c norm r, the paper's bypass by addition); no claim uses it. "
    return [page.note(start, " ".join(texts))]


def arm_charts(seeds: Sequence[SeedResult], rule: Rule) -> list[Chart]:
    """Draw rates or levels of every arm with their intervals: one chart for suppression, one for induction.

    The seeds share the rows: their baselines, directions and means are one below the other.
    """
    return [chart for effect in EFFECTS if (chart := _arms_chart(seeds, rule, effect))]


def _arms_chart(seeds: Sequence[SeedResult], rule: Rule, effect: ComparedArms) -> Chart | None:
    shows = measure(seeds)
    measured = {seed.seed: _measured_rows(seed, effect) for seed in seeds}
    # The axis ends at 0 and 1, or further out if a level is beyond a class.
    ends = [row[key] for rows in measured.values() for row in rows for key in ("rate", "low", "high") if row.get(key)]
    reach = (min(0, *ends, 1), max(0, *ends, 1))
    rows: list[ChartRow] = [
        {"lane": lane_of(k, len(seeds)), "seed": f"seed {seed}"} | row
        for k, (seed, marks) in enumerate(measured.items())
        for row in marks + _margin_rows(marks, -effect.sign, rule, reach)
    ]
    if not rows:
        return None
    _spread(rows)
    numbers = _numbers(rows)
    order = list(dict.fromkeys(row["row"] for row in rows if "row" in row))
    most = max((row["n"] for row in rows if row["kind"] == "mean"), default=0) * len(seeds)
    step = max(25, 11 * len(seeds))
    layers = _arm_layers(order, 26 if most <= 25 else 13, shows, reach, step)
    body = alt.layer(*layers).properties(width=210, height=alt.Step(step))
    rows += numbers
    has_direction = any(row["kind"] == "direction" for row in rows)
    title = f"{effect.name.capitalize()}: {effect.arm} on {effect.label} prompts"
    if not has_direction:
        title = f"Baseline on {effect.label} prompts"
    summary = f"{title}; {shows} of the behaviour in every arm, with 95 % intervals"
    return finished(f"arms-{effect.name}", summary, body, title, rows)


def measured_nulls(seed: SeedResult, effect: ComparedArms) -> dict[str, list[ArmRate]]:
    """Return the measured null draws of the arm of an effect, by family."""
    draws: dict[str, list[ArmRate]] = defaultdict(list)
    for row in seed.arms:
        if effect.has_null(row.arm) and row.side == effect.label and row.arm.family and row.rate is not None:
            draws[row.arm.family].append(row)
    return dict(draws)


def _measured_rows(seed: SeedResult, effect: ComparedArms) -> list[ChartRow]:
    """Return the marks of one panel: baseline, direction, every null draw, and the mean of each null family."""
    rows: list[ChartRow] = []
    for kind, arm in (("baseline", BASELINE), ("direction", effect.arm)):
        if (row := measured_arm(seed, arm, effect.label)) is not None:
            rows.append(_mark(row) | {"row": kind, "kind": kind})
    for family, draws in measured_nulls(seed, effect).items():
        rates = [row.rate for row in draws if row.rate is not None]
        name, mean = printable(family, 16), math.fsum(rates) / len(rates)
        rows.append({"row": name, "kind": "mean", "arm": "mean of the draws", "rate": mean, "n": len(draws)})
        rows += [_mark(row) | {"row": name, "kind": "null"} for row in draws]
    return rows


def _spread(rows: Sequence[ChartRow]) -> None:
    """Place the null draws of all seeds in their row, so that equal rates do not hide each other."""
    families: dict[str, list[ChartRow]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "null":
            families[row["row"]].append(row)
    for draws in families.values():
        for row, lane in zip(draws, _swarm([row["rate"] for row in draws]), strict=True):
            row["lane"] = lane


def _numbers(rows: Sequence[ChartRow]) -> list[ChartRow]:
    """Return the rates at the right end of each row, one for each seed."""
    rates: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["kind"] in ("baseline", "direction", "mean"):
            rates[row["row"]].append(f"{row['rate']:z.2f}")
    return [{"row": name, "kind": "number", "shown": ", ".join(some)} for name, some in rates.items()]


def _mark(row: ArmRate) -> ChartRow:
    return {"arm": str(row.arm)} | {key: getattr(row, key) for key in ("rate", "low", "high", "n", "degenerate")}


def _swarm(values: Sequence[float], bin_width: float = 0.02) -> list[float]:
    """Return offsets in [-1, 1] that spread nearby values around 0."""
    bins = [round(value / bin_width) for value in values]
    sizes, seen, offsets = Counter(bins), Counter(), []
    step = min(0.5, 2 / max(sizes.values(), default=1))
    for b in bins:
        offsets.append((seen[b] - (sizes[b] - 1) / 2) * step)
        seen[b] += 1
    return offsets


def _margin_rows(rows: Sequence[ChartRow], sign: int, rule: Rule, reach: tuple[float, float]) -> list[ChartRow]:
    """Return the marks of the rule: margins from the baseline and from each family, and the region beyond them all.

    Relative margins are those of a change of the rate: multiplied by the behaviour, or by its absence, at baseline.
    """
    rate: ChartRow = {row["kind"]: row["rate"] for row in rows if row["kind"] in ("baseline", "direction")}
    marks: list[ChartRow] = []
    if sign < 0 and rate.get("baseline", 1) < rule.min_baseline:
        marks.append({"kind": "margin", "rate": rule.min_baseline, "arm": "lowest baseline that the rule accepts"})
    if "direction" not in rate or "baseline" not in rate:
        return marks
    room = (rate["baseline"] if sign < 0 else 1 - rate["baseline"]) if rule.is_relative else 1.0
    drop, gap = sign * room * rule.min_drop, sign * room * rule.min_gap
    limits = [rate["baseline"] + drop]
    marks.append({"kind": "margin", "rate": limits[0], "arm": f"baseline {drop:+.2f}"})
    families = [printable(family, 16) for family in rule.families]
    for row in rows:
        if row["kind"] == "mean" and row["row"] in families:
            limits.append(row["rate"] + gap)
            note = f"mean of the draws {gap:+.2f}"
            marks.append({"kind": "gap", "row": row["row"], "rate": row["rate"], "to": limits[-1], "arm": note})
    # A margin that no rate can reach is outside the axis and is not drawn.
    lowest, highest = reach
    marks = [mark for mark in marks if lowest <= mark.get("to", mark["rate"]) <= highest]
    edge = min(limits) if sign < 0 else max(limits)
    if lowest <= edge <= highest:
        region = "required by the rule"
        marks.append({"kind": "zone", "rate": edge, "to": lowest if sign < 0 else highest, "arm": region})
    return marks


def _arm_layers(
    order: Sequence[str], size: float, shows: str, reach: tuple[float, float], step: float
) -> list[alt.Chart]:
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=76)
    y = alt.Y("row:N", scale=alt.Scale(domain=list(order)), axis=labels)
    axis = bare_axis(title=f"{shows} of the behaviour", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    x = alt.X("rate:Q", scale=alt.Scale(domain=[reach[0] - 0.03, reach[1] + 0.03], nice=False), axis=axis)
    colour = alt.Color("row:N", scale=scale_of(order, "colour"), legend=None)
    shape = alt.Shape("row:N", scale=scale_of(order, "shape"), legend=None)
    lane = alt.YOffset("lane:Q", scale=alt.Scale(domain=[-1, 1], range=[3.5, step - 3.5]))
    muted = LIGHT["muted"]
    full = tips("arm", "seed", rate=".3f", low=".3f", high=".3f", degenerate=".3f", n="d")
    short = tips("arm", "seed", rate=".3f")
    kind = {
        name: where(f"datum.kind == '{name}'")
        for name in ("zone", "margin", "gap", "null", "mean", "baseline", "direction")
    }
    layers = [
        kind["zone"].mark_rect(color=LIGHT["zone"]).encode(x=x, x2="to:Q", tooltip=tips("arm")),
        kind["margin"].mark_rule(color=muted, strokeDash=[4, 3]).encode(x=x, tooltip=short),
        kind["gap"].mark_rule(color=muted, strokeDash=[2, 2]).encode(x=x, x2="to:Q", y=y, yOffset=lane),
        kind["gap"].mark_tick(color=muted, thickness=1.5, size=8).encode(x="to:Q", y=y, yOffset=lane),
        kind["null"].mark_point(size=size, strokeWidth=1.1, opacity=0.9)
        .encode(x=x, y=y, yOffset=lane, color=colour, shape=shape, tooltip=full),
        kind["mean"].mark_tick(thickness=3, size=11, opacity=1)
        .encode(x=x, y=y, yOffset=lane, color=colour, tooltip=short),
    ]  # fmt: skip
    for name, area in (("baseline", 50), ("direction", 70)):
        place: dict[str, Any] = {"y": y, "yOffset": lane, "color": colour}
        layers.append(kind[name].mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", **place))
        point = kind[name].mark_point(filled=True, size=area, opacity=1)
        layers.append(point.encode(x=x, shape=shape, tooltip=full, **place))
    numbers = where("datum.kind == 'number'").mark_text(align="left")
    return [*layers, numbers.encode(x=alt.value(216), y=y, text="shown:N")]


# -- null draws -------------------------------------------------------------------------------------------------------


def null_draws(run: RunRecord, draw: page.Canvas) -> Html:
    """Return each null draw with its cosine and its effect, as a figure."""
    title = "Null draws compared with the direction"
    charts = null_charts(run.seeds)
    if not charts:
        return page.section("Nulls", page.note("No null was drawn, because no direction was selected."))
    note = page.how_to_read(
        "Each open mark is one null draw, each filled circle the direction of one seed. The chart shows the cosine "
        f"with the direction of the seed, and the change of the {run.measure} in the expected direction. A null with "
        "a large effect and a large cosine is nearly the direction itself. It is not evidence against the direction."
    )
    return page.section(title, draw(charts), note)


def null_charts(seeds: Sequence[SeedResult]) -> list[Chart]:
    """Draw the effect of each null draw over its cosine with the direction, one chart for each effect."""
    return [chart for effect in EFFECTS if (chart := _nulls_chart(seeds, effect))]


def _nulls_chart(seeds: Sequence[SeedResult], effect: ComparedArms) -> Chart | None:
    rows = [row for seed in seeds for row in _null_marks(seed, effect)]
    if not rows:
        return None
    rows[-1]["label"] = "direction"
    title = f"{effect.name.capitalize()}: draws and direction"
    summary = f"{effect.name.capitalize()}: effect of every null draw over its cosine with the direction"
    return finished(f"nulls-{effect.name}", summary, _scatter(rows, measure(seeds)), title, rows)


def _null_marks(seed: SeedResult, effect: ComparedArms) -> list[ChartRow]:
    """Return the marks of one seed; none if it has no direction."""
    baseline, direction = (measured_arm(seed, arm, effect.label) for arm in (BASELINE, effect.arm))
    if baseline is None or direction is None:
        return []
    before = baseline.rate

    def change(row: ArmRate) -> float:
        assert row.rate is not None
        assert before is not None
        return effect.sign * (before - row.rate)

    cosines = {null.null_draw: null.cosine for null in seed.nulls}
    shared = {"seed": f"seed {seed.seed}"}
    rows: list[ChartRow] = [
        {"family": printable(family, 16), "draw": str(row.arm.draw), "cosine": cosines[row.arm.null_draw]}
        | {"change": change(row)}
        | shared
        for family, draws in measured_nulls(seed, effect).items()
        for row in draws
        if row.arm.null_draw in cosines
    ]
    return [*rows, {"family": "direction", "draw": "", "cosine": 1.0, "change": change(direction)} | shared]


def _scatter(rows: list[ChartRow], shows: str) -> Any:
    families = [name for name in dict.fromkeys(row["family"] for row in rows) if name != "direction"]
    low, floor = min(-0.5, *(row["cosine"] for row in rows), 0), min(-0.1, *(row["change"] for row in rows), 0)
    x_scale = alt.Scale(domain=[low, 1.05], nice=False)
    y_scale = alt.Scale(domain=[floor, max(1.04, *(row["change"] for row in rows), 1)], nice=False)
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=45, columnPadding=14)
    y_axis = alt.Axis(title=f"change in {shows}", tickCount=5, format=".2~f", minExtent=28)
    site = {
        "x": alt.X("cosine:Q", title="cosine with the direction", scale=x_scale, axis=alt.Axis(tickCount=6)),
        "y": alt.Y("change:Q", scale=y_scale, axis=y_axis),
        "tooltip": tips("family", "seed", "draw", cosine=".3f", change=".3f"),
    }
    style = {
        "color": alt.Color("family:N", scale=scale_of(families, "colour"), legend=legend),
        "shape": alt.Shape("family:N", scale=scale_of(families, "shape"), legend=legend),
    }
    blue, zero = LIGHT["direction"], alt.Chart().mark_rule(color=LIGHT["muted"], strokeWidth=0.7)
    draws, direction = where("datum.family != 'direction'"), where("datum.family == 'direction'")
    return alt.layer(
        zero.encode(y=alt.YDatum(0, scale=y_scale)),
        zero.encode(x=alt.XDatum(0, scale=x_scale)),
        draws.mark_point(size=34 if len(rows) < 100 else 18, strokeWidth=1.2, opacity=0.9).encode(**site, **style),
        direction.mark_circle(size=110, opacity=1, color=blue).encode(**site),
        where("isValid(datum.label)").mark_text(align="right", dx=-9, fontWeight="bold").encode(**site, text="label:N"),
    ).properties(width=310, height=170)


# -- the table --------------------------------------------------------------------------------------------------------


def arms_table(run: RunRecord) -> Html:
    """Return every arm as a table."""
    head = ["Seed", "Arm", "Set", "n", run.measure.capitalize(), "Low", "High", "Degenerate", "Unscored", "Mean metric"]
    rows = [(row.arm.is_null, _arm_row(seed, row)) for seed in run.seeds for row in seed.arms]
    own, nulls = ([cells for is_null, cells in rows if is_null == of_nulls] for of_nulls in (False, True))
    folds = [page.fold(f"Baseline, ablation and addition ({len(own)} rows)", page.table(head, own, left=3))]
    if nulls:
        folds.append(page.fold(f"Null draws ({len(nulls)} rows)", page.table(head, nulls, left=3)))
    note = page.note(
        "Ablation on negative prompts measures side effects. Low and high: ends of the 95 % interval. Degenerate: "
        "share of completions."
    )
    return page.detail("Every arm", *folds, note)


def _arm_row(seed: SeedResult, row: ArmRate) -> list[Any]:
    numbers = [number(value, 3) for value in (row.rate, row.low, row.high, row.degenerate)]
    return [seed.seed, row.arm, row.side, row.n, *numbers, row.unscored, number(row.metric, 3)]
