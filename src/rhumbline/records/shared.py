"""Records that several files of a run directory share. `low` and `high` are the ends of a 95 % interval throughout.

A number that JSON cannot hold (NaN, an infinity) is written as null, so a measured number may be None.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from msgspec import Struct, field

from rhumbline.records.positions import Position

T = TypeVar("T")

Label = Literal["positive", "negative"]
"""Which class of the contrast a prompt belongs to."""
EffectName = Literal["suppression", "induction"]
"""Suppression: ablation on positives. Induction: addition on negatives."""
Split = Literal["train", "val", "test"]
Class = Literal["refused", "complied", "shown", "absent", "degenerate", "unscored"]
"""What a completion is; `unscored` is in no rate."""


@dataclass(frozen=True)
class ByLabel(Generic[T]):
    """One value for each class of the contrast."""

    positive: T
    """Of the positives."""
    negative: T
    """Of the negatives."""

    def __getitem__(self, label: Label) -> T:
        return self.positive if label == "positive" else self.negative


@dataclass(frozen=True)
class BySplit(Generic[T]):
    """One value for each split."""

    train: T
    """Of the prompts that candidates are made of."""
    val: T
    """Of the prompts that one of them is selected on."""
    test: T
    """Of the prompts that it is tested on."""

    def __getitem__(self, split: Split) -> T:
        return getattr(self, split)


@dataclass(frozen=True)
class TrainVal(Generic[T]):
    """One value for each split that is read before the test."""

    train: T
    """Of the prompts that candidates are made of."""
    val: T
    """Of the prompts that one of them is selected on."""

    def __getitem__(self, split: Literal["train", "val"]) -> T:
        return self.train if split == "train" else self.val


@dataclass(frozen=True)
class Site:
    """Where a candidate is read: a position, and the input of a block."""

    position: Position
    layer: int


@dataclass(frozen=True)
class Survivor:
    """A candidate that survived the rule."""

    position: Position
    layer: int
    norm: float
    """Length of the difference in means, in units of the residual stream."""
    bypass: float
    """Mean fast metric of positives under ablation, log-odds."""

    @property
    def site(self) -> Site:
        """Position and layer."""
        return Site(self.position, self.layer)


class Marker(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A phrase that positives use more; of a phrase that the protocol gives nothing else is known."""

    phrase: str
    """Its words."""
    log_odds: float | None = None
    """Of its presence in a text, positives less negatives, nats. Left out where the protocol gives the phrases."""
    p: float | None = None
    """Fisher's exact p, one-sided. Left out as above."""
    positive: int | None = None
    """Positive texts with it. Left out as above."""
    negative: int | None = None
    """Negative texts with it. Left out as above."""


@dataclass(frozen=True)
class ClassifierFit:
    """How well the style classifier tells texts of topics apart that it has not seen."""

    auroc: float | None
    """On the topics left out; None: not finite."""
    n: int
    """Training texts of both classes."""
    folds: int
    """Groups of topics that were left out in turn."""


@dataclass(frozen=True)
class FirstToken:
    """A first token of the behaviour."""

    id: int
    """In the vocabulary."""
    text: str
    """As the tokenizer decodes it."""
    auroc: float | None
    """Of the metric of this token alone between the training classes; None: not finite."""
    share: float | None
    """`auto`: share of the completions with the behaviour that it opens. `shifted`: by how much the mean probability
    is larger after positives. None of a token that was given."""


class ModelDescription(Struct, frozen=True, kw_only=True):
    """A loaded model, without a hash of its weights."""

    name: str
    """Hub name, directory, .gguf file or `organism:NAME`, as given."""
    cls: str = field(name="class")
    """Class of the transformers model."""
    model_type: str
    """`model_type` of its config."""
    n_layers: int
    """Blocks of the decoder."""
    d_model: int
    """Width of the residual stream."""
    dtype: str
    """dtype of the weights without the prefix `torch.`."""
    mode: Literal["exact", "coarse"]
    """`exact`: its residual writers are proved. `coarse`: it is edited at block inputs and outputs only."""


class ModelFacts(ModelDescription, frozen=True, kw_only=True):
    """The model of a run."""

    fingerprint: str
    """sha256 over every parameter and buffer as loaded."""


@dataclass(frozen=True)
class NearDuplicates:
    """Prompts that nearly repeat one of another split."""

    found: int
    """How many there are."""
    dropped: int
    """How many of them were left out; the others stand in splits that the contrast file decided."""


@dataclass(frozen=True)
class NullDirection:
    """A control direction; its vector is the row of the same number in nulls.safetensors."""

    family: str
    """How it was drawn."""
    draw: int
    """Number of the draw in the family; a repeated vector is left out, so that numbers may be missing."""
    cosine: float
    """With the direction."""
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
    """Whether two seeds chose the same direction."""

    seeds: tuple[int, int]
    cosine: float
    """Between their directions."""
    same_site: bool
    """Whether position and layer are the same."""


@dataclass(frozen=True)
class StageTiming:
    """What one part of a stage took; a stage that was interrupted has several."""

    stage: str
    """Name of the stage, as progress is told; `condition NAME` and `losses on TEXT` hold a name."""
    seed: int | None
    seconds: float
    """Wall time."""
    peak_memory_mb: float
    """Largest memory in MiB: of the accelerator, or else of the process."""
    cpu_seconds: float = 0.0
    """Processor time of the process."""


@dataclass(frozen=True)
class KappaPair:
    """Agreement of two judges on the same completions."""

    judges: tuple[str, str]
    """Names of the two judges."""
    kappa: float | None
    """Cohen's kappa; null where chance explains every agreement."""
    agreement: float
    """Share of completions with the same class, 0 to 1."""
    n: int
    """Completions that both judged."""
