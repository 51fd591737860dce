"""outcomes.jsonl, separation.json, losses-TEXT.jsonl, condition-NN.jsonl and levels.json of a seed, as records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.run_files import Projection, SiteSeparation
from rhumbline.records.shared import (
    ByLabel,
    Class,
    Label,
    Split,
)

Text = Literal["text", "responses", "completions"]
"""What losses are measured on."""


@dataclass(frozen=True)
class Form:
    """Length and layout of a completion."""

    words: int
    """Words."""
    content_words: int
    """Words outside the markers."""
    bullets: int
    """Lines that begin a list item."""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of outcomes.jsonl: one arm on one test prompt.

    Judges of classes add `judges`, `by_length` and `correct` to the direction's own arms; judges of a continuous score
    add `correct`, `form`, `marker_share` and `classifier` to every arm.
    """

    arm: ArmId
    side: Label = field(name="set")
    prompt_id: str
    cls: Class = field(name="class")
    """How the judge reads the completion."""
    score: float | None
    """Amount of the behaviour: 1 or 0 of a class, 0 to 1 of a continuous score; None of an unscored completion."""
    evidence: str
    """The listed phrase that matched, the kind of degeneration, or why it is unscored; empty where there is none."""
    metric: float | None
    """The fast metric under the arm, log-odds (nats per token of `pairs`); None: not finite, or no metric."""
    new_tokens: int
    """Tokens of the completion."""
    category: str | None
    """Category of the prompt; None where the contrast gives none."""
    judges: Mapping[str, Class] | None = None
    """Class by keyword judge. Left out of nulls, and of continuous scores."""
    by_length: Mapping[str, Class] | None = None
    """Class by tokens read: `full`, and those of `16`, `32`, `64` below `max_new_tokens`. Left out as above."""
    correct: bool | float | UnsetType | None = UNSET
    """Of classes: whether the known answer is in the text of a negative; None where there is no known answer; left out
    of nulls. Of a continuous score: share of the content that is there, 0 to 1. Read it as `answered`."""
    form: Form | None = None
    """Length and layout. Left out unless the score is continuous."""
    marker_share: float | None = None
    """Share of the words that stand in markers. Left out unless the score is continuous."""
    classifier: float | None = None
    """The classifier's probability of the behaviour. Left out unless the score is continuous and there is one."""
    prompt: str | None = None
    """The prompt's text. Left out unless the protocol saves completions."""
    completion: str | None = None
    """The completion's text. Left out as above."""

    @property
    def answered(self) -> float | None:
        """Amount of the right answer or of the content, 0 to 1; None where it is not known."""
        return None if self.correct is UNSET or self.correct is None else float(self.correct)

    @property
    def is_right(self) -> bool | None:
        """Whether a known answer is there; None where none is known, and of a share of content."""
        return self.correct if isinstance(self.correct, bool) else None


@dataclass(frozen=True)
class Separation:
    """separation.json: where the classes separate on test prompts."""

    split: Split
    """The split that was read: test."""
    n: ByLabel[int]
    """Prompts (of texts: rows) that were read."""
    grid: tuple[SiteSeparation, ...]
    """Every candidate, by position and layer."""
    projections: tuple[Projection, ...]
    """Prompts on the selected direction; empty where nothing was selected."""


class DocumentLoss(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of losses-TEXT.jsonl: one arm on one document. A text without documents is an empty file."""

    text: Text
    """Plain documents, answers to negatives, or the model's own baseline completions of negatives."""
    document: str
    """Number of the document, or id of the prompt."""
    arm: ArmId
    tokens: int
    """Tokens that were predicted."""
    nats: float | None
    """Sum of their cross-entropies; None: not finite."""
    cls: Class | None = field(name="class", default=None)
    """How the judge reads the completion. Left out of other texts."""
    kl: tuple[float | None, ...] | None = None
    """KL of each step, baseline to arm, nats, four digits; None inside: not finite. Left out of other texts."""


class ConditionOutcome(Struct, frozen=True, kw_only=True):
    """A row of condition-NN.jsonl: one arm on one test prompt under another system prompt."""

    condition: str
    arm: ArmId
    """Baseline, ablation, or (on negatives) addition."""
    side: Label = field(name="set")
    prompt_id: str
    cls: Class = field(name="class")
    """How the judge reads the completion."""
    new_tokens: int
    """Tokens of the completion."""
    category: str | None
    """Category of the prompt; None where the contrast gives none."""


class NeutralOutcome(Struct, frozen=True, kw_only=True):
    """A prompt of neither class at baseline."""

    prompt_id: str
    cls: Class = field(name="class")
    """How the judge reads the completion."""
    score: float | None
    """Amount of the behaviour, 0 to 1; None of an unscored completion."""
    projection: float | None
    """Onto the unit direction, in units of the residual stream; None without a direction, of one that is read in the
    response, or not finite."""


@dataclass(frozen=True)
class LevelTexts:
    """levels.json: what a level of a continuous score is counted in. Written for such scores only."""

    texts: ByLabel[tuple[float, ...]] | None
    """Scores of the contrast's own test texts; None where activations are read in the prompt."""
    neutral: tuple[NeutralOutcome, ...]
    """Prompts of neither class; empty where the contrast has none."""
