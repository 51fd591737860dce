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


class RelativeChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change by an intervention relative to the baseline, or the difference between two of them.

    Suppression: 1 - (share that shows the behaviour after) / (before). Induction: the same for the absence of the
    behaviour. Degenerate completions count against the effect.
    """

    value: float | None
    """None: not known."""
    low: float | None
    """Lower end of the 95 % interval; None: not known."""
    high: float | None
    """Upper end of the 95 % interval; None: not known."""
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
    p: float | None
    """(1 + beaten) / (1 + comparable); None with fewer comparable draws than the rule needs. Version 4 of the rule:
    rank p among all draws."""
    floor: float
    """Smallest possible p: 1 / (1 + comparable). Version 4: 1 / (1 + draws)."""
    cosine: float | None
    """Largest |cosine| with the direction among draws with at least its effect; None if there is no such draw."""
    energy: float | None
    """Mean energy of the draws."""
    values: tuple[float | None, ...]
    """Change of the metric by every draw, log-odds, to four digits."""
    comparable: int | UnsetType = UNSET
    """Draws that do not align with the direction. Absent in version 4."""
    beaten: int | UnsetType = UNSET
    """Comparable draws that change the metric at least as far as the direction. Absent in version 4."""
    p_apart: float | UnsetType = UNSET
    """Version 4 only: rank p in which aligned draws count as draws that do not reach the effect."""
    p_holm: float | UnsetType | None = UNSET
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
    p: dict[str, float | None]
    """(1 + draws that reach the drop) / (1 + draws) over comparable completed draws; None with fewer than the rule
    needs. Version 4 of the rule: over all completed draws."""
    floor: dict[str, float]
    """Smallest possible p with each family's number of draws."""
    null: dict[str, NullSummary]
    """Drops of each family's draws."""
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
    shared: int | UnsetType = UNSET
    """Prompts that more than one seed tests. Absent for a continuous score and in version 4 of the rule."""
    relative: RelativeChange | UnsetType = UNSET
    """The relative change over distinct prompts. Absent as above."""


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


class DamageChange(Struct, frozen=True, kw_only=True):
    """What one intervention changes apart from its effect, on the same prompts."""

    quantity: Literal["degenerate", "behaviour", "correct"]
    """Share of degenerate completions; of completions that show the behaviour; of right answers or of the content."""
    arm: ArmId
    side: Label = field(name="set")
    change: float
    """Rise of the share from the baseline to the arm; for `correct` its fall."""
    low: float
    high: float
    n: int
    """Prompts that are scored in both arms."""


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
