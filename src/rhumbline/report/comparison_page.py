"""Build the page that compares runs: verdicts, effects with intervals, depth, fragility, costs, and failed runs.

Reads the rows of comparison.py only.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import altair as alt

from rhumbline.evidence.compared_arms import EFFECTS
from rhumbline.records.page_files import PAGE
from rhumbline.report import page
from rhumbline.report.basic_charts import Bar, ChartText, bars, extended
from rhumbline.report.comparison import ComparisonRow, Estimate, Failure
from rhumbline.report.figures import Chart, printable
from rhumbline.report.page import Html, number, tag
from rhumbline.report.verdict_sections import badge


def build(
    rows: Sequence[ComparisonRow],
    failures: Sequence[Failure],
    out: Path,
    title: str = "Comparison of runs",
    folders: Mapping[str, Path] | None = None,
) -> Path:
    """Write `out`/report.html and its figures, and return the path of the page.

    `folders` are the run directories by the names of the rows; the page links to their reports.
    """
    canvas = page.Canvas()
    body = [
        _head(title, rows, failures),
        _verdicts(rows, {name: _link(folder, out) for name, folder in (folders or {}).items()}),
        _effects(rows, canvas),
        _sites(rows, canvas),
        _failures(failures),
        _cost(rows),
    ]
    return page.publish(out, title, [part for part in body if part], canvas.drawings)


def _head(title: str, rows: Sequence[ComparisonRow], failures: Sequence[Failure]) -> Html:
    counts = Counter(row.verdict for row in rows)
    verdicts = ", ".join(f"{n} × {verdict}" for verdict, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
    models, runs = len({row.model for row in rows}), len({row.run for row in rows})
    facts = f"{page.count(runs, 'run')} of {page.count(models, 'model')}, {page.count(len(rows), 'seed')} in total"
    failed = tag("p", f"{page.count(len(failures), 'run')} failed; see below.", class_="reason") if failures else ""
    sentence = tag("p", verdicts or "no finished run", class_="sentence")
    box = page.verdict(sentence, tag("p", facts, class_="reason"), failed)
    return page.join([page.header("rhumbline comparison", title, []), box])


def _link(folder: Path, out: Path) -> str:
    """Return the address of a run's report relative to the page; empty if there is none."""
    report = folder / PAGE
    if not report.is_file():
        return ""
    try:
        return quote(os.path.relpath(report.resolve(), out.resolve()).replace(os.sep, "/"))
    except ValueError:  # another drive of Windows
        return ""


def _verdicts(rows: Sequence[ComparisonRow], links: Mapping[str, str]) -> Html:
    head = ["Run", "Seed", "Verdict", "Baseline", "Suppression", "Induction", "Layer / layers", "Position"]
    cells = []
    for name, row in zip(_names(rows), rows, strict=True):
        effects = (tag("span", page.interval(*row.effect(e.name)), style="white-space:nowrap") for e in EFFECTS)
        depth = "—" if row.layer is None else f"{row.layer} / {row.layers} ({row.layer_share:.0%})"
        kl = "—" if row.kl is None else f"{row.kl:.2g}"
        numbers = number(row.baseline), *effects, depth, row.position, number(row.fragility, 1), kl
        shown = tag("a", name, href=links[row.run]) if links.get(row.run) else name
        cells.append([shown, row.seed, badge(row.verdict, "mini"), *numbers])
    note = page.note(
        "Suppression: decrease of the rate on positive prompts under ablation. Induction: increase of the rate on "
        "negative prompts under addition. Both have 95 % intervals. Fragility: share of the behaviour that full "
        "ablation removes, divided by the share of energy that it removes. KL: mean KL divergence of the next-token "
        "distribution under ablation on negative prompts, nats."
    )
    table = page.table([*head, "Fragility", "KL"], cells, left=3, sortable=True)
    return page.section("Verdicts", table, note, *_several_weights(rows))


def _several_weights(rows: Sequence[ComparisonRow]) -> list[Html]:
    """Return a note for each model name whose runs loaded different weights."""
    runs: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        runs.setdefault(row.model, {}).setdefault(row.fingerprint, []).append(row.run)
    return [
        page.note(
            f"The runs of {printable(model, 80)} loaded different weights, or the same in different dtypes: "
            + "; ".join(f"{print_[:12]} in {', '.join(dict.fromkeys(names))}" for print_, names in of_print.items())
            + "."
        )
        for model, of_print in runs.items()
        if len(of_print) > 1
    ]


# -- charts -----------------------------------------------------------------------------------------------------------


def _names(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return a name for each row: model, and contrast and preset if they differ; the run if these are ambiguous."""
    contrasts, presets = ({getattr(row, key) for row in rows} for key in ("contrast", "preset"))
    names = []
    for row in rows:
        parts = [row.model]
        if len(contrasts) > 1 and row.contrast != row.model:
            parts.append(row.contrast)
        if len(presets) > 1 and row.preset != row.model:
            parts.append(row.preset)
        names.append(printable(" · ".join(part.rstrip("/").split("/")[-1] for part in parts), 34))
    counts = Counter((name, row.seed) for name, row in zip(names, rows, strict=True))
    ambiguous = {name for (name, _), n in counts.items() if n > 1}
    return [printable(row.run, 34) if name in ambiguous else name for name, row in zip(names, rows, strict=True)]


def _effects(rows: Sequence[ComparisonRow], canvas: page.Canvas) -> Html | None:
    charts = []
    for effect in EFFECTS:
        title = f"{effect.name.capitalize()}: change of the rate, with 95 % intervals"
        marks = _bars(rows, lambda row, name=effect.name: row.effect(name))
        scale = extended((-0.25, 1), (end for bar in marks for end in (bar.value, bar.low, bar.high)))
        charts.append(_chart(f"compare-{effect.name}", title, marks, scale))
    return page.section("Effects", drawn) if (drawn := canvas(charts)) else None


def _sites(rows: Sequence[ComparisonRow], canvas: page.Canvas) -> Html | None:
    depths = _bars(rows, lambda row: (row.layer_share, None, None))
    fragile = [row for row in rows if row.fragility is not None and row.fragility > 0]
    fragilities = _bars(fragile, lambda row: (row.fragility, None, None))
    title = "Fragility: behaviour removed per energy removed"
    charts = [
        _chart("compare-layer-share", "Selected layer as a share of the depth", depths, alt.Scale(domain=[0, 1])),
        _chart("compare-fragility", title, fragilities, alt.Scale(type="log")),
    ]
    return page.section("Depth and fragility", drawn) if (drawn := canvas(charts)) else None


def _bars(rows: Sequence[ComparisonRow], value: Callable[[ComparisonRow], Estimate]) -> list[Bar]:
    """Return one mark for each row with a value."""
    known = [row for row in rows if value(row)[0] is not None]
    return [
        Bar(name, f"seed {row.seed}", *value(row), more={"verdict": row.verdict})
        for name, row in zip(_names(known), known, strict=True)
    ]


def _chart(name: str, title: str, marks: Sequence[Bar], scale: alt.Scale) -> Chart | None:
    summary = f"{title}; one line for each model, one point for each seed"
    return bars(ChartText(name, title, "", summary=summary), marks, scale=scale)


# -- failures and costs -----------------------------------------------------------------------------------------------


def _failures(failures: Iterable[Failure]) -> Html | None:
    rows = [[failure.run, failure.reason] for failure in failures]
    return page.section("Failed", page.table(["Run", "Reason"], rows, left=2)) if rows else None


def _cost(rows: Sequence[ComparisonRow]) -> Html:
    head = ["Run", "Seed", "Engine", "Device", "Seconds", "Processor seconds", "Peak MiB"]
    cells = []
    for name, row in zip(_names(rows), rows, strict=True):
        costs = number(row.seconds, 1), number(row.cpu_seconds, 1), number(row.peak_memory_mb, 0)
        cells.append([name, row.seed, row.engine, row.device, *costs])
    total = sum(row.seconds for row in rows)
    notes = [f"All stages together take {total:.0f} s; stages on several workers overlap in time."]
    if any(row.cpu_seconds is None for row in rows):
        notes.append("Where workers computed jobs of a run, their processor time and memory were not measured.")
    return page.section("Cost", page.table(head, cells, left=4, sortable=True), page.note(" ".join(notes)))
