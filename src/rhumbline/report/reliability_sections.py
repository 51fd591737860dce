"""Sections on how confident one can be: detectable effects, agreement of judges, and stability of the selection."""

from typing import Any

from msgspec import UNSET

from rhumbline.records.effect_results import Readouts
from rhumbline.records.protocol_file import Detectable
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import ByLabel
from rhumbline.report import page
from rhumbline.report.page import Html
from rhumbline.report.run_record import EFFECT_ARMS, RunRecord, site_text

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
        "rates before and after as independent, so it is wider than necessary; that of the relative change is paired "
        "and resamples categories."
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
            page.number(e.spread),
        ]
        for e in pooled
    ]
    note = page.note(
        "Fixed before the run: the smallest true change that this number of prompts can show, from a rate of 1 for "
        f"suppression and from a rate of 0 for induction. {explanation}"
    )
    table = page.table(head, rows) if rows else ""
    return page.section("What the sample can show", page.bullets(sentences), table, note)


def _detectable(plan: Detectable, n: ByLabel[int]) -> list[str]:
    sentences = []
    for name, effect in EFFECT_ARMS.items():
        least, passing = plan.any[effect.side], plan.rule[effect.side]
        detected = (
            f"With {n[effect.side]} {effect.side} test prompts, no {name} can be detected with {plan.power:.0%} power."
            if least is None
            else f"With {n[effect.side]} {effect.side} test prompts, a true {name} of {least:.2f} or more is detected "
            f"with {plan.power:.0%} power."
        )
        passes = (
            " No effect passes the rule with that power."
            if passing is None
            else f" An effect below {passing:.2f} is unlikely to pass the rule."
        )
        sentences.append(detected + passes)
    if plan.rank_floor:
        sentences.append(f"No rank p among the wide nulls can be below {plan.rank_floor:.3g}.")
    return sentences


# -- readouts ---------------------------------------------------------------------------------------------------------


def readouts(run: RunRecord) -> Html:
    """Return rates by other keyword judges, and by the run's judge on the first tokens only."""
    parts = [(f"Seed {seed.seed}", _readout_tables(seed.readouts)) for seed in run.seeds if seed.readouts.judges]
    return page.optional_section(
        "Readouts",
        parts,
        "Rates of the direction's own arms by other judges, and by the judge of the run "
        f"({run.protocol.judge}) on the first tokens only. A rate that depends on the judge or on the length is not "
        "reliable.",
    )


def _readout_tables(readouts: Readouts) -> Html:
    judges = list(dict.fromkeys(row.judge for row in readouts.judges))
    lengths = list(dict.fromkeys(row.length for row in readouts.lengths))
    rates = {(row.arm, row.side, row.judge): row for row in readouts.judges}
    by_length = {(row.arm, row.side, row.length): row for row in readouts.lengths}
    head = ["Arm", "Set", *judges, *(n if n == "full" else f"{n} tokens" for n in lengths), "Degenerate"]
    rows = [
        [
            arm,
            side,
            *(page.number(rates[arm, side, judge].rate) for judge in judges),
            *(page.number(by_length[arm, side, length].rate) for length in lengths),
            page.number(by_length[arm, side, lengths[-1]].degenerate),
        ]
        for arm, side in dict.fromkeys((row.arm, row.side) for row in readouts.judges)
    ]
    kappas = "; ".join(
        f"{' and '.join(pair.judges)} {page.number(pair.kappa)} (agree on {pair.agreement:.0%} of {pair.n})"
        for pair in readouts.kappa
    )
    return page.join([page.table(head, rows, left=2), page.tag("p", f"Cohen's kappa: {kappas}.") if kappas else ""])


# -- stability --------------------------------------------------------------------------------------------------------


def stability(run: RunRecord) -> Html:
    """Return how often refits select the same site, and whether the seeds select the same direction."""
    rows = [_stability_row(seed) for seed in run.seeds if seed.stability is not None and seed.stability.refits]
    if not rows:
        return Html()
    head = ["Seed", "Refits", "Selected (position, layer)", "No survivor", "Cosine with the direction"]
    head += ["Between refits", "Tied"]
    pairs = [
        f"Seeds {pair.seeds[0]} and {pair.seeds[1]}: cosine {pair.cosine:.2f}, "
        f"{'the same site' if pair.same_site else 'different sites'}."
        for pair in run.results.agreement
    ]
    note = page.note(
        "Bootstrap refits: training and validation prompts are resampled with replacement, the means are fitted again, "
        "and the rule is applied again to the best surviving sites. Not repeated: the refusal tokens, the filter, and "
        "candidates that were discarded at first. Tied: other candidates within the tie margin of the rule."
    )
    table = page.table(head, rows, left=3)
    return page.section("Stability of the selection", table, page.bullets(pairs) if pairs else "", note)


def _stability_row(seed: SeedResult) -> list[Any]:
    stability = seed.stability
    assert stability is not None
    chosen = ", ".join(f"{site_text(site)} {site.share:.0%}" for site in stability.chosen)
    cosine = stability.cosine
    return [
        seed.seed,
        stability.refits,
        chosen or "none",
        "—" if stability.none is None else f"{stability.none:.0%}",
        page.interval(cosine.mean, cosine.low, cosine.high),
        page.number(stability.between),
        len(seed.tied),
    ]


# -- spread -----------------------------------------------------------------------------------------------------------


def spread(run: RunRecord) -> Html:
    """Return whether the positives differ from the negatives along one direction, beside a null that does."""
    rows = [
        [
            seed.seed,
            page.number(seed.groups),
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
    return page.section("Spread of the positives", page.table(head, rows), note)
