"""Charts of the wide nulls and of the doses. Knows shapes and scales, as figures.py does; knows no files."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from rhumbline.report.figures import (
    LIGHT,
    NULL_COLOURS,
    Chart,
    Row,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)

KINDS = {"ablation": "strength of the ablation", "addition": "coefficient of the addition"}
"""Intervention: what its axis says."""


def wide(seed: int, effects: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """Every wide null draw as a tick on its family's line, and the direction as a point on each."""
    charts = []
    for effect in effects:
        rows: list[Row] = []
        for family, record in effect["families"].items():
            name = printable(family, 16)
            rows += [{"family": name, "kind": "null", "change": v} for v in record.get("values", [])]
            p = f"p = {record['p']:.3f}" if record["p"] is not None else ""
            rows.append({"family": name, "kind": "p", "change": effect["change"], "shown": p})
        if not any(row["kind"] == "null" for row in rows) or effect["change"] is None:
            continue
        direction = {"kind": "direction", "change": effect["change"], "low": effect["low"], "high": effect["high"]}
        rows.append(direction)
        order = list(dict.fromkeys(row["family"] for row in rows if "family" in row))
        title = f"{effect['name'].capitalize()}: change of the metric, seed {seed}"
        summary = f"{title}; one tick for each null draw, by family, and the direction as a line"
        charts.append(finished(f"wide-seed-{seed}-{effect['name']}", summary, _ticks(order), title, rows))
    return charts


def _ticks(order: Sequence[str]) -> Any:
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=96)
    y = alt.Y("family:N", scale=alt.Scale(domain=list(order)), axis=labels)
    axis = alt.Axis(title="mean change of the metric, in log-odds", tickCount=6, grid=False)
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


def doses(seed: int, curves: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Rate over strength: the direction with its interval, and how far each family's draws reach."""
    charts = []
    for kind, axis in KINDS.items():
        rows: list[Row] = []
        reach: dict[tuple[str, float], list[float]] = defaultdict(list)
        for row in curves:
            if row["kind"] != kind or row["rate"] is None:
                continue
            if row["arm"] == "direction":
                rows.append({k: row[k] for k in ("dose", "rate", "low", "high", "n")} | {"family": "direction"})
            else:
                reach[row["arm"].split(":")[1], row["dose"]].append(row["rate"])
        if not rows:
            continue
        for (family, at), rates in reach.items():
            mean = math.fsum(rates) / len(rates)
            ends = {"low": min(rates), "high": max(rates), "n": len(rates)}
            rows.append({"family": printable(family, 16), "dose": at, "rate": mean} | ends)
        title = f"{kind.capitalize()}, seed {seed}"
        summary = f"{title}: rate of the behaviour over the {axis}, the direction and the null families"
        charts.append(finished(f"dose-seed-{seed}-{kind}", summary, _lines(rows, axis), title, rows))
    return charts


def _lines(rows: Sequence[Row], axis: str) -> Any:
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
