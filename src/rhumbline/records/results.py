"""results.json: what a run found, seed by seed, and what surrounds it.

A field that is None was not measured or was not a number. A field that is UNSET is absent: this kind of run never has
it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from rhumbline.records.effect_results import ArmRate, Dose, Effect, PooledEffect, Readouts, Shift, Stability, WideEffect
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    Cell,
    ModelFacts,
    NearDuplicates,
    NullDirection,
    OpeningToken,
    SeedPair,
    StageTiming,
)
from rhumbline.records.side_effect_results import BaselineRate, CategoryRate, ConditionRate, SideEffects
from rhumbline.records.style_results import StyleSummary
from rhumbline.records.verdict_reasons import VerdictReason

VerdictName = Literal[
    "SINGLE-DIRECTION-REPRODUCES",
    "NOT-SINGLE-DIRECTION",
    "NO-BASELINE-REFUSAL",
    "NO-BASELINE",
    "DAMAGED",
    "INCONCLUSIVE",
]
"""NO-BASELINE is NO-BASELINE-REFUSAL for a behaviour other than refusal."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Everything that one seed found."""

    seed: int
    verdict: VerdictName
    """The rule's verdict on this seed."""
    reason: str
    """Why, in a few words; empty where every condition holds."""
    reasons: tuple[VerdictReason, ...] = ()
    """The same as data; absent from runs of version 0.1."""
    sentence: str
    """The verdict with its numbers."""
    selected: Cell | None
    """The selected candidate; null where none passed."""
    survivors: int
    """Candidates that pass the selection rule."""
    tied: tuple[Cell, ...]
    """Other survivors within the tie margin, the nearest first."""
    n: BySplit[ByLabel[int]]
    """Prompts used: train and val after the metric's filter, test as planned."""
    planned: BySplit[ByLabel[int]]
    """Prompts of the splits before the filter."""
    near_duplicates: NearDuplicates
    """Near-duplicates among the prompts."""
    refusal_tokens: tuple[OpeningToken, ...]
    """Tokens of the fast metric; empty of a paired metric, or where none was found."""
    token_auroc: float | None
    """AUROC of the metric on training prompts; null where there is no token."""
    arms: tuple[ArmRate, ...]
    """Every arm on every set; the baseline alone where nothing was selected."""
    effects: tuple[Effect, ...]
    """Suppression and induction; empty where nothing was selected."""
    nulls: tuple[NullDirection, ...]
    """Null directions; empty where nothing was selected."""
    energy: float | None
    """Share of the stream's squared norm along the direction at its site; null where nothing was selected."""
    groups: float | None
    """Cosine of the directions of two groups of positives; null of too few prompts or where nothing was selected."""
    wide: tuple[WideEffect, ...]
    """Both effects by the fast metric; empty without wide nulls."""
    shift: Shift
    """KL of ablation on negatives; null values where it was not measured."""
    dose: Dose | None
    """Curves over strengths; null where nothing was selected."""
    readouts: Readouts
    """Other judges and shorter readings."""
    stability: Stability | None
    """Bootstrap refits; null where nothing was selected."""
    coefficient: float | None
    """Coefficient of the additions; null where no candidate was scored."""
    side_effects: SideEffects | None
    """What the interventions cost; null where nothing was selected."""
    categories: tuple[CategoryRate, ...]
    """Rates by category; empty for one category."""
    by_baseline: tuple[BaselineRate, ...]
    """Rates on positives by their class at baseline; empty where nothing was selected."""
    conditions: tuple[ConditionRate, ...]
    """Rates under other system prompts; empty where none was given."""
    style: StyleSummary | UnsetType = UNSET
    """The continuous score; absent of a behaviour with classes."""


@dataclass(frozen=True)
class Environment:
    """Where the run took place; not part of the protocol."""

    python: str
    """Version of Python."""
    rhumbline: str
    """Version of rhumbline."""
    torch: str
    """Version of PyTorch."""
    transformers: str
    """Version of transformers."""
    platform: str
    """Operating system and machine."""
    device: str
    """Name of the accelerator, or cpu."""
    threads: int
    """Processor threads of PyTorch."""
    started: str
    """When the run began or was last resumed, ISO 8601 in UTC."""
    engine: str | UnsetType = UNSET
    """Where the jobs ran: local, ray, ...; absent from runs before there was a choice."""


@dataclass(frozen=True)
class TimingSummary:
    """What the stages of the run took."""

    total_seconds: float
    """Wall time of all stages, seconds."""
    stages: tuple[StageTiming, ...]
    """Every stage in the order of the run."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The part of results.json that follows from the protocol and the rows: what `verify` computes again."""

    schema: Literal[1]
    """Version of the run directory."""
    verdict: VerdictName
    """Verdict of the run."""
    reason: str
    """Why, in a few words; empty where every condition holds in every seed."""
    reasons: tuple[VerdictReason, ...] = ()
    """The same as data; empty of runs of version 0.1."""
    sentence: str
    """The verdict with its numbers, seed by seed."""
    rule: dict[str, Any]
    """The rule of the verdict."""
    model: ModelFacts
    behaviour: str
    """Word for the behaviour."""
    preset: str
    """Name of the preset."""
    protocol_sha256: str
    seeds: tuple[SeedResult, ...]
    """What each seed found, in the order of the protocol."""
    pooled: tuple[PooledEffect, ...]
    """Effects over all seeds; empty where nothing was selected."""
    agreement: tuple[SeedPair, ...]
    """Every two seeds that chose a direction."""
    warnings: tuple[str, ...]
    """What a careful reader must know beside the verdict."""


@dataclass(frozen=True, kw_only=True)
class Results(Findings):
    """results.json: the findings, what surrounds them, and the hash of every artefact."""

    environment: Environment
    """Where the run took place."""
    timings: TimingSummary
    """What the stages took."""
    files: dict[str, str]
    """Path of every artefact inside the run directory, and the sha256 of its bytes."""
    sha256: str
    """Hash of the canonical JSON text of everything above."""
