"""Build the page that compares runs: verdicts, effects with intervals, depth, fragility, costs, and failed runs.

Reads the rows of comparison.py only.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import altair as alt

from rhumbline.records.shared import EffectName
from rhumbline.report import page
from rhumbline.report.comparison import ComparisonRow, Failure
from rhumbline.report.figures import LIGHT, Chart, ChartRow, bare_axis, finished, printable, tips, where
from rhumbline.report.page import Html, tag
from rhumbline.report.run_record import EFFECT_ARMS
from rhumbline.report.verdict_sections import badge


def build(
    rows: Sequence[ComparisonRow], failures: Sequence[Failure], out: Path, title: str = "Comparison of runs"
) -> Path:
    """Write `out`/report.html and its figures, and return the path of the page."""
    canvas = page.Canvas()
    body = [
        _head(title, rows, failures),
        _verdicts(rows),
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
    return tag(
        "header",
        tag("p", "rhumbline comparison", class_="kicker"),
        tag("h1", title),
        tag(
            "div",
            tag("p", verdicts or "no finished run", class_="sentence"),
            tag("p", facts, class_="reason"),
            failed,
            class_="verdict",
        ),
    )


def _verdicts(rows: Sequence[ComparisonRow]) -> Html:
    head = ["Run", "Seed", "Verdict", "Baseline", "Suppression", "Induction", "Layer / layers", "Position"]
    cells = [
        [
            name,
            row.seed,
            badge(row.verdict, "mini"),
            page.number(row.baseline),
            _interval(row, "suppression"),
            _interval(row, "induction"),
            _depth(row),
            row.position,
            page.number(row.fragility, 1),
            "—" if row.kl is None else f"{row.kl:.2g}",
        ]
        for name, row in zip(_names(rows), rows, strict=True)
    ]
    note = page.note(
        "Suppression: decrease of the rate on positive prompts under ablation. Induction: increase of the rate on "
        "negative prompts under addition. Both have 95 % intervals. Fragility: share of the behaviour that full "
        "ablation removes, divided by the share of energy that it removes. KL: mean KL divergence of the next-token "
        "distribution under ablation on negative prompts, nats."
    )
    return page.section("Verdicts", page.table([*head, "Fragility", "KL"], cells, left=3), note)


def _interval(row: ComparisonRow, effect: EffectName) -> Html:
    return tag("span", page.interval(*row.effect(effect)), style="white-space:nowrap")


def _depth(row: ComparisonRow) -> str:
    return "—" if row.layer is None else f"{row.layer} / {row.layers} ({row.layer_share:.0%})"


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


def _marks(rows: Sequence[ComparisonRow]) -> list[ChartRow]:
    """Return the labels of one mark for each row."""
    return [
        {"name": name, "series": f"seed {row.seed}", "verdict": row.verdict}
        for name, row in zip(_names(rows), rows, strict=True)
    ]


def _effects(rows: Sequence[ComparisonRow], canvas: page.Canvas) -> Html | None:
    charts = []
    for effect in EFFECT_ARMS:
        known = [row for row in rows if row.effect(effect)[0] is not None]
        marks = [
            mark | dict(zip(("value", "low", "high"), row.effect(effect), strict=True))
            for mark, row in zip(_marks(known), known, strict=True)
        ]
        title = f"{effect.capitalize()}: change of the rate, with 95 % intervals"
        charts.append(_chart(f"compare-{effect}", title, marks, alt.Scale(domain=[-0.25, 1])))
    return page.section("Effects", canvas(charts)) if any(charts) else None


def _sites(rows: Sequence[ComparisonRow], canvas: page.Canvas) -> Html | None:
    depths = [row for row in rows if row.layer_share is not None]
    depth_marks = [m | {"value": row.layer_share} for m, row in zip(_marks(depths), depths, strict=True)]
    fragile = [row for row in rows if row.fragility is not None and row.fragility > 0]
    fragility_marks = [m | {"value": row.fragility} for m, row in zip(_marks(fragile), fragile, strict=True)]
    depth = "Selected layer as a share of the depth"
    fragility = "Fragility: behaviour removed per energy removed"
    charts = [
        _chart("compare-layer-share", depth, depth_marks, alt.Scale(domain=[0, 1])),
        _chart("compare-fragility", fragility, fragility_marks, alt.Scale(type="log")),
    ]
    return page.section("Depth and fragility", canvas(charts)) if any(charts) else None


def _chart(name: str, title: str, rows: Sequence[ChartRow], scale: alt.Scale) -> Chart | None:
    """Draw a line for each name and a point for each seed; intervals if the rows have them."""
    if not rows:
        return None
    order = list(dict.fromkeys(row["name"] for row in rows))
    y = alt.Y("name:N", sort=order, axis=bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=220, minExtent=120))
    series = list(dict.fromkeys(row["series"] for row in rows))
    below = alt.YOffset("series:N", sort=series)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=None, tickCount=6))
    layers, formats = [], {"value": ".3f"}
    if "low" in rows[0]:
        formats |= {"low": ".3f", "high": ".3f"}
        bars = where("isValid(datum.low)").mark_rule(color=LIGHT["direction"], strokeWidth=1.6, opacity=0.7)
        layers = [
            alt.Chart().mark_rule(color=LIGHT["muted"]).encode(x=alt.XDatum(0)),
            bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, yOffset=below),
        ]
    shape = alt.Shape("series:N", scale=_shapes(series), legend=alt.Legend(title=None, orient="bottom"))
    points = alt.Chart().mark_point(filled=True, size=52, color=LIGHT["direction"], opacity=1)
    tooltip = tips("name", "series", "verdict", **formats)
    layers.append(points.encode(x=x, y=y, yOffset=below, shape=shape, tooltip=tooltip))
    body = alt.layer(*layers).properties(width=330, height=alt.Step(max(22, 11 * len(series)), **{"for": "position"}))
    return finished(name, f"{title}; one line for each model, one point for each seed", body, title, rows)


def _shapes(series: Sequence[str]) -> alt.Scale:
    marks = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
    return alt.Scale(domain=list(series), range=[marks[k % len(marks)] for k in range(len(series))])


# -- failures and costs -----------------------------------------------------------------------------------------------


def _failures(failures: Iterable[Failure]) -> Html | None:
    rows = [[failure.run, failure.reason] for failure in failures]
    return page.section("Failed", page.table(["Run", "Reason"], rows, left=2)) if rows else None


def _cost(rows: Sequence[ComparisonRow]) -> Html:
    head = ["Run", "Seed", "Engine", "Device", "Seconds", "Processor seconds", "Peak MiB"]
    cells = [
        [
            name,
            row.seed,
            row.engine,
            row.device,
            page.number(row.seconds, 1),
            page.number(row.cpu_seconds, 1),
            page.number(row.peak_memory_mb, 0),
        ]
        for name, row in zip(_names(rows), rows, strict=True)
    ]
    total = sum(row.seconds for row in rows)
    note = page.note(f"All stages together take {total:.0f} s; stages on several workers overlap in time.")
    return tag("section", tag("h2", "Cost"), page.table(head, cells, left=4), note, id="cost")
