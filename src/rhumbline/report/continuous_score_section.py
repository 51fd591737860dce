"""Section on a continuous score: unit of the levels, content, markers, and confounds."""

from collections.abc import Sequence
from typing import Any

from rhumbline.records.results import SeedResult, StyleSummary
from rhumbline.report import page
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord, level_unit

_MOST_MARKERS = 12
"""Markers of a seed that are listed."""

Scored = Sequence[tuple[SeedResult, StyleSummary]]
"""Seeds with a continuous score, and its summary."""


def continuous_score(run: RunRecord) -> Html:
    """Return the section; empty for a behaviour with classes."""
    scored = [(seed, seed.style) for seed in run.seeds if isinstance(seed.style, StyleSummary)]
    if not scored:
        return Html()
    markers = [row for seed, style in scored for row in _marker_rows(seed, style)]
    head = ["Seed", "Marker", "Positive texts", "Negative texts", "Log-odds", "p"]
    return page.detail(
        "Score, content and confounds",
        page.tag("p", _introduction(run)),
        _arm_table(scored),
        page.tag("h3", "Unit of the levels"),
        _unit_table(scored),
        page.tag("h3", "Markers"),
        page.table(head, markers, left=2) if markers else page.note("No phrase separates the texts of the classes."),
        page.note(_marker_source(scored[0][1])),
        page.tag("h3", "Confounds"),
        *_confound_tables(scored),
        page.note(
            "Length counts the words outside the markers, because the markers are the style itself. For topics, r is "
            "the correlation ratio. Classifier: its AUROC on training texts of topics that it was not fitted on."
        ),
    )


def _introduction(run: RunRecord) -> str:
    return (
        f"The {run.protocol.behaviour} of a completion is a continuous score by the judge {run.protocol.judge}. A "
        f"level is this score in units of {level_unit(run.seeds)}. Content is the share of the baseline completion, or "
        "of the known answer, that remains. Without it, a degenerate text could reach a high score."
    )


def _arm_table(scored: Scored) -> Html:
    head = ["Seed", "Arm", "Set", "n", "Score", "Level [95 %]", "Content", "Degenerate"]
    rows = []
    for seed, _ in scored:
        for row in (row for row in seed.arms if row.arm.is_own):
            score = number(row.score if isinstance(row.score, float) else None, 3)
            shares = number(row.correct), number(row.degenerate)
            rows.append([seed.seed, row.arm, row.side, row.n, score, page.rate(row), *shares])
    return page.table(head, rows, left=3)


def _unit_table(scored: Scored) -> Html:
    head = ["Seed", "Texts", "Positives", "Negatives", "Gap [95 %]", "AUROC", "Neutral level", "Classifier"]
    rows = []
    for seed, style in scored:
        unit, neutral, classifier = style.unit, style.neutral, style.classifier
        texts = "texts of the contrast" if unit.source == "texts" else "own completions"
        means = number(unit.positive, 3), number(unit.negative, 3), interval(unit.gap, unit.low, unit.high)
        others = unit.auroc, neutral.level if neutral else None, classifier.auroc if classifier else None
        rows.append([seed.seed, texts, *means, *map(number, others)])
    return page.table(head, rows, left=2)


def _marker_rows(seed: SeedResult, style: StyleSummary) -> list[list[Any]]:
    """Return the markers with the smallest p; a marker of the protocol has no numbers."""
    rows: list[list[Any]] = []
    for marker in style.markers[:_MOST_MARKERS]:
        p = None if marker.p is None else f"{marker.p:.1g}"
        rows.append([seed.seed, marker.phrase, marker.positive, marker.negative, number(marker.log_odds, 1), p])
    rest = len(style.markers) - _MOST_MARKERS
    return [*rows, [seed.seed, f"and {rest} more", None, None, None, None]] if rest > 0 else rows


def _marker_source(style: StyleSummary) -> str:
    if style.how == "given":
        return "The markers are those of the protocol."
    source = "responses of the contrast" if style.texts == "responses" else "model's own baseline completions"
    return (
        f"Estimated on training texts, the {source}. The counts are texts that contain the phrase outside longer "
        "markers; p is Fisher's exact p, not corrected for the number of phrases tested."
    )


def _confound_tables(scored: Scored) -> list[Html | str]:
    adjusted = [
        [seed.seed, r.name, *(number(v, 3) for v in (r.drop, r.adjusted, r.matched)), f"{r.matched_n} of {r.n}"]
        for seed, style in scored
        for r in style.confounds.adjusted
    ]
    correlations = [
        [seed.seed, row.other.replace("_", " "), row.n, number(row.r, signed=row.other != "topic")]
        for seed, style in scored
        for row in style.confounds.correlations
    ]
    head = ["Seed", "Effect, in scores", "Change", "Length, bullets and topic held fixed", "Matched prompts", "n"]
    return [
        page.table(head, adjusted, left=2) if adjusted else "",
        page.table(["Seed", "Correlation of the baseline score with", "n", "r"], correlations, left=2),
    ]
