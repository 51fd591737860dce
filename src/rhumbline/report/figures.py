"""Palette, formats and small parts of charts; draws a Vega-Lite specification as SVG and PNG.

Every colour that is not on a continuous scale comes from `PALETTE`. The page replaces these colours by CSS variables,
so that one drawing serves light mode, dark mode and print. The colours of series are those of Okabe and Ito (2008),
"Color Universal Design", with the grey that R adds to them: readers with any common colour blindness distinguish them.
Independent of what is charted, and of files.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import altair as alt
import vl_convert

ChartRow = dict[str, Any]
"""One row of the data of a chart."""
Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""

PALETTE = {
    "paper": ("#fffffd", "#15171b"),
    "ink": ("#1c2127", "#e5e3de"),
    "muted": ("#666c75", "#9ba1a9"),
    "hairline": ("#d9dbdf", "#363b43"),
    "zone": ("#e3ecf7", "#1d2c40"),
    "accent": ("#14559c", "#74b4f2"),
    "direction": ("#0072b2", "#0072b2"),
    "orange": ("#e69f00", "#e69f00"),
    "sky": ("#56b4e9", "#56b4e9"),
    "green": ("#009e73", "#009e73"),
    "vermillion": ("#d55e00", "#d55e00"),
    "purple": ("#cc79a7", "#cc79a7"),
    "grey": ("#999999", "#999999"),
    "positive": ("#a93f24", "#ee8a6b"),
    "negative": ("#28707f", "#6cbccc"),
}
"""Name: (light, dark). Every light value is unique, because the page replaces colours by their light value."""

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
DIVERGING = ["#8a3d06", "#cf7523", "#f2bd82", "#f3efe9", "#93bfdd", "#3f83b8", "#0f4c81"]
SEQUENTIAL = ["#f0e8a8", "#a9c98f", "#5ba58b", "#2b7d87", "#235b87", "#2a3575"]

LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_NAME_OF = {light: name for name, light in LIGHT.items()}


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    shape: str
    dash: tuple[int, ...]


_SOLID = (1, 0)
LOOKS = {
    "direction": Look(LIGHT["direction"], "circle", _SOLID),
    "baseline": Look(LIGHT["ink"], "square", _SOLID),
    "isotropic": Look(LIGHT["orange"], "triangle-up", (6, 2)),
    "covariance": Look(LIGHT["sky"], "diamond", (2, 2)),
    "top-pc": Look(LIGHT["green"], "triangle-down", (8, 2, 2, 2)),
    "unrelated": Look(LIGHT["purple"], "square", (4, 4)),
    "shuffled-site": Look(LIGHT["grey"], "triangle-right", (1, 2)),
    "shuffled": Look(LIGHT["vermillion"], "cross", (10, 3)),
}
"""The direction, the baseline and every null family look the same in all charts."""
SERIES = (
    Look(LIGHT["direction"], "circle", _SOLID),
    Look(LIGHT["vermillion"], "square", (6, 2)),
    Look(LIGHT["green"], "triangle-up", (2, 2)),
    Look(LIGHT["purple"], "diamond", (8, 2, 2, 2)),
    Look(LIGHT["orange"], "cross", (4, 4)),
    Look(LIGHT["sky"], "triangle-down", (1, 2)),
    Look(LIGHT["grey"], "triangle-right", (10, 3)),
    Look(LIGHT["ink"], "triangle-left", (12, 2)),
)
"""Looks of series that are none of these, in their order."""


def looks(names: Iterable[str]) -> list[Look]:
    """Return how each series is drawn. A name such as `isotropic, largest` belongs to the family that begins it."""
    others = 0
    found = []
    for name in names:
        known = LOOKS.get(re.split("[ ,]", name)[0])
        found.append(known or SERIES[others % len(SERIES)])
        others += known is None
    return found


@dataclass(frozen=True)
class Chart:
    """One chart that is not drawn yet."""

    name: str
    """File name without suffix: letters, digits and dashes."""
    summary: str
    """Description of the chart for screen readers."""
    spec: Spec
    """Complete Vega-Lite specification, data included."""


@dataclass(frozen=True)
class Drawing:
    """A drawn chart, for files and for the page."""

    chart: Chart
    svg: str
    """Self-contained SVG in light colours."""
    png: bytes
    inline_svg: str
    """SVG for the page: colours are CSS variables, and identifiers are unique to the chart."""
    inline_spec: Spec
    """Specification for the page: colours are CSS variables."""
    width: float
    """Width in pixels."""


def lane_of(place: int, n: int) -> float:
    """The place of one of n seeds within a row of a chart, from -1 to 1."""
    return (2 * place + 1) / n - 1


def draw(chart: Chart) -> Drawing:
    """Draw one chart; nothing is downloaded."""
    svg = _renamed(vl_convert.vegalite_to_svg(json.dumps(chart.spec), allowed_base_urls=[]), chart.name)
    png = vl_convert.svg_to_png(svg, scale=2)
    inline = re.sub("<[^<>]+>", _inline_tag, svg)
    spec = {key: value for key, value in chart.spec.items() if key != "$schema"}
    return Drawing(chart, svg, png, inline, _with_variables(spec), float(re.findall(r'width="([\d.]+)"', svg)[0]))


def _renamed(svg: str, name: str) -> str:
    """Return the drawing with identifiers that depend on the chart only; Vega numbers them over all its drawings."""
    identifiers = dict.fromkeys(re.findall(r'\bid="((?:gradient|clip)_?\d+)"', svg))
    renamed = {old: f"{name}-{k}" for k, old in enumerate(identifiers)}
    return re.sub(r'(\bid="|url\(#)([a-z]+_?\d+)', lambda m: m[1] + renamed.get(m[2], m[2]), svg)


def _inline_tag(tag: re.Match) -> str:
    """Return one SVG tag with CSS variables for colours, and without roles: the figure has the only description."""
    plain = re.sub(r' (role|aria-[a-z]+)="[^"]*"', "", tag[0])
    return re.sub(r'(fill|stroke)="(#[0-9a-f]{6})"', lambda m: f'{m[1]}="{_variable(m[2])}"', plain)


def _variable(colour: str) -> str:
    name = _NAME_OF.get(colour)
    return f"var(--{name})" if name else colour


def _with_variables(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {key: value if key in ("data", "datasets") else _with_variables(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_with_variables(value) for value in spec]
    return _variable(spec) if isinstance(spec, str) else spec


def _config() -> Spec:
    ink, muted, hairline = LIGHT["ink"], LIGHT["muted"], LIGHT["hairline"]
    text = {
        "labelColor": muted,
        "titleColor": ink,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
    }
    return {
        "background": LIGHT["paper"],
        "aria": False,
        "font": FONT,
        "view": {"stroke": None},
        "axis": text | {"gridColor": hairline, "domainColor": muted, "tickColor": muted},
        "legend": text | {"titleLimit": 300, "gradientStrokeWidth": 0, "gradientThickness": 9},
        "header": {"labelColor": ink, "labelFontSize": 11.5, "labelFontWeight": "bold"},
        "title": {"color": ink, "fontSize": 12.5, "anchor": "start", "frame": "bounds", "offset": 8},
        "text": {"color": ink, "fontSize": 11},
    }


def finished(name: str, summary: str, body: Any, title: str, rows: Iterable[ChartRow]) -> Chart:
    """Return a chart from an Altair chart without data, and its data."""
    # Data is added to the dictionary, because Altair copies its data at every step.
    spec = body.properties(title=title).to_dict(validate=False)
    values = [{key: _short(value) for key, value in row.items()} for row in rows]
    top = {"$schema": alt.SCHEMA_URL, "data": {"values": values}, "config": _config()}
    return Chart(name, summary, top | _bare(spec))


def _short(value: Any) -> Any:
    """Round a number to six digits, without a negative zero; None if it is not finite, which JSON cannot hold."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else None


def _bare(spec: Any) -> Any:
    """Remove the empty data, schemas and configurations that Altair writes at every level."""
    if isinstance(spec, dict):
        return {
            key: _bare(value) for key, value in spec.items() if key not in ("$schema", "config", "data", "datasets")
        }
    return [_bare(value) for value in spec] if isinstance(spec, list) else spec


def tips(*names: str, **numbers: str) -> list[alt.Tooltip]:
    """Return tooltip lines: texts unchanged, numbers in their format."""
    texts = [alt.Tooltip(f"{name}:N") for name in names]
    return texts + [alt.Tooltip(f"{name}:Q", format=form) for name, form in numbers.items()]


def where(expression: str) -> alt.Chart:
    """Return a chart of the rows for which the expression is true."""
    return alt.Chart().transform_filter(expression)


def bare_axis(**settings: Any) -> alt.Axis:
    """Return an axis without line and ticks."""
    return alt.Axis(ticks=False, domain=False, **settings)


def scale_of(names: Sequence[str], what: Literal["colour", "shape", "dash"]) -> alt.Scale:
    """Map each series to its colour, shape or dash pattern."""
    return alt.Scale(domain=list(names), range=[getattr(look, what) for look in looks(names)])


def printable(text: str, limit: int = 22) -> str:
    """Escape characters that do not print, and shorten the text in the middle."""
    shown = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}…{shown[-(limit // 2 - 1) :]}"
