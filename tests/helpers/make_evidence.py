"""The evidence of a seed as records, for rates that a test states."""

from collections.abc import Sequence
from dataclasses import replace

from msgspec import structs

from rhumbline.evidence.verdict import SeedEvidence
from rhumbline.records.arms import ArmId
from rhumbline.records.effect_results import ArmRate, Effect, Gap, NullSummary, WideNull
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
