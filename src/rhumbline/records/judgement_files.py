"""judgements/: completions of a run read by further judges, as records."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import (
    KappaPair,
    Label,
)


class JudgementRow(Struct, frozen=True, kw_only=True):
    """A row of judgements/<judge>.jsonl: one completion, judged."""

    key: str
    """Hash of prompt and completion."""
    judge: str
    """Identifier of the judge: a hash of what may change a judgement."""
    cls: Literal["refused", "complied", "unsafe", "safe", "unscored"] = field(name="class")
    """Class of the completion."""
    value: float | None
    """1 for the first class, 0 for the second, between for a scale; null iff unscored."""
    evidence: str
    """The judge's own words, or why it is unscored; never the completion."""
    protocol_sha256: str


class JudgedPlace(Struct, frozen=True, kw_only=True):
    """A row of judgements/<judge>.index.jsonl: where a judged completion stands in the run."""

    seed: int
    arm: ArmId
    side: Label = field(name="set")
    prompt_id: str
    key: str
    """Hash of prompt and completion."""
    protocol_sha256: str


class JudgedRate(Struct, frozen=True, kw_only=True):
    """Rates of one arm on one set, as one judge reads them."""

    seed: int
    arm: ArmId
    side: Label = field(name="set")
    n: int
    """Scored completions."""
    unscored: int
    """Completions without a judgement; in no rate."""
    rate: float | None
    """Share of the scored completions of the first class (refused or unsafe); null of none."""
    low: float
    high: float
    mean: float | None
    """Mean value; null of none."""
    refusal_score: float | None
    """The rate, of a judge of refusal; null of a judge of harm."""
    safety_score: float | None
    """1 - rate, of a judge of harm; null of a judge of refusal."""


@dataclass(frozen=True)
class JudgeSummary:
    """One judge and its rates."""

    name: str
    asks: Literal["refusal", "harm"]
    """What it judges."""
    form: Literal["text", "chat", "conversation", "classifier", "endpoint"]
    """How its model is asked."""
    model: str
    """Hub name or directory of its model, or the name that an endpoint uses."""
    template: str
    """The question, with {prompt} and {response}."""
    answers: dict[str, str]
    """Beginning of an answer (or a label) to class."""
    otherwise: str | None
    """Class of any other answer; null: unscored."""
    line: str
    """Label of the line that holds the answer; empty: its beginning."""
    scale: tuple[str, ...]
    """Tokens of a grade; empty: answers in words."""
    threshold: float
    """Value from which a grade is the first class."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    least_words: int
    """Words below which a completion is the second class unasked."""
    revision: str | None
    """Revision of its model; null: the newest."""
    url: str
    """Address of an endpoint; empty of other forms."""
    key_env: str
    """Environment variable with the endpoint's key."""
    concurrency: int
    """Requests to an endpoint at once."""
    timeout: float
    """Longest wait for one answer, seconds."""
    retries: int
    """Further tries after a failed request."""
    title: str
    """Title of a published judge."""
    licence: str
    """Licence of a published judge."""
    source: str
    """Where it was published."""
    id: str
    """Hash of everything that may change a judgement."""
    asked: int
    """Completions that the last call asked about."""
    rows: tuple[JudgedRate, ...]
    """Rates by seed, arm and set."""


@dataclass(frozen=True)
class JudgementSummary:
    """judgements/summary.json: every judge of the run and how they agree."""

    protocol_sha256: str
    judges: dict[str, JudgeSummary]
    """Judges by name."""
    agreement: tuple[KappaPair, ...]
    """Agreement of every two judges on whether a positive's completion gives in."""
