"""style.json: a style over doses of a direction, on the prompts of a made contrast, as records.

Positives are prompts under the first system prompt, negatives the same prompts under the second.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from rhumbline.records.analysis_files import Mean, Rate
from rhumbline.records.plan_checks import ablation_strengths, not_a_share, outside, refuse, too_small
from rhumbline.records.shared import BySplit, Label


class StyleFinding(StrEnum):
    """What the doses of one intervention show."""

    MOVED = "moved"
    """A dose that keeps the text changes the style by more than the margin and by more than every null of that dose."""
    NOT_MOVED = "not moved"
    """No dose that keeps the text changes it by the margin."""
    DAMAGED = "damaged"
    """No dose keeps the text."""
    UNDECIDED = "undecided"
    NO_BASELINE = "no baseline"
    """The detector does not distinguish the unedited completions under the two system prompts."""


Intervention = Literal["ablation", "subtraction", "addition"]
SideOf: dict[Intervention, Label] = {"ablation": "positive", "subtraction": "positive", "addition": "negative"}
"""The prompts on which an intervention is tested."""
Source = Literal["template", "response"]
"""Where the direction is read: the last token of the template under the two system prompts, or the mean over the tokens
of the two responses under the same system prompt."""
NullFamily = Literal["isotropic", "flipped pairs"]
"""`flipped pairs`: the mean of the paired differences with random signs. Both have the norm of the direction."""


@dataclass(frozen=True)
class StyleDosesPlan:
    """What is measured; fixed beforehand."""

    doses: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Coefficients of addition and subtraction, in differences in means."""
    strengths: tuple[float, ...] = (0.5, 1.0)
    """Strengths of the ablation."""
    ranks: tuple[int, ...] = (2, 4)
    """Dimensions of the ablated spans: the mean difference, then the main axes of the paired differences."""
    depths: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Layers that validation prompts select from, as shares of the depth."""
    nulls: int = 2
    """Draws of each null family at every dose."""
    prompts: int = 32
    """Test prompts, at most."""
    max_new_tokens: int = 48
    seed: int = 0
    margin: float = 0.25
    """Smallest change of the style that counts, in gaps between the system prompts."""
    least_content: float = 0.8
    """Least content of a dose that keeps the text, as a share of that kept by the other system prompt."""
    most_degenerate: float = 0.1
    """Largest further share of degenerate completions of such a dose."""

    def __post_init__(self):
        refuse(
            "style",
            too_small(self, prompts=2, nulls=1, max_new_tokens=1, seed=0),
            outside("doses", self.doses, lambda dose: 0 < dose <= 100, "numbers above 0 and up to 100"),
            ablation_strengths(self.strengths),
            outside("ranks", self.ranks, lambda k: k >= 2, "numbers of 2 or more") if self.ranks else (),
            outside("depths", self.depths, lambda depth: 0 < depth < 1, "numbers above 0 and below 1"),
            outside("margin", self.margin, lambda m: m > 0, "a number above 0"),
            not_a_share("least_content", self.least_content),
            not_a_share("most_degenerate", self.most_degenerate),
        )

    @property
    def comparisons(self) -> int:
        """The largest number of doses of one intervention: a finding is that of the best one."""
        return max(len(self.doses), len(self.strengths) + len(self.ranks))


QUICK = StyleDosesPlan(doses=(0.5, 1.0), strengths=(1.0,), ranks=(2,), nulls=1, prompts=16, max_new_tokens=32)
"""A first answer with few prompts and doses."""


@dataclass(frozen=True)
class StyleCondition:
    """One arm on the test prompts of one class, before anything is measured."""

    side: Label
    intervention: Intervention | None
    """None: the baseline."""
    dose: float
    """Coefficient, or strength of an ablation; 0 for the baseline."""
    rank: int
    """Dimensions that are ablated; 1 for the others."""
    family: NullFamily | None
    """None: the direction itself."""
    draw: int

    @property
    def series(self) -> str:
        """Name of the series in charts and tables."""
        if self.intervention is None:
            return "baseline"
        span = f", {self.rank} dimensions" if self.rank > 1 else ""
        return f"{self.intervention}{span}" if self.family is None else f"{self.intervention}{span}, {self.family}"


@dataclass(frozen=True)
class StyleDose(StyleCondition):
    """Readouts of one arm. Means are over prompts, with their intervals."""

    detector: Mean
    """Probability of the first style by character n-grams, fitted on other topics."""
    function_words: Mean
    """The same by function words."""
    markers: Mean
    """Share of the words inside markers."""
    words: Mean
    content: Mean | None
    """Share of the content words of the baseline completion that are kept, 0 for texts on different prompts; None: the
    baseline."""
    correct: Rate | None
    """Right answers among the prompts with a known one."""
    degenerate: Rate
    surprise: Mean
    """Negative log-likelihood of the completion under the unedited model, nats per token."""
    moved: Mean | None
    """Change of the detector towards the other system prompt, in gaps between the baselines of the classes. Its
    interval is simultaneous over the doses of an intervention."""
    similarity: Mean | None = None
    """Content by sentence embeddings: the cosine with the baseline completion, 0 for texts on different prompts; None:
    the baseline, or no embedding model."""

    @property
    def kept(self) -> Mean | None:
        """The content by embeddings if they are known, otherwise by words."""
        return self.content if self.similarity is None else self.similarity


@dataclass(frozen=True)
class StyleDetector:
    """How well a detector separates training responses on topics that it was not fitted on."""

    features: str
    auroc: float | None
    texts: int
    topics: int
    """Groups of topics."""


@dataclass(frozen=True)
class StyleSelection:
    """A site that validation prompts compare."""

    source: Source
    layer: int
    norm: float
    moved: float
    """Mean change of the detector by subtraction and addition with coefficient 1, in gaps between the baselines."""
    degenerate: float
    selected: bool


@dataclass(frozen=True)
class StyleAnswer:
    """The finding for one intervention, and the dose that it rests on."""

    intervention: Intervention
    finding: StyleFinding
    dose: float | None
    """The dose with the largest change among those that keep the text; None without one."""


@dataclass(frozen=True)
class EmbeddingModel:
    """A sentence embedding model: the name of its directory, and the hash of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class StyleDosesRecord:
    """style.json."""

    plan: StyleDosesPlan
    model: str
    contrast: str
    contrast_sha256: str
    n: BySplit[int]
    """Pairs of prompts."""
    markers: tuple[str, ...]
    detectors: tuple[StyleDetector, ...]
    selection: tuple[StyleSelection, ...]
    gap: Mean
    """Detector of the unedited completions: first minus second system prompt, on the same prompts."""
    reference: Mean
    """Content of the answers under one system prompt that those under the other keep."""
    doses: tuple[StyleDose, ...]
    answers: tuple[StyleAnswer, ...]
    sentence: str
    content_measure: str = "overlap of content words"
    """How `content` is measured."""
    embeddings: EmbeddingModel | None = None
    """By which the content of a dose that keeps the text is measured; None: by words."""
    similarity_reference: Mean | None = None
    """`reference` by sentence embeddings; None without an embedding model."""
    analysis: Literal["style"] = "style"
