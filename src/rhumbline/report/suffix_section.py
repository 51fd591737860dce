"""Section on suffixes and on what writes along the direction, from analyses/suffix.json."""

from collections.abc import Iterator, Sequence
from itertools import cycle

from rhumbline.records.analysis_files import MonitorCondition
from rhumbline.records.suffix_file import AttributedPart, SuffixCondition, SuffixHead, SuffixRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import CLASS_COLOURS, LAYER, Bar, ChartText, CurvePoint
from rhumbline.report.figures import SERIES, Chart, printable
from rhumbline.report.page import Html, number

_MOST_PARTS = 24
"""Terms of the attribution that are listed."""
_MOST_WRITERS = 6
"""Unsplit writers that are listed."""


def suffixes(record: SuffixRecord, draw: page.Canvas) -> Html:
    """Return the effects of suffixes, and the attribution of the projection."""
    return page.detail(
        "Suffixes",
        draw(_charts(record)),
        _condition_table(record),
        _effect_table(record) if record.effects else "",
        page.fold("What writes along the direction, by the difference between the classes", _part_table(record)),
        suffix_texts(record.conditions),
        page.note(_note(record)),
    )


def suffix_texts(conditions: Sequence[SuffixCondition | MonitorCondition]) -> Html:
    """Return the texts of the suffixes; empty without suffixes."""
    rows = [[c.name, ", ".join(repr(printable(text, 60)) for text in c.texts)] for c in conditions if c.texts]
    return page.fold("The suffixes", page.table(["Condition", "Texts"], rows, left=2)) if rows else Html()


# -- charts -----------------------------------------------------------------------------------------------------------


def _charts(record: SuffixRecord) -> Iterator[Chart | None]:
    conditions = record.conditions
    colours = CLASS_COLOURS | {c.name: look.colour for c, look in zip(conditions[2:], cycle(SERIES), strict=False)}
    n = f"(n = {record.n})"
    text = ChartText("suffix-cosine", f"Cosine with the direction over layers {n}", LAYER, "cosine")
    points = [CurvePoint(c.name, row.layer, row.mean, row.low, row.high) for c in conditions for row in c.cosine]
    yield basic_charts.curves(text, points, colours)
    title = f"Contributions of attention heads along the direction {n}"
    contributions = [
        Bar(_head_name(head), name, mean.mean, mean.low, mean.high)
        for head in record.heads
        for name, mean in head.contribution.items()
    ]
    yield basic_charts.bars(ChartText("suffix-heads", title, "contribution"), contributions, colours)
    attention = [
        Bar(_head_name(head), name, mean.mean, mean.low, mean.high, f"to the {region}")
        for head in record.heads
        for name, attention in head.attention.items()
        if name not in CLASS_COLOURS
        for region, mean in (("instruction", attention.instruction), ("suffix", attention.suffix))
    ]
    text = ChartText("suffix-attention", f"Attention of these heads {n}", "share of attention")
    yield basic_charts.bars(text, attention, colours)


def _head_name(head: SuffixHead) -> str:
    return f"layer {head.layer}, head {head.head}"


# -- tables -----------------------------------------------------------------------------------------------------------


def _condition_table(record: SuffixRecord) -> Html:
    rows = [[c.name, *map(page.mean, (c.projection, c.metric, c.rate)), c.projection.n] for c in record.conditions]
    return page.table(["Test prompts", "Projection at the site", "Metric (log-odds)", "Rate", "n"], rows)


def _effect_table(record: SuffixRecord) -> Html:
    rows = [
        [f"suffix {effect.suffix}", what, *(page.mean(m, signed=True) for m in (d.drop, d.random, d.beyond_random))]
        for effect in record.effects
        for what, d in (("projection", effect.projection), ("metric", effect.metric))
    ]
    return page.table(["Suffix", "Quantity", "Drop", "Drop, random suffixes", "Beyond random"], rows, left=2)


def _part_table(record: SuffixRecord) -> Html:
    names = [condition.name for condition in record.conditions]
    terms = sorted(record.attribution.terms(), key=_class_difference, reverse=True)[:_MOST_PARTS]
    rows = [[part_name(term), *(number(term.means[name], signed=True) for name in names)] for term in terms]
    return page.table(["Source", *names], rows)


def _class_difference(term: AttributedPart) -> float:
    return abs((term.means["positive"] or 0.0) - (term.means["negative"] or 0.0))


def part_name(part: AttributedPart) -> str:
    """Format the source of a term of the attribution."""
    if part.kind == "embedding":
        return "embedding"
    suffix = {"head": f"head {part.head}", "bias": "output bias", "writer": ""}[part.kind]
    return f"layer {part.layer} {part.module} {suffix}".strip()


def _note(record: SuffixRecord) -> str:
    attribution, site = record.attribution, record.site
    error = "—" if attribution.error is None else f"{attribution.error:.1e}"
    listed = "; ".join(f"layer {w.layer} {w.module}: {w.reason}" for w in attribution.whole[:_MOST_WRITERS])
    return (
        f"Seed {record.seed}, position {site.position}, layer {site.layer}; n = {record.n} test prompts. Each random "
        "suffix has as many tokens as its suffix. Contributions: the projection of the residual stream at the site, "
        f"split into everything that writes it. The terms sum to the projection up to rounding (largest relative error "
        f"{error}). Heads: those that differ most between the classes on validation prompts. A suffix that lowers the "
        "projection on these prompts was not tested on others. A lower projection does not imply that the behaviour "
        "is suppressed; compare the metric." + (f" Not split into heads: {listed}." if listed else "")
    )
