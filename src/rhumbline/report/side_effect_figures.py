"""Charts of side effects: losses, effects against losses, and benchmark scores.

Independent of files and of the page around the charts.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.evaluation_files import ComparedScore
from rhumbline.records.results import Loss, SeedResult
from rhumbline.records.shared import EffectName
from rhumbline.report.figures import (
    LIGHT,
    NULL_COLOURS,
    NULL_SHAPES,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    palette,
    tips,
    where,
)
from rhumbline.report.run_record import EFFECT_ARMS, EffectArm, measure, measured_arm

TEXT_NAMES = {"text": "plain text", "responses": "responses", "completions": "own completions"}
"""Names of the texts that losses are measured on."""


def effects_and_losses(seed: SeedResult, losses: Sequence[Loss]) -> list[Chart]:
    """Draw the loss on the model's own completions over the effect on the behaviour, one point for each arm."""
    on_completions = [loss for loss in losses if loss.text == "completions"]
    charts = [_effect_chart(seed, name, effect, on_completions) for name, effect in EFFECT_ARMS.items()]
    return [chart for chart in charts if chart is not None]


def _effect_chart(seed: SeedResult, name: EffectName, effect: EffectArm, losses: Sequence[Loss]) -> Chart | None:
    baseline = measured_arm(seed, BASELINE, effect.side)
    if baseline is None:
        return None
    rows = []
    for loss in losses:
        arm = measured_arm(seed, loss.arm, effect.side)
        if loss.arm.does(effect.arm.kind) and arm is not None:
            rows.append(_effect_row(loss, arm, baseline, effect.sign))
    if not rows or any(row["change"] is None for row in rows):
        return None
    title = f"{name.capitalize()} and cross-entropy, seed {seed.seed}"
    shown = f"change of the {measure([seed])}"
    summary = f"{title}: {shown}, and change of cross-entropy on the model's own completions"
    return finished(f"cost-seed-{seed.seed}-{name}", summary, _scatter(rows, f"{name}: {shown}"), title, rows)


def _effect_row(loss: Loss, arm: ArmRate, baseline: ArmRate, sign: int) -> ChartRow:
    before = baseline.rate
    assert before is not None
    changes = [None if end is None else end - before if sign > 0 else before - end for end in (arm.low, arm.high)]
    low, high = changes if sign > 0 else reversed(changes)
    assert arm.rate is not None
    return {
        "arm": loss.arm.label,
        "kind": "null" if loss.arm.is_null else "direction",
        "effect": arm.rate - before if sign > 0 else before - arm.rate,
        "effect_low": low,
        "effect_high": high,
        "change": loss.change,
        "low": loss.low,
        "high": loss.high,
    }


def _scatter(rows: Sequence[ChartRow], x_title: str) -> Any:
    nulls = [row["arm"] for row in rows if row["kind"] == "null"]
    order = [row["arm"] for row in rows if row["kind"] == "direction"] + nulls
    n = len(order) - len(nulls)
    scale = alt.Scale(domain=order, range=[LIGHT["direction"]] * n + NULL_COLOURS[: len(nulls)])
    shapes = alt.Scale(domain=order, range=["circle"] * n + list(NULL_SHAPES[: len(nulls)]))
    legend = alt.Legend(title=None, orient="bottom", columns=2, symbolOpacity=1)
    colour = alt.Color("arm:N", scale=scale, legend=legend)
    domain = alt.Scale(domain=[-0.1, 1.05], nice=False)
    x = alt.X("effect:Q", scale=domain, axis=alt.Axis(title=x_title, grid=False, tickCount=6))
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


def losses(seed: int, table: Sequence[Loss]) -> list[Chart]:
    """Draw the change of cross-entropy under every arm, one chart for each text."""
    charts = []
    for text, name in TEXT_NAMES.items():
        rows: list[ChartRow] = [
            {
                "arm": loss.arm.label,
                "kind": "null" if loss.arm.is_null else "direction",
                "shown": f"{loss.change:+z.3f}",
                **{key: getattr(loss, key) for key in ("change", "low", "high", "ce", "perplexity", "documents")},
            }
            for loss in table
            if loss.text == text and loss.change is not None
        ]
        if rows:
            title = f"Cross-entropy on {name}, seed {seed}"
            summary = f"{title}: change from the baseline under every arm, with 95 % intervals"
            charts.append(finished(f"losses-seed-{seed}-{text}", summary, _forest(rows), title, rows))
    return charts


def _forest(rows: Sequence[ChartRow]) -> Any:
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


def scores(name: str, title: str, rows: Sequence[ComparedScore], names: Sequence[str]) -> Chart:
    """Draw the change of every benchmark score under the arms, with 95 % intervals. `names` are those of the scores."""
    arms = [arm.label for arm in dict.fromkeys(row.arm for row in rows)]
    data: list[ChartRow] = [
        {
            "task": task,
            "arm": row.arm.label,
            **{key: getattr(row, key) for key in ("score", "change", "low", "high", "n")},
        }
        for row, task in zip(rows, names, strict=True)
    ]
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=130)
    y = alt.Y("task:N", scale=alt.Scale(domain=list(dict.fromkeys(names))), axis=labels)
    offset = alt.YOffset("arm:N", scale=alt.Scale(domain=arms))
    colour = alt.Color(
        "arm:N",
        scale=palette(arms, [LIGHT["direction"], *NULL_COLOURS]),
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
