"""Charts of the wide nulls and of the dose curves. Independent of files and of the page around the charts."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from rhumbline.records.effect_results import DosePoint, WideEffect
from rhumbline.report.figures import (
    LIGHT,
    NULL_COLOURS,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)

AXES = {"ablation": "strength of the ablation", "addition": "coefficient of the addition"}
"""Title of the dose axis, by intervention."""


def wide(seed: int, effects: Iterable[WideEffect]) -> list[Chart]:
    """Draw each effect on the metric: one tick for each null draw, one line for the direction."""
    charts = [_wide_chart(seed, effect) for effect in effects]
    return [chart for chart in charts if chart is not None]


def _wide_chart(seed: int, effect: WideEffect) -> Chart | None:
    rows: list[ChartRow] = []
    for family, null in effect.families.items():
        name = printable(family, 16)
        rows += [{"family": name, "kind": "null", "change": value} for value in null.values]
        rows.append({"family": name, "kind": "p", "change": effect.change, "shown": f"p = {null.p:.3f}"})
    if not any(row["kind"] == "null" for row in rows) or effect.change is None:
        return None
    rows.append({"kind": "direction", "change": effect.change, "low": effect.low, "high": effect.high})
    order = list(dict.fromkeys(row["family"] for row in rows if "family" in row))
    title = f"{effect.name.capitalize()}: change of the metric, seed {seed}"
    summary = f"{title}; one tick for each null draw, by family, and the direction as a line"
    return finished(f"wide-seed-{seed}-{effect.name}", summary, _ticks(order), title, rows)


def _ticks(order: Sequence[str]) -> Any:
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=96)
    y = alt.Y("family:N", scale=alt.Scale(domain=list(order)), axis=labels)
    axis = alt.Axis(title="mean change of the metric, log-odds", tickCount=6, grid=False)
    x = alt.X("change:Q", scale=alt.Scale(nice=True), axis=axis)
    colour = alt.Color("family:N", scale=palette(order, NULL_COLOURS), legend=None)
    blue = LIGHT["direction"]
    direction = where("datum.kind == 'direction'")
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        direction.mark_rect(color=LIGHT["zone"]).encode(x="low:Q", x2="high:Q"),
        where("datum.kind == 'null'")
        .mark_tick(thickness=1.3, size=15, opacity=0.75)
        .encode(x=x, y=y, color=colour, tooltip=tips("family", change=".3f")),
        direction.mark_rule(color=blue, strokeWidth=2.4).encode(x=x, tooltip=tips(change=".3f", low=".3f", high=".3f")),
        where("datum.kind == 'p'").mark_text(align="left", color=LIGHT["muted"]).encode(
            x=alt.value(296), y=y, text="shown:N"
        ),
    ).properties(width=290, height=alt.Step(24))  # fmt: skip


def doses(seed: int, curves: Iterable[DosePoint]) -> list[Chart]:
    """Draw the rate over the dose: the direction with its interval, and the mean of each null family."""
    points = [point for point in curves if point.rate is not None]
    charts = [_dose_chart(seed, kind, [p for p in points if p.kind == kind]) for kind in AXES]
    return [chart for chart in charts if chart is not None]


def _dose_chart(seed: int, kind: str, points: Sequence[DosePoint]) -> Chart | None:
    rows: list[ChartRow] = []
    draws: dict[tuple[str, float], list[float]] = defaultdict(list)
    for point in points:
        if point.arm.family is None:
            numbers = {key: getattr(point, key) for key in ("dose", "rate", "low", "high", "n")}
            rows.append(numbers | {"family": "direction"})
        elif point.rate is not None:
            draws[point.arm.family, point.dose].append(point.rate)
    if not rows:
        return None
    for (family, dose), rates in draws.items():
        ends = {"low": min(rates), "high": max(rates), "n": len(rates)}
        rows.append({"family": printable(family, 16), "dose": dose, "rate": math.fsum(rates) / len(rates)} | ends)
    title = f"{kind.capitalize()}, seed {seed}"
    summary = f"{title}: rate of the behaviour over the {AXES[kind]}, for the direction and the null families"
    return finished(f"dose-seed-{seed}-{kind}", summary, _lines(rows, AXES[kind]), title, rows)


def _lines(rows: Sequence[ChartRow], axis: str) -> Any:
    families = [f for f in dict.fromkeys(row["family"] for row in rows) if f != "direction"]
    scale = alt.Scale(
        domain=["direction", *families],
        range=[LIGHT["direction"], *(NULL_COLOURS[k % len(NULL_COLOURS)] for k in range(len(families)))],
    )
    dashes = palette(["direction", *families], [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [1, 2]])
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolType="stroke", symbolSize=220, symbolOpacity=1)
    x = alt.X("dose:Q", axis=alt.Axis(title=axis, grid=False, tickCount=7))
    y = alt.Y("rate:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="rate (metric > 0)", tickCount=5))
    colour = alt.Color("family:N", scale=scale, legend=legend)
    tooltip = tips("family", dose=".2f", rate=".3f", low=".3f", high=".3f", n="d")
    base = alt.Chart().encode(x=x, color=colour)
    own = "datum.family == 'direction'"
    return alt.layer(
        base.transform_filter(own).mark_area(opacity=0.16, line=False).encode(y="low:Q", y2="high:Q"),
        base.transform_filter(f"!({own})")
        .mark_line(strokeWidth=1.3)
        .encode(y=y, strokeDash=alt.StrokeDash("family:N", scale=dashes, legend=None)),
        base.transform_filter(own).mark_line(strokeWidth=2.4).encode(y=y),
        base.mark_circle(size=22, opacity=1).encode(y=y, tooltip=tooltip),
    ).properties(width=330, height=210)
