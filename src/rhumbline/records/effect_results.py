"""Parts of results.json: rates, effects, nulls, dose curves, readouts and stability of one seed.

`low` and `high` are the ends of a 95 % interval. A rate of a continuous score is a level.
"""

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
    """An effect minus the mean effect of a null family; None: not known."""

    gap: float | None
    """Difference of two effects, in rates or levels."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its interval; None: not known."""

    mean: float | None
    low: float | None
    high: float | None


class ArmRate(Struct, frozen=True, kw_only=True):
    """The rate (or mean level) of one arm on one class of prompts."""

    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of the scored completions that show the behaviour, or their mean level; None without any."""
    low: float | None
    """Lower end of Wilson's interval; for a level, of a bootstrap interval."""
    high: float | None
    """Upper end of the same interval."""
    exact_low: float | UnsetType = UNSET
    """Lower end of Clopper and Pearson's interval; absent for a level."""
    exact_high: float | UnsetType = UNSET
    """Upper end of the same interval; absent for a level."""
    score: float | UnsetType | None = UNSET
    """Mean score; absent for a rate."""
    degenerate: float | None
    """Share of the scored completions that is degenerate; None without any."""
    unscored: int
    """Completions that no judge could score; in no rate."""
    correct: float | None
    """Share of right answers, or mean share of the content for a continuous score; None if it is not known."""
    metric: float | None
    """Mean metric, log-odds (nats per token for the paired log-odds); None without any."""
    metric_n: int
    """Prompts with a finite metric."""


@dataclass(frozen=True)
class NullSummary:
    """Effects of the draws of one null family on completions."""

    draws: int
    """Number of draws."""
    mean: float | None
    """Mean effect of the draws, in rates or levels."""
    max: float | None
    """Largest effect of a draw, in rates or levels."""


@dataclass(frozen=True)
class WideNull:
    """The rank of the direction among the wide nulls of one family, in the metric."""

    draws: int
    """Number of draws."""
    mean: float | None
    """Mean change of the metric over the draws, log-odds."""
    max: float | None
    """Largest change of the metric by a draw, log-odds."""
    p: float
    """Rank p of the direction among the draws."""
    p_apart: float
    """Rank p without null draws that align with the direction."""
    floor: float
    """Smallest possible p with this number of draws."""
    cosine: float | None
    """Largest |cosine| with the direction among draws with at least its effect; None if there is no such draw."""
    energy: float | None
    """Mean energy of the draws."""
    values: tuple[float | None, ...]
    """Change of the metric by every draw, log-odds, to four digits."""
    p_holm: float | UnsetType = UNSET
    """p adjusted over all effects, families and seeds of the run (Holm); absent in the copy under `effects`."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of the direction on completions, with those of the nulls."""

    name: EffectName
    drop: float | None
    """Change of the rate or level, positive in the expected direction; None without scored pairs."""
    low: float | None
    high: float | None
    n: int
    """Prompts that are scored in both arms."""
    mcnemar: float | UnsetType = UNSET
    """McNemar's exact p; absent for a continuous score."""
    gap: dict[str, float | None]
    """The drop minus the mean drop of each family's draws."""
    gap_low: dict[str, float | None]
    """Lower end of each gap's interval."""
    gap_high: dict[str, float | None]
    """Upper end of each gap's interval."""
    apart: dict[str, Gap]
    """The gap without draws that align with the direction, unless no other draw is left."""
    p: dict[str, float]
    """Rank p of the drop among each family's draws."""
    floor: dict[str, float]
    """Smallest possible p with each family's number of draws."""
    null: dict[str, NullSummary]
    """Drops of each family's draws."""
    wide: dict[str, WideNull]
    """Ranks in the metric: the same as `WideEffect.families`, without `p_holm`. Empty without wide nulls."""


@dataclass(frozen=True)
class PooledEffect:
    """One effect over all seeds."""

    name: EffectName
    drop: float
    """Mean change over distinct prompts; for a continuous score, over the seeds."""
    low: float
    """Lower end of the interval; for a continuous score, the smallest change of a seed."""
    high: float
    """Upper end of the interval; for a continuous score, the largest change of a seed."""
    n: int
    """Distinct prompts; for a continuous score, seeds."""
    spread: float
    """Range of the seeds' own drops."""


@dataclass(frozen=True)
class WideEffect:
    """One effect in the metric, compared with many null draws."""

    name: EffectName
    n: int
    """Test prompts."""
    change: float | None
    """Mean change of the metric, positive in the expected direction, log-odds."""
    low: float | None
    high: float | None
    before: float | None
    """Share of prompts on which the behaviour is the more probable first token at baseline; None without prompts."""
    after: float | None
    """The same share under the intervention."""
    families: dict[str, WideNull]
    """Rank among the draws of each family."""


@dataclass(frozen=True)
class Shift:
    """KL divergence of ablation on negatives that rarely show the behaviour at baseline."""

    kl: float | None
    """Mean KL divergence of the next-token distribution, baseline to ablation, nats; None without prompts."""
    low: float | None
    high: float | None
    n: int
    """Number of these negatives."""


@dataclass(frozen=True)
class DosePoint:
    """One strength of an intervention, evaluated with the metric."""

    kind: Literal["ablation", "addition"]
    """Ablation on positives, addition on negatives."""
    arm: ArmId
    """The direction or a null, without the intervention."""
    dose: float
    """Strength of the ablation (1 removes the whole component), or coefficient of the addition."""
    n: int
    """Test prompts with a finite metric."""
    rate: float | None
    """Share of them on which the behaviour is the more probable first token; None without any."""
    low: float
    high: float
    metric: float | None
    """Mean metric, log-odds; None without any."""


@dataclass(frozen=True)
class DoseFragility:
    """Share of the behaviour that ablation removes, compared with the energy that it removes."""

    lost: float | None
    """Share of the baseline rate that full ablation removes; None without a baseline rate or a curve."""
    energy: float | None
    """Energy of the direction."""
    fragility: float | None
    """lost / energy; None if either is not known, or the energy is 0."""
    half: float | None
    """Strength that removes half of the baseline rate, interpolated; None if no strength does."""
    nulls: dict[str, float]
    """Mean of the same ratio over each family's draws."""


@dataclass(frozen=True)
class Dose:
    """Dose curves and the fragility."""

    curves: tuple[DosePoint, ...]
    """Every strength of the direction and of some null draws; empty if the protocol has none."""
    fragility: DoseFragility


class JudgeRate(Struct, frozen=True, kw_only=True):
    """The rate of one arm by one keyword judge."""

    judge: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that is refused; None without any."""
    low: float
    high: float
    degenerate: float | None
    """Share of them that is degenerate; None without any."""


class LengthRate(Struct, frozen=True, kw_only=True):
    """The rate of one arm by the run's judge on the first tokens of the completions."""

    length: str
    """Number of new tokens that are read, in digits, or `full`."""
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that is refused; None without any."""
    low: float
    high: float
    degenerate: float | None
    """Share of them that is degenerate; None without any."""


@dataclass(frozen=True)
class Readouts:
    """Rates by other judges and by shorter readings; empty for a continuous score."""

    judges: tuple[JudgeRate, ...]
    """Rates by judge."""
    kappa: tuple[KappaPair, ...]
    """Agreement of every two keyword judges."""
    lengths: tuple[LengthRate, ...]
    """Rates by the number of tokens read."""


@dataclass(frozen=True)
class SiteShare:
    """A site that bootstrap refits select."""

    position: Position
    layer: int
    share: float
    """Share of the refits that select it, 0 to 1."""


@dataclass(frozen=True)
class StabilitySummary:
    """The sites that bootstrap refits select, and the cosines of their directions."""

    refits: int
    """Number of refits."""
    sites: tuple[Site, ...]
    """Sites that a refit can select."""
    chosen: tuple[SiteShare, ...]
    """Selected sites, the most frequent first."""
    none: float | None
    """Share of the refits in which no candidate survived; None without refits."""
    cosine: MeanInterval
    """Cosine of the refitted with the selected direction, at its site; the interval contains 95 % of the refits."""
    between: float | None
    """Mean cosine between two refits; None for fewer than two."""
