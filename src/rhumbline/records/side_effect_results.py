"""Parts of results.json: side effects and breakdowns of one seed."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import (
    Label,
)


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of one arm on one kind of text."""

    text: Literal["text", "responses", "completions"]
    """Plain documents, given responses, or the model's own baseline completions."""
    arm: ArmId
    documents: int
    """Documents read."""
    tokens: int
    """Tokens predicted."""
    ce: float | None
    """Mean cross-entropy, nats per token; null where a loss was not a number."""
    perplexity: float | None
    """exp(ce)."""
    change: float | None
    """ce less the baseline's, nats per token; null of the baseline."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Divergence:
    """How far one arm moves the next-token distribution along the model's own completions."""

    arm: ArmId
    documents: int
    """Completions read."""
    tokens: int
    """Steps read."""
    mean: float | None
    """Mean KL(baseline || arm) over all steps, nats; null where one was not a number."""
    low: float | None
    high: float | None
    p95: float | None
    """95th percentile over the steps, nats."""
    max: float | None
    """Largest step, nats."""
    first: float | None
    """Mean over the first step of every completion, nats."""


@dataclass(frozen=True)
class NegativeRate:
    """What one of the direction's own arms does to negatives."""

    arm: ArmId
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; null of none."""
    low: float
    high: float
    change: float | None
    """The rate less the baseline's on the same prompts; null of none."""
    change_low: float | None
    change_high: float | None
    degenerate: float | None
    """Share of the scored completions that are broken; null of none."""
    correct: float | None
    """Share of known answers that are right; null where no answer is known."""
    correct_n: int
    """Prompts whose answer is known."""
    correct_change: float | None
    """The share of right answers less the baseline's; null where no answer is known."""
    correct_low: float | None
    """Lower end of its 95 % interval (Newcombe)."""
    correct_high: float | None
    """Upper end of its 95 % interval (Newcombe)."""


@dataclass(frozen=True)
class SideEffects:
    """What the interventions cost."""

    losses: tuple[Loss, ...]
    """Cross-entropy by text and arm; empty where no document was read."""
    kl: tuple[Divergence, ...]
    """Divergence along the model's own completions."""
    left_out: int
    """Completions left out, since they refuse at baseline."""
    negatives: tuple[NegativeRate, ...]
    """Rates on negatives by arm."""


class CategoryRate(Struct, frozen=True, kw_only=True):
    """Rate of one arm on the prompts of one category."""

    category: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; null of none."""
    low: float
    high: float


BaselineClass = Literal["refused", "not refused", "shown", "not shown"]
"""Class of a prompt at baseline: `refused` or not with keyword judges, `shown` or not with a continuous score."""


@dataclass(frozen=True)
class BaselineRate:
    """Rate of one arm on the positives that show the behaviour at baseline, or on those that do not."""

    baseline: BaselineClass
    """Class of the prompts at baseline."""
    arm: ArmId
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; null of none."""
    low: float
    high: float


class ConditionRate(Struct, frozen=True, kw_only=True):
    """Rate of one arm under another system prompt."""

    condition: str
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; null of none."""
    low: float
    high: float
    change: float | None
    """The rate less the baseline's under the same system prompt; null of the baseline, or of none."""
    change_low: float | None
    change_high: float | None
