"""The evidence of a seed as records: of counts of classes, or (version 4 of the rule) of rates that a test states."""

from collections.abc import Sequence
from dataclasses import replace

from msgspec import structs

from make_outcomes import outcomes_of
from rhumbline.evidence.class_rates import arm_rates
from rhumbline.evidence.compared_arms import NullComparison
from rhumbline.evidence.damage import damage_changes
from rhumbline.evidence.rate_effects import rate_effects
from rhumbline.evidence.seed_evidence import SeedEvidence
from rhumbline.evidence.verdict_rules import RHUMBLINE
from rhumbline.records.arms import ArmId
from rhumbline.records.effect_results import (
    ArmRate,
    Effect,
    Gap,
    MeanInterval,
    NullSummary,
    Shift,
    StabilitySummary,
    WideNull,
)
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import EffectName, Label


def arm_rate(
    arm: str, side: Label, rate: float | None, degenerate: float = 0.0, correct: float | None = None, n: int = 100
) -> ArmRate:
    """The rate of one arm."""
    return ArmRate(
        arm=ArmId.parse(arm), side=side, n=n, rate=rate, low=max(0.0, (rate or 0.0) - 0.05), high=1.0,
        degenerate=degenerate, unscored=0, correct=correct, metric=None, metric_n=0,
    )  # fmt: skip


def wide_null(p: float = 0.01, p_apart: float | None = None, draws: int = 99) -> WideNull:
    """A rank among wide nulls."""
    return WideNull(
        draws=draws, mean=0.0, max=0.0, p=p, p_apart=p if p_apart is None else p_apart, floor=1 / (1 + draws),
        cosine=None, energy=0.1, values=(),
    )  # fmt: skip


def effect(name: EffectName, drop: float, families: Sequence[str], gap: float | None) -> Effect:
    """An effect with the same gap to every family; intervals reach 0.05 to both sides."""
    low, high = (None, None) if gap is None else (gap - 0.05, gap + 0.05)
    return Effect(
        name=name, drop=drop, low=drop - 0.05, high=drop + 0.05, n=100,
        gap=dict.fromkeys(families, gap), gap_low=dict.fromkeys(families, low), gap_high=dict.fromkeys(families, high),
        apart=dict.fromkeys(families, Gap(gap, low, high)), p=dict.fromkeys(families, 0.1),
        floor=dict.fromkeys(families, 0.1), null=dict.fromkeys(families, NullSummary(9, 0.0, 0.0)),
        wide=dict.fromkeys(families, wide_null()),
    )  # fmt: skip


def evidence(
    base: float = 1.0,
    ablated: float = 0.0,
    ablated_null: float = 1.0,
    plain: float = 0.0,
    added: float = 1.0,
    added_null: float = 0.0,
    families: Sequence[str] = ("isotropic",),
    **fields: object,
) -> SeedEvidence:
    """The evidence for these rates: baseline and arm on positives, then on negatives, each with its nulls."""
    arms = (
        arm_rate("baseline", "positive", base),
        arm_rate("baseline", "negative", plain),
        arm_rate("ablation", "positive", ablated),
        arm_rate("addition", "negative", added),
    )
    effects = (
        effect("suppression", base - ablated, families, ablated_null - ablated),
        effect("induction", added - plain, families, added - added_null),
    )
    return replace(SeedEvidence(arms, effects), **fields)


def with_effects(known: SeedEvidence, **changes: object) -> SeedEvidence:
    """The evidence with fields of both effects replaced."""
    return replace(known, effects=tuple(replace(e, **changes) for e in known.effects))


def with_arm(known: SeedEvidence, arm: str, side: Label, **changes: object) -> SeedEvidence:
    """The evidence with fields of one arm replaced."""
    place = (ArmId.parse(arm), side)
    arms = (structs.replace(row, **changes) if (row.arm, row.side) == place else row for row in known.arms)
    return replace(known, arms=tuple(arms))


def with_family(known: SeedEvidence, field: str, family: str, value: object) -> SeedEvidence:
    """The evidence with one family's entry of a field of both effects replaced."""
    effects = (replace(e, **{field: {**getattr(e, field), family: value}}) for e in known.effects)
    return replace(known, effects=tuple(effects))


# -- of counts


Counts = tuple[int, int] | int
"""Completions that show the behaviour, and degenerate ones; the others comply."""


def letters(counts: Counts, n: int) -> str:
    """One letter for each completion, as `outcomes_of` reads them."""
    shown, degenerate = (counts, 0) if isinstance(counts, int) else counts
    return "r" * shown + "d" * degenerate + "c" * (n - shown - degenerate)


def outcomes_with(
    base: Counts = 100,
    ablated: Counts = 0,
    plain: Counts = 0,
    added: Counts = 100,
    ablated_nulls: Sequence[Counts] | None = None,
    added_nulls: Sequence[Counts] | None = None,
    ablated_negatives: Counts | None = None,
    n: int = 100,
) -> list[Outcome]:
    """The outcomes of one seed with these counts; by default three isotropic draws change nothing."""
    arms = {"baseline": (base, plain), "ablation": (ablated, plain if ablated_negatives is None else ablated_negatives)}
    rows = []
    for arm, counts in arms.items():
        for side, count in zip(("positive", "negative"), counts, strict=True):
            rows += outcomes_of(arm, side, letters(count, n))
    rows += outcomes_of("addition", "negative", letters(added, n))
    for draw, count in enumerate([base] * 3 if ablated_nulls is None else ablated_nulls):
        rows += outcomes_of(f"null:isotropic:{draw}:ablation", "positive", letters(count, n))
    for draw, count in enumerate([plain] * 3 if added_nulls is None else added_nulls):
        rows += outcomes_of(f"null:isotropic:{draw}:addition", "negative", letters(count, n))
    return rows


def ranked(beaten: int = 0, comparable: int = 99) -> WideNull:
    """The rank of a direction among wide nulls, under a rule that needs 19 comparable draws."""
    return WideNull(
        draws=99, mean=0.0, max=0.0, p=(1 + beaten) / (1 + comparable) if comparable >= 19 else None,
        floor=1 / (1 + comparable), cosine=None, energy=0.1, values=(), comparable=comparable, beaten=beaten,
    )  # fmt: skip


def known(kl: float = 0.02, cosine: float = 0.95, **counts: object) -> SeedEvidence:
    """The evidence of one seed with these counts, with ranks, KL and refits that meet the default rule.

    The draws of every null family have the effects of the isotropic ones.
    """
    rows = outcomes_with(**counts)
    refits = StabilitySummary(20, (), (), 0.0, MeanInterval(cosine, cosine - 0.02, cosine + 0.02), cosine)
    return SeedEvidence(
        arm_rates(rows),
        tuple(_of_every_family(e) for e in rate_effects(rows, NullComparison(least_draws=19))),
        shift=Shift(kl, 0.9 * kl, 1.1 * kl, 16),
        damage=damage_changes(rows),
        stability=refits,
    )


def _of_every_family(effect: Effect) -> Effect:
    families = RHUMBLINE.families
    fields = {
        name: dict.fromkeys(families, value["isotropic"])
        for name in ("gap", "p", "floor", "null", "relative_gap")
        if "isotropic" in (value := getattr(effect, name))
    }
    return replace(effect, wide=dict.fromkeys(families, ranked()), **fields)
