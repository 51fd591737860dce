"""Charts of general form: curves, intervals side by side or in rows, matrices, scatters and ROC curves.

Independent of files and of the sections that use them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import altair as alt

from rhumbline.records.analysis_files import ComponentPoint, MonitorCondition
from rhumbline.records.verdict_rule import is_number
from rhumbline.report.figures import (
    DIVERGING,
    LIGHT,
    SERIES,
    Chart,
    ChartRow,
    Spec,
    bare_axis,
    finished,
    looks,
    printable,
    scale_of,
    tips,
    where,
)

LAYER = "layer (resid_pre)"
"""Title of an axis over layers."""
MOST_TICKS = 8
"""Whole numbers that all have a tick on an axis."""
CLASS_COLOURS = {label: LIGHT[label] for label in ("positive", "negative")}


def extended(domain: tuple[float, float], values: Iterable[float | None]) -> alt.Scale:
    """Return a scale over a domain and all values beyond it, which would be drawn outside of the chart."""
    known = [value for value in values if is_number(value)]
    return alt.Scale(domain=[min(domain[0], *known), max(domain[1], *known)] if known else list(domain))


@dataclass(frozen=True)
class ChartText:
    """Name and titles of a chart."""

    name: str
    """File name without suffix."""
    title: str
    x: str
    """Title of the horizontal axis."""
    y: str = ""
    """Title of the vertical axis."""
    summary: str = ""
    """Description for screen readers, if the title does not suffice."""

    def finish(self, body: Any, rows: Iterable[ChartRow]) -> Chart:
        """Return the chart of a body and its data."""
        return finished(self.name, self.summary or self.title, body, self.title, rows)


class CurvePoint(NamedTuple):
    """A value with its interval in one series."""

    series: str
    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


def _ends(points: Iterable[CurvePoint]) -> list[float | None]:
    return [value for point in points for value in (point.y, point.low, point.high)]


def _colours(names: Sequence[str], colours: Mapping[str, str] | None) -> alt.Scale:
    """Map each series to the colour that a chart gives it, or to its own."""
    shades = [(colours or {}).get(name) or look.colour for name, look in zip(names, looks(names), strict=True)]
    return alt.Scale(domain=list(names), range=shades)


@dataclass(frozen=True)
class Bar:
    """A value with its interval, in one row of a horizontal chart."""

    what: str
    """Label of the row."""
    series: str
    value: float | None
    low: float | None
    high: float | None
    mark: str = ""
    """Distinguishes several values of a series in one row, by shape."""
    seed: int | None = None
    """Values of several seeds are one below the other."""
    shown: str = ""
    """Text at the right end of the row."""
    more: ChartRow = field(default_factory=dict)
    """Further numbers and texts of the tooltip, by name."""


def curves(
    text: ChartText,
    points: Iterable[CurvePoint],
    colours: Mapping[str, str] | None = None,
    *,
    banded: Collection[str] | None = None,
    domain: tuple[float, float] | None = None,
    size: tuple[int, int] = (400, 210),
    log: bool = False,
) -> Chart | None:
    """Draw a line for each series, with a band if it has intervals (if given, in the `banded` series only).

    `log`: the horizontal axis is logarithmic, its values positive. None if there is no value.
    """
    known = [point for point in points if point.y is not None]
    if not known:
        return None
    names = list(dict.fromkeys(point.series for point in known))
    strokes = {"symbolType": "stroke", "symbolSize": 240, "labelLimit": 180, "symbolOpacity": 1}
    legend = alt.Legend(title=None, orient="bottom", columns=3, **strokes) if len(names) > 1 else None
    ticks: dict[str, Any] = {}
    if all(isinstance(point.x, int) for point in known):
        places = sorted({point.x for point in known})
        # The least step does not hold for a short axis, whose ticks at fractions would repeat whole numbers.
        ticks = {"format": "d", **({"values": places} if len(places) <= MOST_TICKS else {"tickMinStep": 1})}
    if log:
        ticks = {"format": "~g", "labelOverlap": True, "values": [m * 10.0**e for e in range(-8, 2) for m in (1, 3)]}
    across = alt.Scale(type="log", nice=False) if log else alt.Scale(nice=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", scale=across, axis=alt.Axis(title=text.x, grid=False, **ticks)),
        color=alt.Color("series:N", scale=_colours(names, colours), legend=legend),
    )
    scale = extended(domain, _ends(known)) if domain else alt.Scale(zero=False)
    height = alt.Y("y:Q", scale=scale, axis=alt.Axis(title=text.y, tickCount=5))
    dash = alt.StrokeDash("series:N", scale=scale_of(names, "dash"), legend=None)
    counted = {"n": "d"} if known[0].n is not None else {}
    tooltip = tips("series", x=".3~g", y=".3f", low=".3f", high=".3f", **counted)
    bands = "isValid(datum.low)" if banded is None else " || ".join(f"datum.series == '{name}'" for name in banded)
    layers = [
        base.transform_filter(bands).mark_area(opacity=0.13, line=False).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.9).encode(y=height, strokeDash=dash),
        base.mark_circle(size=18, opacity=1).encode(y=height, tooltip=tooltip),
    ]
    rows = [{key: value for key, value in point._asdict().items() if value is not None} for point in known]
    return text.finish(alt.layer(*layers).properties(width=size[0], height=size[1]), rows)


def intervals(text: ChartText, points: Sequence[CurvePoint], domain: tuple[float, float] | None = None) -> Chart | None:
    """Draw points with intervals, the series side by side at each x. None if there is no point."""
    if not points:
        return None
    names = list(dict.fromkeys(point.series for point in points))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=70, labelLimit=180)
    scale = extended(domain, _ends(points)) if domain else alt.Scale()
    shared: Spec = {
        "x": alt.X("x:O", axis=bare_axis(title=text.x, labelAngle=0, labelPadding=6)),
        "xOffset": alt.XOffset("series:N", scale=alt.Scale(domain=names)),
        "color": alt.Color("series:N", scale=scale_of(names, "colour"), legend=legend),
    }
    marks: Spec = {
        "y": alt.Y("y:Q", scale=scale, axis=alt.Axis(title=text.y, tickCount=5)),
        "shape": alt.Shape("series:N", scale=scale_of(names, "shape"), legend=legend),
        "tooltip": tips("series", x="d", y=".3f", low=".3f", high=".3f"),
    }
    reach = {"y": alt.Y("low:Q", scale=scale), "y2": "high:Q"}
    body = alt.layer(
        where("isValid(datum.low)").mark_rule(strokeWidth=1.6).encode(**reach, **shared),
        alt.Chart().mark_point(filled=True, size=46, opacity=1).encode(**marks, **shared),
    ).properties(width=alt.Step(max(7, 96 / (len(names) + 1))), height=210)
    return text.finish(body, [point._asdict() for point in points])


def bars(
    text: ChartText,
    rows: Sequence[Bar],
    colours: Mapping[str, str] | None = None,
    *,
    scale: alt.Scale | None = None,
    named: bool = False,
) -> Chart | None:
    """Draw horizontal points with intervals, in the order of the rows. Every second row has a grey background.

    A legend names the series if a row has several of them, or if `named`. None if there is no row.
    """
    if not rows:
        return None
    order = list(dict.fromkeys(bar.what for bar in rows))
    names = list(dict.fromkeys(bar.series for bar in rows))
    marks = list(dict.fromkeys(bar.mark for bar in rows if bar.mark))
    seeds = list(dict.fromkeys(bar.seed for bar in rows))
    # A row of one series needs no place for the others.
    alone = len({(bar.what, bar.series) for bar in rows}) == len(order)
    place = {
        key: f"{'' if alone else key[0]} {key[1]} {key[2]}"
        for key in ((n, m, s) for n in names for m in marks or [""] for s in seeds)
    }
    places = list(dict.fromkeys(place.values()))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolSize=60, labelLimit=180)
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=200)
    y = alt.Y("what:N", scale=alt.Scale(domain=order), axis=labels)
    scale = scale or alt.Scale()
    legend = legend if named or (len(names) > 1 and not alone) else None
    shared: Spec = {"y": y, "color": alt.Color("series:N", scale=_colours(names, colours), legend=legend)}
    if len(rows) > len(order):
        shared["yOffset"] = alt.YOffset("place:N", scale=alt.Scale(domain=places))
    numbers = {"value": ".3f"} | ({} if all(bar.low is None for bar in rows) else {"low": ".3f", "high": ".3f"})
    texts = [*(["mark"] if marks else []), *(["seed"] if len(seeds) > 1 else [])]
    texts += [k for k, v in rows[0].more.items() if isinstance(v, str)]
    numbers |= {k: "d" if isinstance(v, int) else ".3f" for k, v in rows[0].more.items() if not isinstance(v, str)}
    points: Spec = {
        "x": alt.X("value:Q", scale=scale, axis=alt.Axis(title=text.x or None, tickCount=6, grid=False)),
        "tooltip": tips("what", "series", *texts, **numbers),
    }
    if marks:
        ink = alt.Legend(title=None, orient="bottom", symbolSize=60, symbolFillColor=LIGHT["ink"], symbolStrokeWidth=0)
        shapes = alt.Scale(domain=marks, range=[look.shape for look in SERIES][: len(marks)])
        points["shape"] = alt.Shape("mark:N", scale=shapes, legend=ink)
    else:
        points["shape"] = alt.Shape("series:N", scale=scale_of(names, "shape"), legend=legend)
    count = alt.Chart().transform_aggregate(count="count()")
    band = where("datum.banded == 1").transform_aggregate(count="count()", groupby=["what"])
    reach = where("isValid(datum.low)").mark_rule(strokeWidth=1.4)
    shown = where("isValid(datum.shown)").mark_text(align="left", color=LIGHT["muted"])
    layers = [
        band.mark_rect(color=LIGHT["hairline"], opacity=0.4).encode(y=y),
        reach.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", **shared),
        alt.Chart().mark_point(filled=True, size=34, opacity=1).encode(**points, **shared),
        shown.encode(x=alt.value(238), y=y, text="shown:N"),
    ]
    if scale.to_dict().get("type") != "log":
        layers.insert(1, count.mark_rule(color=LIGHT["muted"], strokeWidth=0.7).encode(x=alt.XDatum(0)))
    body = alt.layer(*layers).properties(width=230, height=len(order) * max(20, 8 + 8 * len(places)))
    banded = {what: k % 2 for k, what in enumerate(order)}
    return text.finish(body, [_bar_row(b, place[b.series, b.mark, b.seed], banded[b.what]) for b in rows])


def _bar_row(bar: Bar, place: str, banded: int) -> ChartRow:
    row = {key: value for key, value in vars(bar).items() if value not in (None, "") and key != "more"}
    return row | bar.more | {"place": place, "banded": banded}


def matrix(name: str, title: str, values: Sequence[Sequence[float | None]], labels: Sequence[str], axis: str) -> Chart:
    """Draw a map of cosines, -1 to 1, whose rows and columns have the same labels."""
    rows = [
        {"row": labels[i], "column": labels[j], "cosine": v}
        for i, line in enumerate(values)
        for j, v in enumerate(line)
    ]
    size = max(9.0, min(24.0, 250 / len(labels)))
    stops = [-1 + 2 * k / (len(DIVERGING) - 1) for k in range(len(DIVERGING))]
    colour = alt.Color(
        "cosine:Q",
        scale=alt.Scale(domain=stops, range=DIVERGING, clamp=True, interpolate="rgb"),
        legend=alt.Legend(title=None, format=".1f", gradientLength=110, tickCount=4, offset=10),
    )
    ticks = list(labels)[:: max(1, round(17 / size))]
    scale = alt.Scale(domain=list(labels), padding=0)
    place = {
        "x": alt.X("column:N", scale=scale, axis=bare_axis(title=axis, values=ticks, labelAngle=-45)),
        "y": alt.Y("row:N", scale=scale, axis=bare_axis(title=None, values=ticks, labelLimit=150)),
    }
    body = alt.Chart().mark_rect().encode(**place, color=colour, tooltip=tips("row", "column", cosine=".3f"))
    return finished(name, title, body.properties(width=alt.Step(size), height=alt.Step(size)), title, rows)


def scatter(text: ChartText, points: Iterable[ComponentPoint]) -> Chart:
    """Draw prompts on two axes: the class as colour, training prompts as circles, validation prompts as dots."""
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=45)
    classes = alt.Scale(domain=list(CLASS_COLOURS), range=list(CLASS_COLOURS.values()))
    shared = {
        "x": alt.X("x:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=text.x, grid=False, tickCount=6)),
        "y": alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=text.y, grid=False, tickCount=6)),
        "color": alt.Color("label:N", scale=classes, legend=legend),
        "tooltip": tips("prompt_id", "label", "split", x=".3f", y=".3f"),
    }
    body = alt.layer(
        where("datum.split == 'train'").mark_point(size=22, strokeWidth=1.1, opacity=0.75).encode(**shared),
        where("datum.split != 'train'").mark_circle(size=40, opacity=0.95).encode(**shared),
    ).properties(width=400, height=260)
    return text.finish(body, [asdict(point) for point in points])


def roc(name: str, title: str, conditions: Iterable[MonitorCondition]) -> Chart:
    """Draw ROC curves, with the diagonal of a random detector."""
    rows: list[ChartRow] = [
        {"series": printable(condition.name, 18), "x": point.fpr, "y": point.tpr, "order": k}
        for condition in conditions
        for k, point in enumerate(condition.roc)
    ]
    names = list(dict.fromkeys(r["series"] for r in rows))
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=240, symbolOpacity=1)
    scale, line = alt.Scale(domain=[0, 1]), alt.Chart().mark_line(strokeWidth=2)
    start = {"x": alt.XDatum(0, scale=scale), "y": alt.YDatum(0, scale=scale)}
    diagonal = alt.Chart().mark_rule(color=LIGHT["muted"], strokeWidth=0.7)
    body = alt.layer(
        diagonal.encode(**start, x2=alt.X2Datum(1), y2=alt.Y2Datum(1)),
        line.encode(
            x=alt.X("x:Q", scale=scale, axis=alt.Axis(title="false positive rate", tickCount=5, grid=False)),
            y=alt.Y("y:Q", scale=scale, axis=alt.Axis(title="true positive rate", tickCount=5)),
            order="order:Q",
            color=alt.Color("series:N", scale=scale_of(names, "colour"), legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=scale_of(names, "dash"), legend=None),
        ),
    ).properties(width=260, height=240)
    return finished(name, title, body, title, rows)
