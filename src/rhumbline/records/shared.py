"""Records that several files of a run directory share. `low` and `high` are the ends of a 95 % interval throughout.

A number that JSON cannot hold (NaN, an infinity) is written as null, so a measured number may be None.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.positions import Position

T = TypeVar("T")

ORGANISM = "organism:"
"""Prefix of the name of a model organism."""

Label = Literal["positive", "negative"]
"""Which class of the contrast a prompt belongs to."""
EffectName = Literal["suppression", "induction", "subtraction"]
"""Suppression: ablation on positives. Induction: addition on negatives. Subtraction: subtraction on positives."""
DoseKind = Literal["ablation", "addition", "subtraction"]
"""Ablation and subtraction (negative coefficients) act on positives, addition on negatives."""
Split = Literal["train", "val", "test"]
NotFinite = Literal["not finite"]
"""The KL divergence of an edit whose logits are infinite or NaN: the edit broke the model."""
NOT_FINITE: NotFinite = "not finite"
Class = Literal["refused", "complied", "shown", "absent", "degenerate", "unscored"]
"""What a completion is; `unscored` is in no rate."""


@dataclass(frozen=True)
class ByLabel(Generic[T]):
    """One value for each class of the contrast."""

    positive: T
    negative: T

    def __getitem__(self, label: Label) -> T:
        return self.positive if label == "positive" else self.negative


@dataclass(frozen=True)
class BySplit(Generic[T]):
    """One value for each split."""

    train: T
    val: T
    test: T

    def __getitem__(self, split: Split) -> T:
        return getattr(self, split)


@dataclass(frozen=True)
class TrainVal(Generic[T]):
    """One value for each split that is read before the test."""

    train: T
    val: T

    def __getitem__(self, split: Literal["train", "val"]) -> T:
        return self.train if split == "train" else self.val


@dataclass(frozen=True)
class Site:
    """Where a candidate is read: a position, and the input of a block."""

    position: Position
    layer: int

    @property
    def site(self) -> "Site":
        """Position and layer only."""
        return Site(self.position, self.layer)


@dataclass(frozen=True)
class Survivor(Site):
    """A candidate that survived the rule."""

    norm: float
    """Length of the difference in means, in units of the residual stream."""
    bypass: float
    """Mean metric of positives under ablation, log-odds."""


class Marker(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A phrase that positives use more; only its words are set if the protocol gives it."""

    phrase: str
    log_odds: float | None = None
    """Of its presence in a text, positives minus negatives, nats."""
    p: float | None = None
    positive: int | None = None
    negative: int | None = None


@dataclass(frozen=True)
class ClassifierFit:
    """Separation of `n` training texts by the style classifier, on topics that are left out in `folds`."""

    auroc: float | None
    """None: not finite."""
    n: int
    folds: int


@dataclass(frozen=True)
class FirstToken:
    """A first token of the behaviour."""

    id: int
    text: str
    auroc: float | None
    """Of the metric of this token alone between the training classes; None: not finite."""
    share: float | None
    """`auto`: share of the completions with the behaviour that it opens. `shifted`: by how much the mean probability
    is larger after positives. None of a token that was given."""


class ModelDescription(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A loaded model, without a hash of its weights."""

    name: str
    """Hub name, directory, .gguf file or `organism:NAME`, as given."""
    cls: str = field(name="class")
    model_type: str
    n_layers: int
    d_model: int
    dtype: str
    """Without the prefix `torch.`."""
    mode: Literal["exact", "coarse"]
    """`exact`: its residual writers are proved. `coarse`: it is edited at block inputs and outputs only."""
    dequantised: str | None = None
    """The stored format that was dequantised at loading, such as `GGUF (F32, Q8_0)`. Left out of other models."""


class ModelFacts(ModelDescription, frozen=True, kw_only=True):
    """The model of a run."""

    fingerprint: str
    """sha256 over every parameter and buffer as loaded."""

    @property
    def is_organism(self) -> bool:
        """Whether the model is an embedded organism, whose texts are harmless."""
        return self.name.startswith(ORGANISM)


@dataclass(frozen=True)
class NearDuplicates:
    """Prompts that nearly repeat one of another split; those in splits of the contrast file are not dropped."""

    found: int
    dropped: int
    further_responses: int | UnsetType = UNSET
    """Dropped rows with a further response to a prompt of their class; UNSET if there are none."""

    @property
    def warning(self) -> str | None:
        """The responses that are not read, and what to do; None if all are."""
        if self.further_responses is UNSET:
            return None
        return (
            f"{self.further_responses} responses of the contrast are not read: of several responses of one class to "
            "one prompt, only the first is. Set the column split of these rows to read all of them."
        )


SecondSource = Literal["means", "gradient"]
"""What the candidates of a second direction are fitted by."""


@dataclass(frozen=True)
class NullDirection:
    """A control direction; its vector is the row of the same number in nulls.safetensors."""

    family: str
    draw: int
    """Number of the draw in the family; a repeated vector is left out, so that numbers may be missing."""
    cosine: float
    energy: float
    """Share of the stream's squared norm that lies along it at the direction's site, 0 to 1."""
    position: Position
    """Where it was fitted; of other families than `shuffled` the direction's own."""
    layer: int
    passed: bool = True
    """Whether a candidate of the pseudo-classes passed the rule; True of other families than `shuffled`."""

    @property
    def null_draw(self) -> tuple[str, int]:
        """Family and draw, as `ArmId.null_draw` has them."""
        return self.family, self.draw


@dataclass(frozen=True)
class SeedPair:
    """Cosine between the selected directions of two seeds, and whether their sites are the same."""

    seeds: tuple[int, int]
    cosine: float
    same_site: bool


@dataclass(frozen=True)
class StageTiming:
    """Wall and processor time of one part of a stage; a stage that was interrupted has several."""

    stage: str
    """Includes the name of a condition or text: `condition NAME`, `losses on TEXT`."""
    seed: int | None
    seconds: float
    peak_memory_mb: float
    """Largest memory in MiB: of the accelerator, or else of the process."""
    cpu_seconds: float | None = None
    """Of this process and its threads. None if workers took part, whose time is not measured, and in the first runs."""


@dataclass(frozen=True)
class KappaPair:
    """Agreement of two judges: on `n` completions that both judged, the share with the same class."""

    judges: tuple[str, str]
    kappa: float | None
    """Cohen's kappa; null where chance explains every agreement."""
    agreement: float
    n: int
