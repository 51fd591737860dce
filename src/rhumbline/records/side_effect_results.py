"""Parts of results.json: side effects and breakdowns of one seed. `low` and `high` are the ends of a 95 % interval."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.held_out_files import Text
from rhumbline.records.shared import Label


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of one arm on one kind of text."""

    text: Text
    """Plain documents, responses, or the model's own baseline completions."""
    arm: ArmId
    documents: int
    """Number of documents."""
    tokens: int
    """Number of predicted tokens."""
    ce: float | None
    """Mean cross-entropy, nats per token; None if a loss is not finite."""
    perplexity: float | None
    """exp(ce)."""
    change: float | None
    """ce minus that of the baseline, nats per token; None for the baseline."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Divergence:
    """KL divergence of one arm along the model's own completions."""

    arm: ArmId
    documents: int
    """Number of completions."""
    tokens: int
    """Number of steps."""
    mean: float | None
    """Mean KL divergence from baseline to arm over all steps, nats; None if one is not finite."""
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
    """Rate of one of the direction's own arms on negatives."""

    arm: ArmId
    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float
    change: float | None
    """The rate minus that of the baseline on the same prompts; None without pairs."""
    change_low: float | None
    change_high: float | None
    degenerate: float | None
    """Share of the scored completions that is degenerate; None without any."""
    correct: float | None
    """Share of right answers among the known ones; None without any."""
    correct_n: int
    """Prompts with a known answer."""
    correct_change: float | None
    """The share of right answers minus that of the baseline; None without any."""
    correct_low: float | None
    """Lower end of its 95 % interval (Newcombe)."""
    correct_high: float | None
    """Upper end of its 95 % interval (Newcombe)."""


@dataclass(frozen=True)
class SideEffects:
    """Side effects of the interventions."""

    losses: tuple[Loss, ...]
    """Cross-entropy by text and arm; empty without documents."""
    kl: tuple[Divergence, ...]
    """KL divergence along the model's own completions."""
    left_out: int
    """Completions that are excluded because they refuse at baseline."""
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
    """Share of them that shows the behaviour; None without any."""
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
    """Share of them that shows the behaviour; None without any."""
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
    """Share of them that shows the behaviour; None without any."""
    low: float
    high: float
    change: float | None
    """The rate minus that of the baseline under the same system prompt; None for the baseline, and without pairs."""
    change_low: float | None
    change_high: float | None
