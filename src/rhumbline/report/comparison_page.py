"""The page that sets runs side by side: verdicts, effects with intervals, depth, fragility, cost, and what failed.

Reads the rows of comparing.py and nothing else; page.py and figures.py draw. Decides nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import altair as alt

from rhumbline.report import page
from rhumbline.report.comparison import Failure, Row
from rhumbline.report.figures import LIGHT, Chart, bare_axis, finished, printable, tips, where
from rhumbline.report.page import Html, tag

GLYPHS = {"SINGLE-DIRECTION-REPRODUCES": ("yes", "●"), "NOT-SINGLE-DIRECTION": ("no", "○"), "DAMAGED": ("no", "◐")}
"""Verdict: class of its badge, and its sign; the others are open."""


def build(rows: Sequence[Row], failures: Sequence[Failure], out: Path, title: str = "Comparison of runs") -> Path:
    """Write `out`/report.html and its figures; returns the page's path."""
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


def _head(title: str, rows: Sequence[Row], failures: Sequence[Failure]) -> Html:
    counts = Counter(row["verdict"] for row in rows)
    said = ", ".join(f"{n} × {verdict}" for verdict, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
    models, runs = len({row["model"] for row in rows}), len({row["run"] for row in rows})
    facts = f"{page.count(runs, 'run')} of {page.count(models, 'model')}, {page.count(len(rows), 'seed')} in all"
    lost = tag("p", f"{page.count(len(failures), 'run')} failed; see below.", class_="reason") if failures else ""
    return tag(
        "header",
        tag("p", "rhumbline comparison", class_="kicker"),
        tag("h1", title),
        tag("div", tag("p", said or "no finished run", class_="sentence"), tag("p", facts, class_="reason"), lost,
            class_="verdict"),
    )  # fmt: skip


def _badge(verdict: str) -> Html:
    kind, glyph = GLYPHS.get(verdict, ("open", "◌"))
    return tag("span", tag("i", glyph), " ", verdict, class_=f"mini {kind}")


def _verdicts(rows: Sequence[Row]) -> Html:
    head = ["run", "seed", "verdict", "baseline", "suppression", "induction", "layer / depth", "position", "fragility",
            "KL"]  # fmt: skip
    names = _names(rows)
    cells = [
        [
            name,
            row["seed"],
            _badge(row["verdict"]),
            page.number(row["baseline"]),
            _interval(row, "suppression"),
            _interval(row, "induction"),
            _depth(row),
            row["position"],
            page.number(row["fragility"], 1),
            "—" if row["kl"] is None else f"{row['kl']:.2g}",
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    explained = page.note(
        "Suppression: fall of the rate on positive prompts under ablation; induction: rise on negative prompts under "
        "addition; with 95 % intervals. Fragility: share of the behaviour that full ablation loses, over the share of "
        "the stream's energy that it removes. KL: how far ablation moves the next token on negative prompts, nats."
    )
    return page.section("Verdicts", page.table(head, cells, left=3), explained)


def _interval(row: Row, effect: str) -> Html | str:
    if row[effect] is None:
        return "—"
    low, high = row[f"{effect}_low"], row[f"{effect}_high"]
    found = page.interval(row[effect], low, high)
    return tag("span", found, style="white-space:nowrap")


def _depth(row: Row) -> str:
    return "—" if row["layer"] is None else f"{row['layer']} / {row['layers']} ({row['layer_share']:.0%})"


# -- charts -----------------------------------------------------------------------------------------------------------


def _names(rows: Sequence[Row]) -> list[str]:
    """A short name for each row: the model, contrast and preset where they differ, the run where that is not all."""
    several = [k for k in ("contrast", "preset") if len({row[k] for row in rows}) > 1]
    parts = [[r["model"], *(r[k] for k in several if r[k] != r["model"])] for r in rows]
    names = [printable(" · ".join(_short(str(part)) for part in row), 34) for row in parts]
    seen = Counter((name, row["seed"]) for name, row in zip(names, rows, strict=True))
    twice = {name for (name, _), n in seen.items() if n > 1}
    return [printable(row["run"], 34) if name in twice else name for name, row in zip(names, rows, strict=True)]


def _marks(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows with the names of their lines, and the order of the lines."""
    names = _names(rows)
    marks = [{**row, "name": name, "series": f"seed {row['seed']}"} for name, row in zip(names, rows, strict=True)]
    return marks, list(dict.fromkeys(names))


def _short(text: str) -> str:
    return text.rstrip("/").split("/")[-1]


def _effects(rows: Sequence[Row], canvas: page.Canvas) -> Html | None:
    charts = []
    for effect in ("suppression", "induction"):
        known = [r for r in rows if r[effect] is not None]
        marks, order = _marks(known)
        shown = [
            {"name": m["name"], "series": m["series"], "value": m[effect], "low": m[f"{effect}_low"],
             "high": m[f"{effect}_high"], "verdict": m["verdict"]}
            for m in marks
        ]  # fmt: skip
        title = f"{effect.capitalize()}: change of the rate, with 95 % intervals"
        charts.append(_chart(f"compare-{effect}", title, shown, order, alt.Scale(domain=[-0.25, 1]), whiskers=True))
    return page.section("Effects", canvas(charts)) if any(charts) else None


def _sites(rows: Sequence[Row], canvas: page.Canvas) -> Html | None:
    charts = []
    for column, title, scale in (
        ("layer_share", "Selected layer as a share of the depth", alt.Scale(domain=[0, 1])),
        ("fragility", "Fragility: behaviour lost per energy removed", alt.Scale(type="log")),
    ):
        known = [r for r in rows if r[column] is not None and (column != "fragility" or r[column] > 0)]
        marks, order = _marks(known)
        shown = [{"name": m["name"], "series": m["series"], "value": m[column], "verdict": m["verdict"]} for m in marks]
        charts.append(_chart(f"compare-{column.replace('_', '-')}", title, shown, order, scale, whiskers=False))
    return page.section("Where, and how fragile", canvas(charts)) if any(charts) else None


def _chart(
    name: str, title: str, rows: list[Row], order: list[str], scale: alt.Scale, *, whiskers: bool
) -> Chart | None:
    """A line for each model, a point for each seed, the seeds of a model below each other."""
    if not rows:
        return None
    y = alt.Y("name:N", sort=order, axis=bare_axis(title=None, labelColor=LIGHT["ink"], labelLimit=220, minExtent=120))
    series = list(dict.fromkeys(row["series"] for row in rows))
    below = alt.YOffset("series:N", sort=series)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=None, tickCount=6))
    layers = []
    if whiskers:
        bars = where("isValid(datum.low)").mark_rule(color=LIGHT["direction"], strokeWidth=1.6, opacity=0.7)
        layers = [
            alt.Chart().mark_rule(color=LIGHT["muted"]).encode(x=alt.XDatum(0)),
            bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, yOffset=below),
        ]
    tooltip = tips("name", "series", "verdict", value=".3f", **({"low": ".3f", "high": ".3f"} if whiskers else {}))
    shape = alt.Shape("series:N", scale=_shapes(series), legend=alt.Legend(title=None, orient="bottom"))
    points = alt.Chart().mark_point(filled=True, size=52, color=LIGHT["direction"], opacity=1)
    layers.append(points.encode(x=x, y=y, yOffset=below, shape=shape, tooltip=tooltip))
    body = alt.layer(*layers).properties(width=330, height=alt.Step(max(22, 11 * len(series)), **{"for": "position"}))
    return finished(name, f"{title}; one line for each model, one point for each seed", body, title, rows)


def _shapes(series: Sequence[str]) -> alt.Scale:
    marks = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
    return alt.Scale(domain=list(series), range=[marks[k % len(marks)] for k in range(len(series))])


# -- what it took -----------------------------------------------------------------------------------------------------


def _failures(failures: Iterable[Failure]) -> Html | None:
    listed = [[f.run, f.reason] for f in failures]
    return page.section("Failed", page.table(["run", "reason"], listed, left=2)) if listed else None


def _cost(rows: Sequence[Row]) -> Html:
    head = ["run", "seed", "engine", "device", "seconds", "processor seconds", "peak MiB"]
    cells = [
        [name, r["seed"], r["engine"], r["device"], page.number(r["seconds"], 1), page.number(r["cpu_seconds"], 1),
         page.number(r["peak_memory_mb"], 0)]
        for name, r in zip(_names(rows), rows, strict=True)
    ]  # fmt: skip
    whole = sum(r["seconds"] or 0 for r in rows)
    text = page.note(f"Together {whole:.0f} s of stages; on several workers they overlap.")
    return tag("section", tag("h2", "Cost"), page.table(head, cells, left=4), text, id="cost")
