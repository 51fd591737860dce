"""Sheets: records of analyses of several runs or models, written as JSON with figures and a page into one directory.

Input: a `RobustnessRecord`, `DissociationRecord` or `FlinchRecord`. Formats existing results only.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt

from rhumbline.errors import OutputError
from rhumbline.records.artefacts import OF_SHEET, SheetRecord
from rhumbline.records.codec import convert, to_json
from rhumbline.records.files import write_json
from rhumbline.records.sheet_files import (
    DissociationCell,
    DissociationRecord,
    FlinchRecord,
    ModelRobustness,
    RobustnessRecord,
)
from rhumbline.report import page
from rhumbline.report.figures import LIGHT, NULL_COLOURS, Chart, ChartRow, finished, palette, printable, tips, where
from rhumbline.report.page import Html

MOST_TERMS = 40
"""Terms in the chart of flinches, at most."""


class Sheet(NamedTuple):
    """Content of a page."""

    title: str
    facts: list[tuple[str, Any]]
    """Entries of the header."""
    body: list[Html]
    """Sections."""


def write(record: SheetRecord, out: Path) -> Path:
    """Write `<analysis>.json`, the figures and `report.html`; an earlier sheet of the same analysis is replaced."""
    path = out / OF_SHEET[type(record)]
    if out.is_dir() and any(out.iterdir()) and not path.is_file():
        raise OutputError(f"{out} is not empty and does not contain {path.name}. Pass another --out.")
    write_json(path, to_json(record))
    # As it will be read: numbers that are not finite become None.
    record = convert(to_json(record), type(record))
    draw = page.Canvas()
    match record:
        case RobustnessRecord():
            sheet = _robustness(record, draw)
        case DissociationRecord():
            sheet = _dissociation(record, draw)
        case FlinchRecord():
            sheet = _flinch(record, draw)
    head = page.tag(
        "header",
        page.tag("p", f"rhumbline {record.analysis}", class_="kicker"),
        page.tag("h1", sheet.title),
        page.tag("dl", page.join(page.tag("div", page.tag("dt", k), page.tag("dd", v)) for k, v in sheet.facts)),
    )
    sentence = page.tag("div", page.tag("p", record.sentence, class_="sentence"), class_="verdict")
    return page.publish(out, f"{record.analysis}: {sheet.title}", [head, sentence, *sheet.body], draw.drawings)


# -- robustness -------------------------------------------------------------------------------------------------------

_ROBUSTNESS_NOTE = (
    "Rate of the behaviour on test positives, read from the whole completion, with Wilson's intervals. Energy: share "
    "of the squared norm of the residual stream that is removed at the selected site. Fragility: share of the "
    "behaviour that is removed at rank 1, divided by this energy. Access: the least access with which half of the "
    "behaviour was removed; interventions that were not tried can need less."
)


def _robustness(record: RobustnessRecord, draw: page.Canvas) -> Sheet:
    columns: Mapping[str, Callable[[ModelRobustness], Any]] = {
        "Model": lambda m: m.model,
        "Access": lambda m: m.access,
        "n": lambda m: m.n.test.positive,
        "Baseline": lambda m: page.interval(m.baseline.rate, m.baseline.low, m.baseline.high),
        "Rank 1": lambda m: page.interval(m.ranks[0].rate, m.ranks[0].low, m.ranks[0].high),
        "Energy": lambda m: page.number(m.ranks[0].energy, 3),
        "Highest rank": lambda m: page.join(
            [page.interval(m.ranks[-1].rate, m.ranks[-1].low, m.ranks[-1].high), f" at {m.ranks[-1].rank}"]
        ),
        "Its energy": lambda m: page.number(m.ranks[-1].energy, 3),
        "Fragility": lambda m: page.interval(m.fragility.value, m.fragility.low, m.fragility.high),
        "Prompts only": lambda m: page.interval(m.prompts.rate, m.prompts.low, m.prompts.high),
    }
    rows = [[value(m) for value in columns.values()] for m in record.models]
    body = [
        page.section("Models", page.table(list(columns), rows, left=2), page.note(_ROBUSTNESS_NOTE)),
        page.section("Rate under stronger interventions", draw(robustness_charts(record))),
    ]
    facts = [("models", len(record.models)), ("judge", record.plan.judge), ("ranks", record.plan.ranks)]
    return Sheet("How much of the behaviour remains under stronger interventions?", facts, body)


def robustness_charts(record: RobustnessRecord) -> list[Chart]:
    """The rate over the rank and over the strength, one line per model, with random subspaces as thin lines."""
    names = [printable(m.model, 28) for m in record.models]
    ranks: list[ChartRow] = []
    strengths: list[ChartRow] = []
    for name, m in zip(names, record.models, strict=True):
        base = {"model": name, "rate": m.baseline.rate, "low": m.baseline.low, "high": m.baseline.high}
        ranks += [{**base, "kind": "own", "x": 0}, {**base, "kind": "null", "x": 0}]
        strengths.append({**base, "kind": "own", "x": 0.0})
        for r in m.ranks:
            ranks.append({"model": name, "kind": "own", "x": r.rank, "rate": r.rate, "low": r.low, "high": r.high})
            ranks.append({"model": name, "kind": "null", "x": r.rank, "rate": r.null.mean})
        strengths += [
            {"model": name, "kind": "own", "x": s.strength, "rate": s.rate, "low": s.low, "high": s.high}
            for s in m.strengths
        ]
    n = " and ".join(str(k) for k in dict.fromkeys(m.n.test.positive for m in record.models))
    first = "Rate of the behaviour by rank of the ablated subspace (dashed: random subspaces of the main axes)"
    second = "Rate of the behaviour by strength of the ablation of the first direction"
    by_rank = _lines(names, "rank of the ablated subspace", "d", sorted({r["x"] for r in ranks}))
    by_strength = _lines(names, "strength of the ablation", ".1f", sorted({r["x"] for r in strengths}))
    return [
        finished("robustness-rank", first, by_rank, f"By rank (n = {n}; dashed: random)", ranks),
        finished("robustness-strength", second, by_strength, f"By strength (n = {n})", strengths),
    ]


def _lines(names: Sequence[str], title: str, form: str, ticks: Sequence[float]) -> Any:
    x = alt.X("x:Q", axis=alt.Axis(title=title, grid=False, format=form, values=list(ticks)))
    y = alt.Y("rate:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="rate", tickCount=5))
    colour = alt.Color("model:N", scale=palette(names, NULL_COLOURS), legend=alt.Legend(title=None, orient="bottom"))
    own, null = where("datum.kind == 'own'"), where("datum.kind == 'null'")
    tooltip = tips("model", x=form, rate=".2f")
    return alt.layer(
        null.mark_line(strokeDash=[4, 3], strokeWidth=1.2, opacity=0.8).encode(x=x, y=y, color=colour),
        own.mark_rule(strokeWidth=1.4).encode(x=x, y="low:Q", y2="high:Q", color=colour),
        own.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        own.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip),
    ).properties(width=300, height=210)


# -- dissociation -----------------------------------------------------------------------------------------------------


def is_baseline(cell: DissociationCell) -> bool:
    """Whether nothing is ablated."""
    return cell.ablated == "baseline"


def _dissociation(record: DissociationRecord, draw: page.Canvas) -> Sheet:
    rows = [
        [
            cell.behaviour,
            cell.ablated,
            cell.n,
            page.number(cell.level),
            "—" if is_baseline(cell) else page.interval(cell.drop, cell.low, cell.high, signed=True),
        ]
        for cell in record.table
    ]
    head = ["Behaviour", "Ablated", "n", "Level", "Drop below the baseline"]
    note = (
        "Levels: 0 is the mean of the negatives of that run at baseline, 1 the mean of its positives; a rate is its "
        f"own level. Removed: the interval of the drop lies above {record.margins.taken}. Unaffected: it lies below "
        f"{record.margins.left}."
    )
    cosine = page.tag("p", f"Cosine of the two selected directions: {page.number(record.cosine.selected)}.")
    body = [
        page.section("Each direction on each behaviour", page.table(head, rows, left=2), page.note(note)),
        page.section("The two directions", cosine, draw(dissociation_charts(record))),
    ]
    behaviours = " and ".join(record.behaviours)
    facts = [("model", record.model), ("behaviours", behaviours), ("finding", record.finding)]
    return Sheet("Do two behaviours have different directions?", facts, body)


def dissociation_charts(record: DissociationRecord) -> list[Chart]:
    """The drops, and the cosine of the candidates by layer."""
    rows: list[ChartRow] = [
        {"behaviour": f"on {c.behaviour}", "ablated": c.ablated, "drop": c.drop, "low": c.low, "high": c.high}
        for c in record.table
        if not is_baseline(c)
    ]
    n = " and ".join(str(k) for k in dict.fromkeys(c.n for c in record.table))
    title = f"Effect of each ablation (n = {n} positives)"
    charts = [finished("dissociation-drops", "Drop of each behaviour under each ablation", _drops(rows), title, rows)]
    by_layer: list[ChartRow] = [
        {"layer": r.layer, "cosine": r.cosine} for r in record.cosine.by_layer if r.cosine is not None
    ]
    if by_layer:
        title = f"Cosine of the two candidates, position {record.cosine.position}"
        charts.append(finished("dissociation-cosine", f"{title}, by layer", _cosines(by_layer), title, by_layer))
    return charts


def _drops(rows: Sequence[ChartRow]) -> Any:
    behaviours = list(dict.fromkeys(r["behaviour"] for r in rows))
    order = list(dict.fromkeys(r["ablated"] for r in rows))
    y = alt.Y("ablated:N", sort=order, axis=alt.Axis(title=None, labelLimit=200))
    x = alt.X("drop:Q", axis=alt.Axis(title="drop below the baseline", tickCount=5))
    legend = alt.Legend(title=None, orient="bottom")
    colour = alt.Color("behaviour:N", legend=legend, scale=palette(behaviours, NULL_COLOURS))
    shared: dict[str, Any] = {"y": y, "yOffset": alt.YOffset("behaviour:N"), "color": colour}
    tooltip = tips("ablated", "behaviour", drop=".2f")
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        alt.Chart().mark_rule(strokeWidth=1.6).encode(x="low:Q", x2="high:Q", **shared),
        alt.Chart().mark_point(filled=True, size=60, opacity=1).encode(x=x, tooltip=tooltip, **shared),
    ).properties(width=280, height=alt.Step(22))


def _cosines(rows: Sequence[ChartRow]) -> Any:
    blue, lowest = LIGHT["direction"], min(0, *(r["cosine"] for r in rows))
    x = alt.X("layer:Q", axis=alt.Axis(title="layer", grid=False, format="d", tickMinStep=1))
    y = alt.Y("cosine:Q", scale=alt.Scale(domain=[lowest, 1]), axis=alt.Axis(title="cosine", tickCount=5))
    tooltip = tips(layer="d", cosine=".2f")
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(y=alt.YDatum(0)),
        alt.Chart().mark_line(color=blue, strokeWidth=2).encode(x=x, y=y),
        alt.Chart().mark_point(color=blue, filled=True, size=42, opacity=1).encode(
            x="layer:Q", y="cosine:Q", tooltip=tooltip
        ),
    ).properties(width=280, height=190)  # fmt: skip


# -- flinch -----------------------------------------------------------------------------------------------------------

_FLINCH_NOTE = (
    "Log-probabilities per token, nats, teacher-forced in the same contexts on the same tokens. Flinch: the gap of the "
    "term minus the mean gap of its controls, which are about equally probable in the base model. Intervals are over "
    "contexts; p is the rank among the controls."
)


def _flinch(record: FlinchRecord, draw: page.Canvas) -> Sheet:
    rows = [
        [
            r.term,
            page.number(r.base),
            page.number(r.chat),
            page.number(r.gap, signed=True),
            page.number(r.control_gap, signed=True),
            page.interval(r.flinch, r.low, r.high, signed=True),
            page.number(r.p_holm, 3),
            ", ".join(r.controls),
        ]
        for r in record.terms
    ]
    head = ["Term", "Base", "Chat", "Gap", "Gap of controls", "Flinch", "p (Holm)", "Controls"]
    n, models = record.n, record.models
    facts = [
        *(("chat", models.chat), ("base", models.base)),
        *(("terms", n.terms), ("controls", n.controls), ("contexts", n.contexts)),
        ("finding", record.finding),
    ]
    table = page.table(head, rows)
    body = [page.section("Terms", draw(flinch_charts(record)), table, page.note(_FLINCH_NOTE))]
    return Sheet("Does the chat model avoid words that its base model uses?", facts, body)


def flinch_charts(record: FlinchRecord) -> list[Chart]:
    """The flinch of every term with its interval, the lowest first; terms without a number are skipped."""
    measured = sorted(((r.flinch, r) for r in record.terms if r.flinch is not None), key=lambda pair: pair[0])
    rows: list[ChartRow] = [
        {"term": printable(r.term, 24), "flinch": value, "low": r.low, "high": r.high}
        for value, r in measured[:MOST_TERMS]
    ]
    y = alt.Y("term:N", sort=[r["term"] for r in rows], axis=alt.Axis(title=None, labelLimit=180))
    blue = LIGHT["direction"]
    x = alt.X("flinch:Q", axis=alt.Axis(title="nats per token, compared with matched controls", tickCount=6))
    tooltip = tips("term", flinch=".2f", low=".2f", high=".2f")
    body = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["muted"]).encode(x=alt.XDatum(0)),
        alt.Chart().mark_rule(color=blue, strokeWidth=1.6).encode(x="low:Q", x2="high:Q", y=y),
        alt.Chart().mark_point(color=blue, filled=True, size=50, opacity=1).encode(x=x, y=y, tooltip=tooltip),
    ).properties(width=420, height=alt.Step(20))
    title = f"Flinch of each term ({record.n.contexts} contexts)"
    return [finished("flinch", "Flinch of each term of the chat model", body, title, rows)]
