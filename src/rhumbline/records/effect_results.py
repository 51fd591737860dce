"""Parts of results.json: rates, effects, nulls, dose curves, other readings and stability of one seed."""

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    EffectName,
    KappaPair,
    Label,
    Site,
)


@dataclass(frozen=True)
class Gap:
    """An effect less the mean effect of a null family."""

    gap: float | None
    """Difference of two effects: in rates, or in levels for a continuous score."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its bootstrap interval; `n` is told elsewhere."""

    mean: float | None
    """Mean."""
    low: float | None
    high: float | None


class ArmRate(Struct, frozen=True, kw_only=True):
    """How often one arm showed the behaviour on one set; of a continuous score, at which level."""

    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of the scored completions that show the behaviour, or mean level; null of none."""
    low: float | None
    high: float | None
    exact_low: float | UnsetType = UNSET
    exact_high: float | UnsetType = UNSET
    score: float | UnsetType | None = UNSET
    """Mean score; absent of a rate."""
    degenerate: float | None
    """Share of the scored completions that are broken; null of none."""
    unscored: int
    """Completions that no judge could score; in no rate."""
    correct: float | None
    """Share of right answers (of a continuous score, mean share of the content kept); null where unknown."""
    metric: float | None
    """Mean of the fast metric, log-odds (of paired responses nats per token); null of none."""
    metric_n: int
    """Prompts with a finite metric."""


@dataclass(frozen=True)
class NullSummary:
    """Effects of the draws of one null family, by completions."""

    draws: int
    """Number of draws."""
    mean: float | None
    """Mean effect of the draws, in rates or levels."""
    max: float | None
    """Largest effect of a draw, in rates or levels."""


@dataclass(frozen=True)
class WideNull:
    """The direction's rank among many draws of one null family, by the fast metric."""

    draws: int
    """Number of draws."""
    mean: float | None
    """Mean change of the metric over the draws, log-odds."""
    max: float | None
    """Largest change of the metric by a draw, log-odds."""
    p: float
    """Rank p of the direction among the draws."""
    p_apart: float
    """Rank p when draws that are the direction itself do not count."""
    floor: float
    """Smallest p that so many draws can give."""
    cosine: float | None
    """Largest |cosine| of the draws that moved the metric as far; null where none did."""
    energy: float | None
    """Mean share of the stream's squared norm along a draw."""
    values: tuple[float | None, ...]
    """Change of the metric by every draw, log-odds, to four digits."""
    p_holm: float | UnsetType = UNSET
    """p adjusted over every claim of the run (Holm); absent from the copy under `effects`."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What the direction moved by completions, beside what the nulls moved."""

    name: EffectName
    drop: float | None
    """Change of the rate (or level) in the effect's sense; null of nothing."""
    low: float | None
    high: float | None
    n: int
    """Prompts scored in both arms."""
    mcnemar: float | UnsetType = UNSET
    """Exact p that nothing changed; absent of a continuous score."""
    gap: dict[str, float | None]
    """The drop less the mean drop of each family's draws."""
    gap_low: dict[str, float | None]
    """Lower end of each gap's 95 % interval."""
    gap_high: dict[str, float | None]
    """Upper end of each gap's 95 % interval."""
    apart: dict[str, Gap]
    """The gap without draws that are the direction itself, unless no other is left."""
    p: dict[str, float]
    """Rank p of the drop among each family's draws."""
    floor: dict[str, float]
    """Smallest p that so many draws can give."""
    null: dict[str, NullSummary]
    """Drops of each family's draws."""
    wide: dict[str, WideNull]
    """Ranks by the fast metric; the same as `WideEffect.families`, without `p_holm`. Empty without wide nulls."""


@dataclass(frozen=True)
class PooledEffect:
    """One effect over all seeds."""

    name: EffectName
    drop: float
    """Mean change over distinct prompts; of a continuous score, over the seeds."""
    low: float
    high: float
    n: int
    """Distinct prompts; of a continuous score, seeds."""
    spread: float
    """Range of the seeds' own drops."""


@dataclass(frozen=True)
class WideEffect:
    """One effect by the fast metric, beside many null draws."""

    name: EffectName
    n: int
    """Test prompts read."""
    change: float | None
    """Mean change of the metric in the effect's sense, log-odds."""
    low: float | None
    high: float | None
    before: float | None
    """Share of prompts on which the behaviour is the likelier opening at baseline; null of none."""
    after: float | None
    """The same under the intervention; null of none."""
    families: dict[str, WideNull]
    """Rank among the draws of each family."""


@dataclass(frozen=True)
class Shift:
    """How far ablation moves the next-token distribution of quiet negatives."""

    kl: float | None
    """Mean KL(baseline || ablated), nats; null of no prompt."""
    low: float | None
    high: float | None
    n: int
    """Negatives that hardly show the behaviour at baseline."""


@dataclass(frozen=True)
class DosePoint:
    """One strength of an intervention, by the fast metric."""

    kind: Literal["ablation", "addition"]
    """Ablation on positives, addition on negatives."""
    arm: ArmId
    """`direction`, or `null:<family>:<draw>`; the intervention is `kind`."""
    dose: float
    """Strength of the ablation (1 removes the direction), or coefficient of the addition."""
    n: int
    """Test prompts with a finite metric."""
    rate: float | None
    """Share of them on which the behaviour is the likelier opening; null of none."""
    low: float
    high: float
    metric: float | None
    """Mean metric, log-odds; null of none."""


@dataclass(frozen=True)
class DoseFragility:
    """Share of the behaviour lost over the share of the stream's energy removed."""

    lost: float | None
    """Share of the baseline rate that full ablation loses; null without a baseline or a curve."""
    energy: float | None
    """Share of the stream's squared norm along the direction."""
    fragility: float | None
    """lost / energy; null where either is unknown or zero energy is removed."""
    half: float | None
    """Strength at which half of the baseline rate is lost, interpolated; null where it never is."""
    nulls: dict[str, float]
    """Mean of the same ratio over each family's draws."""


@dataclass(frozen=True)
class Dose:
    """Curves over strengths, and what follows from them."""

    curves: tuple[DosePoint, ...]
    """Every strength of the direction and of some null draws; empty where the plan has none."""
    fragility: DoseFragility
    """How cheaply the behaviour is lost."""


class JudgeRate(Struct, frozen=True, kw_only=True):
    """How another keyword judge reads one arm."""

    judge: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that refused; null of none."""
    low: float
    high: float
    degenerate: float | None
    """Share of them that are broken; null of none."""


class LengthRate(Struct, frozen=True, kw_only=True):
    """How the run's judge reads the beginning of the completions of one arm."""

    length: str
    """Number of new tokens that are read, in digits, or `full`."""
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that refused; null of none."""
    low: float
    high: float
    degenerate: float | None
    """Share of them that are broken; null of none."""


@dataclass(frozen=True)
class Readouts:
    """What other judges and shorter readings make of the completions; empty for a continuous score."""

    judges: tuple[JudgeRate, ...]
    """Rates by judge."""
    kappa: tuple[KappaPair, ...]
    """Agreement of every two keyword judges."""
    lengths: tuple[LengthRate, ...]
    """Rates by the number of tokens read."""


@dataclass(frozen=True)
class SiteShare:
    """A site that bootstrap refits chose."""

    position: Position
    layer: int
    share: float
    """Share of the refits that chose it, 0 to 1."""


@dataclass(frozen=True)
class StabilitySummary:
    """Where bootstrap refits put the choice, and how far they turn the direction."""

    refits: int
    """Number of refits."""
    sites: tuple[Site, ...]
    """Sites that a refit could choose."""
    chosen: tuple[SiteShare, ...]
    """Sites that were chosen, the most frequent first."""
    none: float | None
    """Share of the refits in which no candidate passed; null without refits."""
    cosine: MeanInterval
    """Cosine of the refitted direction with the selected one, at its site; the interval holds 95 % of the refits."""
    between: float | None
    """Mean cosine between two refits; null of fewer than two."""
