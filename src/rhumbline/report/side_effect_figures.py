"""Charts of the side effects. Knows shapes and scales, as figures.py does; knows no files."""

from collections.abc import Mapping, Sequence
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
    tips,
    where,
)

PANELS = {"suppression": ("ablation", "positive", 1), "induction": ("addition", "negative", -1)}
"""Effect: its intervention, the set it is read on, and the sign that makes it positive."""
TITLES = {"text": "plain text", "responses": "responses", "completions": "own completions"}


def arm_label(arm: str) -> str:
    """An arm as a person reads it: nulls by family and intervention."""
    match arm.split(":"):
        case ["null", family, _, kind]:
            return f"{family} null, {kind}"
    return arm


def effect_and_cost(seed: Mapping[str, Any]) -> list[Chart]:
    """The effect on the behaviour against the cost on the model's own completions, one point for each arm."""
    rates = {(a["arm"], a["set"]): a for a in seed["arms"]}
    cost = {r["arm"]: r for r in seed["side_effects"]["losses"] if r["text"] == "completions"}
    charts = []
    for name, (kind, side, sign) in PANELS.items():
        base = rates.get(("baseline", side))
        rows: list[Row] = []
        for arm, spent in cost.items():
            found = rates.get((arm, side))
            if arm.split(":")[-1] != kind or found is None or base is None or None in (found["rate"], base["rate"]):
                continue
            ends = sorted(sign * (base["rate"] - found[end]) for end in ("low", "high"))
            rows.append(
                {
                    "arm": arm_label(arm),
                    "kind": "null" if arm.startswith("null:") else "direction",
                    "effect": sign * (base["rate"] - found["rate"]),
                    "effect_low": ends[0],
                    "effect_high": ends[1],
                    "change": spent["change"],
                    "low": spent["low"],
                    "high": spent["high"],
                }
            )
        if rows and all(row["change"] is not None for row in rows):
            title = f"{name.capitalize()} and its cost, seed {seed['seed']}"
            summary = f"{title}: change of the rate against the change of cross-entropy on the model's own completions"
            charts.append(finished(f"cost-seed-{seed['seed']}-{name}", summary, _scatter(rows, name), title, rows))
    return charts


def _scatter(rows: Sequence[Row], effect: str) -> Any:
    nulls = [row["arm"] for row in rows if row["kind"] == "null"]
    order = [row["arm"] for row in rows if row["kind"] == "direction"] + nulls
    n = len(order) - len(nulls)
    scale = alt.Scale(domain=order, range=[LIGHT["direction"]] * n + NULL_COLOURS[: len(nulls)])
    shapes = alt.Scale(domain=order, range=["circle"] * n + list(NULL_SHAPES[: len(nulls)]))
    legend = alt.Legend(title=None, orient="bottom", columns=2, symbolOpacity=1)
    colour = alt.Color("arm:N", scale=scale, legend=legend)
    domain = alt.Scale(domain=[-0.1, 1.05], nice=False)
    x = alt.X("effect:Q", scale=domain, axis=alt.Axis(title=f"{effect}: change of the rate", grid=False, tickCount=6))
    y = alt.Y("change:Q", axis=alt.Axis(title="change of cross-entropy, nats per token", tickCount=5))
    base = alt.Chart().encode(color=colour)
    tip = tips("arm", effect=".3f", change=".4f", low=".4f", high=".4f")
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["muted"], strokeDash=[4, 3]).encode(y=alt.YDatum(0)),
        base.mark_rule(strokeWidth=1.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_rule(strokeWidth=1.6).encode(x=alt.X("effect_low:Q"), x2="effect_high:Q", y=y),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, y=y, shape=alt.Shape("arm:N", scale=shapes, legend=legend), tooltip=tip
        ),
    ).properties(width=300, height=220)


def losses(seed: int, table: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The change of cross-entropy of every arm, one chart for each text, nulls beside."""
    charts = []
    for text, called in TITLES.items():
        rows: list[Row] = []
        for row in table:
            if row["text"] == text and row["change"] is not None:
                kind = "null" if row["arm"].startswith("null:") else "direction"
                numbers = {k: row[k] for k in ("change", "low", "high", "ce", "perplexity", "documents")}
                rows.append({"arm": arm_label(row["arm"]), "kind": kind, "shown": f"{row['change']:+.3f}", **numbers})
        if rows:
            title = f"Cross-entropy on {called}, seed {seed}"
            summary = f"{title}: change from the baseline under every arm, with 95 % intervals"
            charts.append(finished(f"losses-seed-{seed}-{text}", summary, _forest(rows), title, rows))
    return charts


def _forest(rows: Sequence[Row]) -> Any:
    order = [row["arm"] for row in rows]
    y = alt.Y(
        "arm:N", scale=alt.Scale(domain=order), axis=bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=130)
    )
    x = alt.X("change:Q", axis=alt.Axis(title="change, nats per token", tickCount=5, grid=False))
    colour = alt.Color(
        "kind:N", scale=palette(["direction", "null"], [LIGHT["direction"], LIGHT["null-a"]]), legend=None
    )
    tip = tips("arm", change=".4f", low=".4f", high=".4f", ce=".4f", perplexity=".2f", documents="d")
    everything = where("true")
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        everything.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        everything.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour, tooltip=tip),
        everything.mark_text(align="left", color=LIGHT["muted"]).encode(x=alt.value(314), y=y, text="shown:N"),
    ).properties(width=306, height=alt.Step(23))


def _names() -> alt.Axis:
    return bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=130, labelLimit=200, labelPadding=8)


def scores(name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> Chart:
    """The change of every benchmark score under the arms, with 95 % intervals."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    data: list[Row] = [{**row, "arm": arm_label(row["arm"])} for row in rows]
    labels = [arm_label(arm) for arm in arms]
    y = alt.Y(
        "task:N", scale=alt.Scale(domain=tasks), axis=bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=130)
    )
    offset = alt.YOffset("arm:N", scale=alt.Scale(domain=labels))
    colour = alt.Color(
        "arm:N",
        scale=palette(labels, [LIGHT["direction"], *NULL_COLOURS]),
        legend=alt.Legend(title=None, orient="bottom", columns=3, symbolOpacity=1),
    )
    x = alt.X("change:Q", axis=alt.Axis(title="change of the score from the baseline", tickCount=6, grid=False))
    tip = tips("task", "arm", score=".3f", change="+.3f", low=".3f", high=".3f", n="d")
    base = alt.Chart().encode(y=y, yOffset=offset, color=colour)
    body = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, tooltip=tip),
    ).properties(width=420, height=alt.Step(16))
    summary = f"{title}: change of each score under every arm, with 95 % intervals"
    return finished(name, summary, body, title, data)
