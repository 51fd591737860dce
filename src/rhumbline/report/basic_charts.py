"""Charts of general form: curves, intervals, matrices, scatters, ROC curves and bars.

Independent of files and of the analyses that use them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import altair as alt

from rhumbline.records.analysis_files import ComponentPoint, MonitorCondition
from rhumbline.report.figures import (
    DIVERGING,
    LIGHT,
    Chart,
    ChartRow,
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


@dataclass(frozen=True)
class ChartText:
    """Name and titles of a chart."""

    name: str
    """File name without suffix."""
    title: str
    x: str
    """Title of the horizontal axis."""
    y: str
    """Title of the vertical axis."""


class Point(NamedTuple):
    """A value with its interval in one series."""

    series: str
    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


class Bar(NamedTuple):
    """A value with its interval, in one row of a horizontal chart."""

    what: str
    """Label of the row."""
    series: str
    value: float | None
    low: float | None
    high: float | None
    mark: str = ""
    """Distinguishes several values of a series in one row, by shape."""


def curves(text: ChartText, points: Iterable[Point], colours: Mapping[str, str] | None = None) -> Chart | None:
    """Draw a line for each series, with a band if it has intervals. None if there is no value."""
    known = [point for point in points if point.y is not None]
    if not known:
        return None
    names = list(dict.fromkeys(point.series for point in known))
    shades = [(colours or {}).get(n) or RAMP[k % len(RAMP)] for k, n in enumerate(names)]
    legend = alt.Legend(
        title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=240, labelLimit=180, symbolOpacity=1
    )
    whole = all(isinstance(point.x, int) for point in known)
    axis = (
        alt.Axis(title=text.x, grid=False, tickMinStep=1, format="d") if whole else alt.Axis(title=text.x, grid=False)
    )
    base = alt.Chart().encode(
        x=alt.X("x:Q", scale=alt.Scale(nice=False), axis=axis),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=shades), legend=legend),
    )
    height = alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=text.y, tickCount=5))
    dash = alt.StrokeDash("series:N", scale=palette(names, DASHES), legend=None)
    tooltip = tips("series", x=".3~g", y=".3f", low=".3f", high=".3f")
    layers = [
        base.transform_filter("isValid(datum.low)").mark_area(opacity=0.13, line=False).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.9).encode(y=height, strokeDash=dash),
        base.mark_circle(size=18, opacity=1).encode(y=height, tooltip=tooltip),
    ]
    rows = [point._asdict() for point in known]
    return finished(text.name, text.title, alt.layer(*layers).properties(width=400, height=210), text.title, rows)


def intervals(text: ChartText, points: Sequence[Point], domain: tuple[float, float] | None = None) -> Chart | None:
    """Draw points with intervals, the series side by side at each x. None if there is no point."""
    if not points:
        return None
    names = list(dict.fromkeys(point.series for point in points))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=70, labelLimit=180)
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale()
    shared: ChartRow = {
        "x": alt.X("x:O", axis=bare_axis(title=text.x, labelAngle=0, labelPadding=6)),
        "xOffset": alt.XOffset("series:N", scale=alt.Scale(domain=names)),
        "color": alt.Color("series:N", scale=palette(names, RAMP), legend=legend),
    }
    marks: ChartRow = {
        "y": alt.Y("y:Q", scale=scale, axis=alt.Axis(title=text.y, tickCount=5)),
        "shape": alt.Shape("series:N", scale=palette(names, SHAPES), legend=legend),
        "tooltip": tips("series", x="d", y=".3f", low=".3f", high=".3f"),
    }
    reach = {"y": alt.Y("low:Q", scale=scale), "y2": "high:Q"}
    body = alt.layer(
        where("isValid(datum.low)").mark_rule(strokeWidth=1.6).encode(**reach, **shared),
        alt.Chart().mark_point(filled=True, size=46, opacity=1).encode(**marks, **shared),
    ).properties(width=alt.Step(max(7, 96 / (len(names) + 1))), height=210)
    return finished(text.name, text.title, body, text.title, [point._asdict() for point in points])


def matrix(name: str, title: str, values: Sequence[Sequence[float | None]], labels: Sequence[str], axis: str) -> Chart:
    """Draw a map of cosines, -1 to 1, whose rows and columns have the same labels."""
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


def scatter(text: ChartText, points: Iterable[ComponentPoint]) -> Chart:
    """Draw prompts on two axes: the class as colour, training prompts as circles, validation prompts as dots."""
    x, y = text.x, text.y
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
    return finished(text.name, text.title, body, text.title, [asdict(point) for point in points])


def roc(name: str, title: str, conditions: Iterable[MonitorCondition]) -> Chart:
    """Draw ROC curves, with the diagonal of a random detector."""
    rows: list[ChartRow] = [
        {"series": printable(condition.name, 18), "x": point.fpr, "y": point.tpr, "order": k}
        for condition in conditions
        for k, point in enumerate(condition.roc)
    ]
    names = list(dict.fromkeys(r["series"] for r in rows))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=240, symbolOpacity=1)
    scale = alt.Scale(domain=[0, 1])
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(title="false positive rate", tickCount=5, grid=False))
    y = alt.Y("y:Q", scale=scale, axis=alt.Axis(title="true positive rate", tickCount=5))
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


def bars(name: str, title: str, rows: Sequence[Bar], x: str, colours: Mapping[str, str] | None = None) -> Chart:
    """Draw horizontal points with intervals, in the order of the rows. Every second row has a grey background."""
    order = list(dict.fromkeys(bar.what for bar in rows))
    names = list(dict.fromkeys(bar.series for bar in rows))
    marks = list(dict.fromkeys(bar.mark for bar in rows if bar.mark))
    shades = [(colours or {}).get(n) or RAMP[k % len(RAMP)] for k, n in enumerate(names)]
    table = [bar._asdict() | {"place": f"{bar.series} {bar.mark}", "banded": order.index(bar.what) % 2} for bar in rows]
    places = [f"{n} {m}" for n in names for m in marks or [""]]
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=60)
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=200)
    y = alt.Y("what:N", scale=alt.Scale(domain=order), axis=labels)
    shared: ChartRow = {
        "y": y,
        "yOffset": alt.YOffset("place:N", scale=alt.Scale(domain=places)),
        "color": alt.Color("series:N", scale=alt.Scale(domain=names, range=shades), legend=legend),
    }
    points: ChartRow = {
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
