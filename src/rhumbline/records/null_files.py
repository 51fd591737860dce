"""nulls.json, wide.json, dose.json and stability.json of a seed, as records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    ByLabel,
    Label,
    NullDirection,
    Site,
)


@dataclass(frozen=True)
class NullDirections:
    """nulls.json: the control directions of one seed. Written where a direction was selected."""

    energy: float
    """Share of the stream's squared norm that lies along the direction itself, 0 to 1."""
    nulls: tuple[NullDirection, ...]
    """In the order of nulls.safetensors."""
    groups: float | None = None
    """Cosine between the directions of two groups of positives; None of fewer than 4 prompts, or not finite."""


class WideArm(Struct, frozen=True, kw_only=True):
    """The fast metric of some test prompts under one arm."""

    arm: ArmId
    """Baseline, ablation or addition, of the direction or of a null."""
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `WideNulls.prompts`; None: not finite."""


@dataclass(frozen=True)
class WideNulls:
    """wide.json: every null draw by the fast metric. Written where a direction was selected."""

    prompts: Mapping[Label, tuple[str, ...]]
    """Ids of the prompts that were read, by class; empty where the protocol asks for no wide nulls."""
    rows: tuple[WideArm, ...]
    """Arms of positives, then of negatives; empty as above."""
    kl: tuple[float | None, ...] = ()
    """KL of each negative's next-token distribution, baseline to ablated, nats; None of a negative that tends to the
    behaviour at baseline, or not finite."""


class DoseArm(Struct, frozen=True, kw_only=True):
    """The fast metric of some test prompts under one strength of one intervention."""

    kind: Literal["ablation", "addition"]
    arm: ArmId
    """What it acts along: `direction`, or `null:<family>:<draw>`."""
    dose: float
    """Strength of an ablation (1 removes all), coefficient of an addition (in units of the direction's norm)."""
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `Doses.prompts`; None: not finite."""


@dataclass(frozen=True)
class Doses:
    """dose.json: the curves over strengths. Written where a direction was selected."""

    prompts: ByLabel[tuple[str, ...]]
    """Ids of the prompts that were read."""
    rows: tuple[DoseArm, ...]
    """Strengths of ablation, then coefficients of addition; empty where the protocol asks for no curve."""


@dataclass(frozen=True)
class BootstrapRefit:
    """What one refit on resampled prompts chose."""

    position: Position | None
    """Where; None: no candidate passed."""
    layer: int | None
    cosine: float
    """Of the refitted direction with the direction, both at the direction's own site."""


@dataclass(frozen=True)
class Stability:
    """stability.json: the choice made again on resampled prompts. Written where a direction was selected."""

    sites: tuple[Site, ...]
    """Candidates among which a refit chooses, best first."""
    refits: tuple[BootstrapRefit, ...]
    """In the order of the draws; empty where the protocol asks for none."""
    between: float | None
    """Mean cosine between two refits at the direction's site; None of fewer than 2."""
