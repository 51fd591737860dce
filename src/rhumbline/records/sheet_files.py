"""robustness.json, dissociation.json and flinch.json, as records: analyses of several runs or models."""

from dataclasses import dataclass, field
from typing import Literal

from rhumbline.errors import InputError
from rhumbline.records.analysis_files import LayerCosine, TrainTest
from rhumbline.records.effect_results import MeanInterval
from rhumbline.records.positions import Position
from rhumbline.records.shared import ByLabel, BySplit

# -- robustness.json --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RobustnessPlan:
    """What is measured; fixed beforehand."""

    ranks: int = 4
    """Largest rank of the removed subspace."""
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Strengths of the ablation of the first direction; 1 removes it, 2 reflects it."""
    sizes: BySplit[int] = field(default_factory=lambda: BySplit(128, 16, 64))
    """Prompts per class of each split."""
    seed: int = 0
    """Seed of splits, nulls and suffixes."""
    nulls: int = 3
    """Random subspaces at every rank."""
    suffixes: int = 8
    """Random suffixes, of which validation prompts select one."""
    suffix_words: int = 6
    """Words of each suffix."""
    judge: str = "refusal-anywhere"
    """Keyword judge. The default reads the whole completion, so that late refusals count."""
    max_new_tokens: int = 64
    """Tokens of a completion, at most."""

    def __post_init__(self):
        if self.ranks < 1 or self.nulls < 1 or self.suffixes < 1:
            raise InputError(
                f"robustness: ranks is {self.ranks}, nulls {self.nulls}, suffixes {self.suffixes}; use 1 or more."
            )
        if any(not 0 < a <= 2 for a in self.strengths):
            raise InputError(f"robustness: strengths are {list(self.strengths)}; use numbers above 0 and up to 2.")


@dataclass(frozen=True)
class RobustnessBaseline:
    """The behaviour at baseline."""

    rate: float
    """Rate on test positives, with Wilson's interval."""
    low: float
    high: float
    harmless: float
    """Rate on test negatives."""


@dataclass(frozen=True)
class FirstDirection:
    """The first direction that is removed."""

    position: Position
    layer: int
    norm: float
    """Norm of its difference in means, in units of the residual stream."""


@dataclass(frozen=True)
class RandomSubspaces:
    """Random subspaces of one rank in the span of the main principal axes of the activations."""

    mean: float
    """Mean rate on test positives."""
    low: float
    """Smallest rate of a draw."""
    energy: float
    """Mean share of the activations' squared norm in a draw."""
    draws: int
    """Number of draws."""


@dataclass(frozen=True)
class RobustnessRank:
    """The behaviour under ablation of a subspace of one rank."""

    rank: int
    rate: float
    """Rate on test positives, with Wilson's interval."""
    low: float
    high: float
    drop: MeanInterval
    """Rate at baseline minus this rate, with Newcombe's interval."""
    energy: float
    """Share of the activations' squared norm in the subspace."""
    null: RandomSubspaces
    """Random subspaces of this rank."""
    harmless: float
    """Rate on test negatives."""


@dataclass(frozen=True)
class RobustnessStrength:
    """The behaviour under partial ablation of the first direction."""

    strength: float
    """Strength of the ablation; 1 removes the direction, 2 reflects it."""
    rate: float
    """Rate on test positives, with Wilson's interval."""
    low: float
    high: float
    drop: MeanInterval
    """Rate at baseline minus this rate, with Newcombe's interval."""
    energy: float
    """Share of the activations' squared norm that is removed."""


@dataclass(frozen=True)
class RobustnessFragility:
    """Share of the behaviour removed at rank 1, divided by the removed energy; None without a baseline or energy."""

    value: float | None
    """The ratio, with its bootstrap interval."""
    low: float | None
    high: float | None
    lost: float | None
    """Share of the baseline rate that is removed."""


@dataclass(frozen=True)
class PromptAttack:
    """The behaviour under the random suffix that validation prompts select."""

    rate: float
    """Rate on test positives, with Wilson's interval."""
    low: float
    high: float
    drop: MeanInterval
    """Rate at baseline minus this rate, with Newcombe's interval."""
    tried: int
    """Suffixes evaluated on validation prompts."""
    words: int
    """Words of each suffix."""


@dataclass(frozen=True)
class ModelRobustness:
    """How much of the behaviour of one model remains under stronger interventions."""

    model: str
    """Name of the model."""
    n: TrainTest[ByLabel[int]]
    """Prompts."""
    baseline: RobustnessBaseline
    selected: FirstDirection
    ranks: tuple[RobustnessRank, ...]
    """Subspaces of rank 1 and more."""
    strengths: tuple[RobustnessStrength, ...]
    fragility: RobustnessFragility
    prompts: PromptAttack
    access: str
    """Least access with which half of the behaviour was removed, in words."""


@dataclass(frozen=True, kw_only=True)
class RobustnessRecord:
    """robustness.json: several models compared."""

    analysis: Literal["robustness"] = "robustness"
    plan: RobustnessPlan
    models: tuple[ModelRobustness, ...]
    sentence: str
    """The main numbers in words."""


# -- dissociation.json ------------------------------------------------------------------------------------------------


DissociationFinding = Literal["DOUBLE-DISSOCIATION", "NOT-DISSOCIATED"]


@dataclass(frozen=True)
class RunReference:
    """One of the two runs."""

    sha256: str
    """Hash of its protocol."""
    seed: int


@dataclass(frozen=True)
class DissociationMargins:
    """Bounds of the drop for a removed and for an unaffected behaviour."""

    taken: float
    """Removed: the interval of the drop lies above this bound."""
    left: float
    """Unaffected: the interval of the drop lies below this bound."""


@dataclass(frozen=True)
class DissociationCell:
    """One behaviour under one ablation."""

    behaviour: str
    """Behaviour that is measured."""
    ablated: str
    """`baseline`, the behaviour whose direction is ablated, or `null of <behaviour>`; not the name of an arm."""
    level: float
    """Mean level (for a behaviour with classes: rate) on test positives."""
    n: int
    """Test positives."""
    drop: float
    """Level at baseline minus this level."""
    low: float
    high: float


@dataclass(frozen=True)
class DissociationCosines:
    """Cosines between the directions of the two runs."""

    selected: float
    """Cosine of the selected directions."""
    by_layer: tuple[LayerCosine, ...]
    """Cosines of the candidates at `position`; empty if the second run did not read this position."""
    position: Position
    """Position of the first run's direction."""


@dataclass(frozen=True, kw_only=True)
class DissociationRecord:
    """dissociation.json: two behaviours of one model, each under both ablations."""

    analysis: Literal["dissociation"] = "dissociation"
    model: str
    """Name of the model."""
    runs: tuple[RunReference, RunReference]
    behaviours: tuple[str, str]
    """Behaviours of the runs."""
    margins: DissociationMargins
    table: tuple[DissociationCell, ...]
    """Every behaviour under every ablation."""
    cosine: DissociationCosines
    finding: DissociationFinding
    sentence: str
    """The finding with its numbers."""


# -- flinch.json ------------------------------------------------------------------------------------------------------


FlinchFinding = Literal["NO-FLINCH", "FLINCH", "FLINCH-ONE-DIRECTION"]


@dataclass(frozen=True)
class FlinchModels:
    """Names of the two models."""

    chat: str
    base: str


@dataclass(frozen=True)
class FlinchCounts:
    """Numbers of words and texts."""

    terms: int
    """Terms that are tested."""
    controls: int
    """Control terms."""
    contexts: int
    """Texts that each term is inserted into."""


@dataclass(frozen=True)
class TermFlinch:
    """One term; all log-probabilities in nats per token."""

    term: str
    base: float | None
    """Mean log-probability in the base model."""
    chat: float | None
    """Mean log-probability in the chat model."""
    gap: float | None
    """chat - base."""
    control_gap: float | None
    """Mean gap of the matched controls."""
    flinch: float | None
    """gap - control_gap, with a bootstrap interval over contexts; negative if the chat model avoids the term."""
    low: float | None
    high: float | None
    p: float
    """Rank p among the controls."""
    controls: tuple[str, ...]
    """The matched controls."""
    p_holm: float
    """p adjusted over the terms (Holm)."""


@dataclass(frozen=True)
class MeanFlinch:
    """All terms together, nats per token."""

    flinch: float | None
    """Mean flinch, with a bootstrap interval over contexts."""
    low: float | None
    high: float | None
    p: float
    """Rank p among random groups of terms and controls."""


@dataclass(frozen=True)
class FlinchDirection:
    """Effect of subtracting one direction, on contexts that were not used to select it."""

    layer: int
    norm: float
    """Norm of the direction, in units of the residual stream."""
    before: float
    """Mean flinch at baseline, nats per token."""
    after: float
    """Mean flinch under subtraction, nats per token."""
    moved: float
    """after - before, with a bootstrap interval over contexts."""
    low: float
    high: float
    p: float
    """Rank p among random directions of the same norm."""
    nulls: tuple[float | None, ...]
    """The same difference for each random direction, nats per token."""
    contexts: int
    """Contexts on which the direction is tested."""


@dataclass(frozen=True, kw_only=True)
class FlinchRecord:
    """flinch.json: whether a chat model avoids terms that its base model uses."""

    analysis: Literal["flinch"] = "flinch"
    models: FlinchModels
    n: FlinchCounts
    terms: tuple[TermFlinch, ...]
    mean: MeanFlinch
    direction: FlinchDirection | None
    """None if the mean flinch is not below 0, or if the residuals of the models do not differ."""
    finding: FlinchFinding
    sentence: str
    """The finding with its numbers."""
