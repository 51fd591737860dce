"""Sections on candidates: maps of scores and of separation over positions and layers, and projections at one site."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import altair as alt

from rhumbline.evidence.selection_rules import SelectionRule
from rhumbline.records.analysis_files import GeometryCell
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ChatFacts
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.results import SeedResult
from rhumbline.records.seed_files import Candidate, Projection, Selection, SiteSeparation
from rhumbline.records.shared import ByLabel, Site
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import LAYER, ChartText, CurvePoint
from rhumbline.report.figures import (
    DIVERGING,
    LIGHT,
    SEQUENTIAL,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    printable,
    tips,
    where,
)
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord, site_text

PositionLabels = Mapping[Position, str]
"""Positions as axes show them, in the order of the axis."""

_NO_CANDIDATE = {
    NoCandidate.ALL_DISCARDED: "every candidate was discarded.",
    NoCandidate.NO_TOKENS: "the token metric has no tokens, so no candidate was scored.",
    NoCandidate.NO_BASELINE: "the score does not separate the classes at baseline, so no candidate was scored.",
    NoCandidate.NO_PROMPTS: "the filter kept no prompt of some class, so no candidate was scored.",
}
LEAST_FILLED = 0.5
"""Share of the cells of a map that must have a score; a table lists the scores in any case."""
_MOST_TIED = 8
"""Tied candidates that are listed."""


# -- selection --------------------------------------------------------------------------------------------------------


def selection(run: RunRecord) -> Html:
    """Return the selected candidate of every seed with its scores, and the number of those that were discarded."""
    rule, rows, texts = run.protocol.selection, [], []
    for seed, selection in run.selections.items():
        selected = selection.selected
        site = None if selected is None else selected.site
        chosen = next((row for row in selection.candidates if row.site == site), None)
        scores = (chosen.bypass, chosen.induce, chosen.kl) if chosen else (None,) * 3
        row = next((row for row in run.separations[seed].grid if row.site == site), None)
        counts = f"{selection.survivors} of {len(selection.candidates)}", len(selection.tied)
        rows.append([seed, site_text(selected), *map(number, scores), *counts, number(row.auroc if row else None, 3)])
        sentences = _selection_text(selection, rule, chosen)
        texts += [f"Seed {seed}: {sentence}" for sentence in sentences]
    head = [
        "Seed",
        "Selected (position, layer)",
        "Bypass",
        "Induce",
        "KL",
        "Survivors",
        "Tied",
        "AUROC on test prompts",
    ]
    settings = ", ".join(
        f"{key} = {value}" for key, value in asdict(rule).items() if key != "name" and value is not None
    )
    note = page.how_to_read(
        f"Rule {rule.name}: {settings}. Bypass: mean metric on positive validation prompts under ablation of the "
        "candidate. Induce: mean metric on negative validation prompts under its addition. KL: change of the "
        "next-token distribution on negative validation prompts under its ablation. AUROC: separation of the classes "
        "by the projection on the direction, without intervention. Separation is not evidence that a direction causes "
        "the behaviour."
    )
    return page.section("Selection", page.table(head, rows, left=2), page.bullets(texts), note)


def selection_detail(run: RunRecord, seed: int, draw: page.Canvas) -> Html:
    """Return the scores of every scored candidate of one seed, and why it was discarded."""
    selection, labels = run.selections[seed], position_labels(run.context.chat)
    charts = selection_maps(seed, selection, labels, run.protocol.selection.max_kl)
    counts = Counter(row.discarded for row in selection.candidates if row.discarded)
    discarded = [f"{reason.text}: {count}" for reason, count in counts.most_common()]
    return page.join(
        [
            page.tag("h3", "Candidates"),
            page.tag("p", "Discarded candidates by reason:") if discarded else "",
            page.bullets(discarded) if discarded else "",
            draw(charts),
            page.note("Full cells survive, small cells are discarded, and the framed cell is selected.")
            if charts
            else "",
            candidate_table(selection, labels),
        ]
    )


def candidate_table(selection: Selection, labels: PositionLabels) -> Html:
    """Return the candidates of which some score was computed, those that survive first; empty without any."""
    scored = [row for row in selection.candidates if any(s is not None for s in (row.bypass, row.induce, row.kl))]
    scored.sort(key=lambda row: (row.discarded is not None, row.bypass is None, row.bypass or 0.0))
    rows = [
        [
            labels.get(row.position, row.position),
            row.layer,
            *map(number, (row.bypass, row.induce)),
            number(row.kl, 3),
            number(row.norm),
            row.discarded.text if row.discarded else "survives",
        ]
        for row in scored
    ]
    head = ["Position", "Layer", "Bypass", "Induce", "KL", "Norm", "State"]
    title = f"{len(rows)} of {len(selection.candidates)} candidates have a score"
    return page.fold(title, page.table(head, rows, reasons=True)) if rows else Html()


def _selection_text(selection: Selection, rule: SelectionRule, chosen: Candidate | None) -> list[str]:
    sentences = [] if selection.reason is None else [_NO_CANDIDATE[selection.reason]]
    below = {
        row.site: row.induce
        for row in selection.candidates
        if row.discarded is Discard.DOES_NOT_INDUCE and row.induce is not None
    }
    if below and chosen is None:
        best = max(below, key=below.__getitem__)
        sentences.append(
            f"the largest induce score below the bound ({number(rule.min_induce)}) is {number(below[best])} at "
            f"{site_text(best)}."
        )
    if rule.max_kl is not None and chosen is not None and chosen.kl is not None and chosen.kl > rule.max_kl:
        sentences.append(
            f"no candidate within the bound on KL ({rule.max_kl:g}) passes the rule. The selected one is within "
            f"{rule.max_kl_otherwise:g}, the bound that the verdict applies to test prompts."
        )
    selected = selection.selected
    others = [cell for cell in selection.tied if selected is None or cell.site != selected.site]
    if others:
        near = ", ".join(f"{site_text(cell)} {number(cell.bypass, signed=True)}" for cell in others[:_MOST_TIED])
        more = f" and {len(others) - _MOST_TIED} more" if len(others) > _MOST_TIED else ""
        sentences.append(f"tied with the selected candidate (bypass): {near}{more}. The selection is not robust.")
    if (baseline := selection.baseline) is not None:
        positive, negative = (number(value, signed=True) for value in (baseline.positive, baseline.negative))
        sentences.append(
            f"the metric without intervention is {positive} on positive, {negative} on negative prompts"
            f"{_count(selection.n)}."
        )
    return sentences


def _count(n: ByLabel[int]) -> str:
    return f" (n = {n.positive} and {n.negative})"


def selection_maps(seed: int, selection: Selection, labels: PositionLabels, max_kl: float | None) -> list[Chart]:
    """Draw maps of the bypass, induce and KL scores of one seed; a map whose cells are mostly empty is left out."""
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
        m.draw(f"selection-seed-{seed}-{m.field}", f"{m.field} of every candidate, seed {seed}", marks, labels)
        for m in maps
        if sum(mark.numbers[m.field] is not None for mark in marks) >= LEAST_FILLED * len(marks)
    ]


def _candidate_mark(row: Candidate, selected: Site | None) -> "_Mark":
    numbers = {"bypass": row.bypass, "induce": row.induce, "kl": row.kl, "norm": row.norm}
    state = "discarded" if row.discarded else "kept"
    if selected is not None and row.site == selected.site:
        state = "selected"
    return _Mark(row.site, numbers, state, f"discarded: {row.discarded.text}" if row.discarded else state)


# -- separation -------------------------------------------------------------------------------------------------------


def separation(run: RunRecord, seed: SeedResult, draw: page.Canvas) -> Html:
    """Return how well each candidate of one seed separates the classes on test prompts."""
    separation, selected = run.separations[seed.seed], seed.selected
    name = f"separation-seed-{seed.seed}"
    charts = [projections(f"{name}-projections", separation.projections)]
    if separation.grid:
        labels = position_labels(run.context.chat)
        charts.insert(0, auroc_map(f"{name}-auroc", separation.grid, labels, selected))
    title = f"Separation on test prompts{_count(separation.n)}"
    return page.join([page.tag("h3", title), draw(charts)])


def auroc_map(name: str, grid: Sequence[SiteSeparation], labels: PositionLabels, selected: Site | None = None) -> Chart:
    """Draw the separation of the classes for each layer and position."""
    what = _Map("auroc", "AUROC (colour scale starts at 0.5)", (0.5, 1.0))
    summary = "AUROC of the two classes for each layer and position"
    return what.draw(name, summary, _separation_marks(grid, selected), labels)


def _separation_marks(grid: Iterable[SiteSeparation], selected: Site | None = None) -> list["_Mark"]:
    site = None if selected is None else selected.site
    return [
        _Mark(
            row.site,
            {"auroc": row.auroc, "cosine": row.cosine, "norm": row.norm},
            "selected" if row.site == site else "kept",
        )
        for row in grid
    ]


def discover_charts(grid: Sequence[SiteSeparation], labels: PositionLabels) -> list[Chart | None]:
    """Draw where the classes separate: AUROC as lines and as a map, cosine and norm as maps."""
    norms = [row.norm for row in grid if row.norm is not None]
    cosines = [row.cosine for row in grid if row.cosine is not None]
    maps = [
        _Map("cosine", "cosine between the class means", (min([0.0, *cosines]), 1.0), SEQUENTIAL[::-1]),
        _Map("norm", "norm of the difference in means", (0.0, max([1.0, *norms])), format=".3~g"),
    ]
    marks, labels = _separation_marks(grid), _in_order((row.position for row in grid), labels)
    summary = "AUROC over layers, one line for each position"
    text = ChartText("separation-lines", "AUROC over layers", LAYER, "AUROC", summary)
    points = [CurvePoint(labels[row.position], row.layer, row.auroc) for row in grid]
    return [
        basic_charts.curves(text, points, size=(620, 240)),
        auroc_map("separation-auroc", grid, labels),
        *(m.draw(f"separation-{m.field}", f"{m.title}, for each layer and position", marks, labels) for m in maps),
    ]


def cosine_map(name: str, title: str, cells: Sequence[GeometryCell], labels: PositionLabels) -> Chart:
    """Draw the cosine of each candidate with one direction, for each layer and position."""
    marks = [_Mark(cell.site, {"cosine": cell.cosine}) for cell in cells]
    return _Map("cosine", title, (-1.0, 1.0), DIVERGING, ".1f").draw(name, title, marks, labels)


# -- maps -------------------------------------------------------------------------------------------------------------


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


def _in_order(positions: Iterable[Position], labels: PositionLabels) -> PositionLabels:
    """Return the labels of the positions that occur, those of the protocol first."""
    present = list(dict.fromkeys(positions))
    ordered = [p for p in labels if p in present] + [p for p in present if p not in labels]
    return {p: labels.get(p, str(p)) for p in ordered}


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


@dataclass(frozen=True)
class _Map:
    """A map of one quantity over layers and positions, and its colours."""

    field: str
    title: str
    domain: tuple[float, float]
    colours: Sequence[str] = tuple(SEQUENTIAL)
    format: str = ".2f"

    def draw(self, name: str, summary: str, marks: Sequence[_Mark], labels: PositionLabels) -> Chart:
        """Draw one cell for each layer and position. Discarded cells are small; the selected cell has a frame."""
        labels = _in_order((mark.site.position for mark in marks), labels)
        layers, height = sorted({mark.site.layer for mark in marks}), 20
        # With up to ten layers, three maps fit side by side. With more, one map takes up to the whole width.
        width = min(26.0, 190 / len(layers)) if len(layers) <= 10 else min(26.0, max(11.0, 940 / len(layers)))
        every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if k * width >= 17)
        table = [
            {"layer": mark.site.layer, "position": int(mark.site.position), "state": mark.state, "status": mark.status}
            | mark.numbers
            | {"where": labels[mark.site.position]}
            for mark in marks
        ]
        numbers = tips(**dict.fromkeys(marks[0].numbers, ".3f"))
        x_axis = bare_axis(labelAngle=0, values=[layer for layer in layers if layer % every == 0], title=LAYER)
        y_axis = bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=150)
        encoding = {
            "x": alt.X("layer:O", scale=alt.Scale(domain=layers, padding=0), axis=x_axis),
            "y": alt.Y("where:N", scale=alt.Scale(domain=list(labels.values()), padding=0), axis=y_axis),
            "tooltip": [*tips("layer"), alt.Tooltip("where:N", title="position"), *numbers, *tips("status")],
        }
        colour = self._colour(height * len(labels))
        known, discarded = f"isValid(datum.{self.field})", "datum.state == 'discarded'"
        small, frame = alt.RelativeBandSize(0.45), where("datum.state == 'selected'")
        body = alt.layer(
            alt.Chart().mark_rect(fill="transparent", stroke=LIGHT["hairline"], strokeWidth=0.6).encode(**encoding),
            where(f"{known} && !({discarded})").mark_rect().encode(**encoding, color=colour),
            where(f"{known} && {discarded}").mark_rect(width=small, height=small).encode(**encoding, color=colour),
            frame.mark_rect(fill="transparent", stroke=LIGHT["paper"], strokeWidth=5).encode(**encoding),
            frame.mark_rect(fill="transparent", stroke=LIGHT["ink"], strokeWidth=2.2).encode(**encoding),
        ).properties(width=alt.Step(width), height=alt.Step(height))
        return finished(name, summary, body, self.title, table)

    def _colour(self, height: float) -> alt.Color:
        """Return the colour encoding; its legend is at most as tall as the map."""
        low, high = self.domain
        stops = [low + (high - low) * k / (len(self.colours) - 1) for k in range(len(self.colours))]
        length = min(120, max(46, height))
        legend = alt.Legend(title=None, format=self.format, gradientLength=length, tickCount=4, offset=10)
        scale = alt.Scale(domain=stops, range=list(self.colours), clamp=True, interpolate="rgb")
        return alt.Color(f"{self.field}:Q", scale=scale, legend=legend)


# -- projections ------------------------------------------------------------------------------------------------------


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
    tallest, height = max(5, *heights.values()), 190
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
    summary = "Projections of both classes on the selected direction"
    body = alt.layer(*layers).properties(width=400, height=height)
    return finished(name, summary, body, "Projections at the selected site", table)
