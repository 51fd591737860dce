"""Parts of results.json: rates, effects, nulls, dose curves, readouts and stability of one seed.

`low` and `high` are the ends of a 95 % interval. A rate of a continuous score is a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import (
    DoseKind,
    EffectName,
    KappaPair,
    Label,
    SecondSource,
    Site,
    Survivor,
)


@dataclass(frozen=True)
class Gap:
    """An effect minus the mean effect of a null family, in rates or levels; None: not known."""

    gap: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its interval; None: not known."""

    mean: float | None
    low: float | None
    high: float | None


class RelativeChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change by an intervention relative to the baseline, or the difference between two of them.

    Suppression: 1 - (share that shows the behaviour after) / (before). Induction: the same for the absence of the
    behaviour. Degenerate completions count against the effect.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Prompts that are scored in all arms."""
    most: float | None = None
    """Upper end of the interval if degenerate completions count in favour of the effect; absent if it is `high`."""
    draws: int | None = None
    """Comparable draws of the null family that were completed; absent for an effect."""
    units: int | None = None
    """Categories that were resampled; absent if prompts were treated as independent."""


@dataclass(frozen=True)
class Spread:
    """Descriptive: do the positives differ from the negatives along one direction? Intervals contain 95 % of splits."""

    halves: MeanInterval
    """Cosine between the directions of two groups of positives, on halves of the training prompts."""
    one_shift: MeanInterval
    """The same where one constant vector separates the classes by construction."""
    splits: int
    """Random splits into halves."""


class ArmRate(Struct, frozen=True, kw_only=True):
    """The rate (or mean level) of one arm on `n` scored completions of one class; `unscored` ones are in no rate."""

    arm: ArmId
    side: Label = field(name="set")
    n: int
    rate: float | None
    """Share of the scored completions that show the behaviour, or their mean level; None without any."""
    low: float | None
    """Wilson's interval; for a level, a bootstrap interval."""
    high: float | None
    exact_low: float | UnsetType = UNSET
    """Clopper and Pearson's interval; absent for a level."""
    exact_high: float | UnsetType = UNSET
    score: float | UnsetType | None = UNSET
    degenerate: float | None
    repeats: int | UnsetType = UNSET
    """Refused completions that repeat themselves after the refusal; absent without any."""
    unscored: int
    uncovered: Mapping[str, int] | UnsetType = UNSET
    """Completions by language, where the judge does not cover it; absent without any. If they are more than half of the
    completions, none is scored."""
    correct: float | None
    """Share of right answers, or mean share of the content for a continuous score; None if it is not known."""
    metric: float | None
    """Mean metric, log-odds (nats per token for the paired log-odds); None without any."""
    metric_n: int


@dataclass(frozen=True)
class NullSummary:
    """Effects of the draws of one null family on completions, in rates or levels: their mean, and the largest."""

    draws: int
    mean: float | None
    max: float | None
    ineffective: int | UnsetType = UNSET
    """Draws that count as no change: without a candidate, or with an ablation that damages the model; UNSET if none."""


@dataclass(frozen=True)
class WideNull:
    """Rank p of the direction among the wide nulls of one family; their mean and largest change, log-odds."""

    draws: int
    mean: float | None
    max: float | None
    p: float | None
    """(1 + beaten) / (1 + comparable); None with fewer comparable draws than the rule needs. Version 4 of the rule:
    rank p among all draws."""
    floor: float
    """Smallest possible p: 1 / (1 + comparable). Version 4: 1 / (1 + draws)."""
    cosine: float | None
    energy: float | None
    """Mean energy of the draws."""
    values: tuple[float | None, ...]
    """Change of the metric by every draw, log-odds, to four digits."""
    comparable: int | UnsetType = UNSET
    """Draws that do not align with the direction, or in which nothing was selected. Absent in version 4."""
    beaten: int | UnsetType = UNSET
    """Comparable draws that change the metric by at least as much as the direction. A draw that damages the model more
    than the rule permits counts as no change. Absent in version 4."""
    damaging: int | UnsetType = UNSET
    """Draws that change the metric as much and damage the model more; UNSET if none does."""
    p_apart: float | UnsetType = UNSET
    """Version 4 only: rank p in which aligned draws count as draws that do not reach the effect."""
    p_holm: float | UnsetType | None = UNSET
    """p adjusted over all effects, families and seeds of the run (Holm); absent in the copy under `effects`."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Effect on the `n` completions that are scored in both arms, compared with each null family's draws."""

    name: EffectName
    drop: float | None
    """Change of the rate or level, positive in the expected direction; None without scored pairs."""
    low: float | None
    high: float | None
    n: int
    mcnemar: float | UnsetType = UNSET
    gap: dict[str, float | None]
    """The drop minus the mean drop of each family's draws."""
    p: dict[str, float | None]
    """(1 + draws that reach the drop) / (1 + draws) over comparable completed draws; None with fewer than the rule
    needs. Version 4 of the rule: over all completed draws."""
    floor: dict[str, float]
    null: dict[str, NullSummary]
    wide: dict[str, WideNull]
    """Ranks in the metric: the same as `WideEffect.families`, without `p_holm`. Empty without wide nulls."""
    relative: RelativeChange | UnsetType = UNSET
    """The change relative to the baseline. Absent in version 4, as is the next one."""
    relative_gap: dict[str, RelativeChange] | UnsetType = UNSET
    """The relative change minus its mean over each family's comparable draws; the interval contains the variance
    between the draws."""
    gap_low: dict[str, float | None] | UnsetType = UNSET
    """Version 4 only: lower end of the interval of each gap."""
    gap_high: dict[str, float | None] | UnsetType = UNSET
    """Version 4 only: upper end of the interval of each gap."""
    apart: dict[str, Gap] | UnsetType = UNSET
    """Version 4 only: the gap without draws that align with the direction, unless no other draw is left."""


@dataclass(frozen=True)
class PooledEffect:
    """One effect over all seeds; of a continuous score the mean, smallest and largest change of `n` seeds."""

    name: EffectName
    drop: float
    """Mean change over the `n` distinct prompts; `spread`: range of the drops of the seeds."""
    low: float
    high: float
    n: int
    """Distinct prompts; for a continuous score, seeds."""
    spread: float
    shared: int | UnsetType = UNSET
    """Prompts that more than one seed tests. Absent for a continuous score and in version 4 of the rule."""
    relative: RelativeChange | UnsetType = UNSET
    """The relative change over distinct prompts. Absent as above."""


@dataclass(frozen=True)
class WideEffect:
    """One effect in the metric on `n` test prompts, compared with many null draws."""

    name: EffectName
    n: int
    change: float | None
    """Mean change of the metric, positive in the expected direction, log-odds."""
    low: float | None
    high: float | None
    before: float | None
    """Share of prompts whose more probable first token is the behaviour, at baseline; `after`: in the arm."""
    after: float | None
    families: dict[str, WideNull]


Quantity = Literal["degenerate", "behaviour", "correct"]
"""Share of degenerate completions; of completions that show the behaviour; of right answers or of the content."""


class DamageChange(Struct, frozen=True, kw_only=True):
    """What one intervention changes apart from its effect, on the same prompts."""

    quantity: Quantity
    arm: ArmId
    side: Label = field(name="set")
    change: float
    """Rise of the share from the baseline to the arm; for `correct` its fall."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None if there are too few prompts for one."""
    n: int
    """Prompts that are scored in both arms."""


@dataclass(frozen=True)
class Shift:
    """KL divergence of ablation on negatives that rarely show the behaviour at baseline."""

    kl: float | None
    """Mean KL divergence of the next-token distribution, baseline to ablation, nats; None without prompts, or if it is
    not finite."""
    low: float | None
    high: float | None
    n: int
    not_finite: int | UnsetType = UNSET
    """Negatives on which the logits under ablation are not finite; UNSET if there are none."""


@dataclass(frozen=True)
class SecondEffect:
    """An effect of the second direction in the metric: a prompt shows the behaviour if its metric is positive."""

    name: EffectName
    relative: RelativeChange
    p: Mapping[str, float | None]
    """Rank of its change of the metric among the comparable draws of each null family of the first direction."""


@dataclass(frozen=True)
class SecondSummary:
    """The best direction orthogonal to the selected one: a remainder of a difference in means, or by gradient."""

    selected: Survivor | None
    """None: no remainder passed the selection rule."""
    survivors: int
    effects: tuple[SecondEffect, ...] = ()
    """Suppression and induction; empty without a selected one."""
    source: SecondSource | UnsetType = UNSET
    """What it was fitted by. Absent without one, and in runs whose candidates were remainders only."""
    independence: tuple[float, float] | UnsetType = UNSET
    """Mean |change| of the stream's cosine with it under the ablation of the first direction, and the reverse."""


@dataclass(frozen=True)
class DosePoint:
    """One strength of an intervention on `n` prompts with a finite metric."""

    kind: DoseKind
    arm: ArmId
    dose: float
    """Strength of the ablation (1 removes the whole component), or coefficient of the addition."""
    n: int
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


class RateRow(Struct, frozen=True, kw_only=True):
    """The rate of one arm on one class of prompts: a share of the `n` scored completions, None without any."""

    arm: ArmId
    side: Label = field(name="set")
    n: int
    rate: float | None
    low: float
    high: float


class JudgeRate(RateRow, frozen=True, kw_only=True):
    """The share of refused and of degenerate completions by one keyword judge."""

    judge: str
    degenerate: float | None


class LengthRate(RateRow, frozen=True, kw_only=True):
    """The share of refused and of degenerate completions by the run's judge, on the first tokens of the completions."""

    length: str
    """Number of new tokens that are read, in digits, or `full`."""
    degenerate: float | None


@dataclass(frozen=True)
class Readouts:
    """Rates by other judges and by shorter readings, and the agreement of the judges; empty for a continuous score."""

    judges: tuple[JudgeRate, ...]
    kappa: tuple[KappaPair, ...]
    lengths: tuple[LengthRate, ...]


@dataclass(frozen=True)
class SiteShare(Site):
    """A site, and the share of the bootstrap refits that select it, 0 to 1."""

    share: float


@dataclass(frozen=True)
class StabilitySummary:
    """The sites that bootstrap refits select, and the cosines of their directions. None: too few refits."""

    refits: int
    sites: tuple[Site, ...]
    chosen: tuple[SiteShare, ...]
    """The most frequent first; `none`: share of the refits in which no candidate survived."""
    none: float | None
    cosine: MeanInterval
    """Cosine of the refitted with the selected direction, at its site; the interval contains 95 % of the refits."""
    between: float | None
