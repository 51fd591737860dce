"""results.json: the verdict of a run with its evidence, seed by seed."""

import math
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.claims import Claim
from rhumbline.records.effect_results import (
    ArmRate,
    DamageChange,
    Dose,
    Effect,
    PooledEffect,
    Readouts,
    Shift,
    Spread,
    StabilitySummary,
    WideEffect,
)
from rhumbline.records.seed_files import Text
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    ClassifierFit,
    EffectName,
    FirstToken,
    Label,
    Marker,
    ModelFacts,
    NearDuplicates,
    NullDirection,
    SeedPair,
    StageTiming,
    Survivor,
)
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import VerdictReason
from rhumbline.records.verdict_rule import Rule


@dataclass(frozen=True)
class LevelUnit:
    """The unit of levels: the gap between the classes at baseline. All numbers are None if a class is empty."""

    positive: float | None
    """Mean score of the positives."""
    negative: float | None
    """Mean score of the negatives."""
    gap: float | None
    """positive - negative, in scores."""
    low: float | None
    high: float | None
    auroc: float | None
    """Probability that a positive has the larger score."""
    auroc_low: float | None
    n: tuple[int, int]
    """Scored positives and negatives."""
    source: Literal["baseline", "texts"]
    """Completions at baseline, or the responses that the contrast carries."""

    @property
    def scale(self) -> float:
        """One level in scores: the gap, or 1 if it is not positive or not known."""
        return self.gap if self.gap is not None and self.gap > 0 else 1.0

    def level_of(self, score: float) -> float | None:
        """The level of a score; None if it is not known."""
        if self.negative is None or not math.isfinite(score):
            return None
        return (score - self.negative) / self.scale


class ScoreCorrelation(Struct, frozen=True, kw_only=True):
    """Correlation of the baseline score with something else."""

    other: Literal["words", "content_words", "bullets", "topic"] = field(name="with")
    """What it is correlated with."""
    n: int
    """Baseline completions."""
    r: float | None
    """Pearson's r (of topics the correlation ratio); null without variance or of fewer than three."""


@dataclass(frozen=True)
class AdjustedEffect:
    """An effect with length, layout and topic held fixed, in scores."""

    name: EffectName
    drop: float | None
    """Mean change of the score; None if it is not finite."""
    adjusted: float | None
    """Coefficient of the arm in a least squares fit on arm, content words, bullets and topic."""
    matched: float | None
    """Mean change on prompts whose two completions match in layout and length; None without any."""
    matched_n: int
    """Number of these prompts."""
    n: int
    """Prompts that are scored in both arms."""


@dataclass(frozen=True)
class Confounds:
    """Length, layout and topic as alternative explanations of the score."""

    correlations: tuple[ScoreCorrelation, ...]
    """Correlations of the baseline score with length, layout and topic."""
    adjusted: tuple[AdjustedEffect, ...]
    """The effects with these held fixed."""


@dataclass(frozen=True)
class NeutralLevel:
    """The neutral class on the scale of the two others."""

    n: int
    """Scored completions."""
    score: float | None
    """Mean score; None without any."""
    level: float | None
    """The same as a level."""
    projection: float | None
    """Mean projection on the selected direction; None without a direction at a prompt position."""


@dataclass(frozen=True)
class StyleSummary:
    """The continuous score of one seed: its unit, its judges and its confounds."""

    unit: LevelUnit
    """The unit of levels."""
    texts: Literal["responses", "completions"]
    """Training texts that the judges were fitted on."""
    how: Literal["given", "estimated"]
    """Where the markers come from."""
    markers: tuple[Marker, ...]
    """The markers, sorted by p-value; empty if none was estimated."""
    classifier: ClassifierFit | None
    """The style classifier; None if none was fitted."""
    chance: float
    """Mean content overlap of texts on different prompts, 0 to 1."""
    confounds: Confounds
    """Alternative explanations of the score."""
    neutral: NeutralLevel | None
    """The neutral class; None if the contrast has none."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of one arm on one kind of text."""

    text: Text
    """Plain documents, responses, or the model's own baseline completions."""
    arm: ArmId
    documents: int
    """Number of documents."""
    tokens: int
    """Number of predicted tokens."""
    ce: float | None
    """Mean cross-entropy, nats per token; None if a loss is not finite."""
    perplexity: float | None
    """exp(ce)."""
    change: float | None
    """ce minus that of the baseline, nats per token; None for the baseline."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Divergence:
    """KL divergence of one arm along the model's own completions."""

    arm: ArmId
    documents: int
    """Number of completions."""
    tokens: int
    """Number of steps."""
    mean: float | None
    """Mean KL divergence from baseline to arm over all steps, nats; None if one is not finite."""
    low: float | None
    high: float | None
    p95: float | None
    """95th percentile over the steps, nats."""
    max: float | None
    """Largest step, nats."""
    first: float | None
    """Mean over the first step of every completion, nats."""


@dataclass(frozen=True)
class NegativeRate:
    """Rate of one of the direction's own arms on negatives."""

    arm: ArmId
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float
    change: float | None
    """The rate minus that of the baseline on the same prompts; None without pairs."""
    change_low: float | None
    change_high: float | None
    degenerate: float | None
    """Share of the scored completions that is degenerate; None without any."""
    correct: float | None
    """Share of right answers among the known ones; None without any."""
    correct_n: int
    """Prompts with a known answer."""
    correct_change: float | None
    """The share of right answers minus that of the baseline; None without any."""
    correct_low: float | None
    """Lower end of its 95 % interval (Newcombe)."""
    correct_high: float | None
    """Upper end of its 95 % interval (Newcombe)."""


@dataclass(frozen=True)
class SideEffects:
    """Side effects of the interventions."""

    losses: tuple[Loss, ...]
    """Cross-entropy by text and arm; empty without documents."""
    kl: tuple[Divergence, ...]
    """KL divergence along the model's own completions."""
    left_out: int
    """Completions that are excluded because they refuse at baseline."""
    negatives: tuple[NegativeRate, ...]
    """Rates on negatives by arm."""


class CategoryRate(Struct, frozen=True, kw_only=True):
    """Rate of one arm on the prompts of one category."""

    category: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float


BaselineClass = Literal["refused", "not refused", "shown", "not shown"]
"""Class of a prompt at baseline: `refused` or not with keyword judges, `shown` or not with a continuous score."""


@dataclass(frozen=True)
class BaselineRate:
    """Rate of one arm on the positives that show the behaviour at baseline, or on those that do not."""

    baseline: BaselineClass
    """Class of the prompts at baseline."""
    arm: ArmId
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float


class ConditionRate(Struct, frozen=True, kw_only=True):
    """Rate of one arm under another system prompt."""

    condition: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float
    change: float | None
    """The rate minus that of the baseline under the same system prompt; None for the baseline, and without pairs."""
    change_low: float | None
    change_high: float | None


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
    """The claims with their numbers in one line. Version 4 of the rule: the verdict with its numbers."""
    claims: tuple[Claim, ...] = ()
    """What the verdict follows from. Absent in version 4 of the rule."""
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
    damage: tuple[DamageChange, ...] = ()
    """Changes apart from the effects, under the direction's own arms. Absent in version 4 of the rule."""
    spread: Spread | UnsetType | None = UNSET
    """Cosines between groups of positives beside a null with one shift; None if they were not measured. Absent in
    version 4 of the rule, and without a direction."""
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
    """The claims with their numbers in one line. Version 4 of the rule: the verdict with its numbers, by seed."""
    claims: tuple[Claim, ...] = ()
    """The claims over all seeds. Absent in version 4 of the rule."""
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
