"""Sections on the metric: ranks of the direction among many null draws, and curves over the dose."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import altair as alt
from msgspec import UNSET

from rhumbline.evidence.compared_arms import EFFECTS
from rhumbline.records.effect_results import DoseFragility, DosePoint
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import DoseKind, EffectName
from rhumbline.report import page
from rhumbline.report.basic_charts import ChartText, CurvePoint, curves
from rhumbline.report.figures import (
    LIGHT,
    Chart,
    ChartRow,
    bare_axis,
    finished,
    lane_of,
    printable,
    scale_of,
    tips,
    where,
)
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord

# -- wide nulls -------------------------------------------------------------------------------------------------------


def wide_nulls(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rank of the direction among many draws of every null family."""
    explanation = (
        "Each tick is one null draw, evaluated with the metric at the last prompt position. The lines are the "
        "directions of the seeds, shaded with their intervals. The values of p are those of the seeds, in order. "
        "Comparable: draws whose |cosine| with the direction does not exceed the bound of the rule. The others are "
        "nearly the direction itself. Reach it: comparable draws with at least the effect of the direction. p: (1 + "
        "draws that reach it) / (1 + comparable draws). It is unknown if the rule needs more draws. Floor: the "
        "smallest possible p. Largest |cosine|: among draws with at least the effect of the direction. Energy: share "
        "of the squared norm of the residual stream that ablation of a draw removes. Isotropic draws remove about 1 / "
        "d of it and have little effect."
    )

    seeds = [seed for seed in run.seeds if any(effect.families for effect in seed.wide)]
    if not seeds:
        return Html()
    charts = draw(_wide_chart(seeds, effect.name) for effect in EFFECTS)
    return page.section("Wide nulls", charts, page.how_to_read(explanation))


def family_table(seed: SeedResult) -> Html:
    """Return the ranks among the wide nulls of every family in numbers; empty without wide nulls."""
    if not any(effect.families for effect in seed.wide):
        return Html()
    energy = page.tag("p", f"Energy of the direction at its site: {number(seed.energy, 3)}.")
    about_holm = page.note(
        "Holm: p adjusted for all comparisons of the run. It is large with few draws, because p cannot be below its "
        "floor and many comparisons are adjusted. It matters if a reader picks one comparison. The rule requires all "
        "of them to reach its bound, so it needs no adjustment."
    )
    head = ["Effect", "Family", "Draws", "Comparable", "Reach it", "Damaging", "Mean", "Largest", "p", "Floor", "Holm"]
    rows = []
    for effect in seed.wide:
        for family, null in effect.families.items():
            holm = null.p_holm if isinstance(null.p_holm, float) else None
            counts = (
                null.draws,
                *("—" if n is UNSET else n for n in (null.comparable, null.beaten)),
                0 if null.damaging is UNSET else null.damaging,
            )
            ranks = (null.p, null.floor, holm, null.cosine, null.energy)
            effects = number(null.mean), number(null.max)
            rows.append([effect.name, family, *counts, *effects, *(number(value, 3) for value in ranks)])
    about_damage = page.note(
        "Damaging: draws that suppress as much as the direction, with a KL divergence on negatives above the bound of "
        "the rule and above that of the direction. They do not count as draws that reach the effect."
    )
    table = page.table([*head, "Largest |cosine|", "Energy"], rows, left=2)
    return page.join([page.tag("h3", "Ranks among the wide nulls"), table, about_damage, about_holm, energy])


def _wide_chart(seeds: Sequence[SeedResult], name: EffectName) -> Chart | None:
    """Draw one tick for each null draw, and one line for the direction of each seed; the seeds share the rows."""
    rows: list[ChartRow] = []
    ranks: dict[str, list[str]] = defaultdict(list)
    for k, seed in enumerate(seeds):
        for effect in (e for e in seed.wide if e.name == name and e.change is not None):
            place = {"lane": lane_of(k, len(seeds)), "seed": f"seed {seed.seed}"}
            for family, null in effect.families.items():
                shown = printable(family, 16)
                rows += [{"family": shown, "kind": "null", "change": value} | place for value in null.values]
                ranks[shown].append(number(null.p, 3))
            own = {"kind": "direction", "change": effect.change, "low": effect.low, "high": effect.high}
            rows.append(own | place)
    if not any(row["kind"] == "null" for row in rows):
        return None
    order = list(ranks)
    rows += [{"family": f, "kind": "p", "shown": f"p {', '.join(some)}"} for f, some in ranks.items()]
    title = f"{name.capitalize()}: change of the metric"
    summary = f"{title}; one tick for each null draw, by family, and the direction of each seed as a line"
    labels = bare_axis(title=None, labelColor=LIGHT["ink"], minExtent=76)
    y = alt.Y("family:N", scale=alt.Scale(domain=order), axis=labels)
    step = max(22, 11 * len(seeds))
    lane = alt.YOffset("lane:Q", scale=alt.Scale(domain=[-1, 1], range=[2, step - 2]))
    axis = alt.Axis(title="mean change of the metric, log-odds", tickCount=6, grid=False)
    x = alt.X("change:Q", scale=alt.Scale(nice=True), axis=axis)
    colour = alt.Color("family:N", scale=scale_of(order, "colour"), legend=None)
    blue, direction = LIGHT["direction"], where("datum.kind == 'direction'")
    nulls, texts = where("datum.kind == 'null'"), where("datum.kind == 'p'")
    tip = tips("seed", change=".3f", low=".3f", high=".3f")
    body = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        direction.mark_rect(color=LIGHT["zone"]).encode(x="low:Q", x2="high:Q"),
        nulls.mark_tick(thickness=1.3, size=15 / len(seeds), opacity=0.8).encode(
            x=x, y=y, yOffset=lane, color=colour, tooltip=tips("family", "seed", change=".3f")
        ),
        direction.mark_rule(color=blue, strokeWidth=2.4).encode(x=x, tooltip=tip),
        texts.mark_text(align="left", color=LIGHT["muted"]).encode(x=alt.value(226), y=y, text="shown:N"),
    ).properties(width=220, height=alt.Step(step))
    return finished(f"wide-{name}", summary, body, title, rows)


# -- dose curves ------------------------------------------------------------------------------------------------------


def dose_curves(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rate over strengths of ablation and coefficients of addition."""
    explanation = (
        "Ablation by x - a r r^T x on positive test prompts: a = 1 removes the component along the direction, a > 1 "
        "reflects it. Addition of c times the difference in means on negative test prompts. Subtraction is addition "
        "with negative c, on positive test prompts. Rate: share of prompts on which the behaviour is the more "
        "probable first token. Blue: the direction of each seed with its 95 % interval. Other lines: the mean over "
        "the draws of a null family in all seeds. Fragility: share of the behaviour removed divided by the share of "
        "energy removed, for comparison between models."
    )
    doses = {seed.seed: seed.dose for seed in run.seeds if seed.dose is not None and seed.dose.curves}
    if not doses:
        return Html()
    charts = draw(_dose_charts({seed: dose.curves for seed, dose in doses.items()}))
    texts = [f"Seed {seed}: {_fragility_text(dose.fragility)}" for seed, dose in doses.items()]
    return page.section("Dose", charts, page.bullets(texts), page.how_to_read(explanation))


def _fragility_text(dose: DoseFragility) -> str:
    if dose.fragility is None or dose.lost is None or dose.energy is None:
        return "Fragility was not measured."
    half = "at no strength tested" if dose.half is None else f"at strength {dose.half:.2f}"
    most = max(dose.nulls.values(), default=None)
    return (
        f"Fragility {dose.fragility:.3g}: full ablation removes {dose.lost:.0%} of the behaviour and "
        f"{dose.energy:.2%} of the energy of the residual stream. Half of the behaviour is removed {half}."
    ) + ("" if most is None else f" The largest ratio of a null family is {most:.2g}.")


def _dose_charts(doses: Mapping[int, Sequence[DosePoint]]) -> list[Chart | None]:
    """Draw the rate over the dose: the direction of each seed with its interval, and the mean of each null family."""
    axes: dict[DoseKind, str] = {
        "ablation": "strength of the ablation",
        "addition": "coefficient of the addition",
        "subtraction": "coefficient of the addition",
    }
    charts = []
    for kind, axis in axes.items():
        title = kind.capitalize()
        summary = f"{title}: rate of the behaviour over the {axis}, for the direction and the null families"
        text = ChartText(f"dose-{kind}", title, axis, "rate (metric > 0)", summary)
        series = _dose_points({s: [p for p in points if p.kind == kind] for s, points in doses.items()})
        banded = dict.fromkeys(point.series for point in series if point.series.startswith("direction"))
        charts.append(curves(text, series, banded=list(banded), domain=(0, 1), size=(300, 180)))
    return charts


def _dose_points(doses: Mapping[int, Sequence[DosePoint]]) -> list[CurvePoint]:
    """Return the points of the direction, and means of the draws of each null family with their range."""
    own, draws = [], defaultdict(list)
    for seed, points in doses.items():
        name = "direction" if len(doses) == 1 else f"direction, seed {seed}"
        for point in points:
            if point.arm.family is None:
                own.append(CurvePoint(name, point.dose, point.rate, point.low, point.high, point.n))
            elif point.rate is not None:
                draws[printable(point.arm.family, 16), point.dose].append(point.rate)
    return own + [
        CurvePoint(family, dose, math.fsum(rates) / len(rates), min(rates), max(rates), len(rates))
        for (family, dose), rates in draws.items()
    ]
