"""Sections on the metric: ranks of the direction among many null draws, and curves over the dose."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import altair as alt
from msgspec import UNSET

from rhumbline.records.effect_results import DoseFragility, DosePoint, WideEffect
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import DoseKind
from rhumbline.report import page
from rhumbline.report.basic_charts import ChartText, CurvePoint, curves
from rhumbline.report.figures import (
    LIGHT,
    NULL_COLOURS,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    palette,
    printable,
    tips,
    where,
)
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord

# -- wide nulls -------------------------------------------------------------------------------------------------------


def wide_nulls(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rank of the direction among many draws of every null family."""
    explanation = (
        "Each tick is one null draw, evaluated with the metric at the last prompt position. The line is the "
        "direction, shaded with its interval. Comparable: draws whose |cosine| with the direction does not exceed the "
        "rule's bound; the others are nearly the direction itself. Reach it: comparable draws with at least the effect "
        "of the direction. p: (1 + draws that reach it) / (1 + comparable draws), unknown if the rule needs more "
        "draws; floor: the smallest possible p. Holm: adjusted for all comparisons of the run; it "
        "matters if a reader picks one of them. The rule requires all of them, which needs no adjustment. Largest "
        "|cosine|: among draws with at least the effect of the direction. Energy: share of the squared norm of the "
        "residual stream that ablation of a draw removes. Isotropic draws remove about 1 / d of it and have little "
        "effect."
    )

    def content(seed: SeedResult) -> Html:
        charts = draw(_wide_chart(seed.seed, effect) for effect in seed.wide)
        table = page.fold("Every family in numbers", _family_table(seed))
        return page.join([charts, page.tag("p", _energy_text(seed)), table])

    seeds = [seed for seed in run.seeds if any(effect.families for effect in seed.wide)]
    return page.by_seed("Wide nulls", seeds, content, explanation)


def _energy_text(seed: SeedResult) -> str:
    return (
        f"Energy of the direction at its site: {number(seed.energy, 3)}. KL divergence that its ablation causes on "
        f"negative test prompts: {number(seed.shift.kl, 4)} nats (n = {seed.shift.n})."
    )


def _family_table(seed: SeedResult) -> Html:
    head = ["Effect", "Family", "Draws", "Comparable", "Reach it", "Mean", "Largest", "p", "Floor", "Holm"]
    rows = []
    for effect in seed.wide:
        for family, null in effect.families.items():
            holm = null.p_holm if isinstance(null.p_holm, float) else None
            counts = (null.draws, *("—" if n is UNSET else n for n in (null.comparable, null.beaten)))
            ranks = (null.p, null.floor, holm, null.cosine, null.energy)
            effects = number(null.mean), number(null.max)
            rows.append([effect.name, family, *counts, *effects, *(number(value, 3) for value in ranks)])
    return page.table([*head, "Largest |cosine|", "Energy"], rows, left=2)


def _wide_chart(seed: int, effect: WideEffect) -> Chart | None:
    """Draw one tick for each null draw, and one line for the direction."""
    rows: list[ChartRow] = []
    for family, null in effect.families.items():
        name = printable(family, 16)
        rows += [{"family": name, "kind": "null", "change": value} for value in null.values]
        rows.append({"family": name, "kind": "p", "change": effect.change, "shown": f"p = {number(null.p, 3)}"})
    if not any(row["kind"] == "null" for row in rows) or effect.change is None:
        return None
    rows.append({"kind": "direction", "change": effect.change, "low": effect.low, "high": effect.high})
    order = list(dict.fromkeys(row["family"] for row in rows if "family" in row))
    title = f"{effect.name.capitalize()}: change of the metric, seed {seed}"
    summary = f"{title}; one tick for each null draw, by family, and the direction as a line"
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=96)
    y = alt.Y("family:N", scale=alt.Scale(domain=order), axis=labels)
    axis = alt.Axis(title="mean change of the metric, log-odds", tickCount=6, grid=False)
    x = alt.X("change:Q", scale=alt.Scale(nice=True), axis=axis)
    colour = alt.Color("family:N", scale=palette(order, NULL_COLOURS), legend=None)
    blue, direction = LIGHT["direction"], where("datum.kind == 'direction'")
    nulls, ranks = where("datum.kind == 'null'"), where("datum.kind == 'p'")
    tip = tips(change=".3f", low=".3f", high=".3f")
    body = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        direction.mark_rect(color=LIGHT["zone"]).encode(x="low:Q", x2="high:Q"),
        nulls.mark_tick(thickness=1.3, size=15, opacity=0.75).encode(
            x=x, y=y, color=colour, tooltip=tips("family", change=".3f")
        ),
        direction.mark_rule(color=blue, strokeWidth=2.4).encode(x=x, tooltip=tip),
        ranks.mark_text(align="left", color=LIGHT["muted"]).encode(x=alt.value(296), y=y, text="shown:N"),
    ).properties(width=290, height=alt.Step(24))
    return finished(f"wide-seed-{seed}-{effect.name}", summary, body, title, rows)


# -- dose curves ------------------------------------------------------------------------------------------------------


def dose_curves(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rate over strengths of ablation and coefficients of addition."""
    explanation = (
        "Ablation by x - a r r^T x on positive test prompts (a = 1 removes the component along the direction, a > 1 "
        "reflects it); addition of c times the difference in means on negative test prompts, and with negative c "
        "(subtraction) on positive ones. Rate: share of prompts on "
        "which the behaviour is the more probable first token. Band: 95 % interval of the direction. Fragility: share "
        "of the behaviour removed divided by the share of energy removed, for comparison between models."
    )

    def content(seed: SeedResult) -> Html:
        if seed.dose is None or not seed.dose.curves:
            return Html()
        charts = draw(_dose_charts(seed.seed, seed.dose.curves))
        return page.join([charts, page.tag("p", _fragility_text(seed.dose.fragility))])

    return page.by_seed("Dose", run.seeds, content, explanation)


def _fragility_text(dose: DoseFragility) -> str:
    if dose.fragility is None or dose.lost is None or dose.energy is None:
        return "Fragility was not measured."
    half = "at no strength tested" if dose.half is None else f"at strength {dose.half:.2f}"
    nulls = ", ".join(f"{family} {value:.2g}" for family, value in dose.nulls.items())
    return (
        f"Fragility {dose.fragility:.3g}: full ablation removes {dose.lost:.0%} of the behaviour and "
        f"{dose.energy:.2%} of the energy of the residual stream. Half of the behaviour is removed {half}."
    ) + (f" The same ratio for the nulls: {nulls}." if nulls else "")


def _dose_charts(seed: int, points: Iterable[DosePoint]) -> list[Chart | None]:
    """Draw the rate over the dose: the direction with its interval, and the mean of each null family."""
    axes: dict[DoseKind, str] = {
        "ablation": "strength of the ablation",
        "addition": "coefficient of the addition",
        "subtraction": "coefficient of the addition",
    }
    points = list(points)
    charts = []
    for kind, axis in axes.items():
        title = f"{kind.capitalize()}, seed {seed}"
        summary = f"{title}: rate of the behaviour over the {axis}, for the direction and the null families"
        text = ChartText(f"dose-seed-{seed}-{kind}", title, axis, "rate (metric > 0)", summary)
        series = _dose_points([point for point in points if point.kind == kind])
        families = dict.fromkeys(point.series for point in series if point.series != "direction")
        colours = dict(zip(families, NULL_COLOURS, strict=False)) | {"direction": LIGHT["direction"]}
        charts.append(curves(text, series, colours, banded=["direction"], domain=(0, 1), size=(330, 210)))
    return charts


def _dose_points(points: Sequence[DosePoint]) -> list[CurvePoint]:
    """Return the points of the direction, and means of the draws of each null family with their range."""
    own, draws = [], defaultdict(list)
    for point in points:
        if point.arm.family is None:
            own.append(CurvePoint("direction", point.dose, point.rate, point.low, point.high, point.n))
        elif point.rate is not None:
            draws[printable(point.arm.family, 16), point.dose].append(point.rate)
    return own + [
        CurvePoint(family, dose, math.fsum(rates) / len(rates), min(rates), max(rates), len(rates))
        for (family, dose), rates in draws.items()
    ]
