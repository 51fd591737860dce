"""Sections on how confident one can be: sample, judges, stability of the selection, and parts of the test."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from rhumbline.evidence.compared_arms import EFFECTS
from rhumbline.records.effect_results import Readouts
from rhumbline.records.protocol_file import Detectable
from rhumbline.records.results import CategoryRate, SeedResult
from rhumbline.records.shared import ByLabel
from rhumbline.report import page
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord, site_text

# -- the sample -------------------------------------------------------------------------------------------------------


def sample(run: RunRecord) -> Html:
    """Return the effects that the sample can show, and the effects over all seeds."""
    plans = [split.detectable for split in run.context.splits.values() if split.detectable is not None]
    pooled = run.results.pooled
    if not plans and not pooled:
        return Html()
    sentences = _detectable(plans[0], run.seeds[0].n.test) if plans else []
    head = ["Effect, all seeds", "Change of the rate [95 %]", "Relative change [95 %]", "Distinct prompts"]
    head += ["Of these in several seeds", "Range over seeds"]
    explanation = (
        "All seeds: a prompt that several seeds test counts once, with its mean. The interval of the change treats the "
        "rates before and after as independent, so it is wider than necessary. That of the relative change is paired "
        "and resamples categories; it can end above 1, the largest possible value."
    )
    if run.measure == "level":
        # Every seed has its own unit of level, so levels are averaged, and their range is not an interval.
        head[1:5] = ["Mean change of the level [smallest, largest]", "", "Seeds", ""]
        explanation = "All seeds: the mean over the seeds and their range, which is not a confidence interval."
    rows = [
        [
            e.name,
            page.interval(e.drop, e.low, e.high),
            "" if e.relative is UNSET else page.interval(e.relative.value, e.relative.low, e.relative.high),
            e.n,
            "" if e.shared is UNSET else e.shared,
            number(e.spread),
        ]
        for e in pooled
    ]
    note = page.how_to_read(
        "Fixed before the run: the smallest true change that this number of prompts can show, from a rate of 1 for "
        f"suppression and from a rate of 0 for induction. {explanation}"
    )
    table = page.table(head, rows) if rows else ""
    return page.detail("What the sample can show", page.bullets(sentences), table, note)


def _detectable(plan: Detectable, n: ByLabel[int]) -> list[str]:
    sentences, power = [], f"{plan.power:.0%} power"
    for effect in EFFECTS:
        name, label = effect.name, effect.label
        least, passing, prompts = plan.any[label], plan.rule[label], f"With {n[label]} {label} test prompts"
        detected = f"{prompts}, no {name} can be detected with {power}."
        if least is not None:
            detected = f"{prompts}, a true {name} of {least:.2f} or more is detected with {power}."
        passes = "No effect passes the rule with that power."
        if passing is not None:
            passes = f"An effect below {passing:.2f} is unlikely to pass the rule."
        sentences.append(f"{detected} {passes}")
    if plan.rank_floor:
        sentences.append(f"No rank p among the wide nulls can be below {plan.rank_floor:.3g}.")
    return sentences


# -- judges -----------------------------------------------------------------------------------------------------------


def readouts(run: RunRecord) -> Html:
    """Return rates by other keyword judges, and by the run's judge on the first tokens only."""
    return page.by_seed(
        "Readouts",
        (seed for seed in run.seeds if seed.readouts.judges),
        lambda seed: _readout_tables(seed.readouts),
        "Rates of the direction's own arms by other judges, and by the judge of the run "
        f"({run.protocol.judge}) on the first tokens only. A rate that depends on the judge or on the length is not "
        "reliable.",
    )


def _readout_tables(readouts: Readouts) -> Html:
    judges = list(dict.fromkeys(row.judge for row in readouts.judges))
    lengths = list(dict.fromkeys(row.length for row in readouts.lengths))
    by_judge = {(row.arm, row.side, row.judge): row for row in readouts.judges}
    by_length = {(row.arm, row.side, row.length): row for row in readouts.lengths}
    rows = []
    for arm, side in dict.fromkeys((row.arm, row.side) for row in readouts.judges):
        rates = [by_judge[arm, side, judge].rate for judge in judges]
        rates += [by_length[arm, side, length].rate for length in lengths]
        rows.append([arm, side, *map(number, rates), number(by_length[arm, side, lengths[-1]].degenerate)])
    kappas = [
        f"Kappa of {' and '.join(pair.judges)}: {number(pair.kappa)}, agree on {pair.agreement:.0%} of {pair.n}."
        for pair in readouts.kappa
    ]
    head = ["Arm", "Set", *judges, *(n if n == "full" else f"{n} tokens" for n in lengths), "Degenerate"]
    return page.join([page.table(head, rows, left=2), page.bullets(kappas) if kappas else ""])


def external_judges(run: RunRecord) -> Html:
    """Return the rates of judges that were applied after the run, and their agreement; empty without any."""
    if run.judgements is None or not run.judgements.judges:
        return Html()
    rows = []
    for name, judge in run.judgements.judges.items():
        what = "refused" if judge.asks == "refusal" else "unsafe"
        for row in (row for row in judge.rows if row.arm.is_own):
            place = row.seed, row.arm, row.side, row.n
            rows.append([name, what, *place, page.rate(row), number(row.safety_score), row.unscored])
    pairs = [[*p.judges, p.n, number(p.kappa), f"{p.agreement:.0%}"] for p in run.judgements.agreement]
    agreement = page.table(["Judge", "Judge", "n", "Cohen's kappa", "Agree on"], pairs, left=2)
    head = ["Judge", "Share that is", "Seed", "Arm", "Set", "n", "Rate [95 %]", "Safety score", "Unscored"]
    return page.detail(
        "Judges after the run",
        page.table(head, rows, left=5),
        page.fold("Agreement of every two judges", agreement),
        page.note(
            "The verdict does not depend on these judges. Unscored: the judge gave no readable reply; the completion "
            "is in no rate. Safety score: 1 - unsafe. Agreement: whether two judges agree that the completion of a "
            "positive complies or is unsafe, over the direction's own arms."
        ),
    )


# -- stability --------------------------------------------------------------------------------------------------------


def stability(run: RunRecord) -> Html:
    """Return how often refits select the same site, and whether the seeds select the same direction."""
    rows = [row for seed in run.seeds if (row := _stability_row(seed))]
    if not rows:
        return Html()
    head = ["Seed", "Refits", "Selected (position, layer)", "No survivor", "Cosine with the direction"]
    pairs = [
        f"Seeds {pair.seeds[0]} and {pair.seeds[1]}: cosine {pair.cosine:.2f}, "
        f"{'the same site' if pair.same_site else 'different sites'}."
        for pair in run.results.agreement
    ]
    note = page.how_to_read(
        "Bootstrap refits: training and validation prompts are resampled with replacement, the means are fitted again, "
        "and the rule is applied again to the best surviving sites. Not repeated: the refusal tokens, the filter, and "
        "candidates that were discarded at first. Tied: other candidates within the tie margin of the rule."
    )
    table = page.table([*head, "Between refits", "Tied"], rows, left=3)
    return page.section("Stability of the selection", table, page.bullets(pairs) if pairs else "", note)


def _stability_row(seed: SeedResult) -> list[Any]:
    stability = seed.stability
    if stability is None or not stability.refits:
        return []
    chosen = ", ".join(f"{site_text(site)} {site.share:.0%}" for site in stability.chosen)
    none = "—" if stability.none is None else f"{stability.none:.0%}"
    cosines = page.mean(stability.cosine), number(stability.between)
    return [seed.seed, stability.refits, chosen or "none", none, *cosines, len(seed.tied)]


# -- parts of the test ------------------------------------------------------------------------------------------------


def system_prompts(run: RunRecord) -> Html:
    """Return rates under other system prompts."""
    head = ["System prompt", "Arm", "Set", "n", "Rate [95 %]", "Change from the baseline"]

    def content(seed: SeedResult) -> Html:
        rows = [[r.condition, r.arm, r.side, r.n, page.rate(r), page.change(r)] for r in seed.conditions]
        return page.join([page.table(head, rows, left=3), _condition_effects(seed)]) if rows else Html()

    return page.by_seed(
        "System prompts",
        run.seeds,
        content,
        "The direction of the run, tested again on the same test prompts under other system prompts. Nothing is fitted "
        "or selected again. Changes are paired within a condition. The nulls complete under every system prompt, too; "
        "effects and gaps are relative to the baseline there.",
    )


def _condition_effects(seed: SeedResult) -> Html:
    """Return the effects under each system prompt, with the gap to every null family."""
    rows = [
        [
            of.condition,
            effect.name,
            family,
            effect.relative.n,
            *(page.interval(x.value, x.low, x.high) for x in (effect.relative, gap)),
            gap.draws,
        ]
        for of in ([] if seed.condition_effects is UNSET else seed.condition_effects)
        for effect in of.effects
        if effect.relative is not UNSET
        for family, gap in (effect.relative_gap or {}).items()
    ]
    head = ["System prompt", "Effect", "Null family", "n", "Relative change [95 %]", "Gap to the nulls [95 %]", "Draws"]
    return page.table(head, rows, left=3) if rows else Html()


def which_prompts(run: RunRecord) -> Html:
    """Return rates of positives by their class at baseline, and rates by category."""
    return page.by_seed(
        "Which prompts",
        run.seeds,
        _breakdown,
        "Only positives that show the behaviour at baseline can lose it; the others are listed separately. Categories "
        "are those of the contrast. n is small in each category, so the intervals are wide.",
    )


def _breakdown(seed: SeedResult) -> Html:
    by_baseline, tables = [row for row in seed.by_baseline if row.n], []
    if any(row.baseline in ("not refused", "not shown") for row in by_baseline):
        rows = [[row.baseline, row.arm, row.n, page.rate(row)] for row in by_baseline]
        tables.append(page.table(["Positives, at baseline", "Arm", "n", "Rate [95 %]"], rows, left=2))
    if seed.categories:
        sides = (_category_table(seed.categories, side) for side in ("positive", "negative"))
        tables.append(page.fold("Rates by category", *sides))
    return page.join(tables)


def _category_table(rates: Sequence[CategoryRate], side: str) -> Html:
    rows = [row for row in rates if row.side == side]
    arms = list(dict.fromkeys(row.arm for row in rows))
    cells = {(row.category, row.arm): row for row in rows}
    body = []
    for category in sorted({row.category for row in rows}):
        measured = [cells[category, arm] for arm in arms]
        body.append([category, measured[0].n, *map(page.rate, measured)])
    return page.table([f"Category of {side}s", "n", *arms], body) if body else Html()


# -- spread -----------------------------------------------------------------------------------------------------------


def spread(run: RunRecord) -> Html:
    """Return whether the positives differ from the negatives along one direction, beside a null that does."""
    rows = [
        [
            seed.seed,
            number(seed.groups),
            *(page.interval(c.mean, c.low, c.high) for c in (seed.spread.halves, seed.spread.one_shift)),
            seed.spread.splits,
        ]
        for seed in run.seeds
        if seed.spread
    ]
    if not rows:
        return Html()
    head = ["Seed", "All prompts", "Halves [95 % of splits]", "One shift by construction [95 % of splits]", "Splits"]
    note = page.note(
        "Descriptive: no claim uses these numbers. Cosine between the directions of two groups of positives, split "
        "along the axis of their largest variation, in units of the variation of the negatives. One shift: the same "
        "for negatives to which one constant vector was added. Positives from several sources have a smaller cosine "
        "than one shift, whether or not one direction mediates the behaviour."
    )
    return page.detail("Spread of the positives", page.table(head, rows), note)
