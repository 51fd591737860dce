"""Charts of the analyses: curves with bands, points with intervals, maps, scatters and ROC curves.

Knows shapes and scales, as figures.py does; knows no files, and no analysis but by the rows it is handed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from rhumbline.report.figures import (
    DIVERGING,
    LIGHT,
    SEQUENTIAL,
    Chart,
    Row,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)

RAMP = [
    LIGHT[c] for c in ("direction", "positive", "negative", "null-a", "null-b", "null-c", "null-d", "null-e", "muted")
]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [1, 2]]


def curves(
    name: str,
    title: str,
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    colours: Mapping[str, str] | None = None,
    domain: tuple[float, float] | None = None,
    width: int = 400,
    step: bool = False,
) -> Chart | None:
    """A line for every `series` of {"series", "x", "y", "low", "high"}, with its band where it has one."""
    known = [
        {"series": r["series"], "x": r["x"], "y": r["y"], "low": r.get("low"), "high": r.get("high")} for r in rows
    ]
    known = [r for r in known if r["y"] is not None]
    if not known:
        return None
    names = list(dict.fromkeys(r["series"] for r in known))
    shades = [(colours or {}).get(n) or RAMP[k % len(RAMP)] for k, n in enumerate(names)]
    legend = alt.Legend(
        title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=240, labelLimit=180, symbolOpacity=1
    )
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False)
    whole = all(isinstance(r["x"], int) for r in known)
    axis = alt.Axis(title=x, grid=False, tickMinStep=1, format="d") if whole else alt.Axis(title=x, grid=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", scale=alt.Scale(nice=False), axis=axis),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=shades), legend=legend),
    )
    height = alt.Y("y:Q", scale=scale, axis=alt.Axis(title=y, tickCount=5))
    dash = alt.StrokeDash("series:N", scale=palette(names, DASHES), legend=None)
    tooltip = tips("series", x=".3~g", y=".3f", low=".3f", high=".3f")
    layers = [
        base.transform_filter("isValid(datum.low)").mark_area(opacity=0.13, line=False).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.9, interpolate="step-after" if step else "linear").encode(
            y=height, strokeDash=dash
        ),
        base.mark_circle(size=18, opacity=1).encode(y=height, tooltip=tooltip),
    ]
    return finished(name, title, alt.layer(*layers).properties(width=width, height=210), title, known)


def intervals(
    name: str,
    title: str,
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    domain: tuple[float, float] | None = None,
) -> Chart | None:
    """Points with intervals, the `series` of {"series", "x", "y", "low", "high"} side by side at every whole x."""
    known = [
        {"series": r["series"], "x": r["x"], "y": r["y"], "low": r.get("low"), "high": r.get("high")} for r in rows
    ]
    if not known:
        return None
    names = list(dict.fromkeys(r["series"] for r in known))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=70, labelLimit=180)
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale()
    shared: dict[str, Any] = {
        "x": alt.X("x:O", axis=bare_axis(title=x, labelAngle=0, labelPadding=6)),
        "xOffset": alt.XOffset("series:N", scale=alt.Scale(domain=names)),
        "color": alt.Color("series:N", scale=palette(names, RAMP), legend=legend),
    }
    points: dict[str, Any] = {
        "y": alt.Y("y:Q", scale=scale, axis=alt.Axis(title=y, tickCount=5)),
        "shape": alt.Shape("series:N", scale=palette(names, SHAPES), legend=legend),
        "tooltip": tips("series", x="d", y=".3f", low=".3f", high=".3f"),
    }
    reach = {"y": alt.Y("low:Q", scale=scale), "y2": "high:Q"}
    body = alt.layer(
        where("isValid(datum.low)").mark_rule(strokeWidth=1.6).encode(**reach, **shared),
        alt.Chart().mark_point(filled=True, size=46, opacity=1).encode(**points, **shared),
    ).properties(width=alt.Step(max(7, 96 / (len(names) + 1))), height=210)  # fmt: skip
    return finished(name, title, body, title, known)


def matrix(name: str, title: str, values: Sequence[Sequence[float]], labels: Sequence[str], axis: str) -> Chart:
    """A map of cosines between things of one kind, from -1 to 1."""
    rows = [
        {"row": labels[i], "column": labels[j], "cosine": v}
        for i, line in enumerate(values)
        for j, v in enumerate(line)
    ]
    size = max(9.0, min(24.0, 250 / len(labels)))
    every = max(1, round(17 / size))
    stops = [-1 + 2 * k / (len(DIVERGING) - 1) for k in range(len(DIVERGING))]
    colour = alt.Color(
        "cosine:Q",
        scale=alt.Scale(domain=stops, range=DIVERGING, clamp=True, interpolate="rgb"),
        legend=alt.Legend(title=None, format=".1f", gradientLength=110, tickCount=4, offset=10),
    )
    ticks = list(labels)[::every]
    scale = alt.Scale(domain=list(labels), padding=0)
    place = {
        "x": alt.X("column:N", scale=scale, axis=bare_axis(title=axis, values=ticks, labelAngle=-45)),
        "y": alt.Y("row:N", scale=scale, axis=bare_axis(title=None, values=ticks, labelLimit=150)),
    }
    body = alt.Chart().mark_rect().encode(**place, color=colour, tooltip=tips("row", "column", cosine=".3f"))
    return finished(name, title, body.properties(width=alt.Step(size), height=alt.Step(size)), title, rows)


def grid(name: str, title: str, rows: Sequence[Row], labels: Mapping, field: str, domain: tuple[float, float]) -> Chart:
    """A map over positions and layers of one field."""
    table = [
        {"layer": r["layer"], "where": labels.get(r["position"], str(r["position"])), "value": r[field]} for r in rows
    ]
    order = [text for p, text in labels.items() if p in {r["position"] for r in rows}]
    layers = sorted({r["layer"] for r in rows})
    ramp = DIVERGING if domain[0] < 0 else SEQUENTIAL
    stops = [domain[0] + (domain[1] - domain[0]) * k / (len(ramp) - 1) for k in range(len(ramp))]
    width = max(11.0, min(26.0, 380 / len(layers)))
    colour = alt.Color(
        "value:Q",
        scale=alt.Scale(domain=stops, range=ramp, clamp=True, interpolate="rgb"),
        legend=alt.Legend(title=None, format=".1f", gradientLength=max(46, 20 * len(order)), tickCount=3, offset=10),
    )
    every = max(1, round(17 / width))
    body = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("layer:O", axis=bare_axis(labelAngle=0, values=layers[::every], title="layer (resid_pre)")),
            y=alt.Y("where:N", scale=alt.Scale(domain=order, padding=0), axis=bare_axis(title=None, labelLimit=150)),
            color=colour,
            tooltip=tips("where", "layer", value=".3f"),
        )
        .properties(width=alt.Step(width), height=alt.Step(20))
    )
    return finished(name, title, body, title, table)


def scatter(name: str, title: str, rows: Sequence[Row], x: str, y: str) -> Chart:
    """Prompts on two axes: the class by colour, train open and validation filled."""
    table = [{k: r[k] for k in ("prompt_id", "label", "split", "x", "y")} for r in rows]
    labels = ["positive", "negative"]
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=45)
    shared = {
        "x": alt.X("x:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=x, grid=False, tickCount=6)),
        "y": alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=y, grid=False, tickCount=6)),
        "color": alt.Color("label:N", scale=alt.Scale(domain=labels, range=[LIGHT[c] for c in labels]), legend=legend),
        "tooltip": tips("prompt_id", "label", "split", x=".3f", y=".3f"),
    }
    body = alt.layer(
        where("datum.split == 'train'").mark_point(size=22, strokeWidth=1.1, opacity=0.75).encode(**shared),
        where("datum.split != 'train'").mark_circle(size=40, opacity=0.95).encode(**shared),
    ).properties(width=400, height=260)
    return finished(name, title, body, title, table)


def roc(name: str, title: str, conditions: Sequence[Row]) -> Chart:
    """ROC curves, with the diagonal of a detector that knows nothing."""
    rows: list[Row] = [
        {"series": printable(c["name"], 18), "x": p["fpr"], "y": p["tpr"], "order": k}
        for c in conditions
        for k, p in enumerate(c["roc"])
    ]
    names = list(dict.fromkeys(r["series"] for r in rows))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=240, symbolOpacity=1)
    scale = alt.Scale(domain=[0, 1])
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(title="false positives (negatives flagged)", tickCount=5, grid=False))
    y = alt.Y("y:Q", scale=scale, axis=alt.Axis(title="true positives", tickCount=5))
    line = (
        alt.Chart()
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            order="order:Q",
            color=alt.Color("series:N", scale=palette(names, RAMP), legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=palette(names, DASHES), legend=None),
        )
    )
    diagonal = (
        alt.Chart()
        .mark_rule(color=LIGHT["muted"], strokeWidth=0.7)
        .encode(x=alt.XDatum(0, scale=scale), y=alt.YDatum(0, scale=scale), x2=alt.X2Datum(1), y2=alt.Y2Datum(1))
    )
    return finished(name, title, alt.layer(diagonal, line).properties(width=260, height=240), title, rows)


def bars(name: str, title: str, rows: Sequence[Row], x: str, *, colours: Mapping[str, str] | None = None) -> Chart:
    """Horizontal points with intervals: {"what", "series", "value", "low", "high"}, the largest on top.

    Rows with a `mark` as well have a point for each mark of a series, told apart by its shape. Every other `what`
    stands on a band, so that its points are seen to belong together.
    """
    order = list(dict.fromkeys(r["what"] for r in rows))
    names = list(dict.fromkeys(r["series"] for r in rows))
    marks = list(dict.fromkeys(r["mark"] for r in rows if "mark" in r))
    shades = [(colours or {}).get(n) or RAMP[k % len(RAMP)] for k, n in enumerate(names)]
    table = [
        {k: r[k] for k in ("what", "series", "value", "low", "high")}
        | {
            "mark": r.get("mark", ""),
            "place": f"{r['series']} {r.get('mark', '')}",
            "banded": order.index(r["what"]) % 2,
        }
        for r in rows
    ]
    places = [f"{n} {m}" for n in names for m in marks or [""]]
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=60)
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=200)
    y = alt.Y("what:N", scale=alt.Scale(domain=order), axis=labels)
    shared: dict[str, Any] = {
        "y": y,
        "yOffset": alt.YOffset("place:N", scale=alt.Scale(domain=places)),
        "color": alt.Color("series:N", scale=alt.Scale(domain=names, range=shades), legend=legend),
    }
    points: dict[str, Any] = {
        "x": alt.X("value:Q", axis=alt.Axis(title=x, tickCount=6, grid=False)),
        "tooltip": tips("what", "series", *(["mark"] if marks else []), value=".3f", low=".3f", high=".3f"),
    }
    if marks:
        ink = alt.Legend(title=None, orient="bottom", symbolSize=60, symbolFillColor=LIGHT["ink"], symbolStrokeWidth=0)
        points["shape"] = alt.Shape("mark:N", scale=palette(marks, SHAPES), legend=ink)
    band = where("datum.banded == 1").transform_aggregate(count="count()", groupby=["what"])
    zero = alt.Chart().transform_aggregate(count="count()")
    body = alt.layer(
        band.mark_rect(color=LIGHT["hairline"], opacity=0.4).encode(y=y),
        zero.mark_rule(color=LIGHT["muted"], strokeWidth=0.7).encode(x=alt.XDatum(0)),
        alt.Chart().mark_rule(strokeWidth=1.4).encode(x="low:Q", x2="high:Q", **shared),
        alt.Chart().mark_point(filled=True, size=34, opacity=1).encode(**points, **shared),
    ).properties(width=330, height=len(order) * max(26, 8 + 8 * len(places)))
    return finished(name, title, body, title, table)
