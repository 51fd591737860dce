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
    Marker,
    OpeningToken,
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
    """style.json: the judges of a continuous score, made from training texts. Written for such judges only."""

    texts: Literal["responses", "completions"]
    """What they are made from: the contrast's responses, or the model's own baseline completions."""
    n: ByLabel[int]
    """Training texts."""
    how: Literal["given", "estimated"]
    """Where the markers come from: the protocol, or the texts."""
    markers: tuple[Marker, ...]
    """The marker phrases; empty where none tells the texts of the classes apart."""
    classifier: ClassifierFit | None
    """The classifier, whose weights are in classifier.safetensors; None without one."""
    chance: float
    """Mean content overlap of training texts on different prompts, 0 to 1."""
    train: ByLabel[float]
    """Mean share of words in markers, of the training texts."""


@dataclass(frozen=True)
class FastMetric:
    """metric.json: what the fast metric reads."""

    how: Literal["given", "auto", "shifted", "pairs"]
    """Tokens that the protocol gives; tokens that open the model's own completions with the behaviour; tokens likelier
    after positives; or no tokens: both responses to each prompt are compared."""
    tokens: tuple[OpeningToken, ...]
    """Empty for `pairs`, and where `reason` says why there are none."""
    auroc: float | None
    """Of the metric between the training classes; None without tokens, or not finite."""
    refusals: int | None
    """Training positives whose completion shows the behaviour; None unless `auto`."""
    n: int | None
    """Training positives that were read; None of `given` and `pairs`."""
    reason: TokensLacking | None
    """Why there are no tokens; None where there are, and of `pairs`."""


@dataclass(frozen=True)
class Extracted:
    """extraction.json: where candidates were read, on which prompts. They themselves are in directions.safetensors."""

    positions: tuple[Position, ...]
    """In the order of the first axis of the candidates."""
    kept: TrainVal[ByLabel[tuple[bool, ...]]]
    """Which prompts (of texts: which rows) the metric's sign keeps."""
    n: TrainVal[ByLabel[int]]
    """How many these are."""
    metric: TrainVal[ByLabel[tuple[float | None, ...]]]
    """The fast metric at baseline, log-odds; None: not finite, or no token metric was read here."""


@dataclass(frozen=True)
class Candidate:
    """One candidate with its scores on validation prompts; None: not computed, or not finite."""

    position: Position
    layer: int
    bypass: float | None
    """Mean fast metric of positives under ablation, log-odds."""
    induce: float | None
    """Mean fast metric of negatives under addition, log-odds."""
    kl: float | None
    """Mean KL of the negatives' next-token distributions, baseline to ablated, nats."""
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
    """Whether it was scored again in one batch shape, because a comparison was closer than rounding."""

    @property
    def site(self) -> Site:
        """Position and layer."""
        return Site(self.position, self.layer)


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """selection.json: what the rule makes of the scores. Without tokens or prompts there is nothing but the reason."""

    selected: Cell | None
    """The chosen candidate; None: nobody passed."""
    reason: NoCandidate | None
    """Why nobody passed; None where somebody did."""
    survivors: int
    """Candidates that the rule does not discard."""
    tied: tuple[Cell, ...]
    """Other survivors within the rule's tie margin, nearest first."""
    baseline: ByLabel[float | None] | None = None
    """Mean fast metric of the kept validation prompts, log-odds; None inside: none is finite. Left out where nothing
    was scored."""
    coefficient: float | None = None
    """Of the additions of this seed, in units of the direction's norm. Left out where nothing was scored."""
    room: bool | None = None
    """Whether negatives leave room for a rise of a continuous score; True of any other. Left out where nothing was
    scored, and missing in the first runs."""
    n: ByLabel[int]
    """Validation prompts that were scored on."""
    candidates: tuple[Candidate, ...]
    """Every candidate, by position and layer; empty where nothing was scored."""

    @property
    def has_room(self) -> bool:
        """Whether the whole rule was applied, so that induction is tested."""
        return self.room is not False

    @property
    def addition_coefficient(self) -> float:
        """The coefficient of the additions of this seed, in units of the direction's norm; 1 where none was written."""
        return 1.0 if self.coefficient is None else self.coefficient
