"""Charts over positions and layers: maps of scores and of separation, and projections of both classes at one site.

Independent of files, of the page around the charts, and of selection rules.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import altair as alt

from rhumbline.records.analysis_files import GeometryCell
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ChatFacts
from rhumbline.records.seed_files import Candidate, Projection, Selection, SiteSeparation
from rhumbline.records.shared import Site, Survivor
from rhumbline.report.figures import (
    DIVERGING,
    LIGHT,
    SEQUENTIAL,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)

PositionLabels = Mapping[Position, str]
"""Positions as axes show them, in the order of the axis."""


def position_labels(chat: ChatFacts) -> dict[Position, str]:
    """Return each prompt position with its index and its token, starting at the last token of the instruction."""
    last = Position(-len(chat.suffix_tokens) - 1)
    labels = {last: f"{last} (instruction)"}
    for position in chat.positions:
        if position > last and position.offset is not None and not position.is_in_response:
            labels[position] = f'{position} "{printable(chat.suffix_tokens[position.offset], 18)}"'
        elif position != last:
            labels[position] = str(position)
    return labels


@dataclass(frozen=True)
class _Map:
    """A map of one quantity over layers and positions, and its colours."""

    field: str
    title: str
    domain: tuple[float, float]
    colours: Sequence[str] = tuple(SEQUENTIAL)
    format: str = ".2f"

    def colour(self, height: float) -> alt.Color:
        """Return the colour encoding; its legend is at most as tall as the map."""
        low, high = self.domain
        stops = [low + (high - low) * k / (len(self.colours) - 1) for k in range(len(self.colours))]
        legend = alt.Legend(
            title=None, format=self.format, gradientLength=min(120, max(46, height)), tickCount=4, offset=10
        )
        scale = alt.Scale(domain=stops, range=list(self.colours), clamp=True, interpolate="rgb")
        return alt.Color(f"{self.field}:Q", scale=scale, legend=legend)


def _cell_width(layers: int) -> float:
    # With up to ten layers, three maps fit side by side. With more, one map takes up to the whole width.
    return min(26.0, 190 / layers) if layers <= 10 else min(26.0, max(11.0, 940 / layers))


@dataclass(frozen=True)
class _Mark:
    """A cell of a map: a site with its numbers."""

    site: Site
    numbers: ChartRow
    """Numbers of the tooltip, by name."""
    state: str = "kept"
    """kept, discarded (drawn small) or selected (framed)."""
    status: str | None = None
    """Line of the tooltip on selection."""


def _heat(name: str, summary: str, marks: Sequence[_Mark], labels: PositionLabels, what: _Map) -> Chart:
    """Draw one cell for each layer and position. Discarded cells are small; the selected cell has a frame."""
    labels = _in_order((mark.site.position for mark in marks), labels)
    fields = list(marks[0].numbers)
    layers = sorted({mark.site.layer for mark in marks})
    width, height = _cell_width(len(layers)), 20
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if k * width >= 17)
    ticks = [layer for layer in layers if layer % every == 0]
    table = [
        {"layer": mark.site.layer, "position": int(mark.site.position), "state": mark.state, "status": mark.status}
        | mark.numbers
        | {"where": labels[mark.site.position]}
        for mark in marks
    ]
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


def _in_order(positions: Iterable[Position], labels: PositionLabels) -> PositionLabels:
    """Return the labels of the positions that occur, those of the protocol first."""
    present = list(dict.fromkeys(positions))
    ordered = [p for p in labels if p in present] + [p for p in present if p not in labels]
    return {p: labels.get(p, str(p)) for p in ordered}


def selection(seed: int, selection: Selection, labels: PositionLabels, max_kl: float | None) -> list[Chart]:
    """Draw maps of the bypass, induce and KL scores of the candidates of one seed."""
    candidates = selection.candidates
    if not candidates:
        return []
    marks = [_candidate_mark(row, selection.selected) for row in candidates]
    top = max([1.0, *(abs(score) for row in candidates for score in (row.bypass, row.induce) if score is not None)])
    top_kl = 2 * max_kl if max_kl else max([0.1, *(row.kl for row in candidates if row.kl is not None)])
    maps = [
        _Map("bypass", "bypass (lower is better)", (-top, top), DIVERGING, ".1f"),
        _Map("induce", "induce (higher is better)", (-top, top), DIVERGING, ".1f"),
        _Map("kl", f"KL in nats (colour scale ends at {top_kl:.2g})", (0.0, top_kl)),
    ]
    return [
        _heat(f"selection-seed-{seed}-{m.field}", f"{m.field} of every candidate, seed {seed}", marks, labels, m)
        for m in maps
    ]


def _candidate_mark(row: Candidate, selected: Survivor | None) -> _Mark:
    numbers = {"bypass": row.bypass, "induce": row.induce, "kl": row.kl, "norm": row.norm}
    state = "discarded" if row.discarded else "kept"
    if selected is not None and row.site == selected.site:
        state = "selected"
    return _Mark(row.site, numbers, state, f"discarded: {row.discarded.text}" if row.discarded else state)


def auroc_map(name: str, grid: Sequence[SiteSeparation], labels: PositionLabels, selected: Survivor | None) -> Chart:
    """Draw the separation of the classes for each layer and position."""
    marks = _separation_marks(grid, selected)
    what = _Map("auroc", "AUROC (colour scale starts at 0.5)", (0.5, 1.0))
    return _heat(name, "AUROC of the two classes for each layer and position", marks, labels, what)


def _separation_marks(grid: Iterable[SiteSeparation], selected: Survivor | None = None) -> list[_Mark]:
    site = None if selected is None else selected.site
    return [
        _Mark(
            (here := Site(row.position, row.layer)),
            {"auroc": row.auroc, "cosine": row.cosine, "norm": row.norm},
            "selected" if here == site else "kept",
        )
        for row in grid
    ]


def cosine_map(name: str, title: str, cells: Sequence[GeometryCell], labels: PositionLabels) -> Chart:
    """Draw the cosine of each candidate with one direction, for each layer and position."""
    marks = [_Mark(Site(cell.position, cell.layer), {"cosine": cell.cosine}) for cell in cells]
    return _heat(name, title, marks, labels, _Map("cosine", title, (-1.0, 1.0), DIVERGING, ".1f"))


def projections(name: str, rows: Sequence[Projection]) -> Chart | None:
    """Draw projections as stacked dots: positive prompts above the axis, negative prompts below."""
    known = sorted(((row.projection, row) for row in rows if row.projection is not None), key=lambda pair: pair[0])
    if not known:
        return None
    low, bins = known[0][0], 64
    width = (known[-1][0] - low) / bins or 1.0
    heights: Counter[tuple[str, int]] = Counter()
    table: list[ChartRow] = []
    for projection, row in known:
        stack = (row.label, min(bins - 1, int((projection - low) / width)))
        heights[stack] += 1
        y = heights[stack] - 0.5
        table.append({"x": low + (stack[1] + 0.5) * width, "y": y if row.label == "positive" else -y} | asdict(row))
    return _stacks(name, table, max(5, *heights.values()), bins)


def _stacks(name: str, table: Sequence[ChartRow], tallest: int, bins: int) -> Chart:
    height = 190
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
        caption = f"{label} (n = {sum(row['label'] == label for row in table)})"
        text = alt.Chart().transform_aggregate(count="count()").mark_text(align="left", text=caption)
        layers.append(text.encode(x=alt.value(4), y=alt.YDatum(sign * 0.86 * tallest, scale=scale, axis=None)))
    body = alt.layer(*layers).properties(width=400, height=height)
    return finished(
        name, "Projections of both classes on the selected direction", body, "Projections at the selected site", table
    )


# -- discover ---------------------------------------------------------------------------------------------------------


def discover(grid: Sequence[SiteSeparation], labels: PositionLabels) -> list[Chart]:
    """Draw where the classes separate: AUROC as lines and as a map, cosine and norm as maps."""
    norms = [row.norm for row in grid if row.norm is not None]
    cosines = [row.cosine for row in grid if row.cosine is not None]
    maps = [
        _Map("cosine", "cosine between the class means", (min([0.0, *cosines]), 1.0), SEQUENTIAL[::-1]),
        _Map("norm", "norm of the difference in means", (0.0, max([1.0, *norms])), format=".3~g"),
    ]
    marks = _separation_marks(grid)
    return [
        auroc_lines("separation-lines", grid, labels),
        auroc_map("separation-auroc", grid, labels, None),
        *(_heat(f"separation-{m.field}", f"{m.title}, for each layer and position", marks, labels, m) for m in maps),
    ]


def auroc_lines(name: str, grid: Sequence[SiteSeparation], labels: PositionLabels) -> Chart:
    """Draw AUROC over layers, one line for each position."""
    labels = _in_order((row.position for row in grid), labels)
    rows: list[ChartRow] = [{"layer": row.layer, "position": labels[row.position], "auroc": row.auroc} for row in grid]
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
    return finished(name, "AUROC over layers, one line for each position", body, "AUROC over layers", rows)
