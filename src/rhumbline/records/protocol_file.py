"""protocol.json: what surrounds the fields of `Protocol` there, as records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.codec import JsonObject
from rhumbline.records.made_contrast import MadeContrast
from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    ModelFacts,
    NearDuplicates,
    Split,
    TrainVal,
)

ControlText = Literal["error", "plain"]
"""What is done with text of a prompt that is tokenized into control tokens."""


@dataclass(frozen=True)
class ChatFacts:
    """How prompts are rendered. It takes the place of `Protocol.chat` in protocol.json."""

    template_sha256: str
    system: str | None
    """System prompt of every chat; None: the template's default."""
    enable_thinking: bool | None
    """Passed to the template; None: the template's default."""
    date: str | None
    """YYYY-MM-DD of the template; None: today."""
    template_kwargs: JsonObject
    """Further variables of the template, the user's own."""
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    suffix_tokens: tuple[str, ...]
    positions: tuple[Position, ...]
    """Post-instruction positions, in the order of the tokens."""
    control_tokens: ControlText = "error"
    """`plain`: text that is tokenized into control tokens is encoded as plain text; `error`: no prompt has any."""
    encoded_as_text: tuple[str, ...] = ()
    """Ids of the prompts with such text; `system prompt` stands for that of every chat."""


StopSource = Literal["generation config", "tokenizer", "chat template"]
"""Where a stop token comes from; `chat template`: it closes an assistant turn there."""


@dataclass(frozen=True)
class StopToken:
    """A token that ends a completion."""

    id: int
    text: str
    """Its name in the vocabulary."""
    sources: tuple[StopSource, ...]


@dataclass(frozen=True)
class DecodingFacts:
    """How completions are decoded: greedily, up to a stop token."""

    stop_tokens: tuple[StopToken, ...]
    turn_end: int | None
    """The stop token that closes an assistant turn in the chat template; None: the template has no such token."""
    ignored: Mapping[str, str]
    """Settings of the generation config that greedy decoding does not apply, as JSON: sampling, penalties, suppressed
    or forced tokens, smallest lengths."""

    @property
    def warnings(self) -> list[str]:
        """What differs from a use of the model, or is not known, as sentences."""
        warnings = []
        if self.turn_end is None:
            stops = ", ".join(token.text for token in self.stop_tokens) or "none"
            warnings.append(
                "No control token closes an assistant turn in the chat template, so the end of a turn is not known. "
                f"Completions end at the stop tokens of the generation config and the tokenizer ({stops}) or at the "
                "token limit, and can contain text of further turns. Pass a template that closes its turns "
                "(--chat-template)."
            )
        if self.ignored:
            settings = ", ".join(f"{name} = {value}" for name, value in self.ignored.items())
            warnings.append(f"The generation config asks for {settings}. Completions are greedy, without them.")
        return warnings


class SourceFacts(Struct, frozen=True, kw_only=True):
    """Where the rows of one source of a named contrast came from, and whether their hash is the declared one."""

    source: str
    origin: str = field(name="from")
    """Publisher's place, or the local files."""
    revision: str | None
    """Of the publisher's repository, or `local files`; None if none is declared."""
    pinned: bool
    """Whether the revision was verified."""
    rows: int
    """After cleaning."""
    sha256: str
    as_expected: bool | None


@dataclass(frozen=True)
class PoolFacts:
    """What the seeds of a run with a named contrast draw their prompts from."""

    recipe: str
    left_out: TrainVal[int]
    """Positives that are in a later pool, too."""
    pools: BySplit[ByLabel[int]]
    sources: tuple[SourceFacts, ...]
    """In the order of the recipe."""


class ContrastFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contrast that was run."""

    name: str
    """Stem of the file, name of the recipe, or `organism:NAME`."""
    sha256: str
    duplicates: int
    """Exact repeats that were removed."""
    pools: PoolFacts | None = None
    """Of a named contrast."""
    made: MadeContrast | None = None
    """Of a contrast that `rhumbline contrast make` wrote."""


@dataclass(frozen=True)
class Detectable:
    """Effects that the test prompts of a seed show with this power."""

    power: float
    any: ByLabel[float | None]
    """Smallest change of a rate that is detected; None: not even one of 1."""
    rule: ByLabel[float | None]
    """Smallest change of a rate that is shown to exceed `rule.min_drop`; None: not even one of 1."""
    rank_floor: float | None
    """Smallest rank p that the wide nulls allow; None without wide nulls."""


@dataclass(frozen=True)
class SplitPlan:
    """The splits of one seed, as planned; `fixed` are those that the contrast file decides."""

    sizes: BySplit[ByLabel[int]]
    near_duplicates: NearDuplicates
    fixed: tuple[Split, ...]
    detectable: Detectable | None = None
    """Absent in the first runs."""


@dataclass(frozen=True)
class Versions:
    """What the run was made with."""

    rhumbline: str
    torch: str
    transformers: str
    code: str
    """`code_sha256` of the package."""


@dataclass(frozen=True)
class LossTextFacts:
    """The texts that losses are measured on: plain documents, and exchanges (prompts with an answer)."""

    name: str
    """Stem of the file; `none` without one."""
    sha256: str
    documents: int
    exchanges: int


@dataclass(frozen=True)
class PublishedTokens:
    """The refusal tokens of the paper's authors for the family of a model, extended to later models of it."""

    family: str | None
    """None: no tokens are published for this model or this behaviour, so they are estimated (`auto`)."""
    tokens: tuple[str, ...]


class ProtocolContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """protocol.json, without the fields of `Protocol` that stand beside these.

    `Protocol.chat` is not there: the key `chat` holds `ChatFacts`. The hash of a protocol is that of the file's JSON
    value, never of a record that was read from it: a later version may know more fields.
    """

    schema: int
    model: ModelFacts
    chat: ChatFacts
    contrast: ContrastFacts
    splits: dict[int, SplitPlan]
    versions: Versions
    texts: LossTextFacts | None = None
    """Left out by `discover`, and absent in the first runs."""
    decoding: DecodingFacts | None = None
    """Left out by `discover`, and absent in older runs."""
    published_tokens: PublishedTokens | None = None
    """What `refusal_tokens = "published"` stands for; left out if the protocol did not ask for it."""
    mode: Literal["discover"] | None = None
    """Left out by `run`."""


@dataclass(frozen=True)
class JudgedProtocol:
    """The part of protocol.json that a judge of the completions needs."""

    seeds: tuple[int, ...]
    judge: str
