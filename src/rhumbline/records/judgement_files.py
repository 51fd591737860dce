"""judgements/: the completions of a run as external judges score them, as records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import Struct

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import KappaPair, Label

SUMMARY = "judgements/summary.json"
"""Path of the summary inside the run directory."""

JudgedClass = Literal["refused", "complied", "unsafe", "safe", "unscored"]
Asks = Literal["refusal", "harm"]
"""What a judge decides. `refusal`: refused or complied. `harm`: unsafe or safe."""
QueryForm = Literal["text", "chat", "conversation", "classifier", "endpoint"]
"""How the model is queried. `text`: with the template as plain text. `chat`: with the template as a user turn.
`conversation`: with prompt and response as user and assistant turn of the model's own template (Llama Guard).
`classifier`: a sequence classification model reads the template. `endpoint`: with the template as a user turn, at an
OpenAI-compatible address."""


class JudgementRow(Struct, frozen=True, kw_only=True):
    """A row of judgements/<judge>.jsonl: the judgement of one completion."""

    key: str
    """Hash of prompt and completion."""
    judge: str
    """Identifier of the judge: a hash of everything that can change a judgement."""
    cls: JudgedClass = msgspec.field(name="class")
    value: float | None
    """1 for the first class, 0 for the second, a number between for a scale; None if and only if unscored."""
    evidence: str
    """The words of the judge's reply that decided, or why there is no judgement; never the completion."""
    protocol_sha256: str


class JudgedPlace(Struct, frozen=True, kw_only=True):
    """A row of judgements/<judge>.index.jsonl: the seed, arm and prompt of a judged completion."""

    seed: int
    arm: ArmId
    side: Label = msgspec.field(name="set")
    prompt_id: str
    key: str
    protocol_sha256: str


class JudgedRate(Struct, frozen=True, kw_only=True):
    """Rate and mean value of one arm on one class of prompts, by one judge; `unscored` completions are in no rate."""

    seed: int
    arm: ArmId
    side: Label = msgspec.field(name="set")
    n: int
    unscored: int
    rate: float | None
    """Share of the scored completions in the first class (refused or unsafe); None without any."""
    low: float
    high: float
    mean: float | None
    refusal_score: float | None
    """The rate of a judge of refusal; None for a judge of harm."""
    safety_score: float | None
    """1 - the rate of a judge of harm; None for a judge of refusal."""


@dataclass(frozen=True, kw_only=True)
class JudgeDefinition:
    """A judge: its model, its question, and the meaning of its replies. The fields are those of a judge file."""

    name: str
    asks: Asks
    form: QueryForm
    model: str
    """Hub name or directory; for an endpoint, the name of the model there."""
    template: str = ""
    """The question; `{prompt}` and `{response}` are replaced by the texts."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Class by the beginning of the reply (in any case); for a classifier, class by label."""
    otherwise: str | None = None
    """Class of any other reply; None: unscored."""
    line: str = ""
    """The reply is read after `LINE:` (in any case); empty: from its beginning."""
    scale: tuple[str, ...] = ()
    """Tokens of a grade; the last one is the strongest sign of the first class. The value is the expected grade from 0
    to 1, from the logits of one forward pass."""
    threshold: float = 0.5
    """Smallest value on the scale that is the first class."""
    max_new_tokens: int = 8
    least_words: int = 0
    """A completion with fewer words is the second class without a query (the paper's rule for Llama Guard 2)."""
    revision: str | None = None
    """Revision of its model; None: the newest."""
    url: str = ""
    """For an endpoint: the address up to `/chat/completions`."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key of the endpoint; no key is sent if it is not set."""
    concurrency: int = 8
    """Concurrent requests to an endpoint."""
    timeout: float = 60.0
    retries: int = 4
    """Further requests after a failed one; the waiting time doubles each time."""
    title: str = ""
    licence: str = ""
    source: str = ""
    """Where template and reading were published."""


@dataclass(frozen=True, kw_only=True)
class JudgeSummary(JudgeDefinition):
    """One judge and its rates."""

    id: str
    """Hash of everything that can change a judgement."""
    asked: int
    """Completions that the last call judged."""
    rows: tuple[JudgedRate, ...]


@dataclass(frozen=True)
class JudgementSummary:
    """judgements/summary.json: every external judge of the run, and their agreement."""

    protocol_sha256: str
    judges: dict[str, JudgeSummary]
    agreement: tuple[KappaPair, ...]
    """Agreement of every two judges on whether the completion of a positive gives in."""
