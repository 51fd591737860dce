"""The page of style.json: style, content and damage over doses, with charts, and the finding for each intervention."""

from collections.abc import Callable, Sequence
from typing import Any

from rhumbline.records.analysis_files import Mean
from rhumbline.records.style_doses_file import StyleDose, StyleDosesRecord
from rhumbline.report import page
from rhumbline.report.basic_charts import ChartText, CurvePoint, curves
from rhumbline.report.figures import Chart
from rhumbline.report.page import Html, number

Read = Callable[[StyleDose], Mean | None]


def style_doses_body(record: StyleDosesRecord, draw: page.Canvas) -> list[Html]:
    """The sections of the page."""
    answers = [[a.intervention, a.finding, number(a.dose, 2)] for a in record.answers]
    own = [d for d in record.doses if d.family is None]
    nulls = [d for d in record.doses if d.family is not None]
    sites = [
        [s.source, s.layer, number(s.norm, 3), number(s.moved), number(s.degenerate), "yes" if s.selected else ""]
        for s in record.selection
    ]
    detectors = [[d.features, number(d.auroc, 3), d.texts, d.topics] for d in record.detectors]
    plan, kept = record.plan, record.similarity_reference or record.reference
    reference = page.interval(kept.mean, kept.low, kept.high)
    return [
        page.section(
            "Findings",
            page.table(["Intervention", "Finding", "Dose"], answers, left=2),
            page.note(
                f"Moved: a dose that keeps the text changes the style by more than {plan.margin} of the gap between "
                "the system prompts, with its whole interval, and by more than every null of that dose. A dose keeps "
                f"the text if its content is at least {plan.least_content} of that kept by the other system prompt (",
                reference,
                f"), and if at most {plan.most_degenerate} more completions are degenerate. Not moved: no such dose "
                "reaches the margin.",
            ),
        ),
        page.section("Style, content and damage by dose", draw(style_charts(record)), _table(own)),
        page.section("Nulls", _table(nulls), page.note(NULL_NOTE)),
        page.section(
            "Sites, on validation prompts",
            page.table(["Read at", "Layer", "Norm", "Moved", "Degenerate", "Selected"], sites),
        ),
        page.section(
            "Detectors, on topics that they were not fitted on",
            page.table(["Features", "AUROC", "Texts", "Groups of topics"], detectors),
            page.note(f"Markers: {', '.join(record.markers) or 'none'}. {_content(record)}"),
        ),
    ]


def _content(record: StyleDosesRecord) -> str:
    model = record.embeddings
    by = "" if model is None else f" Similarity: cosine of embeddings by {model.name}; the findings use it."
    return f"Content: {record.content_measure}.{by} Scaled: 0 for texts on different prompts, 1 for equal ones."


NULL_NOTE = (
    "Isotropic: a random vector of the norm of the direction, or a random span of the same rank. Flipped pairs: the "
    "mean of the paired differences, half of them with the other sign, with the same norm."
)


def _table(doses: Sequence[StyleDose]) -> Html:
    embedded = any(d.similarity is not None for d in doses)
    columns: dict[str, Callable[[StyleDose], Any]] = {
        "Prompts": lambda d: "first system prompt" if d.side == "positive" else "second system prompt",
        "Arm": lambda d: d.series,
        "Dose": lambda d: number(d.dose, 2) if d.intervention else "—",
        "Moved": lambda d: page.mean(d.moved) if d.moved else "—",
        "Detector": lambda d: page.mean(d.detector),
        "Function words": lambda d: number(d.function_words.mean),
        "In markers": lambda d: number(d.markers.mean, 3),
        "Words": lambda d: number(d.words.mean, 0),
        "Content": lambda d: page.mean(d.content) if d.content else "—",
        **({"Similarity": lambda d: page.mean(d.similarity) if d.similarity else "—"} if embedded else {}),
        "Right answers": lambda d: page.rate(d.correct) if d.correct else "—",
        "Degenerate": lambda d: page.rate(d.degenerate),
        "Surprise": lambda d: page.mean(d.surprise),
    }
    return page.table(list(columns), [[value(d) for value in columns.values()] for d in doses], left=2)


def style_charts(record: StyleDosesRecord) -> list[Chart | None]:
    """Draw what each dose moves, what content it keeps, and the surprise of its completions, beside the nulls."""
    n = record.n.test
    content = "share of the content words" if record.embeddings is None else "cosine of embeddings, scaled"
    charts: list[tuple[str, str, str, Read]] = [
        ("style-moved", f"Style (n = {n})", "change, in gaps", lambda d: d.moved),
        ("style-content", f"Content kept (n = {n})", content, lambda d: d.kept),
        ("style-surprise", f"Damage (n = {n})", "surprise, nats per token", lambda d: d.surprise),
    ]
    return [
        curves(ChartText(name, title, "dose", axis), _points(record, read), size=(300, 210))
        for name, title, axis, read in charts
    ]


def _points(record: StyleDosesRecord, read: Read) -> list[CurvePoint]:
    """The direction's doses with intervals, and the mean of each null family at each dose without."""
    known = [(d, m) for d in record.doses if d.intervention is not None and d.rank == 1 and (m := read(d)) is not None]
    points = [CurvePoint(d.series, d.dose, m.mean, m.low, m.high) for d, m in known if d.family is None]
    nulls: dict[tuple[str, float], list[float]] = {}
    for d, m in known:
        if d.family is not None and d.intervention != "ablation" and m.mean is not None:
            nulls.setdefault((f"{d.intervention}, null", d.dose), []).append(m.mean)
    return points + [CurvePoint(series, dose, sum(v) / len(v)) for (series, dose), v in nulls.items()]
