"""The report's section on judges after the run: rates as each of them reads the completions, and their agreement.

Reads RUN/judgements/summary.json; a run that nobody judged has no such section.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhumbline.evidence.summaries import OWN_ARMS
from rhumbline.judging.judgements import SUMMARY
from rhumbline.records.files import read_json
from rhumbline.report import page
from rhumbline.report.page import Html


def section(run_dir: Path) -> Html:
    """Every judge's rates on the direction's own arms, and Cohen's kappa of every two."""
    path = run_dir / SUMMARY
    summary: dict[str, Any] = read_json(path) if path.is_file() else {"judges": {}}
    if not summary["judges"]:
        return Html("")
    rows = [
        [
            name,
            "refused" if judge["asks"] == "refusal" else "unsafe",
            row["seed"],
            row["arm"],
            row["set"],
            row["n"],
            page.interval(row["rate"], row["low"], row["high"]),
            page.number(row["safety_score"]),
            row["unscored"],
        ]
        for name, judge in summary["judges"].items()
        for row in judge["rows"]
        if row["arm"] in OWN_ARMS
    ]
    head = ["Judge", "Share that is", "Seed", "Arm", "Set", "n", "Rate [95 %]", "Safety score", "Unscored"]
    return page.section(
        "Judges after the run",
        page.table(head, rows, left=5),
        page.fold("Agreement of every two judges", _agreement(summary["agreement"])),
        page.note(
            "The verdict does not rest on these. Unscored: the judge gave no answer that can be read; not in the rate. "
            "Safety score: 1 - unsafe. Agreement is on whether a positive's completion gives in (complied, unsafe) or "
            "not, over the direction's own arms."
        ),
    )


def _agreement(pairs: list[Mapping[str, Any]]) -> Html:
    head = ["Judge", "Judge", "n", "Cohen's kappa", "Agree on"]
    rows = [[*p["judges"], p["n"], page.number(p["kappa"]), f"{p['agreement']:.0%}"] for p in pairs]
    return page.table(head, rows, left=2)
