"""splits.json, style.json, metric.json, extraction.json and selection.json of a seed, as records."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    Cell,
    ClassifierFit,
    FirstToken,
    Marker,
    Site,
    TrainVal,
)


@dataclass(frozen=True)
class SplitIds:
    """splits.json: the prompts of one seed."""

    seed: int
    ids: BySplit[ByLabel[tuple[str, ...]]]
    """Ids of the prompts of each set, in order."""


@dataclass(frozen=True)
class StyleJudges:
    """style.json: the judges of a continuous score, fitted on training texts. Absent for judges of classes."""

    texts: Literal["responses", "completions"]
    """The texts: responses of the contrast, or the model's own baseline completions."""
    n: ByLabel[int]
    """Number of training texts."""
    how: Literal["given", "estimated"]
    """Source of the markers: the protocol (`given`), or the texts."""
    markers: tuple[Marker, ...]
    """The marker phrases; empty if no phrase separates the texts of the classes."""
    classifier: ClassifierFit | None
    """The classifier, whose weights are in classifier.safetensors; None if none was fitted."""
    chance: float
    """Mean content overlap of training texts on different prompts, 0 to 1."""
    train: ByLabel[float]
    """Mean share of the words inside markers, over the training texts."""


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


@dataclass(frozen=True)
class Extracted:
    """extraction.json: positions and prompts of the candidates, which are in directions.safetensors."""

    positions: tuple[Position, ...]
    """In the order of the first axis of the candidates."""
    kept: TrainVal[ByLabel[tuple[bool, ...]]]
    """Whether the sign of the metric keeps each prompt (of a contrast of texts: each row)."""
    n: TrainVal[ByLabel[int]]
    """Number of kept prompts or rows."""
    metric: TrainVal[ByLabel[tuple[float | None, ...]]]
    """Metric at baseline, log-odds; None: not finite, or not read in this pass."""


@dataclass(frozen=True)
class Estimates:
    """First-order estimates of two scores, log-odds. Their order is used, not their values."""

    bypass: float
    induce: float


@dataclass(frozen=True)
class Candidate:
    """One candidate with its scores on validation prompts; None: not computed, or not finite."""

    position: Position
    layer: int
    bypass: float | None
    """Mean metric of positives under ablation, log-odds."""
    induce: float | None
    """Mean metric of negatives under addition, log-odds."""
    kl: float | None
    """Mean KL divergence of the next-token distribution of negatives, baseline to ablation, nats."""
    norm: float | None = None
    """Length of the difference in means, in units of the residual stream; None: not finite."""
    discarded: Discard | None = None
    """Why the rule discards it; None for a survivor."""
    content: float | None = None
    """Share of the content of baseline completions that ablation and addition leave, the smaller of both; None: not
    computed."""
    moved: float | None = None
    """Change of the score of whole completions, the smaller of suppression and induction, in gaps between the classes;
    None: not computed."""
    rescored: bool = False
    """Whether it was scored again in one batch shape, because rounding could have changed the selection."""
    estimates: Estimates | None = None
    """First-order estimates of the screen; None without a screen."""

    @property
    def site(self) -> Site:
        """Position and layer."""
        return Site(self.position, self.layer)


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

    selected: Cell | None
    """The selected candidate; None: no candidate survived."""
    reason: NoCandidate | None
    """Why nothing was selected; None if a candidate was."""
    survivors: int
    """Candidates that the rule does not discard."""
    tied: tuple[Cell, ...]
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
