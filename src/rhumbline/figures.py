"""Charts of a run: records of the run directory in, Vega-Lite specifications, SVG and PNG out.

Knows shapes, scales and the palette. Does not know files, the page around the charts, or what a verdict means.
Every colour that is not on a continuous scale comes from `PALETTE`, so that the page can put a CSS variable in its
place and one drawing serves light, dark and paper.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

Row = dict[str, Any]

PALETTE = {
    "paper": ("#fffffd", "#15171b"),
    "ink": ("#1c2127", "#e5e3de"),
    "muted": ("#666c75", "#9ba1a9"),
    "hairline": ("#d9dbdf", "#363b43"),
    "zone": ("#e3ecf7", "#1d2c40"),
    "direction": ("#14559c", "#74b4f2"),
    "null-a": ("#b06a00", "#e3a23f"),
    "null-b": ("#0b7a5e", "#45bd99"),
    "null-c": ("#95508c", "#d192c8"),
    "null-d": ("#6d6a2b", "#bdb95f"),
    "null-e": ("#8a4b2f", "#c98e6f"),
    "null-f": ("#4c6fa0", "#93b3e0"),
    "positive": ("#a93f24", "#ee8a6b"),
    "negative": ("#28707f", "#6cbccc"),
}
"""Name: (light, dark). Every light value is unique: the page finds a colour by it."""

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
NULL_SHAPES = ("diamond", "triangle-up", "triangle-down", "cross", "square", "triangle-right")
DIVERGING = ["#8a3d06", "#cf7523", "#f2bd82", "#f3efe9", "#93bfdd", "#3f83b8", "#0f4c81"]
SEQUENTIAL = ["#f0e8a8", "#a9c98f", "#5ba58b", "#2b7d87", "#235b87", "#2a3575"]

LIGHT = {name: light for name, (light, _) in PALETTE.items()}
NULL_COLOURS = [LIGHT[f"null-{k}"] for k in "abcdef"]
_NAME_OF = {light: name for name, light in LIGHT.items()}


@dataclass(frozen=True)
class Chart:
    """One chart, before it is drawn."""

    name: str
    """File name without suffix; letters, digits and dashes."""
    summary: str
    """What the chart shows, for those who cannot see it."""
    spec: Row
    """Vega-Lite, complete and self-contained."""


@dataclass(frozen=True)
class Drawing:
    """A drawn chart, for files and for the page."""

    chart: Chart
    svg: str
    """Stands alone, light colours."""
    png: bytes
    inline_svg: str
    """For the page: colours are CSS variables, identifiers are unique to the chart."""
    inline_spec: Row
    """For the page: as `inline_svg`."""
    width: float
    """In pixels, unscaled."""


def draw(chart: Chart) -> Drawing:
    """Render one chart; nothing is fetched."""
    svg = _renamed(vl_convert.vegalite_to_svg(json.dumps(chart.spec), allowed_base_urls=[]), chart.name)
    png = vl_convert.svg_to_png(svg, scale=2)
    inline = re.sub("<[^<>]+>", _inline_tag, svg)
    spec = {key: value for key, value in chart.spec.items() if key != "$schema"}
    return Drawing(chart, svg, png, inline, _with_variables(spec), float(re.findall(r'width="([\d.]+)"', svg)[0]))


def _renamed(svg: str, name: str) -> str:
    """The drawing with identifiers that depend on the chart alone: Vega numbers them through all that it ever drew."""
    found = dict.fromkeys(re.findall(r'\bid="((?:gradient|clip)_?\d+)"', svg))
    fresh = {old: f"{name}-{k}" for k, old in enumerate(found)}
    return re.sub(r'(\bid="|url\(#)([a-z]+_?\d+)', lambda m: m[1] + fresh.get(m[2], m[2]), svg)


def _inline_tag(tag: re.Match) -> str:
    """One SVG tag for the page: CSS variables for colours."""
    return re.sub(r'(fill|stroke)="(#[0-9a-f]{6})"', lambda m: f'{m[1]}="{_variable(m[2])}"', tag[0])


def _variable(colour: str) -> str:
    name = _NAME_OF.get(colour)
    return f"var(--{name})" if name else colour


def _with_variables(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {key: value if key in ("data", "datasets") else _with_variables(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_with_variables(value) for value in spec]
    return _variable(spec) if isinstance(spec, str) else spec


def _config() -> Row:
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


def finished(name: str, summary: str, body: Any, title: str, rows: Iterable[Row]) -> Chart:
    """A chart with its data inside."""
    # The data joins the dictionary here: altair copies everything it holds at every step.
    spec = body.properties(title=title).to_dict(validate=False)
    values = [{key: _short(value) for key, value in row.items()} for row in rows]
    top = {"$schema": alt.SCHEMA_URL, "data": {"values": values}, "config": _config()}
    return Chart(name, summary, top | _bare(spec))


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _bare(spec: Any) -> Any:
    """A specification without the (empty) data, schema and configuration that altair writes at every level."""
    if isinstance(spec, dict):
        return {
            key: _bare(value) for key, value in spec.items() if key not in ("$schema", "config", "data", "datasets")
        }
    return [_bare(value) for value in spec] if isinstance(spec, list) else spec


def tips(*names: str, **numbers: str) -> list[alt.Tooltip]:
    """Tooltip lines: texts as they are, numbers in their format."""
    texts = [alt.Tooltip(f"{name}:N") for name in names]
    return texts + [alt.Tooltip(f"{name}:Q", format=form) for name, form in numbers.items()]


def where(expression: str) -> alt.Chart:
    """The rows that an expression keeps."""
    return alt.Chart().transform_filter(expression)


def bare_axis(**settings: Any) -> alt.Axis:
    """An axis without line and ticks."""
    return alt.Axis(ticks=False, domain=False, **settings)


def palette(names: Sequence[str], of: Sequence[Any]) -> alt.Scale:
    """One colour, dash or shape for each name, in a fixed order."""
    return alt.Scale(domain=list(names), range=[of[k % len(of)] for k in range(len(names))])


def printable(text: str, limit: int = 22) -> str:
    """`text` with what does not print escaped; shortened in the middle."""
    shown = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}…{shown[-(limit // 2 - 1) :]}"


def position_labels(positions: Sequence[int | str], suffix_tokens: Sequence[str]) -> dict[int | str, str]:
    """How a position is written: its index and the token that stands there; the last of the instruction comes first."""
    last = -len(suffix_tokens) - 1
    labels: dict[int | str, str] = {last: f"{last} (instruction)"}
    for position in positions:
        if isinstance(position, int) and last < position < 0:
            labels[position] = f'{position} "{printable(suffix_tokens[position], 18)}"'
        elif position != last:
            labels[position] = str(position)
    return labels


# -- arms -----------------------------------------------------------------------------------------------

PANELS = {"suppression": ("ablation", "positive", -1), "induction": ("addition", "negative", 1)}
"""Panel: (arm, set of prompts, the sign that the rule asks of the change in rate)."""


def draws_of(arms: Iterable[Row], arm: str, which: str) -> dict[str, list[Row]]:
    """Measured null draws of one intervention on one set, by family."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in arms:
        parts = row["arm"].split(":")
        if parts[0] == "null" and parts[-1] == arm and row["set"] == which and row["rate"] is not None:
            found[":".join(parts[1:-2])].append(row | {"draw": parts[-2]})
    return dict(found)


def arm_of(arms: Iterable[Row], arm: str, which: str) -> Row | None:
    """The row of one arm on one set, if it was measured."""
    return next((row for row in arms if (row["arm"], row["set"]) == (arm, which) and row["rate"] is not None), None)


def measure(seeds: Iterable[Row]) -> str:
    """What the arms of a run show: the rate of a behaviour, or the level of a continuous score."""
    return "level" if any(seed.get("style") for seed in seeds) else "rate"


def _swarm(values: Sequence[float], bin_width: float = 0.02) -> list[float]:
    """Offsets in [-1, 1] that spread nearby values around 0."""
    bins = [round(value / bin_width) for value in values]
    sizes, seen, offsets = Counter(bins), Counter(), []
    step = min(0.5, 2 / max(sizes.values(), default=1))
    for b in bins:
        offsets.append((seen[b] - (sizes[b] - 1) / 2) * step)
        seen[b] += 1
    return offsets


def _measured_rows(seed: Row, panel: str) -> list[Row]:
    """Baseline, direction and every null draw of one panel, as marks."""
    arm, which, _ = PANELS[panel]
    rows: list[Row] = []
    for kind, name in (("baseline", "baseline"), ("direction", arm)):
        if row := arm_of(seed["arms"], name, which):
            interval = "" if row["low"] is None else f"  [{row['low']:z.2f}, {row['high']:z.2f}]"
            rows.append(_mark(row) | {"row": kind, "kind": kind, "shown": f"{row['rate']:z.2f}{interval}"})
    for family, draws in draws_of(seed["arms"], arm, which).items():
        rates = [row["rate"] for row in draws]
        name, mean = _null_name(family), math.fsum(rates) / len(rates)
        shown = f"mean {mean:.2f} of {len(draws)}"
        rows.append(
            {"row": name, "kind": "mean", "arm": "mean of the draws", "rate": mean, "n": len(draws), "shown": shown}
        )
        for row, offset in zip(draws, _swarm(rates), strict=True):
            rows.append(_mark(row) | {"row": name, "kind": "null", "offset": offset})
    return rows


def _null_name(family: str) -> str:
    return f"null: {printable(family, 16)}"


def _mark(row: Row) -> Row:
    return {key: row.get(key) for key in ("arm", "rate", "low", "high", "n", "degenerate")}


def _reach(rows: Iterable[Row]) -> tuple[float, float]:
    """The ends of the axis: rates lie from 0 to 1, a level may lie beyond either class."""
    ends = [row[key] for row in rows for key in ("rate", "low", "high") if row.get(key) is not None]
    return min(0, *ends, 1), max(0, *ends, 1)


def _margin_rows(
    rows: Sequence[Row], sign: int, rule: Mapping[str, Any], reach: tuple[float, float] = (0, 1)
) -> list[Row]:
    """What the rule asks, drawn: margins against the baseline and each family, and the region that meets them all."""
    rate: Row = {row["kind"]: row["rate"] for row in rows if row["kind"] in ("baseline", "direction")}
    drop, gap, least = rule.get("min_drop"), rule.get("min_gap"), rule.get("min_baseline")
    limits, marks = [], []
    if sign < 0 and least is not None and rate.get("baseline", 1) < least:
        marks.append({"kind": "margin", "rate": least, "arm": "lowest baseline that the rule accepts"})
    if "direction" not in rate or "baseline" not in rate:
        return marks
    if drop is not None:
        limits.append(rate["baseline"] + sign * drop)
        marks.append({"kind": "margin", "rate": limits[-1], "arm": f"baseline {sign * drop:+.2f}"})
    asked = [_null_name(family) for family in rule.get("families", [])]
    for row in rows:
        if gap is not None and row["kind"] == "mean" and row["row"] in asked:
            limits.append(row["rate"] + sign * gap)
            note = f"mean of the draws {sign * gap:+.2f}"
            marks.append({"kind": "gap", "row": row["row"], "rate": row["rate"], "to": limits[-1], "arm": note})
    # A margin that no rate can reach lies outside the axis.
    least_shown, most_shown = reach
    marks = [mark for mark in marks if least_shown <= mark.get("to", mark["rate"]) <= most_shown]
    edge = min(limits, default=-math.inf) if sign < 0 else max(limits, default=math.inf)
    if least_shown <= edge <= most_shown:
        region = "where the rule asks the direction to be"
        marks.append({"kind": "zone", "rate": edge, "to": least_shown if sign < 0 else most_shown, "arm": region})
    return marks


def arms(seeds: Sequence[Row], rule: Mapping[str, Any]) -> list[Chart]:
    """Rates or levels of every arm with their intervals; one panel for suppression, one for induction."""
    charts, shows = [], measure(seeds)
    for panel, (arm, which, sign) in PANELS.items():
        measured = {seed["seed"]: _measured_rows(seed, panel) for seed in seeds}
        reach = _reach(row for found in measured.values() for row in found)
        rows = []
        for seed, found in measured.items():
            marks = found + _margin_rows(found, sign, rule, reach)
            rows += [row | {"seed": f"seed {seed}"} for row in marks]
        if not rows:
            continue
        order = list(dict.fromkeys(row["row"] for row in rows if "row" in row))
        most = max((row["n"] for row in rows if row["kind"] == "mean"), default=0)
        body = alt.layer(*_arm_layers(order, 26 if most <= 25 else 13, shows, reach)).properties(
            width=280, height=alt.Step(25)
        )
        if len(seeds) > 1:
            header = alt.Header(title=None, labelAnchor="start", labelOrient="top", labelPadding=2)
            body = body.facet(
                facet=alt.Facet("seed:N", header=header, sort=None),
                data=alt.InlineData(values=[]),
                columns=1,
                spacing=10,
            )
        treated = any(row["kind"] == "direction" for row in rows)
        title = f"{panel.capitalize()}: {arm} on {which} prompts" if treated else f"Baseline on {which} prompts"
        summary = f"{title}; {shows} of the behaviour in every arm, with 95 % intervals"
        charts.append(finished(f"arms-{panel}", summary, body, title, rows))
    return charts


def _arm_layers(order: list[str], size: float, shows: str, reach: tuple[float, float]) -> list[alt.Chart]:
    families = [name for name in order if name.startswith("null: ")]
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=104)
    y = alt.Y("row:N", scale=alt.Scale(domain=order), axis=labels)
    axis = bare_axis(title=f"{shows} of the behaviour", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    x = alt.X("rate:Q", scale=alt.Scale(domain=[reach[0] - 0.03, reach[1] + 0.03], nice=False), axis=axis)
    colour = alt.Color("row:N", scale=palette(families, NULL_COLOURS), legend=None)
    shape = alt.Shape("row:N", scale=palette(families, NULL_SHAPES), legend=None)
    offset = alt.YOffset("offset:Q", scale=alt.Scale(domain=[-1, 1], range=[3.5, 21.5]))
    muted, ink, blue = LIGHT["muted"], LIGHT["ink"], LIGHT["direction"]
    full = tips("arm", "seed", rate=".3f", low=".3f", high=".3f", degenerate=".3f", n="d")
    short = tips("arm", rate=".3f")
    kind = {
        name: where(f"datum.kind == '{name}'")
        for name in ("zone", "margin", "gap", "null", "mean", "baseline", "direction")
    }
    layers = [
        kind["zone"].mark_rect(color=LIGHT["zone"]).encode(x=x, x2="to:Q", tooltip=tips("arm")),
        kind["margin"].mark_rule(color=muted, strokeDash=[4, 3]).encode(x=x, tooltip=short),
        kind["gap"].mark_rule(color=muted, strokeDash=[2, 2]).encode(x=x, x2="to:Q", y=y),
        kind["gap"].mark_tick(color=muted, thickness=1.5, size=11).encode(x="to:Q", y=y),
        kind["null"].mark_point(size=size, strokeWidth=1.1, opacity=0.8)
        .encode(x=x, y=y, yOffset=offset, color=colour, shape=shape, tooltip=full),
        kind["mean"].mark_tick(thickness=2.5, size=19, opacity=1).encode(x=x, y=y, color=colour, tooltip=short),
    ]  # fmt: skip
    for name, tint, mark, area in (("baseline", ink, "square", 70), ("direction", blue, "circle", 110)):
        layers.append(kind[name].mark_rule(strokeWidth=2, color=tint).encode(x="low:Q", x2="high:Q", y=y))
        point = kind[name].mark_point(shape=mark, filled=True, size=area, opacity=1, color=tint)
        layers.append(point.encode(x=x, y=y, tooltip=full))
    numbers = where("isValid(datum.shown)").mark_text(align="left")
    return [*layers, numbers.encode(x=alt.value(292), y=y, text="shown:N")]


# -- maps over layers and positions ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """One quantity over layers and positions, and how it is coloured."""

    field: str
    title: str
    domain: tuple[float, float]
    colours: Sequence[str] = tuple(SEQUENTIAL)
    format: str = ".2f"

    def colour(self, height: float) -> alt.Color:
        """The encoding, with a legend no taller than the map."""
        low, high = self.domain
        stops = [low + (high - low) * k / (len(self.colours) - 1) for k in range(len(self.colours))]
        legend = alt.Legend(
            title=None, format=self.format, gradientLength=min(120, max(46, height)), tickCount=4, offset=10
        )
        scale = alt.Scale(domain=stops, range=list(self.colours), clamp=True, interpolate="rgb")
        return alt.Color(f"{self.field}:Q", scale=scale, legend=legend)


def _cell_width(layers: int) -> float:
    # Up to ten layers, three maps fit beside each other; beyond, one map may take the whole width.
    return min(26.0, 190 / layers) if layers <= 10 else min(26.0, max(11.0, 940 / layers))


def _heat(name: str, summary: str, rows: Sequence[Row], labels: Mapping, what: _Map, fields: Sequence[str]) -> Chart:
    """A cell per layer and position; discarded cells are small, the selected one is framed."""
    layers = sorted({row["layer"] for row in rows})
    width, height = _cell_width(len(layers)), 20
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if k * width >= 17)
    ticks = [layer for layer in layers if layer % every == 0]
    columns = ("layer", "position", "state", "status", *fields)
    table = [{key: row.get(key) for key in columns} | {"where": labels[row["position"]]} for row in rows]
    tooltip = [
        *tips("layer"),
        alt.Tooltip("where:N", title="position"),
        *tips(**dict.fromkeys(fields, ".3f")),
        *tips("status"),
    ]
    x_axis = bare_axis(labelAngle=0, values=ticks, title="layer (resid_pre)")
    y_axis = bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=150)
    encoding = {
        "x": alt.X("layer:O", scale=alt.Scale(domain=layers, padding=0), axis=x_axis),
        "y": alt.Y("where:N", scale=alt.Scale(domain=list(labels.values()), padding=0), axis=y_axis),
        "tooltip": tooltip,
    }
    colour = what.colour(height * len(labels))
    known, discarded = f"isValid(datum.{what.field})", "datum.state == 'discarded'"
    small, frame = alt.RelativeBandSize(0.45), where("datum.state == 'selected'")
    body = alt.layer(
        alt.Chart().mark_rect(fill="transparent", stroke=LIGHT["hairline"], strokeWidth=0.6).encode(**encoding),
        where(f"{known} && !({discarded})").mark_rect().encode(**encoding, color=colour),
        where(f"{known} && {discarded}").mark_rect(width=small, height=small).encode(**encoding, color=colour),
        frame.mark_rect(fill="transparent", stroke=LIGHT["paper"], strokeWidth=5).encode(**encoding),
        frame.mark_rect(fill="transparent", stroke=LIGHT["ink"], strokeWidth=2.2).encode(**encoding),
    ).properties(width=alt.Step(width), height=alt.Step(height))
    return finished(name, summary, body, what.title, table)


def _in_order(rows: Iterable[Row], labels: Mapping) -> dict:
    """The labels of the positions that occur, those of the protocol first."""
    present = list(dict.fromkeys(row["position"] for row in rows))
    ordered = [p for p in labels if p in present] + [p for p in present if p not in labels]
    return {p: labels.get(p, str(p)) for p in ordered}


def _is_site(row: Row, site: Row | None) -> bool:
    return site is not None and (row["position"], row["layer"]) == (site["position"], site["layer"])


def selection(seed: int, selection: Row, labels: Mapping, max_kl: float | None) -> list[Chart]:
    """Maps of bypass, induce and kl over the candidates of one seed."""
    rows = []
    for row in selection["candidates"]:
        chosen = _is_site(row, selection["selected"])
        state = "selected" if chosen else "discarded" if row["discarded"] else "kept"
        rows.append(row | {"state": state, "status": f"discarded: {row['discarded']}" if row["discarded"] else state})
    if not rows:
        return []
    top = max([1.0, *(abs(row[f]) for row in rows for f in ("bypass", "induce") if row[f] is not None)])
    top_kl = 2 * max_kl if max_kl else max([0.1, *(row["kl"] for row in rows if row["kl"] is not None)])
    maps = [
        _Map("bypass", "bypass (lower is better)", (-top, top), DIVERGING, ".1f"),
        _Map("induce", "induce (higher is better)", (-top, top), DIVERGING, ".1f"),
        _Map("kl", f"kl in nats (colour ends at {top_kl:.2g})", (0.0, top_kl)),
    ]
    labels, fields = _in_order(rows, labels), ("bypass", "induce", "kl", "norm")
    return [
        _heat(
            f"selection-seed-{seed}-{what.field}",
            f"{what.field} of every candidate, seed {seed}",
            rows,
            labels,
            what,
            fields,
        )
        for what in maps
    ]


GRID_FIELDS = ("auroc", "cosine", "norm")


def auroc_map(name: str, grid: Sequence[Row], labels: Mapping, site: Row | None) -> Chart:
    """Separation of the classes per layer and position."""
    rows = [row | {"state": "selected" if _is_site(row, site) else "kept"} for row in grid]
    what = _Map("auroc", "AUROC (colour starts at 0.5)", (0.5, 1.0))
    return _heat(
        name, "AUROC of the two classes per layer and position", rows, _in_order(rows, labels), what, GRID_FIELDS
    )


def projections(name: str, rows: Sequence[Row]) -> Chart | None:
    """Stacked dots: positive prompts above the axis, negative ones below."""
    known = sorted((row for row in rows if row["projection"] is not None), key=lambda row: row["projection"])
    if not known:
        return None
    low, bins, seen, table = known[0]["projection"], 64, Counter(), []
    width = (known[-1]["projection"] - low) / bins or 1.0
    for row in known:
        stack = (row["label"], min(bins - 1, int((row["projection"] - low) / width)))
        seen[stack] += 1
        level = seen[stack] - 0.5
        table.append({"x": low + (stack[1] + 0.5) * width, "y": level if row["label"] == "positive" else -level, **row})
    tallest, height = max(5, *seen.values()), 190
    size = min(30.0, (0.85 * min(400 / bins, height / (2 * tallest))) ** 2)
    axis = alt.Axis(grid=False, tickCount=7, title="projection on the selected direction")
    x = alt.X("x:Q", scale=alt.Scale(nice=False, padding=8), axis=axis)
    scale = alt.Scale(domain=[-tallest, tallest], nice=False)
    y = alt.Y("y:Q", axis=None, scale=scale)
    tooltip = [alt.Tooltip("prompt_id:N", title="prompt"), *tips("label", projection=".3f")]
    layers = [alt.Chart().mark_rule(color=LIGHT["muted"]).encode(y=alt.YDatum(0, scale=scale, axis=None))]
    for label, sign, filled in (("positive", 1, True), ("negative", -1, False)):
        points = where(f"datum.label == '{label}'").mark_point(size=size, filled=filled, opacity=1, strokeWidth=1.2)
        layers.append(points.encode(x=x, y=y, tooltip=tooltip, color=alt.value(LIGHT[label])))
        caption = f"{label} (n = {sum(row['label'] == label for row in known)})"
        text = alt.Chart().transform_aggregate(count="count()").mark_text(align="left", text=caption)
        layers.append(text.encode(x=alt.value(4), y=alt.YDatum(sign * 0.86 * tallest, scale=scale, axis=None)))
    body = alt.layer(*layers).properties(width=400, height=height)
    return finished(
        name, "projections of both classes on the selected direction", body, "Projections at the selected site", table
    )


# -- nulls ----------------------------------------------------------------------------------------------


def nulls(seed: Row) -> list[Chart]:
    """Each null draw: its cosine with the direction against its effect."""
    cosines = {(row["family"], str(row["draw"])): row["cosine"] for row in seed["nulls"]}
    charts = []
    for panel, (arm, which, sign) in PANELS.items():
        baseline, treated = arm_of(seed["arms"], "baseline", which), arm_of(seed["arms"], arm, which)
        if baseline is None or treated is None:
            continue
        rows = []
        for family, draws in draws_of(seed["arms"], arm, which).items():
            for row in draws:
                change, cosine = sign * (row["rate"] - baseline["rate"]), cosines.get((family, row["draw"]))
                if cosine is not None:
                    name = printable(family, 16)
                    rows.append({"family": name, "draw": row["draw"], "cosine": cosine, "change": change})
        change = sign * (treated["rate"] - baseline["rate"])
        rows.append({"family": "direction", "draw": "", "cosine": 1.0, "change": change})
        title = f"{panel.capitalize()}, seed {seed['seed']}"
        summary = f"{title}: cosine of every null draw with the direction, beside its effect"
        charts.append(
            finished(f"nulls-seed-{seed['seed']}-{panel}", summary, _scatter(rows, measure([seed])), title, rows)
        )
    return charts


def _scatter(rows: list[Row], shows: str) -> Any:
    families = list(dict.fromkeys(row["family"] for row in rows[:-1]))
    low, floor = min(-0.5, *(row["cosine"] for row in rows), 0), min(-0.1, *(row["change"] for row in rows), 0)
    x_scale = alt.Scale(domain=[low, 1.05], nice=False)
    y_scale = alt.Scale(domain=[floor, max(1.04, *(row["change"] for row in rows), 1)], nice=False)
    legend = alt.Legend(title=None, orient="bottom", columns=5, symbolSize=45, columnPadding=14)
    site = {
        "x": alt.X("cosine:Q", title="cosine with the direction", scale=x_scale, axis=alt.Axis(tickCount=6)),
        "y": alt.Y(
            "change:Q",
            scale=y_scale,
            axis=alt.Axis(title=f"change in {shows}", tickCount=5, format=".2~f", minExtent=28),
        ),
        "tooltip": tips("family", "draw", cosine=".3f", change=".3f"),
    }
    style = {
        "color": alt.Color("family:N", scale=palette(families, NULL_COLOURS), legend=legend),
        "shape": alt.Shape("family:N", scale=palette(families, NULL_SHAPES), legend=legend),
    }
    blue, zero = LIGHT["direction"], alt.Chart().mark_rule(color=LIGHT["muted"], strokeWidth=0.7)
    draws, direction = where("datum.family != 'direction'"), where("datum.family == 'direction'")
    return alt.layer(
        zero.encode(y=alt.YDatum(0, scale=y_scale)),
        zero.encode(x=alt.XDatum(0, scale=x_scale)),
        draws.mark_point(size=34 if len(rows) < 100 else 18, strokeWidth=1.2, opacity=0.9).encode(**site, **style),
        direction.mark_circle(size=110, opacity=1, color=blue).encode(**site),
        direction.mark_text(align="right", dx=-9, color=blue, fontWeight="bold").encode(**site, text="family:N"),
    ).properties(width=330, height=210)


# -- discover -------------------------------------------------------------------------------------------


def discover(grid: Sequence[Row], labels: Mapping) -> list[Chart]:
    """Where the classes separate: AUROC as lines and as a map, cosine and norm as maps."""
    labels = _in_order(grid, labels)
    norms = [row["norm"] for row in grid if row["norm"] is not None]
    cosines = [row["cosine"] for row in grid if row["cosine"] is not None]
    maps = [
        _Map("cosine", "cosine between the class means", (min([0.0, *cosines]), 1.0), SEQUENTIAL[::-1]),
        _Map("norm", "norm of the difference in means", (0.0, max([1.0, *norms])), format=".3~g"),
    ]
    return [
        auroc_lines("separation-lines", grid, labels),
        auroc_map("separation-auroc", grid, labels, None),
        *(
            _heat(f"separation-{m.field}", f"{m.title}, per layer and position", grid, labels, m, GRID_FIELDS)
            for m in maps
        ),
    ]


def auroc_lines(name: str, grid: Sequence[Row], labels: Mapping) -> Chart:
    """AUROC over layers, one line per position."""
    rows = [{"layer": row["layer"], "position": labels[row["position"]], "auroc": row["auroc"]} for row in grid]
    names = list(labels.values())
    ramp = [LIGHT[c] for c in ("direction", "null-a", "null-b", "null-c", "positive", "ink", "null-d", "negative")]
    dashes = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2]]
    legend = alt.Legend(title="position", symbolType="stroke", symbolSize=300, labelLimit=150)
    x_axis = alt.Axis(title="layer (resid_pre)", grid=False, tickMinStep=1, format="d")
    base = alt.Chart().encode(
        x=alt.X("layer:Q", scale=alt.Scale(nice=False), axis=x_axis),
        y=alt.Y("auroc:Q", scale=alt.Scale(zero=False, domainMax=1.0), axis=alt.Axis(title="AUROC", tickCount=6)),
        color=alt.Color("position:N", scale=palette(names, ramp), legend=legend),
        strokeDash=alt.StrokeDash("position:N", scale=palette(names, dashes), legend=legend),
        tooltip=tips("position", layer="d", auroc=".3f"),
    )
    lines, points = base.mark_line(strokeWidth=1.8), base.mark_circle(size=22, opacity=1)
    body = alt.layer(lines, points).properties(width=620, height=240)
    return finished(name, "AUROC over layers, one line per position", body, "AUROC over layers", rows)
