"""results.json: the verdict of a run with its evidence, seed by seed, and where, when and from which files it came.

A number that is None is not known or not finite. A field that is UNSET is absent for this kind of run.
"""

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from rhumbline.records.effect_results import (
    ArmRate,
    Dose,
    Effect,
    PooledEffect,
    Readouts,
    Shift,
    StabilitySummary,
    WideEffect,
)
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    FirstToken,
    ModelFacts,
    NearDuplicates,
    NullDirection,
    SeedPair,
    StageTiming,
    Survivor,
)
from rhumbline.records.side_effect_results import BaselineRate, CategoryRate, ConditionRate, SideEffects
from rhumbline.records.style_results import StyleSummary
from rhumbline.records.verdict_reasons import VerdictReason
from rhumbline.records.verdict_rule import Rule

VerdictName = Literal[
    "SINGLE-DIRECTION-REPRODUCES",
    "NOT-SINGLE-DIRECTION",
    "NO-BASELINE-REFUSAL",
    "NO-BASELINE",
    "DAMAGED",
    "INCONCLUSIVE",
]
"""NO-BASELINE is NO-BASELINE-REFUSAL if the behaviour is refusal. DAMAGED and INCONCLUSIVE need a rule that has bounds
or reads intervals."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The verdict and the evidence of one seed."""

    seed: int
    verdict: VerdictName
    """Verdict of the rule for this seed."""
    reason: str
    """Text of the reasons; empty if every condition is met."""
    reasons: tuple[VerdictReason, ...] = ()
    """Why the verdict was reached. Absent in runs of version 0.1."""
    sentence: str
    """The verdict with its numbers."""
    selected: Survivor | None
    """The selected candidate; None if none survived."""
    survivors: int
    """Number of candidates that the selection rule does not discard."""
    tied: tuple[Survivor, ...]
    """Other survivors within the tie margin, nearest first."""
    n: BySplit[ByLabel[int]]
    """Number of prompts: train and validation after the filter, test as planned."""
    planned: BySplit[ByLabel[int]]
    """Number of prompts before the filter."""
    near_duplicates: NearDuplicates
    """Prompts that nearly repeat one of another split."""
    refusal_tokens: tuple[FirstToken, ...]
    """Tokens of the metric; empty for the paired log-odds, and if there are none."""
    token_auroc: float | None
    """AUROC of the metric on training prompts; None without tokens."""
    arms: tuple[ArmRate, ...]
    """Every arm on every class; the baseline only if no candidate was selected."""
    effects: tuple[Effect, ...]
    """Suppression and induction; empty if no candidate was selected."""
    nulls: tuple[NullDirection, ...]
    """Null directions; empty if no candidate was selected."""
    energy: float | None
    """Energy of the direction at its site; None if no candidate was selected."""
    groups: float | None
    """Cosine between the directions of two groups of positives; None for too few prompts or without a direction."""
    wide: tuple[WideEffect, ...]
    """Both effects in the metric; empty without wide nulls."""
    shift: Shift
    """KL divergence of ablation on negatives; its numbers are None if it was not measured."""
    dose: Dose | None
    """Dose curves; None if no candidate was selected."""
    readouts: Readouts
    """Rates by other judges and by shorter readings."""
    stability: StabilitySummary | None
    """Bootstrap refits; None if no candidate was selected."""
    coefficient: float | None
    """Coefficient of the additions; None if no candidate was scored."""
    side_effects: SideEffects | None
    """Side effects of the interventions; None if no candidate was selected."""
    categories: tuple[CategoryRate, ...]
    """Rates by category; empty for a single category."""
    by_baseline: tuple[BaselineRate, ...]
    """Rates of positives by their class at baseline; empty if no candidate was selected."""
    conditions: tuple[ConditionRate, ...]
    """Rates under other system prompts; empty without any."""
    style: StyleSummary | UnsetType = UNSET
    """The continuous score; absent for a behaviour with classes."""


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
    """When the run started or was last resumed, ISO 8601 in UTC."""
    engine: str | UnsetType = UNSET
    """Where jobs ran, such as local or ray; absent in the first runs."""


@dataclass(frozen=True)
class TimingSummary:
    """Time and memory of the stages."""

    total_seconds: float
    """Wall time of all stages, seconds."""
    stages: tuple[StageTiming, ...]
    """Every stage, in the order of the run."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The part of results.json that follows from the other files of the run: what `verify` computes again."""

    schema: Literal[1]
    """Version of the run directory."""
    verdict: VerdictName
    """Verdict of the run."""
    reason: str
    """Text of the reasons; empty if every condition is met in every seed."""
    reasons: tuple[VerdictReason, ...] = ()
    """Why the verdict was reached. Absent in runs of version 0.1."""
    sentence: str
    """The verdict with its numbers, seed by seed."""
    rule: Rule
    """The rule of the verdict."""
    model: ModelFacts
    behaviour: str
    """Word for the behaviour."""
    preset: str
    """Name of the preset."""
    protocol_sha256: str
    seeds: tuple[SeedResult, ...]
    """The evidence of every seed, in the order of the protocol."""
    pooled: tuple[PooledEffect, ...]
    """Effects over all seeds; empty if no candidate was selected."""
    agreement: tuple[SeedPair, ...]
    """Every two seeds that selected a direction."""
    warnings: tuple[str, ...]
    """What limits the interpretation of the verdict."""


@dataclass(frozen=True, kw_only=True)
class Results(RunSummary):
    """results.json: the summary of the run, its environment, and the hash of every artefact."""

    environment: Environment
    """Where the run took place."""
    timings: TimingSummary
    """Time and memory of the stages."""
    files: dict[str, str]
    """sha256 of every artefact by its path inside the run directory."""
    sha256: str
    """Hash of the canonical JSON text of all other fields."""
