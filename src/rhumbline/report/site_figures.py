"""Charts of layers and positions: maps of scores and of separation, projections of both classes at one site.

Knows grids and sites. Does not know files, the page around the charts, or how a site is chosen.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from rhumbline.report.figures import DIVERGING, LIGHT, SEQUENTIAL, Chart, Row, bare_axis, finished, palette, tips, where


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


# -- discover ----------------------------------------------------------------------------------------------------------


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
