"""Sections on the metric: ranks of the direction among many null draws, and curves over the dose."""

from msgspec import UNSET

from rhumbline.records.effect_results import DoseFragility
from rhumbline.records.results import SeedResult
from rhumbline.report import null_and_dose_figures, page
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord

# -- wide nulls -------------------------------------------------------------------------------------------------------


def wide_nulls(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rank of the direction among many draws of every null family."""
    parts = [
        (
            f"Seed {seed.seed}",
            page.join(
                [
                    draw(null_and_dose_figures.wide(seed.seed, seed.wide)),
                    page.tag("p", _energy_text(seed)),
                    page.fold("Every family in numbers", _family_table(seed)),
                ]
            ),
        )
        for seed in run.seeds
        if any(effect.families for effect in seed.wide)
    ]
    return page.optional_section(
        "Wide nulls",
        parts,
        "Each tick is one null draw, evaluated with the metric at the last prompt position. The line is the "
        "direction, shaded with its interval. Comparable: draws whose |cosine| with the direction does not exceed the "
        "rule's bound; the others are nearly the direction itself. Reach it: comparable draws with at least the effect "
        "of the direction. p: (1 + draws that reach it) / (1 + comparable draws), unknown if the rule needs more "
        "draws; floor: the smallest possible p. Holm: adjusted for all comparisons of the run; it "
        "matters if a reader picks one of them. The rule requires all of them, which needs no adjustment. Largest "
        "|cosine|: among draws with at least the effect of the direction. Energy: share of the squared norm of the "
        "residual stream that ablation of a draw removes. Isotropic draws remove about 1 / d of it and have little "
        "effect.",
    )


def _energy_text(seed: SeedResult) -> str:
    return (
        f"Energy of the direction at its site: {page.number(seed.energy, 3)}. KL divergence that its ablation causes "
        f"on negative test prompts: {page.number(seed.shift.kl, 4)} nats (n = {seed.shift.n})."
    )


def _family_table(seed: SeedResult) -> Html:
    head = ["Effect", "Family", "Draws", "Comparable", "Reach it", "Mean", "Largest", "p", "Floor", "Holm"]
    head += ["Largest |cosine|", "Energy"]
    rows = [
        [
            effect.name,
            family,
            null.draws,
            *("—" if n is UNSET else n for n in (null.comparable, null.beaten)),
            page.number(null.mean),
            page.number(null.max),
            *(page.number(p, 3) for p in (null.p, null.floor)),
            page.number(null.p_holm, 3) if isinstance(null.p_holm, float) else "—",
            page.number(null.cosine, 3),
            page.number(null.energy, 3),
        ]
        for effect in seed.wide
        for family, null in effect.families.items()
    ]
    return page.table(head, rows, left=2)


# -- dose curves ------------------------------------------------------------------------------------------------------


def dose_curves(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the rate over strengths of ablation and coefficients of addition."""
    parts = [
        (
            f"Seed {seed.seed}",
            page.join(
                [
                    draw(null_and_dose_figures.doses(seed.seed, seed.dose.curves)),
                    page.tag("p", _fragility_text(seed.dose.fragility)),
                ]
            ),
        )
        for seed in run.seeds
        if seed.dose is not None and seed.dose.curves
    ]
    return page.optional_section(
        "Dose",
        parts,
        "Ablation by x - a r r^T x on positive test prompts (a = 1 removes the component along the direction, a > 1 "
        "reflects it); addition of c times the difference in means on negative test prompts. Rate: share of prompts on "
        "which the behaviour is the more probable first token. Band: 95 % interval of the direction. Fragility: share "
        "of the behaviour removed divided by the share of energy removed, for comparison between models.",
    )


def _fragility_text(dose: DoseFragility) -> str:
    if dose.fragility is None or dose.lost is None or dose.energy is None:
        return "Fragility was not measured."
    half = "at no strength tested" if dose.half is None else f"at strength {dose.half:.2f}"
    nulls = ", ".join(f"{family} {value:.2g}" for family, value in dose.nulls.items())
    return (
        f"Fragility {dose.fragility:.3g}: full ablation removes {dose.lost:.0%} of the behaviour and "
        f"{dose.energy:.2%} of the energy of the residual stream. Half of the behaviour is removed {half}."
    ) + (f" The same ratio for the nulls: {nulls}." if nulls else "")
