"""The section of the analysis `meaning`: effects on refusal and on the judgement of harm, and projections by cell."""

from collections.abc import Collection, Iterator, Mapping

from rhumbline.records.meaning_file import Act, Edited, MeaningEffect, MeaningRecord, Quantity
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import LAYER, Bar, ChartText, CurvePoint
from rhumbline.report.figures import Chart
from rhumbline.report.page import Html, number

EDITED: Mapping[Edited, str] = {"refusal": "direction of the run", "harm": "harmfulness direction"}
QUANTITIES: Mapping[Quantity, str] = {
    "refusal": "refusal",
    "judgement": "judgement of harm",
    "reply": "preference for Yes",
}
ACTS: Mapping[Act, str] = {"ablation": "ablation", "addition": "addition"}


def meaning(record: MeaningRecord, draw: page.Canvas) -> Html:
    """Return the effects of both directions, the cells of the prompts, and the shares of content and fact."""
    answer = page.tag("p", page.tag("b", record.answer), f": {record.sentence}")
    parts: list[Html] = [answer, draw(_charts(record)), _effects(record), _cells(record)]
    if record.crossing is not None:
        head = ["Projection on the", "Share of content [95 %]", "Share of refusal [95 %]"]
        rows = [[EDITED[e], page.mean(c.content), page.mean(c.fact)] for e, c in record.crossing.items()]
        parts.append(page.table(head, rows))
    return page.detail("Meaning", *parts, page.note(_note(record)))


def effect_name(row: MeaningEffect) -> str:
    """What is edited, and how."""
    return f"{EDITED[row.edited]}, {ACTS[row.act]}"


def _charts(record: MeaningRecord) -> Iterator[Chart | None]:
    title = "Effects of two directions, in shares of the differences at baseline"
    text = ChartText("meaning-effects", title, "share of the difference")
    yield basic_charts.bars(text, list(_bars(record, ("refusal", "judgement"))))
    title = "Effects of two directions on the preference for Yes, whichever question is asked"
    text = ChartText("meaning-reply", title, "share of the difference in judgement")
    yield basic_charts.bars(text, list(_bars(record, ("reply",))))
    cosines = [CurvePoint("cosine", row.layer, row.cosine) for row in record.harm.by_layer]
    text = ChartText("meaning-cosine", "Cosine of the harmfulness direction with the direction", LAYER, "cosine")
    yield basic_charts.curves(text, cosines)


def _bars(record: MeaningRecord, quantities: Collection[Quantity]) -> Iterator[Bar]:
    for row in (r for r in record.effects if r.quantity in quantities):
        what, series = effect_name(row), QUANTITIES[row.quantity]
        yield Bar(what, series, row.effect.mean, row.effect.low, row.effect.high, "direction")
        null = largest_null(row)
        if null is not None:
            yield Bar(what, series, row.nulls[null], None, None, "largest null family")


def largest_null(row: MeaningEffect) -> str | None:
    """The null family with the largest absolute effect; None without nulls."""
    known = {family: abs(value) for family, value in row.nulls.items() if value is not None}
    return max(known, key=lambda family: known[family], default=None)


def _effects(record: MeaningRecord) -> Html:
    rows = []
    for row in record.effects:
        largest = largest_null(row)
        null = "—" if largest is None else f"{number(row.nulls[largest], signed=True)} ({largest})"
        rows.append([effect_name(row), QUANTITIES[row.quantity], page.mean(row.effect), row.effect.n, null])
    return page.table(["Edit", "Quantity", "Share of the difference [95 %]", "n", "Largest null family"], rows, left=2)


def _cells(record: MeaningRecord) -> Html:
    rows = [
        [c.group, c.content, c.fact, c.n, *map(page.mean, (c.projection, c.harm_projection, c.refusal, c.judgement))]
        for c in record.cells
    ]
    head = ["Group", "Content", "In fact", "n", "Projection", "Harmfulness projection", "Metric", "Judgement"]
    return page.fold("Prompts by content and by what the model does", page.table(head, rows, left=3))


def _note(record: MeaningRecord) -> str:
    harm, gaps = record.harm, "; ".join(f"{QUANTITIES[g.quantity]} {number(g.gap.mean)}" for g in record.gaps[:2])
    fit = "within refused and within complied prompts" if harm.crossed else "without regard to what the model did"
    source = "the labels of the run" if record.battery == "run" else "the battery"
    return (
        f"Seed {record.seed}, position {record.site.position}, layer {record.site.layer}. Content is stated by "
        f"{source}, and the fact by judge {record.judge}; {page.count(record.unclear, 'measured prompt')} are neither "
        f"refused nor complied. Harmfulness direction: {harm.harmful} harmful minus {harm.harmless} harmless prompts, "
        f"compared {fit}, at position {harm.site.position} of the same layer; cosine with the direction "
        f"{number(harm.cosine)}, two random directions have a mean |cosine| of {harm.random:.2f}. Differences at "
        f"baseline, log-odds: {gaps}. An ablation is measured on the prompts with more of a quantity, an addition on "
        "those with less. Judgement: the log-odds of Yes and No to a question about harm, minus those to the same "
        "question about harmlessness, divided by 2; their mean is the preference for Yes. The model answers Yes or No "
        f"with probability {number(record.answers.mean)}. A judgement that is asked for need not be the one that the "
        "model uses when it refuses."
    )
