"""The section of the report on a continuous score: the unit, the content, the markers, and what could be mistaken for
it.

Reads what results.json holds; a run about classes has no such section.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rhumbline.report import page
from rhumbline.report.page import Html

Rows = Mapping[str, Any]
_OWN = ("baseline", "ablation", "addition", "addition-all", "addition-prompt")
_MOST = 12


def section(protocol: Rows, seeds: Sequence[Rows]) -> Html:
    """The section, or nothing."""
    if not any(seed.get("style") for seed in seeds):
        return Html("")
    said = (
        f"The {protocol['behaviour']} of a completion is a continuous score, by the judge {protocol['judge']}. A level "
        "is that score in units of the gap between the classes: 0 is how negatives score at baseline, 1 how positives "
        "do. Content is what is left of the baseline's, or of the known answers; a score without its content would "
        "pass garbage."
    )
    arms = [
        [
            seed["seed"],
            arm["arm"],
            arm["set"],
            arm["n"],
            page.number(arm.get("score"), 3),
            page.interval(arm["rate"], arm["low"], arm["high"]),
            page.number(arm["correct"]),
            page.number(arm["degenerate"]),
        ]
        for seed in seeds
        for arm in seed["arms"]
        if arm["arm"] in _OWN
    ]
    held = [_held(seed, row) for seed in seeds for row in seed["style"]["confounds"]["adjusted"]]
    ties = [
        [seed["seed"], row["with"].replace("_", " "), row["n"], page.number(row["r"], signed=row["with"] != "topic")]
        for seed in seeds
        for row in seed["style"]["confounds"]["correlations"]
    ]
    units = [_unit(seed) for seed in seeds]
    found = [row for seed in seeds for row in _markers(seed)]
    head = ["Seed", "Arm", "Set", "n", "Score", "Level [95 %]", "Content", "Degenerate"]
    unit_head = ["Seed", "Of", "Positives", "Negatives", "Gap [95 %]", "AUROC", "Neutral level", "Classifier"]
    marker_head = ["Seed", "Marker", "Positive texts", "Negative texts", "Log-odds", "p"]
    held_head = ["Seed", "Effect, in scores", "Change", "Length, bullets, topic held fixed", "Matched prompts", "n"]
    parts = [
        page.tag("p", said),
        page.table(head, arms, left=3),
        page.tag("h3", "What a level is counted in"),
        page.table(unit_head, units, left=2),
        page.tag("h3", "Markers"),
        page.table(marker_head, found, left=2) if found else page.note("No phrase told the texts apart."),
        page.note(_origin(seeds[0])),
        page.tag("h3", "What could be mistaken for it"),
        page.table(held_head, held, left=2) if held else "",
        page.table(["Seed", "Correlation of the baseline score with", "n", "r"], ties, left=2),
        page.note(
            "Length is that outside the markers, whose own words are the style; of topics the correlation ratio. "
            "Classifier: its AUROC on training texts of topics that it had not seen."
        ),
    ]
    return page.section("Score, content and confounds", *parts)


def _held(seed: Rows, row: Rows) -> list[Any]:
    matched = page.number(row["matched"], 3)
    return [
        seed["seed"],
        row["name"],
        page.number(row["drop"], 3),
        page.number(row["adjusted"], 3),
        matched,
        f"{row['matched_n']} of {row['n']}",
    ]


def _unit(seed: Rows) -> list[Any]:
    style = seed["style"]
    unit, neutral, classifier = style["unit"], style["neutral"] or {}, style["classifier"] or {}
    return [
        seed["seed"],
        "the contrast's texts" if unit["source"] == "texts" else "own completions",
        page.number(unit["positive"], 3),
        page.number(unit["negative"], 3),
        page.interval(unit["gap"], unit["low"], unit["high"]),
        page.number(unit["auroc"]),
        page.number(neutral.get("level")),
        page.number(classifier.get("auroc")),
    ]


def _markers(seed: Rows) -> list[list[Any]]:
    """The surest markers of a seed; of given ones there is only the phrase."""
    markers = seed["style"]["markers"]
    rows = [
        [
            seed["seed"],
            m["phrase"],
            m.get("positive"),
            m.get("negative"),
            page.number(m.get("log_odds"), 1),
            f"{m['p']:.1g}" if m.get("p") is not None else None,
        ]
        for m in markers[:_MOST]
    ]
    rest = len(markers) - _MOST
    return [*rows, [seed["seed"], f"and {rest} more", None, None, None, None]] if rest > 0 else rows


def _origin(seed: Rows) -> str:
    """Where the markers come from."""
    style = seed["style"]
    if style["how"] == "given":
        return "The markers were given beforehand."
    whose = "responses of the contrast" if style["texts"] == "responses" else "model's own baseline completions"
    return (
        f"Estimated on training texts, the {whose}: texts that hold the phrase outside longer ones, and Fisher's exact "
        "p before its correction for the phrases tried."
    )
