"""nulls.json, wide.json, dose.json and stability.json of a seed, as records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    ByLabel,
    EffectName,
    Label,
    NullDirection,
    Site,
)


@dataclass(frozen=True)
class NullDirections:
    """nulls.json: the null directions of one seed. Written if a direction was selected."""

    energy: float
    """Share of the squared norm of the stream that lies along the direction itself, 0 to 1."""
    nulls: tuple[NullDirection, ...]
    """In the order of nulls.safetensors."""
    groups: float | None = None
    """Cosine between the directions of two groups of positives; None for fewer than 4 prompts, or not finite."""


class WideArm(Struct, frozen=True, kw_only=True):
    """The metric of some test prompts under one arm."""

    arm: ArmId
    """Baseline, ablation or addition, of the direction or of a null."""
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `WideNulls.prompts`; None: not finite."""


@dataclass(frozen=True)
class StoppedFamily:
    """A family whose draws stopped early, because its rank p could not meet the rule any more."""

    family: str
    effect: EffectName
    draws: int
    """Draws that were evaluated."""


@dataclass(frozen=True)
class WideNulls:
    """wide.json: the metric under every null draw. Written if a direction was selected."""

    prompts: Mapping[Label, tuple[str, ...]]
    """Ids of the prompts, by class; empty if the protocol has no wide nulls."""
    rows: tuple[WideArm, ...]
    """Arms of positives, then of negatives; empty as above."""
    kl: tuple[float | None, ...] = ()
    """KL divergence of the next-token distribution of each negative, baseline to ablation, nats; None for a negative
    that shows the behaviour at baseline, or not finite."""
    stopped: tuple[StoppedFamily, ...] = ()
    """Families that stopped early, by effect. Their rank p is above the bound of the rule."""

    def with_rows(self, rows: Sequence[WideArm]) -> "WideNulls":
        """The same with further rows."""
        return replace(self, rows=(*self.rows, *rows))


class DoseArm(Struct, frozen=True, kw_only=True):
    """The metric of some test prompts under one strength of one intervention."""

    kind: Literal["ablation", "addition"]
    arm: ArmId
    """The direction of the intervention: `direction`, or `null:<family>:<draw>`."""
    dose: float
    """Strength of an ablation (1 removes all), coefficient of an addition (in units of the norm)."""
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `Doses.prompts`; None: not finite."""


@dataclass(frozen=True)
class Doses:
    """dose.json: the curves over strengths. Written if a direction was selected."""

    prompts: ByLabel[tuple[str, ...]]
    """Ids of the prompts."""
    rows: tuple[DoseArm, ...]
    """Strengths of ablation, then coefficients of addition; empty if the protocol has no curve."""


@dataclass(frozen=True)
class BootstrapRefit:
    """The candidate that one refit on resampled prompts selects."""

    position: Position | None
    """Its position; None: no candidate passed."""
    layer: int | None
    cosine: float
    """Cosine of the refitted direction with the direction, both at the site of the direction."""


@dataclass(frozen=True)
class Stability:
    """stability.json: refits on resampled prompts. Written if a direction was selected."""

    sites: tuple[Site, ...]
    """The sites that a refit can select, best first."""
    refits: tuple[BootstrapRefit, ...]
    """In the order of the draws; empty if the protocol has none."""
    between: float | None
    """Mean cosine between two refits at the site of the direction; None for fewer than 2."""
