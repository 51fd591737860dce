"""analyses/geometry.json, base.json and monitor.json of a run, and the values that several analyses report, as records.

`low` and `high` are the ends of a 95 % interval, `n` is the number of prompts. A value is None if it is not finite, or
if there is no prompt to compute it from. Projections and norms are in units of the residual stream.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from rhumbline.records.positions import Position
from rhumbline.records.shared import ByLabel, Label, ModelDescription, Site, TrainVal

T = TypeVar("T")
Need = Literal["direction", "token metric", "classes"]
"""What an analysis needs of a run: a selected direction, tokens of the metric, a judge of classes."""


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its bootstrap interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class MeanRate:
    """A rate (Wilson's interval), or a difference of two rates (Newcombe's interval), in the form of a mean."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Rate:
    """A share of prompts with Wilson's interval; the mean over texts if several texts share their prompts."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Auroc:
    """Probability that a positive has a larger projection than a negative."""

    value: float | None
    low: float
    high: float
    n: int
    """Prompts of both classes."""


@dataclass(frozen=True)
class LayerMean:
    """A mean over prompts in one layer."""

    layer: int
    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class LayerCosine:
    """Cosine of two vectors of one layer."""

    layer: int
    cosine: float | None
    """None if a vector is zero."""


@dataclass(frozen=True)
class NullRank:
    """A statistic of the draws of a null family, and the rank p of the direction among them."""

    mean: float | None
    max: float | None
    p: float


@dataclass(frozen=True)
class TrainTest(Generic[T]):
    """One value for the training prompts and one for the test prompts."""

    train: T
    test: T


@dataclass(frozen=True)
class ValTest(Generic[T]):
    """One value for the validation prompts and one for the test prompts."""

    val: T
    test: T


# -- geometry.json ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeometryParameters:
    """Arguments of the analysis."""

    components: int
    """Principal components."""
    splits: int
    """Random halvings of the training prompts."""


@dataclass(frozen=True)
class ReadSite(Site):
    """The site that cosines and components refer to: the selected one, or the one with the largest AUROC."""

    selected: bool


@dataclass(frozen=True)
class GeometryCell(Site):
    """One candidate: how well it separates the classes of validation prompts, and its cosines with others."""

    auroc: float | None
    low: float
    high: float
    positive: Mean
    """Projection of the positives."""
    negative: Mean
    """Projection of the negatives."""
    cosine: float | None
    """Cosine with the direction at `GeometryRecord.read_at`."""
    next: float | None
    """Cosine with the candidate of the next layer; None in the last layer."""
    ceiling: float | None
    """Mean cosine of the directions of two halves of the training prompts; None with fewer than two prompts."""
    norm: float | None


@dataclass(frozen=True)
class ComponentPoint:
    """One prompt on the first two principal components."""

    prompt_id: str
    label: Label
    split: Literal["train", "val"]
    x: float | None
    y: float | None


@dataclass(frozen=True)
class Components:
    """Principal components of the training prompts at `GeometryRecord.read_at`."""

    explained: tuple[float | None, ...]
    """Share of the variance along each component, 0 to 1."""
    cosine: tuple[float | None, ...]
    """Cosine of each component with the direction."""
    points: tuple[ComponentPoint, ...]
    """Training and validation prompts."""


@dataclass(frozen=True, kw_only=True)
class GeometryRecord:
    """analyses/geometry.json: cosines between candidates, and separation of the classes."""

    analysis: Literal["geometry"] = "geometry"
    seed: int
    site: Site | None
    """Selected site; None if no candidate passed."""
    parameters: GeometryParameters
    read_at: ReadSite
    split: Literal["val"]
    """Split on which separation is measured."""
    n: TrainVal[ByLabel[int]]
    random: float
    """Mean |cosine| of two random directions of this width."""
    grid: tuple[GeometryCell, ...]
    """Every candidate, by position and layer."""
    between_layers: tuple[tuple[float | None, ...], ...]
    """Cosines of the candidates of two layers, at the position of `read_at`."""
    between_positions: tuple[tuple[float | None, ...], ...]
    """Cosines of the candidates of two positions, in the layer of `read_at`."""
    silhouette: tuple[LayerMean, ...]
    """Mean silhouette of the validation prompts by layer, -1 to 1, at the position of `read_at`."""
    components: Components


# -- base.json --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseParameters:
    """Arguments of the analysis."""

    base: str
    """Name of the base model."""
    draws: int
    """Draws of each null family."""
    retokenise: bool
    """Whether the texts may be tokenised again for a base model with another tokenizer."""


@dataclass(frozen=True)
class TokenComparison:
    """Whether both models read the same tokens."""

    same: bool
    retokenised: bool
    """Whether each model read its own tokens; the opposite of `same`."""
    untrained: tuple[str, ...]
    """Template tokens whose embedding in the base model has an unusual norm."""


@dataclass(frozen=True)
class BaseNull:
    """One null family of the chat model, read in the base model."""

    draws: int
    auroc: NullRank
    """AUROC of a draw, the larger of both signs."""
    cosine: NullRank
    """|cosine| of a draw with the base model's own direction."""


@dataclass(frozen=True)
class BaseLayer:
    """Directions of both models in one layer; `chat_in_base`: the chat model's on activations of the base model."""

    layer: int
    cosine: float | None
    """Cosine of the two models' directions."""
    chat_in_base: Auroc
    base_in_base: Auroc
    chat_in_chat: Auroc
    nulls: dict[str, BaseNull]
    """By family."""


@dataclass(frozen=True)
class BaseCondition:
    """One form of the prompts, read in both models at one position."""

    position: Position
    layers: tuple[BaseLayer, ...]


@dataclass(frozen=True)
class BaseConditions:
    """Both forms of the prompts."""

    template: BaseCondition
    """The tokens of the chat, template included."""
    plain: BaseCondition
    """The instruction alone, read at its last token."""


@dataclass(frozen=True)
class BaseFinding:
    """Whether the chat model's direction separates the classes in the base model, at the selected layer."""

    answer: Literal["separates", "not separated beyond nulls", "undetermined"]
    reason: str
    """The numbers that the answer follows from."""


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """analyses/base.json: the chat model's directions on the activations of its base model."""

    analysis: Literal["base"] = "base"
    seed: int
    site: Site | None
    """Selected site; None if no candidate passed."""
    parameters: BaseParameters
    base: ModelDescription
    tokens: TokenComparison
    n: TrainTest[ByLabel[int]]
    conditions: BaseConditions
    finding: BaseFinding


# -- monitor.json -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MonitorParameters:
    """Arguments of the analysis."""

    fpr: float
    """Share of validation negatives above the threshold, at most."""
    suffix: str | None
    """Name of the file of suffixes; None without one."""
    draws: int
    """Random suffixes for each suffix."""
    nulls: int
    """Draws of each null family."""


@dataclass(frozen=True)
class RocPoint:
    """A corner of a ROC curve: shares of negatives (`fpr`) and positives (`tpr`) with at least a score."""

    fpr: float
    tpr: float


@dataclass(frozen=True)
class MonitorCondition:
    """The detector on test prompts with one kind of suffix; every value is a mean over the suffixes of that kind."""

    name: str
    """`none`, `suffix K` or `random K`, K from 1."""
    texts: tuple[str, ...]
    """The suffixes; empty for `none`."""
    auroc: Auroc
    tpr: Rate
    """Share of positives above the threshold."""
    fpr: Rate
    """Share of negatives above the threshold."""
    means: ByLabel[float | None]
    """Mean projection of each class."""
    roc: tuple[RocPoint, ...]
    """From (0, 0) to (1, 1)."""


@dataclass(frozen=True, kw_only=True)
class MonitorNull(NullRank):
    """AUROC of the draws of one null family at the same site, the larger of both signs."""

    draws: int


@dataclass(frozen=True, kw_only=True)
class MonitorRecord:
    """analyses/monitor.json: the projection as a detector on test prompts."""

    analysis: Literal["monitor"] = "monitor"
    seed: int
    site: Site
    """Selected site."""
    parameters: MonitorParameters
    threshold: float
    """Projection above which a prompt is flagged."""
    finest_fpr: float
    """Smallest false positive rate above 0 that the validation negatives resolve."""
    n: ValTest[ByLabel[int]]
    """The metric's filter is not applied to validation prompts."""
    conditions: tuple[MonitorCondition, ...]
    """No suffix, then each suffix and its random suffixes."""
    nulls: dict[str, MonitorNull]
    """By family."""
