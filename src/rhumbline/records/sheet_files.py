"""robustness.json, dissociation.json and flinch.json, as records: analyses of several runs or models.

A rate has Wilson's interval; None: not measured, because most completions are unscored. A `drop` is a rate at baseline
minus the same rate under an intervention, with Newcombe's interval. On positives a degenerate completion under an
intervention counts as still showing the behaviour; `degenerate` is the share of such completions (None: not measured,
or written by an earlier version). An energy is a share of the squared norm of the activations.
"""

from dataclasses import dataclass, field
from typing import Literal

from rhumbline.records.analysis_files import LayerCosine, TrainTest
from rhumbline.records.effect_results import MeanInterval
from rhumbline.records.frontier_file import SYSTEM, HalfDamage, kl_doses
from rhumbline.records.plan_checks import ablation_strengths, no_text, refuse, too_small
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ControlText
from rhumbline.records.shared import ByLabel, BySplit, Site

# -- robustness.json --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RobustnessPlan:
    """What is measured; fixed beforehand."""

    ranks: int = 4
    """Largest rank of the removed subspace."""
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Strengths of the ablation of the first direction; 1 removes it, 2 reflects it."""
    sizes: BySplit[int] = field(default_factory=lambda: BySplit(128, 16, 64))
    seed: int = 0
    """Seed of splits, nulls and suffixes."""
    nulls: int = 3
    """Random subspaces at every rank."""
    suffixes: int = 8
    """Random suffixes, of which validation prompts select one."""
    suffix_words: int = 6
    judge: str = "refusal-anywhere"
    """Keyword judge. The default reads the whole completion, so that late refusals count."""
    max_new_tokens: int = 64
    control_tokens: ControlText = "error"
    """What is done with text of a prompt that is tokenized into control tokens."""
    doses: tuple[float, ...] = (0.02, 0.1, 0.5)
    """Trajectory KL of the interventions of which the least damage is selected, nats per token."""
    answer_tokens: int = 24
    """Tokens of an answer along which this KL is measured, at most."""
    system: str = SYSTEM
    """The system prompt that asks for the behaviour to stop."""

    def __post_init__(self):
        refuse(
            "robustness",
            too_small(self, ranks=1, nulls=1, suffixes=1, suffix_words=1, max_new_tokens=1, answer_tokens=1, seed=0),
            (f"sizes.{fault}" for fault in too_small(self.sizes, train=2, val=1, test=1)),
            ablation_strengths(self.strengths),
            kl_doses(self.doses),
            no_text("system", self.system, "a system prompt"),
        )


QUICK = RobustnessPlan(ranks=2, sizes=BySplit(64, 8, 24), nulls=1, suffixes=4, max_new_tokens=32, answer_tokens=12)
"""The plan of `robustness --quick`."""


@dataclass(frozen=True)
class RobustnessBaseline:
    """Rates at baseline: on test positives with Wilson's interval, and on test negatives (`harmless`)."""

    rate: float
    low: float
    high: float
    harmless: float
    degenerate: float | None = None


@dataclass(frozen=True)
class FirstDirection(Site):
    """The first direction that is removed, with the norm of its difference in means."""

    norm: float


@dataclass(frozen=True)
class RandomSubspaces:
    """Random subspaces of one rank: mean and smallest rate of the draws, and their mean energy.

    They are drawn along the principal axes of the negatives, orthogonal to the ablated subspace. The energy is that of
    this subspace, or the nearest one that the draws can have. All are None if no draw is measured.
    """

    mean: float | None
    low: float | None
    energy: float | None
    draws: int
    """Draws that are measured."""
    degenerate: float | None = None


@dataclass(frozen=True)
class RobustnessRank:
    """Rates under ablation of a subspace of one rank: on test positives, their drop, and on negatives (`harmless`)."""

    rank: int
    rate: float | None
    low: float
    high: float
    drop: MeanInterval
    energy: float
    """Share of the activations' squared norm that is removed."""
    null: RandomSubspaces
    harmless: float | None
    degenerate: float | None = None


@dataclass(frozen=True)
class RobustnessStrength:
    """Rate on test positives under partial ablation of the first direction, and its drop."""

    strength: float
    """1 removes the direction, 2 reflects it."""
    rate: float | None
    low: float
    high: float
    drop: MeanInterval
    energy: float
    """Share of the activations' squared norm that is removed."""
    degenerate: float | None = None


@dataclass(frozen=True)
class RobustnessFragility:
    """Share `lost` of the behaviour at rank 1 / removed energy, with its interval; None without either."""

    value: float | None
    low: float | None
    high: float | None
    lost: float | None


@dataclass(frozen=True)
class PromptAttack:
    """Rate on test positives with the random suffix that validation prompts select, and its drop."""

    rate: float | None
    low: float
    high: float
    drop: MeanInterval
    tried: int
    """Suffixes evaluated on validation prompts."""
    words: int
    degenerate: float | None = None


Access = Literal["prompt", "activations", "weights"]
"""What an attacker can change."""


@dataclass(frozen=True)
class LeastDamage:
    """The least damage at which half of the behaviour is lost, with one access."""

    access: Access
    tried: tuple[str, ...]
    """The interventions that were tried."""
    intervention: str | None
    """The one with the least damage on validation prompts; if none loses half there, the one that leaves least."""
    half: HalfDamage | None
    """On test prompts; None if this intervention does not lose half."""
    largest: float
    """Largest trajectory KL at which its rate was measured, nats per token: without `half`, more would be needed."""
    rate: float | None
    """Smallest rate on test positives that it leaves; None: not measured."""
    site: Site | None = None
    """Where its direction was read: of the candidates that remove half on validation prompts, the one with the least
    KL. None for prompts, and for spans, whose first direction it is."""

    @property
    def text(self) -> str:
        """The result in words."""
        if self.rate is None:
            return "not measured"
        if self.half is None:
            return f"not lost up to {self.largest:.3g} nats"
        return f"{self.half.kl:.3g} nats [{self.half.low:.3g}, {self.half.high:.3g}]"


@dataclass(frozen=True)
class ModelRobustness:
    """How much of the behaviour of one model remains under stronger interventions."""

    model: str
    n: TrainTest[ByLabel[int]]
    baseline: RobustnessBaseline
    selected: FirstDirection
    ranks: tuple[RobustnessRank, ...]
    strengths: tuple[RobustnessStrength, ...]
    fragility: RobustnessFragility
    prompts: PromptAttack
    access: str
    """Least access with which half of the behaviour was removed, in words."""
    encoded_as_text: tuple[str, ...] = ()
    """Ids of the prompts whose text spells control tokens, which are encoded as plain text on request."""
    least: tuple[LeastDamage, ...] = ()
    """By access; empty in records of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class RobustnessRecord:
    """robustness.json: several models compared."""

    analysis: Literal["robustness"] = "robustness"
    plan: RobustnessPlan
    models: tuple[ModelRobustness, ...]
    sentence: str


# -- dissociation.json ------------------------------------------------------------------------------------------------


DissociationFinding = Literal["DOUBLE-DISSOCIATION", "NOT-DISSOCIATED"]


@dataclass(frozen=True)
class RunReference:
    """One of the two runs, by the hash of its protocol."""

    sha256: str
    seed: int


@dataclass(frozen=True)
class DissociationMargins:
    """Bounds of the drop for a removed and for an unaffected behaviour."""

    taken: float
    """Removed: the interval of the drop lies above this bound."""
    left: float
    """Unaffected: the interval of the drop lies below this bound, also if degenerate completions count as removal."""


@dataclass(frozen=True)
class DissociationCell:
    """One behaviour under one ablation, on test positives; `drop` is the level at baseline minus this level.

    A degenerate completion counts as showing the behaviour; of a continuous score, as the level at baseline.
    """

    behaviour: str
    ablated: str
    """`baseline`, the behaviour whose direction is ablated, or `null of <behaviour>`; not the name of an arm."""
    level: float | None
    """Mean level; for a behaviour with classes the rate. None: not measured, because most completions are unscored."""
    n: int
    """Prompts that are scored at baseline and under the ablation."""
    drop: float | None
    low: float | None
    """None, and `high` too, for levels of fewer than 8 prompts."""
    high: float | None
    most: float | None = None
    """Upper end of the interval if degenerate completions count as removal; None if it is `high`."""
    degenerate: float | None = None
    """Share of degenerate completions."""


@dataclass(frozen=True)
class DissociationCosines:
    """Cosines between the directions of the two runs."""

    selected: float
    by_layer: tuple[LayerCosine, ...]
    """Cosines of the candidates at `position`; empty if the second run did not read this position."""
    position: Position


@dataclass(frozen=True, kw_only=True)
class DissociationRecord:
    """dissociation.json: two behaviours of one model, each under both ablations."""

    analysis: Literal["dissociation"] = "dissociation"
    model: str
    runs: tuple[RunReference, RunReference]
    behaviours: tuple[str, str]
    margins: DissociationMargins
    table: tuple[DissociationCell, ...]
    cosine: DissociationCosines
    finding: DissociationFinding
    sentence: str


# -- flinch.json ------------------------------------------------------------------------------------------------------


FlinchFinding = Literal["NO-FLINCH", "FLINCH", "FLINCH-ONE-DIRECTION"]


@dataclass(frozen=True)
class FlinchModels:
    """Names of the two models."""

    chat: str
    base: str


@dataclass(frozen=True)
class FlinchCounts:
    """Numbers of terms, of control terms, and of texts that each is inserted into."""

    terms: int
    controls: int
    contexts: int


@dataclass(frozen=True)
class TermFlinch:
    """One term, in nats per token: mean log-probabilities, rank p among its matched controls, and p adjusted (Holm)."""

    term: str
    base: float | None
    chat: float | None
    gap: float | None
    """chat - base."""
    control_gap: float | None
    flinch: float | None
    """gap - control_gap, with a bootstrap interval over contexts; negative if the chat model avoids the term."""
    low: float | None
    high: float | None
    p: float
    controls: tuple[str, ...]
    p_holm: float


@dataclass(frozen=True)
class MeanFlinch:
    """All terms, nats per token, with a bootstrap interval over contexts and the rank p among random groups."""

    flinch: float | None
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class FlinchDirection:
    """Mean flinch under subtraction of a direction, on contexts that did not select it, and of random directions."""

    layer: int
    norm: float
    before: float
    after: float
    moved: float
    """after - before, with a bootstrap interval over contexts."""
    low: float
    high: float
    p: float
    nulls: tuple[float | None, ...]
    contexts: int
    """Contexts on which the direction is tested. FLINCH-ONE-DIRECTION needs at least 8, and `before` below 0."""


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
    control_tokens: ControlText = "error"
    """What is done with text that is tokenized into control tokens."""
    encoded_as_text: tuple[str, ...] = ()
    """Terms and contexts with such text."""
