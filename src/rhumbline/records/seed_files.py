"""The files of one seed, as records, in the order in which the stages write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    ClassifierFit,
    DoseKind,
    EffectName,
    FirstToken,
    Label,
    Marker,
    NotFinite,
    NullDirection,
    SecondSource,
    Site,
    Split,
    Survivor,
    TrainVal,
)


@dataclass(frozen=True)
class SplitIds:
    """splits.json: the ids of the prompts of one seed, in order."""

    seed: int
    ids: BySplit[ByLabel[tuple[str, ...]]]


@dataclass(frozen=True)
class StyleJudges:
    """style.json: the judges of a continuous score, fitted on training texts; absent for judges of classes."""

    texts: Literal["responses", "completions"]
    n: ByLabel[int]
    how: Literal["given", "estimated"]
    markers: tuple[Marker, ...]
    """Empty if no phrase separates the texts of the classes."""
    classifier: ClassifierFit | None
    """Its weights are in classifier.safetensors; None if none was fitted."""
    chance: float
    train: ByLabel[float]
    """Mean share of the words inside markers."""
    words: ByLabel[float] | None = None
    """Mean length of the texts, in words. Missing in the first runs."""
    matched: int | None = None
    """Pairs of texts of similar length that the markers were estimated on; None: all texts."""


@dataclass(frozen=True)
class CommonStart:
    """The tokens with which all baseline completions of the training and validation prompts begin."""

    tokens: tuple[int, ...]
    text: str
    is_header: bool
    """Whether the answer begins after the text, since it ends like a header or a block. Otherwise the text is a part of
    the answer, such as a first word."""
    n: int
    """Number of completions."""


@dataclass(frozen=True)
class MetricTokens:
    """metric.json: the metric of a seed and the tokens that it reads."""

    how: Literal["given", "auto", "shifted", "pairs"]
    """given: tokens of the protocol. auto: first tokens of the model's own completions that show the behaviour.
    shifted: tokens that are more probable after positives. pairs: no tokens; the paired log-odds of two responses."""
    tokens: tuple[FirstToken, ...]
    """Empty for `pairs`, and if `reason` is set."""
    auroc: float | None
    """AUROC of the metric between the training classes; None without tokens, or not finite."""
    refusals: int | None
    """Training positives whose completion shows the behaviour; None unless `auto`."""
    n: int | None
    """Training positives that were read; None for `given` and `pairs`."""
    reason: TokensLacking | None
    """Why there are no tokens; None if there are, and for `pairs`."""
    start: CommonStart | None = None
    """The metric and the KL divergence are read after these tokens; None: after the prompt."""
    threshold: float = 0.0
    """The metric is the log-odds of the tokens minus this, so that its sign predicts the behaviour."""


@dataclass(frozen=True)
class Extracted:
    """extraction.json: positions and prompts of the candidates, which are in directions.safetensors."""

    positions: tuple[Position, ...]
    """In the order of the first axis of the candidates."""
    kept: TrainVal[ByLabel[tuple[bool, ...]]]
    """Whether the sign of the metric keeps each prompt (of a contrast of texts: each row)."""
    n: TrainVal[ByLabel[int]]
    metric: TrainVal[ByLabel[tuple[float | None, ...]]]
    """Metric at baseline, log-odds; None: not finite, or not read in this pass."""


@dataclass(frozen=True)
class Estimates:
    """First-order estimates of two scores, log-odds. Their order is used, not their values."""

    bypass: float
    induce: float


@dataclass(frozen=True)
class Candidate(Site):
    """One candidate with its scores on validation prompts; None: not computed, or not finite."""

    bypass: float | None
    """Mean metric of positives under ablation, log-odds."""
    induce: float | None
    """Mean metric of negatives under addition, log-odds."""
    kl: float | None
    """Mean KL divergence of the next-token distribution of negatives, baseline to ablation, nats."""
    norm: float | None = None
    """In units of the residual stream."""
    discarded: Discard | None = None
    content: float | None = None
    """Share of the content of baseline completions that ablation and addition leave, the smaller of both."""
    moved: float | None = None
    """Change of the score of completions in gaps between the classes, the smaller of suppression and induction."""
    rescored: bool = False
    """Whether it was scored again in one batch shape, because rounding could have changed the selection."""
    estimates: Estimates | None = None
    """First-order estimates of the screen; None without a screen."""
    swing_low: float | None = None
    """Lower end of the 95 % interval of the swing over validation prompts: the fall of the metric of positives under
    ablation plus its rise of negatives under addition. Computed if the rule uses it, for the largest swings."""


@dataclass(frozen=True)
class Rounding:
    """Bounds on the change of a score with the shape of its batch, measured on this model."""

    bypass: float = 0.0
    """Log-odds."""
    induce: float = 0.0
    """Log-odds."""
    kl: float = 0.0
    """Nats."""


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """selection.json: the scores and the result of the rule. Without tokens or prompts only the reason is set."""

    selected: Survivor | None
    reason: NoCandidate | None
    survivors: int
    tied: tuple[Survivor, ...]
    """Other survivors within the tie margin of the rule, nearest first."""
    baseline: ByLabel[float | None] | None = None
    """Mean metric of the kept validation prompts, log-odds; None inside: none is finite. Absent if nothing was
    scored."""
    coefficient: float | None = None
    """Coefficient of the additions of this seed, in units of the norm. Absent if nothing was scored."""
    room: bool | None = None
    """Whether negatives score low enough at baseline for a rise; True if the score is not continuous. Absent if nothing
    was scored, and in the first runs. Read it as `induction_is_testable`."""
    rounding: Rounding | None = None
    """The bounds by which candidates were scored again. Absent if nothing was scored, and in the first runs."""
    n: ByLabel[int]
    """Validation prompts of the scores."""
    candidates: tuple[Candidate, ...]
    """Every candidate, by position and layer; empty if nothing was scored."""

    @property
    def induction_is_testable(self) -> bool:
        """Whether the rule was applied with the induce and KL criteria, so that induction is tested."""
        return self.room is not False

    @property
    def addition_coefficient(self) -> float:
        """The coefficient of the additions of this seed, in units of the norm; 1 if the file has none."""
        return 1.0 if self.coefficient is None else self.coefficient


UnrelatedSource = Literal["contrast", "categories", "clusters"]
"""What the family `unrelated` halves: classes of another contrast, or categories or clusters of the negatives."""


@dataclass(frozen=True)
class GroupCosines:
    """Cosines between the directions of two groups of positives, on random halves of the training prompts.

    Descriptive: positives from several sources differ from the negatives along several directions too.
    """

    halves: tuple[float, ...]
    """Half of the positives against half of the negatives; one value for each random split."""
    one_shift: tuple[float, ...]
    """The same splits, with the other half of the negatives, moved by one constant vector, as the positives."""


@dataclass(frozen=True)
class NullDirections:
    """nulls.json: the null directions of one seed. Written if a direction was selected."""

    energy: float
    """Share of the squared norm of the stream that lies along the direction itself, 0 to 1."""
    nulls: tuple[NullDirection, ...]
    """In the order of nulls.safetensors."""
    groups: float | None = None
    """Cosine between the directions of two groups of positives; None for fewer than 4 prompts, or not finite."""
    group_cosines: GroupCosines | None = None
    """The same on halves, beside a null with one shift; None for fewer than 8 prompts. Missing in the first runs."""
    unrelated: UnrelatedSource | None = None
    """Source of the family `unrelated`; None: it was not drawn. Missing in the first runs."""


class WideRow(Struct, frozen=True, kw_only=True):
    """The metric of some test prompts under one arm."""

    arm: ArmId
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `WideNulls.prompts`; None: not finite."""
    kl: float | NotFinite | UnsetType | None = UNSET
    """Mean KL divergence of a null draw's ablation on the negatives of `WideNulls.kl`, nats; None: unknown. Measured if
    the draw suppresses: in completions, or on the metric by at least as much as the direction."""
    kl_low: float | NotFinite | UnsetType | None = UNSET
    """Lower end of its 95 % interval; None: too few negatives. Absent in runs before it was measured."""


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
    rows: tuple[WideRow, ...]
    """Arms of positives, then of negatives; empty as above."""
    kl: tuple[float | NotFinite | None, ...] = ()
    """KL divergence of the next-token distribution of negatives, baseline to ablation, nats. None in runs of earlier
    versions: a negative that shows the behaviour at baseline, or not finite."""
    stopped: tuple[StoppedFamily, ...] = ()
    """Families that stopped early, by effect. Their rank p is above the bound of the rule."""

    def with_rows(self, rows: Sequence[WideRow]) -> "WideNulls":
        """The same with further rows."""
        return replace(self, rows=(*self.rows, *rows))


class DoseRow(Struct, frozen=True, kw_only=True):
    """The metric of some test prompts under one strength of one intervention."""

    kind: DoseKind
    arm: ArmId
    dose: float
    """Strength of an ablation (1 removes all), coefficient of an addition (in units of the norm)."""
    side: Label = field(name="set")
    metric: tuple[float | None, ...]
    """Log-odds, six digits, in the order of `Doses.prompts`; None: not finite."""


@dataclass(frozen=True)
class Doses:
    """dose.json: the curves over strengths. Written if a direction was selected."""

    prompts: ByLabel[tuple[str, ...]]
    rows: tuple[DoseRow, ...]
    """Strengths of ablation, negative coefficients, then the other ones; empty if the protocol has no curve."""


@dataclass(frozen=True, kw_only=True)
class SecondDirection:
    """second.json: the best direction orthogonal to the selected one. Written if a direction was selected."""

    selected: Survivor | None
    """None: no candidate passed the selection rule, nor one by gradient that rule without its bound on induction."""
    survivors: int
    """Candidates of both sources that pass the rule; 0 if the selected one passes only without that bound."""
    candidates: tuple[Candidate, ...]
    """The remainders of the differences in means, with the norm of the selected direction, and their scores on
    validation prompts."""
    gradient: tuple[Candidate, ...] = ()
    """The candidates by gradient at the site of the first direction. Runs of older versions have none."""
    source: SecondSource | None = None
    """Source of the selected one; None without one, and in runs of older versions."""
    independence: tuple[float, float] | None = None
    """Mean |change| of the stream's cosine with the second direction under the ablation of the first, and of that with
    the first under the ablation of the second; 0 if they are representationally independent. None without one."""
    rows: tuple[WideRow, ...] = ()
    """The metric of test prompts at baseline and under its ablation (positives) or addition (negatives)."""
    ranked: tuple[WideRow, ...] = ()
    """The same on the prompts of wide.json."""


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


@dataclass(frozen=True)
class SiteSeparation(Site):
    """Separation of the classes along one candidate; `cosine` of the class means. None: not finite."""

    auroc: float | None
    """AUROC of the projection, positives over negatives."""
    cosine: float | None
    norm: float | None
    """Length of the difference in means, in units of the residual stream."""


@dataclass(frozen=True)
class Projection:
    """The projection of one prompt on the selected unit direction, without intervention; None: not finite."""

    prompt_id: str
    label: Label
    projection: float | None


@dataclass(frozen=True)
class Separation:
    """separation.json: where the classes separate on test prompts."""

    split: Split
    n: ByLabel[int]
    """Number of prompts (of a contrast of texts: rows)."""
    grid: tuple[SiteSeparation, ...]
    projections: tuple[Projection, ...]
    """Projections of the prompts on the selected direction; empty if nothing was selected."""
