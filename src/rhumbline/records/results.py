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
    RateRow,
    Readouts,
    SecondSummary,
    Shift,
    Spread,
    StabilitySummary,
    WideEffect,
)
from rhumbline.records.outcome_rows import Text
from rhumbline.records.seed_files import CommonStart
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    ClassifierFit,
    EffectName,
    FirstToken,
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
    """The unit of levels: the gap between the mean scores of the classes at baseline. All None if a class is empty."""

    positive: float | None
    negative: float | None
    gap: float | None
    """positive - negative, in scores."""
    low: float | None
    """Lower end of its interval; None with fewer than 8 scores in a class, as below."""
    high: float | None
    auroc: float | None
    """Probability that a positive has the larger score."""
    auroc_low: float | None
    """Lower end of Newcombe's interval."""
    n: tuple[int, int]
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
    """Correlation of the score of `n` baseline completions with something else."""

    other: Literal["words", "content_words", "bullets", "topic"] = field(name="with")
    n: int
    r: float | None
    """Pearson's r (of topics the correlation ratio); null without variance or of fewer than three."""


@dataclass(frozen=True)
class AdjustedEffect:
    """An effect with length, layout and topic held fixed, in scores; `n` prompts are scored in both arms."""

    name: EffectName
    drop: float | None
    adjusted: float | None
    """Coefficient of the arm in a least squares fit on arm, content words, bullets and topic."""
    matched: float | None
    """Mean change on the `matched_n` prompts whose completions match in layout and length; None without any."""
    matched_n: int
    n: int


@dataclass(frozen=True)
class Confounds:
    """Length, layout and topic as alternative explanations of the score."""

    correlations: tuple[ScoreCorrelation, ...]
    adjusted: tuple[AdjustedEffect, ...]


@dataclass(frozen=True)
class NeutralLevel:
    """The neutral class on the scale of the two others: mean score, and the same as a level."""

    n: int
    score: float | None
    level: float | None
    projection: float | None
    """Mean projection on the selected direction; None without a direction at a prompt position."""


@dataclass(frozen=True)
class StyleSummary:
    """The continuous score of one seed: its unit, its judges and its confounds."""

    unit: LevelUnit
    texts: Literal["responses", "completions"]
    how: Literal["given", "estimated"]
    markers: tuple[Marker, ...]
    """Sorted by p-value; empty if none was estimated."""
    classifier: ClassifierFit | None
    chance: float
    """Mean content overlap of texts on different prompts, 0 to 1."""
    confounds: Confounds
    neutral: NeutralLevel | None
    words: ByLabel[float] | UnsetType = UNSET
    """Mean length of the training texts, in words. Absent in the first runs."""
    matched: int | UnsetType | None = UNSET
    """Pairs of texts of similar length that the markers were estimated on; None: all texts."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of one arm on one kind of text, per predicted token."""

    text: Text
    arm: ArmId
    documents: int
    tokens: int
    ce: float | None
    """Mean cross-entropy, nats per token; None if a loss is not finite."""
    perplexity: float | None
    change: float | None
    """ce minus that of the baseline, nats per token; None for the baseline."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Divergence:
    """KL divergence of one arm along the model's own completions, nats; `tokens` are its steps."""

    arm: ArmId
    documents: int
    tokens: int
    mean: float | None
    """Over all steps, baseline to arm; None if one is not finite."""
    low: float | None
    high: float | None
    p95: float | None
    """95th percentile over the steps."""
    max: float | None
    first: float | None
    """Mean over the first step of every completion."""


@dataclass(frozen=True)
class NegativeRate:
    """Rates of one of the direction's own arms on negatives, with their paired changes from the baseline."""

    arm: ArmId
    n: int
    rate: float | None
    low: float
    high: float
    change: float | None
    change_low: float | None
    change_high: float | None
    degenerate: float | None
    correct: float | None
    correct_n: int
    correct_change: float | None
    correct_low: float | None
    correct_high: float | None


@dataclass(frozen=True)
class SideEffects:
    """Side effects of the interventions."""

    losses: tuple[Loss, ...]
    kl: tuple[Divergence, ...]
    left_out: int
    """Completions that are excluded because they refuse at baseline."""
    negatives: tuple[NegativeRate, ...]


class CategoryRate(RateRow, frozen=True, kw_only=True):
    """Rate of one arm on the prompts of one category."""

    category: str


BaselineClass = Literal["refused", "not refused", "shown", "not shown"]
"""Class of a prompt at baseline: `refused` or not with keyword judges, `shown` or not with a continuous score."""


@dataclass(frozen=True)
class BaselineRate:
    """Rate of one arm on the positives that show the behaviour at baseline, or on those that do not."""

    baseline: BaselineClass
    arm: ArmId
    n: int
    rate: float | None
    low: float
    high: float


class ConditionRate(RateRow, frozen=True, kw_only=True):
    """Rate of one arm under another system prompt."""

    condition: str
    change: float | None
    """Rate minus that of the baseline under the same system prompt; None for the baseline, and without pairs."""
    change_low: float | None
    change_high: float | None


@dataclass(frozen=True)
class ConditionEffects:
    """Suppression and induction under another system prompt, compared with the nulls under the same one."""

    condition: str
    effects: tuple[Effect, ...]


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The verdict and the evidence of one seed; effects are empty or None if no candidate was selected."""

    seed: int
    verdict: VerdictName
    reason: str
    reasons: tuple[VerdictReason, ...] = ()
    """Why the verdict was reached. Absent in runs of version 0.1."""
    sentence: str
    """The claims with their numbers in one line. Version 4 of the rule: the verdict with its numbers."""
    claims: tuple[Claim, ...] = ()
    """What the verdict follows from. Absent in version 4 of the rule."""
    selected: Survivor | None
    survivors: int
    tied: tuple[Survivor, ...]
    """Other survivors within the tie margin, nearest first."""
    n: BySplit[ByLabel[int]]
    """Train and validation after the filter, test as planned; `planned`: before the filter."""
    planned: BySplit[ByLabel[int]]
    near_duplicates: NearDuplicates
    refusal_tokens: tuple[FirstToken, ...]
    token_auroc: float | None
    """AUROC of the metric on training prompts; None without tokens."""
    threshold: float | UnsetType = UNSET
    """Log-odds of the refusal tokens where the metric is 0; absent: 0."""
    start: CommonStart | None = None
    """The tokens after which the metric and the KL divergence are read; None: after the prompt."""
    arms: tuple[ArmRate, ...]
    """The baseline only if no candidate was selected."""
    effects: tuple[Effect, ...]
    nulls: tuple[NullDirection, ...]
    energy: float | None
    groups: float | None
    """Cosine between the directions of two groups of positives; None for too few prompts or without a direction."""
    wide: tuple[WideEffect, ...]
    shift: Shift
    """Its numbers are None if it was not measured."""
    dose: Dose | None
    readouts: Readouts
    stability: StabilitySummary | None
    coefficient: float | None
    """Coefficient of the additions; None if no candidate was scored."""
    side_effects: SideEffects | None
    categories: tuple[CategoryRate, ...]
    by_baseline: tuple[BaselineRate, ...]
    conditions: tuple[ConditionRate, ...]
    condition_effects: tuple[ConditionEffects, ...] | UnsetType = UNSET
    """Absent without nulls under other system prompts."""
    damage: tuple[DamageChange, ...] = ()
    """Changes apart from the effects, under the direction's own arms. Absent in version 4 of the rule."""
    spread: Spread | UnsetType | None = UNSET
    """Cosines between groups of positives beside a null with one shift; None if they were not measured. Absent in
    version 4 of the rule, and without a direction."""
    second: SecondSummary | UnsetType = UNSET
    """The second direction, for the claim *unique*; absent if none was measured."""
    subtraction: Effect | UnsetType = UNSET
    """Effect of the subtraction on positives, with its nulls; no claim uses it. Absent if the arm was not run."""
    style: StyleSummary | UnsetType = UNSET
    """The continuous score; absent for a behaviour with classes."""


@dataclass(frozen=True)
class Environment:
    """Where the run took place; not part of the protocol."""

    python: str
    rhumbline: str
    torch: str
    transformers: str
    platform: str
    device: str
    threads: int
    started: str
    """When the run started or was last resumed, ISO 8601 in UTC."""
    engine: str | UnsetType = UNSET
    """Where jobs ran, such as local or ray; absent in the first runs."""


@dataclass(frozen=True)
class TimingSummary:
    """Wall time of all stages in seconds, and every stage in the order of the run."""

    total_seconds: float
    stages: tuple[StageTiming, ...]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The part of results.json that follows from the other files of the run: what `verify` computes again."""

    schema: Literal[1]
    verdict: VerdictName
    reason: str
    """Text of the reasons; empty if every condition is met in every seed."""
    reasons: tuple[VerdictReason, ...] = ()
    """Why the verdict was reached. Absent in runs of version 0.1."""
    sentence: str
    """The claims with their numbers in one line. Version 4 of the rule: the verdict with its numbers, by seed."""
    claims: tuple[Claim, ...] = ()
    """The claims over all seeds. Absent in version 4 of the rule."""
    rule: Rule
    model: ModelFacts
    behaviour: str
    preset: str
    protocol_sha256: str
    seeds: tuple[SeedResult, ...]
    pooled: tuple[PooledEffect, ...]
    """Over all seeds; empty if no candidate was selected."""
    agreement: tuple[SeedPair, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Results(RunSummary):
    """results.json: the summary of the run, its environment, and the hash of every artefact."""

    environment: Environment
    timings: TimingSummary
    files: dict[str, str]
    """sha256 of every artefact by its path inside the run directory."""
    sha256: str
    """Hash of the canonical JSON text of all other fields."""
    has_page: bool | UnsetType = UNSET
    """Whether a report was drawn at the end of the run; absent in older runs."""
