"""Charts of the arms: rates or levels with what the rule asks of them, and null draws by their cosine.

Knows arms, panels and margins. Does not know files, the page around the charts, or what a verdict means.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from rhumbline.report.figures import (
    LIGHT,
    NULL_COLOURS,
    NULL_SHAPES,
    Chart,
    Row,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)

PANELS = {"suppression": ("ablation", "positive", -1), "induction": ("addition", "negative", 1)}
"""Panel: (arm, set of prompts, the sign that the rule asks of the change in rate)."""


def draws_of(arms: Iterable[Row], arm: str, which: str) -> dict[str, list[Row]]:
    """Measured null draws of one intervention on one set, by family."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in arms:
        parts = row["arm"].split(":")
        if parts[0] == "null" and parts[-1] == arm and row["set"] == which and row["rate"] is not None:
            found[":".join(parts[1:-2])].append(row | {"draw": parts[-2]})
    return dict(found)


def arm_of(arms: Iterable[Row], arm: str, which: str) -> Row | None:
    """The row of one arm on one set, if it was measured."""
    return next((row for row in arms if (row["arm"], row["set"]) == (arm, which) and row["rate"] is not None), None)


def measure(seeds: Iterable[Row]) -> str:
    """What the arms of a run show: the rate of a behaviour, or the level of a continuous score."""
    return "level" if any(seed.get("style") for seed in seeds) else "rate"


def _swarm(values: Sequence[float], bin_width: float = 0.02) -> list[float]:
    """Offsets in [-1, 1] that spread nearby values around 0."""
    bins = [round(value / bin_width) for value in values]
    sizes, seen, offsets = Counter(bins), Counter(), []
    step = min(0.5, 2 / max(sizes.values(), default=1))
    for b in bins:
        offsets.append((seen[b] - (sizes[b] - 1) / 2) * step)
        seen[b] += 1
    return offsets


def _measured_rows(seed: Row, panel: str) -> list[Row]:
    """Baseline, direction and every null draw of one panel, as marks."""
    arm, which, _ = PANELS[panel]
    rows: list[Row] = []
    for kind, name in (("baseline", "baseline"), ("direction", arm)):
        if row := arm_of(seed["arms"], name, which):
            interval = "" if row["low"] is None else f"  [{row['low']:z.2f}, {row['high']:z.2f}]"
            rows.append(_mark(row) | {"row": kind, "kind": kind, "shown": f"{row['rate']:z.2f}{interval}"})
    for family, draws in draws_of(seed["arms"], arm, which).items():
        rates = [row["rate"] for row in draws]
        name, mean = _null_name(family), math.fsum(rates) / len(rates)
        shown = f"mean {mean:.2f} of {len(draws)}"
        rows.append(
            {"row": name, "kind": "mean", "arm": "mean of the draws", "rate": mean, "n": len(draws), "shown": shown}
        )
        for row, offset in zip(draws, _swarm(rates), strict=True):
            rows.append(_mark(row) | {"row": name, "kind": "null", "offset": offset})
    return rows


def _null_name(family: str) -> str:
    return f"null: {printable(family, 16)}"


def _mark(row: Row) -> Row:
    return {key: row.get(key) for key in ("arm", "rate", "low", "high", "n", "degenerate")}


def _reach(rows: Iterable[Row]) -> tuple[float, float]:
    """The ends of the axis: rates lie from 0 to 1, a level may lie beyond either class."""
    ends = [row[key] for row in rows for key in ("rate", "low", "high") if row.get(key) is not None]
    return min(0, *ends, 1), max(0, *ends, 1)


def _margin_rows(
    rows: Sequence[Row], sign: int, rule: Mapping[str, Any], reach: tuple[float, float] = (0, 1)
) -> list[Row]:
    """What the rule asks, drawn: margins against the baseline and each family, and the region that meets them all."""
    rate: Row = {row["kind"]: row["rate"] for row in rows if row["kind"] in ("baseline", "direction")}
    drop, gap, least = rule.get("min_drop"), rule.get("min_gap"), rule.get("min_baseline")
    limits, marks = [], []
    if sign < 0 and least is not None and rate.get("baseline", 1) < least:
        marks.append({"kind": "margin", "rate": least, "arm": "lowest baseline that the rule accepts"})
    if "direction" not in rate or "baseline" not in rate:
        return marks
    if drop is not None:
        limits.append(rate["baseline"] + sign * drop)
        marks.append({"kind": "margin", "rate": limits[-1], "arm": f"baseline {sign * drop:+.2f}"})
    asked = [_null_name(family) for family in rule.get("families", [])]
    for row in rows:
        if gap is not None and row["kind"] == "mean" and row["row"] in asked:
            limits.append(row["rate"] + sign * gap)
            note = f"mean of the draws {sign * gap:+.2f}"
            marks.append({"kind": "gap", "row": row["row"], "rate": row["rate"], "to": limits[-1], "arm": note})
    # A margin that no rate can reach lies outside the axis.
    least_shown, most_shown = reach
    marks = [mark for mark in marks if least_shown <= mark.get("to", mark["rate"]) <= most_shown]
    edge = min(limits, default=-math.inf) if sign < 0 else max(limits, default=math.inf)
    if least_shown <= edge <= most_shown:
        region = "where the rule asks the direction to be"
        marks.append({"kind": "zone", "rate": edge, "to": least_shown if sign < 0 else most_shown, "arm": region})
    return marks


def arms(seeds: Sequence[Row], rule: Mapping[str, Any]) -> list[Chart]:
    """Rates or levels of every arm with their intervals; one panel for suppression, one for induction."""
    charts, shows = [], measure(seeds)
    for panel, (arm, which, sign) in PANELS.items():
        measured = {seed["seed"]: _measured_rows(seed, panel) for seed in seeds}
        reach = _reach(row for found in measured.values() for row in found)
        rows = []
        for seed, found in measured.items():
            marks = found + _margin_rows(found, sign, rule, reach)
            rows += [row | {"seed": f"seed {seed}"} for row in marks]
        if not rows:
            continue
        order = list(dict.fromkeys(row["row"] for row in rows if "row" in row))
        most = max((row["n"] for row in rows if row["kind"] == "mean"), default=0)
        body = alt.layer(*_arm_layers(order, 26 if most <= 25 else 13, shows, reach)).properties(
            width=280, height=alt.Step(25)
        )
        if len(seeds) > 1:
            header = alt.Header(title=None, labelAnchor="start", labelOrient="top", labelPadding=2)
            body = body.facet(
                facet=alt.Facet("seed:N", header=header, sort=None),
                data=alt.InlineData(values=[]),
                columns=1,
                spacing=10,
            )
        treated = any(row["kind"] == "direction" for row in rows)
        title = f"{panel.capitalize()}: {arm} on {which} prompts" if treated else f"Baseline on {which} prompts"
        summary = f"{title}; {shows} of the behaviour in every arm, with 95 % intervals"
        charts.append(finished(f"arms-{panel}", summary, body, title, rows))
    return charts


def _arm_layers(order: list[str], size: float, shows: str, reach: tuple[float, float]) -> list[alt.Chart]:
    families = [name for name in order if name.startswith("null: ")]
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=104)
    y = alt.Y("row:N", scale=alt.Scale(domain=order), axis=labels)
    axis = bare_axis(title=f"{shows} of the behaviour", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    x = alt.X("rate:Q", scale=alt.Scale(domain=[reach[0] - 0.03, reach[1] + 0.03], nice=False), axis=axis)
    colour = alt.Color("row:N", scale=palette(families, NULL_COLOURS), legend=None)
    shape = alt.Shape("row:N", scale=palette(families, NULL_SHAPES), legend=None)
    offset = alt.YOffset("offset:Q", scale=alt.Scale(domain=[-1, 1], range=[3.5, 21.5]))
    muted, ink, blue = LIGHT["muted"], LIGHT["ink"], LIGHT["direction"]
    full = tips("arm", "seed", rate=".3f", low=".3f", high=".3f", degenerate=".3f", n="d")
    short = tips("arm", rate=".3f")
    kind = {
        name: where(f"datum.kind == '{name}'")
        for name in ("zone", "margin", "gap", "null", "mean", "baseline", "direction")
    }
    layers = [
        kind["zone"].mark_rect(color=LIGHT["zone"]).encode(x=x, x2="to:Q", tooltip=tips("arm")),
        kind["margin"].mark_rule(color=muted, strokeDash=[4, 3]).encode(x=x, tooltip=short),
        kind["gap"].mark_rule(color=muted, strokeDash=[2, 2]).encode(x=x, x2="to:Q", y=y),
        kind["gap"].mark_tick(color=muted, thickness=1.5, size=11).encode(x="to:Q", y=y),
        kind["null"].mark_point(size=size, strokeWidth=1.1, opacity=0.8)
        .encode(x=x, y=y, yOffset=offset, color=colour, shape=shape, tooltip=full),
        kind["mean"].mark_tick(thickness=2.5, size=19, opacity=1).encode(x=x, y=y, color=colour, tooltip=short),
    ]  # fmt: skip
    for name, tint, mark, area in (("baseline", ink, "square", 70), ("direction", blue, "circle", 110)):
        layers.append(kind[name].mark_rule(strokeWidth=2, color=tint).encode(x="low:Q", x2="high:Q", y=y))
        point = kind[name].mark_point(shape=mark, filled=True, size=area, opacity=1, color=tint)
        layers.append(point.encode(x=x, y=y, tooltip=full))
    numbers = where("isValid(datum.shown)").mark_text(align="left")
    return [*layers, numbers.encode(x=alt.value(292), y=y, text="shown:N")]


# -- nulls -------------------------------------------------------------------------------------------------------------


def nulls(seed: Row) -> list[Chart]:
    """Each null draw: its cosine with the direction against its effect."""
    cosines = {(row["family"], str(row["draw"])): row["cosine"] for row in seed["nulls"]}
    charts = []
    for panel, (arm, which, sign) in PANELS.items():
        baseline, treated = arm_of(seed["arms"], "baseline", which), arm_of(seed["arms"], arm, which)
        if baseline is None or treated is None:
            continue
        rows = []
        for family, draws in draws_of(seed["arms"], arm, which).items():
            for row in draws:
                change, cosine = sign * (row["rate"] - baseline["rate"]), cosines.get((family, row["draw"]))
                if cosine is not None:
                    name = printable(family, 16)
                    rows.append({"family": name, "draw": row["draw"], "cosine": cosine, "change": change})
        change = sign * (treated["rate"] - baseline["rate"])
        rows.append({"family": "direction", "draw": "", "cosine": 1.0, "change": change})
        title = f"{panel.capitalize()}, seed {seed['seed']}"
        summary = f"{title}: cosine of every null draw with the direction, beside its effect"
        charts.append(
            finished(f"nulls-seed-{seed['seed']}-{panel}", summary, _scatter(rows, measure([seed])), title, rows)
        )
    return charts


def _scatter(rows: list[Row], shows: str) -> Any:
    families = list(dict.fromkeys(row["family"] for row in rows[:-1]))
    low, floor = min(-0.5, *(row["cosine"] for row in rows), 0), min(-0.1, *(row["change"] for row in rows), 0)
    x_scale = alt.Scale(domain=[low, 1.05], nice=False)
    y_scale = alt.Scale(domain=[floor, max(1.04, *(row["change"] for row in rows), 1)], nice=False)
    legend = alt.Legend(title=None, orient="bottom", columns=5, symbolSize=45, columnPadding=14)
    site = {
        "x": alt.X("cosine:Q", title="cosine with the direction", scale=x_scale, axis=alt.Axis(tickCount=6)),
        "y": alt.Y(
            "change:Q",
            scale=y_scale,
            axis=alt.Axis(title=f"change in {shows}", tickCount=5, format=".2~f", minExtent=28),
        ),
        "tooltip": tips("family", "draw", cosine=".3f", change=".3f"),
    }
    style = {
        "color": alt.Color("family:N", scale=palette(families, NULL_COLOURS), legend=legend),
        "shape": alt.Shape("family:N", scale=palette(families, NULL_SHAPES), legend=legend),
    }
    blue, zero = LIGHT["direction"], alt.Chart().mark_rule(color=LIGHT["muted"], strokeWidth=0.7)
    draws, direction = where("datum.family != 'direction'"), where("datum.family == 'direction'")
    return alt.layer(
        zero.encode(y=alt.YDatum(0, scale=y_scale)),
        zero.encode(x=alt.XDatum(0, scale=x_scale)),
        draws.mark_point(size=34 if len(rows) < 100 else 18, strokeWidth=1.2, opacity=0.9).encode(**site, **style),
        direction.mark_circle(size=110, opacity=1, color=blue).encode(**site),
        direction.mark_text(align="right", dx=-9, color=blue, fontWeight="bold").encode(**site, text="family:N"),
    ).properties(width=330, height=210)
