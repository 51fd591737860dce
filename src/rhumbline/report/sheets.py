"""Pages of the analyses of several runs or models: a record, its figures and a page in a directory of their own.

Input: a `RobustnessRecord`, `DissociationRecord`, `FlinchRecord` or `StyleDosesRecord`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt

from rhumbline.records.artefacts import OF_SHEET, SheetRecord
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import check_sheet
from rhumbline.records.files import write_json
from rhumbline.records.sheet_files import (
    DissociationRecord,
    FlinchRecord,
    LeastDamage,
    ModelRobustness,
    RandomSubspaces,
    RobustnessRecord,
)
from rhumbline.records.style_doses_file import StyleDosesRecord
from rhumbline.report import page
from rhumbline.report.basic_charts import Bar, ChartText, CurvePoint, bars, curves
from rhumbline.report.figures import SERIES, Chart, printable
from rhumbline.report.page import Html, interval, number
from rhumbline.report.style_doses_sheet import style_doses_body

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
    check_sheet(out, path.name)
    value, draw = to_json(record), page.Canvas()
    write_json(path, value)
    # As it will be read: numbers that are not finite become None.
    match convert(value, type(record)):
        case RobustnessRecord() as read:
            sheet = _robustness(read, draw)
        case DissociationRecord() as read:
            sheet = _dissociation(read, draw)
        case FlinchRecord() as read:
            sheet = _flinch(read, draw)
        case StyleDosesRecord() as read:
            sheet = _style(read, draw)
    head = page.header(f"rhumbline {record.analysis}", sheet.title, sheet.facts)
    sentence = page.verdict(page.tag("p", record.sentence, class_="sentence"))
    return page.publish(out, f"{record.analysis}: {sheet.title}", [head, sentence, *sheet.body], draw.drawings)


# -- robustness -------------------------------------------------------------------------------------------------------


def _robustness(record: RobustnessRecord, draw: page.Canvas) -> Sheet:
    columns: Mapping[str, Callable[[ModelRobustness], Any]] = {
        "Model": lambda m: m.model,
        "Access": lambda m: m.access,
        "n": lambda m: m.n.test.positive,
        "Baseline": lambda m: page.rate(m.baseline),
        "Rank 1": lambda m: page.rate(m.ranks[0]),
        "Energy": lambda m: number(m.ranks[0].energy, 3),
        "Degenerate": lambda m: number(m.ranks[0].degenerate),
        "Random": lambda m: _random(m.ranks[0].null),
        "Highest rank": lambda m: page.join([page.rate(m.ranks[-1]), f" at {m.ranks[-1].rank}"]),
        "Its energy": lambda m: number(m.ranks[-1].energy, 3),
        "Fragility": lambda m: interval(m.fragility.value, m.fragility.low, m.fragility.high),
        "Prompts only": lambda m: page.rate(m.prompts),
    }
    rows = [[value(m) for value in columns.values()] for m in record.models]
    note = page.note(
        "Rate of the behaviour on test positives, read from the whole completion, with Wilson's intervals. Energy: "
        "share of the squared norm of the residual stream that is removed at the selected site. Fragility: share of "
        "the behaviour that is removed at rank 1, divided by this energy. Degenerate: share of the completions at rank "
        "1 that are broken; they count as still showing the behaviour. Random: mean rate under ablation of random "
        "directions along the axes of the negatives, orthogonal to the first direction, and their mean energy. It is "
        "the energy of the first direction, or the nearest one along these axes. Access: the least access with "
        "which half of the behaviour was removed; interventions that were not tried can need less. A dash: not "
        "measured, because most completions have no answer that the judge can read."
    )
    body = [
        page.section("Models", page.table(list(columns), rows, left=2), note),
        page.section("Least damage at which half of the behaviour is lost", *_least_damage(record, draw)),
        page.section("Rate under stronger interventions", draw(robustness_charts(record))),
    ]
    facts = [("models", len(record.models)), ("judge", record.plan.judge), ("ranks", record.plan.ranks)]
    return Sheet("How much of the behaviour remains under stronger interventions?", facts, body)


def _random(null: RandomSubspaces) -> Html | str:
    return "—" if null.mean is None else f"{number(null.mean)} at {number(null.energy, 3)}"


def _least_damage(record: RobustnessRecord, draw: page.Canvas) -> Iterator[Html]:
    """Return the least damage of every model by access, as a chart and as a table."""
    rows = [
        [m.model, one.access, one.intervention or "—", _damage_at_half(one), number(one.rate), number(one.largest, 3)]
        for m in record.models
        for one in m.least
    ]
    if not rows:
        yield page.tag("p", "Not measured by the version that wrote this record.")
        return
    yield draw([least_damage_chart(record)])
    head = ["Model", "Access", "Intervention", "KL at half [95 %]", "Lowest rate left", "Largest KL tried"]
    yield page.table(head, rows, left=3)
    yield page.note(
        "Damage is the trajectory KL: the mean over tokens of KL(baseline || edited) along the model's own answers to "
        "negatives, nats per token. The intervention of each access is selected on validation prompts and measured on "
        "test prompts. Interventions were not optimised: an attacker can need less damage, not more. Not lost: half of "
        "the behaviour remains at every damage that was tried."
    )


def _damage_at_half(one: LeastDamage) -> Html | str:
    if one.rate is None:
        return "not measured"
    return "not lost" if one.half is None else interval(one.half.kl, one.half.low, one.half.high, 3)


def least_damage_chart(record: RobustnessRecord) -> Chart | None:
    """Draw the damage at half by access, one mark for each model; what is not lost has no mark."""
    marks = [
        Bar(one.access, printable(m.model, 28), one.half.kl, one.half.low, one.half.high, shown="")
        for access in ("prompt", "activations", "weights")
        for m in record.models
        for one in m.least
        if one.access == access and one.half is not None and one.half.kl > 0
    ]
    title = "Damage at which half of the behaviour is lost"
    least = min((mark.low for mark in marks if mark.low), default=1e-4)
    scale = alt.Scale(type="log", domainMin=max(1e-8, least / 2), nice=False)
    text = ChartText("robustness-damage", title, "trajectory KL, nats per token")
    return bars(text, marks, _model_colours(record), scale=scale, named=len(record.models) > 1)


def _model_colours(record: RobustnessRecord) -> dict[str, str]:
    """The colour of every model, the same in all charts."""
    return {printable(m.model, 28): SERIES[k % len(SERIES)].colour for k, m in enumerate(record.models)}


def robustness_charts(record: RobustnessRecord) -> list[Chart | None]:
    """Draw the rate over the rank and over the strength, one line for each model; random subspaces have their own."""
    ranks: list[CurvePoint] = []
    strengths: list[CurvePoint] = []
    colours = _model_colours(record)
    colours |= {f"{name}, random": colour for name, colour in colours.items()}
    for m in record.models:
        name, base = printable(m.model, 28), (m.baseline.rate, m.baseline.low, m.baseline.high)
        null = f"{name}, random"
        ranks += [CurvePoint(name, 0, *base), *(CurvePoint(name, r.rank, r.rate, r.low, r.high) for r in m.ranks)]
        ranks += [CurvePoint(null, 0, *base), *(CurvePoint(null, r.rank, r.null.mean) for r in m.ranks)]
        strengths += [CurvePoint(name, 0.0, *base)]
        strengths += [CurvePoint(name, s.strength, s.rate, s.low, s.high) for s in m.strengths]
    n = " and ".join(str(k) for k in dict.fromkeys(m.n.test.positive for m in record.models))
    random = "Rate of the behaviour by rank of the ablated subspace, and of random subspaces orthogonal to it"
    by_rank = ChartText("robustness-rank", f"By rank (n = {n})", "rank of the ablated subspace", "rate", random)
    strength = "Rate of the behaviour by strength of the ablation of the first direction"
    by_strength = ChartText(
        "robustness-strength", f"By strength (n = {n})", "strength of the ablation", "rate", strength
    )
    charts = ((by_rank, ranks), (by_strength, strengths))
    return [curves(text, points, colours, domain=(0, 1), size=(300, 210)) for text, points in charts]


# -- dissociation -----------------------------------------------------------------------------------------------------


def _dissociation(record: DissociationRecord, draw: page.Canvas) -> Sheet:
    rows = []
    for cell in record.table:
        drop = "—" if cell.ablated == "baseline" else interval(cell.drop, cell.low, cell.high, signed=True)
        rows.append([cell.behaviour, cell.ablated, cell.n, number(cell.level), drop, number(cell.degenerate)])
    head = ["Behaviour", "Ablated", "n", "Level", "Drop below the baseline", "Degenerate"]
    note = (
        "Levels: 0 is the mean of the negatives of that run at baseline, 1 the mean of its positives; a rate is its "
        f"own level. Removed: the interval of the drop lies above {record.margins.taken}. Unaffected: it lies below "
        f"{record.margins.left}. Degenerate: share of the completions that are broken. They count as no removal, and a "
        "behaviour is unaffected only if its drop is that small where they count as removal too. A dash: not measured, "
        "because most completions have no answer that the judge can read."
    )
    cosine = page.tag("p", f"Cosine of the two selected directions: {number(record.cosine.selected)}.")
    body = [
        page.section("Each direction on each behaviour", page.table(head, rows, left=2), page.note(note)),
        page.section("The two directions", cosine, draw(dissociation_charts(record))),
    ]
    behaviours = " and ".join(record.behaviours)
    facts = [("model", record.model), ("behaviours", behaviours), ("finding", record.finding)]
    return Sheet("Do two behaviours have different directions?", facts, body)


def dissociation_charts(record: DissociationRecord) -> list[Chart | None]:
    """Draw the drops, and the cosine of the candidates by layer."""
    drops = [
        Bar(c.ablated, f"on {c.behaviour}", c.drop, c.low, c.high)
        for c in record.table
        if c.ablated != "baseline" and c.drop is not None
    ]
    n = " and ".join(str(k) for k in dict.fromkeys(c.n for c in record.table if c.n))
    summary = "Drop of each behaviour under each ablation"
    effect = f"Effect of each ablation (n = {n} positives)"
    text = ChartText("dissociation-drops", effect, "drop below the baseline", summary=summary)
    cosines = [CurvePoint("cosine", r.layer, r.cosine) for r in record.cosine.by_layer]
    lowest = min([0.0, *(point.y for point in cosines if point.y is not None)])
    title = f"Cosine of the two candidates, position {record.cosine.position}"
    by_layer = ChartText("dissociation-cosine", title, "layer", "cosine", f"{title}, by layer")
    return [bars(text, drops), curves(by_layer, cosines, domain=(lowest, 1), size=(280, 190))]


# -- style ------------------------------------------------------------------------------------------------------------


def _style(record: StyleDosesRecord, draw: page.Canvas) -> Sheet:
    facts = [("model", record.model), ("contrast", record.contrast), ("test prompts", record.n.test)]
    title = "Does a direction change the style, and at what cost to the text?"
    return Sheet(title, facts, style_doses_body(record, draw))


# -- flinch -----------------------------------------------------------------------------------------------------------


def _flinch(record: FlinchRecord, draw: page.Canvas) -> Sheet:
    rows = []
    for r in record.terms:
        gaps = number(r.gap, signed=True), number(r.control_gap, signed=True)
        flinch = interval(r.flinch, r.low, r.high, signed=True)
        rows.append([r.term, number(r.base), number(r.chat), *gaps, flinch, number(r.p_holm, 3), ", ".join(r.controls)])
    head = ["Term", "Base", "Chat", "Gap", "Gap of controls", "Flinch", "p (Holm)", "Controls"]
    note = page.note(
        "Log-probabilities per token, nats, teacher-forced in the same contexts on the same tokens. Flinch: the gap of "
        "the term minus the mean gap of its controls, which are about equally probable in the base model. Intervals "
        "are over contexts; p is the rank among the controls."
    )
    body = [page.section("Terms", draw([flinch_chart(record)]), page.table(head, rows), note)]
    facts = [*vars(record.models).items(), *vars(record.n).items(), ("finding", record.finding)]
    return Sheet("Does the chat model avoid words that its base model uses?", facts, body)


def flinch_chart(record: FlinchRecord) -> Chart | None:
    """Draw the flinch of every term with its interval, the lowest first; terms without a number are skipped."""
    measured = sorted(((r.flinch, r) for r in record.terms if r.flinch is not None), key=lambda pair: pair[0])
    marks = [Bar(printable(r.term, 24), "flinch", value, r.low, r.high) for value, r in measured[:MOST_TERMS]]
    title = f"Flinch of each term ({record.n.contexts} contexts)"
    summary = "Flinch of each term of the chat model"
    text = ChartText("flinch", title, "nats per token, compared with matched controls", summary=summary)
    return bars(text, marks)
