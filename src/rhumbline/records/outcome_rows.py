"""The rows that the tests of one seed write: one arm on one prompt, text or document; and the scores of levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import ByLabel, Class, Label

Text = Literal["text", "responses", "completions"]
"""Texts on which losses are measured."""


@dataclass(frozen=True)
class TextForm:
    """Length and layout of a completion: its words, those outside the markers, and the lines that begin a list item."""

    words: int
    content_words: int
    bullets: int


NO_ANSWER = "no answer"
"""Evidence of a completion without an answer: a block before the answer is not closed, or nothing follows it."""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of outcomes.jsonl: one arm on one test prompt.

    With classes, the direction's own arms have `judges`, `by_length` and `correct`. With a continuous score, every arm
    has `correct`, `form`, `marker_share` and `classifier`.
    """

    arm: ArmId
    side: Label = field(name="set")
    prompt_id: str
    cls: Class = field(name="class")
    score: float | None
    """Amount of the behaviour: 1 or 0 for a class, 0 to 1 for a continuous score; None: unscored."""
    evidence: str
    """The listed phrase that matched, the probability of the learned judge, the kind of degeneration, or why it is
    unscored; can be empty."""
    metric: float | None
    """Metric under the arm, log-odds (nats per token for `pairs`); None: not finite, or no metric."""
    new_tokens: int
    category: str | None
    repeats: bool = False
    """Whether a refused completion repeats itself after its refusal."""
    uncovered: str | None = None
    """Language of the completion, if the judge does not cover it."""
    judges: Mapping[str, Class] | None = None
    """Class by judge. Absent for nulls, and with a continuous score."""
    by_length: Mapping[str, Class] | None = None
    """Class by tokens read: `full`, and those of `16`, `32`, `64` below `max_new_tokens`. Absent as above."""
    correct: bool | float | UnsetType | None = UNSET
    """With classes: whether the text of a negative contains the known answer; None if no answer is known; absent for
    nulls. With a continuous score: share of the content that the text has, 0 to 1."""
    form: TextForm | None = None
    """Length and layout. Absent unless the score is continuous."""
    marker_share: float | None = None
    """Share of the words inside markers. Absent unless the score is continuous."""
    classifier: float | None = None
    """Probability of the behaviour by the classifier. Absent without a classifier."""
    prompt: str | None = None
    """Text of the prompt. Absent unless the protocol saves completions."""
    completion: str | None = None
    """Text of the answer, or of the whole completion if it has no answer. Absent as above."""

    @property
    def has_answer(self) -> bool:
        """Whether the completion has an answer that a judge can read."""
        return self.cls != "unscored" or self.evidence != NO_ANSWER

    @property
    def correctness(self) -> float | None:
        """Share of the known answer or of the content that the text has, 0 to 1; None: not known."""
        return None if self.correct is UNSET or self.correct is None else float(self.correct)

    @property
    def is_correct(self) -> bool | None:
        """Whether the text contains the known answer; None if no answer is known, and for a share of content."""
        return self.correct if isinstance(self.correct, bool) else None


class DocumentLoss(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of losses-TEXT.jsonl: one arm on one document. A text without documents is an empty file."""

    text: Text
    document: str
    """Number of the document, or id of the prompt."""
    arm: ArmId
    tokens: int
    nats: float | None
    """Sum of their cross-entropies; None: not finite."""
    cls: Class | None = field(name="class", default=None)
    """Class of the completion. Absent for other texts."""
    kl: tuple[float | None, ...] | None = None
    """KL divergence of each step, baseline to arm, nats, four digits (None: not finite). Absent for other texts."""


class ConditionOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of condition-NN.jsonl: one arm on one test prompt under another system prompt."""

    condition: str
    arm: ArmId
    """Baseline, ablation, or (on negatives) addition; the nulls of the ablation on positives and of the addition on
    negatives. Runs of older versions have no nulls."""
    side: Label = field(name="set")
    prompt_id: str
    cls: Class = field(name="class")
    new_tokens: int
    category: str | None
    uncovered: str | None = None
    """Language of the completion, if the judge does not cover it."""


class NeutralOutcome(Struct, frozen=True, kw_only=True):
    """A neutral prompt at baseline."""

    prompt_id: str
    cls: Class = field(name="class")
    score: float | None
    """Amount of the behaviour, 0 to 1; None: unscored."""
    projection: float | None
    """Projection onto the unit direction, in units of the residual stream; None without a direction, if it is read in
    the response, or not finite."""


@dataclass(frozen=True)
class LevelTexts:
    """levels.json: further scores that levels are computed from. Absent for judges of classes."""

    texts: ByLabel[tuple[float, ...]] | None
    """Scores of the contrast's own test texts; None if activations are read in the prompt."""
    neutral: tuple[NeutralOutcome, ...]
    """Neutral prompts; empty if the contrast has none."""
