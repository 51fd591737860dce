"""protocol.json: what surrounds the fields of `Protocol` there, as records."""

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct, field

from rhumbline.records.positions import Position
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    ModelFacts,
    NearDuplicates,
    Split,
)


@dataclass(frozen=True)
class ChatFacts:
    """How prompts are rendered. It takes the place of `Protocol.chat` in protocol.json."""

    template_sha256: str
    """Hash of the chat template's text."""
    system: str | None
    """System prompt of every chat; None: the template's default."""
    enable_thinking: bool | None
    """Passed to the template; None: the template's default."""
    date: str | None
    """YYYY-MM-DD that the template believes it is; None: today's."""
    template_kwargs: dict[str, Any]
    """Further variables of the template, the user's own."""
    prefix: tuple[int, ...]
    """Token ids before the instruction."""
    suffix: tuple[int, ...]
    """Token ids after the instruction."""
    suffix_tokens: tuple[str, ...]
    """Text of each token of the suffix."""
    positions: tuple[Position, ...]
    """Post-instruction positions, from the first token of the suffix to the last."""


class SourceFacts(Struct, frozen=True, kw_only=True):
    """Where the rows of one source of a named contrast came from."""

    source: str
    """Name of the source."""
    origin: str = field(name="from")
    """Publisher's place, or the local files."""
    revision: str | None
    """Revision of the publisher's repository, or `local files`; None where none is declared."""
    pinned: bool
    """Whether the revision was verified."""
    rows: int
    """Rows that cleaning left."""
    sha256: str
    """Hash of these rows."""
    as_expected: bool | None
    """Whether the hash is the declared one; None where none is declared."""


@dataclass(frozen=True)
class LeftOut:
    """Positives left out of a pool since they stand in a later one."""

    train: int
    """Of the pool of train."""
    val: int
    """Of the pool of val."""


@dataclass(frozen=True)
class PoolFacts:
    """What the seeds of a run with a named contrast draw their prompts from."""

    recipe: str
    """Name of the recipe."""
    left_out: LeftOut
    """Prompts left out of the pools of positives."""
    pools: BySplit[ByLabel[int]]
    """Prompts of each pool."""
    sources: tuple[SourceFacts, ...]
    """The data sets, in the order of the recipe."""


class ContrastFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contrast that was run."""

    name: str
    """Stem of the file, name of the recipe, or `organism:NAME`."""
    sha256: str
    """Hash of its prompts."""
    duplicates: int
    """Exact repeats that were removed."""
    pools: PoolFacts | None = None
    """Of a named contrast: the pools. Left out of a file's."""


@dataclass(frozen=True)
class Detectable:
    """What the test prompts of a seed can show at all."""

    power: float
    """Chance of showing an effect of the sizes below."""
    any: ByLabel[float | None]
    """Smallest change of a rate that can be told from none; None: not even one of 1."""
    rule: ByLabel[float | None]
    """Smallest change of a rate that can be told to exceed `rule.min_drop`; None: not even one of 1."""
    rank_floor: float | None
    """Smallest rank p that the wide nulls allow; None without wide nulls."""


@dataclass(frozen=True)
class SplitPlan:
    """The splits of one seed, as planned."""

    sizes: BySplit[ByLabel[int]]
    """Prompts of each set."""
    near_duplicates: NearDuplicates
    """Prompts that nearly repeat one of another split."""
    fixed: tuple[Split, ...]
    """Splits that the contrast file decided, by name."""
    detectable: Detectable | None = None
    """What these sizes can show. Missing in the first runs."""


@dataclass(frozen=True)
class Versions:
    """What the run was made with."""

    rhumbline: str
    """Version of the package."""
    torch: str
    """Version of PyTorch."""
    transformers: str
    """Version of transformers."""
    code: str
    """sha256 over the package's source files that compute."""


@dataclass(frozen=True)
class LossTextFacts:
    """The texts that losses are measured on, beside the model's own completions."""

    name: str
    """Stem of the file; `none` without one."""
    sha256: str
    """Hash of all texts."""
    documents: int
    """Plain documents."""
    exchanges: int
    """Prompts with an answer."""


class ProtocolContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """protocol.json, without the fields of `Protocol` that stand beside these.

    `Protocol.chat` is not there: the key `chat` holds `ChatFacts`. The hash of a protocol is that of the file's JSON
    value, never of a record that was read from it: a later version may know more fields.
    """

    schema: int
    """Of the run directory: 1."""
    model: ModelFacts
    chat: ChatFacts
    """The rendering of prompts."""
    contrast: ContrastFacts
    """The prompts."""
    splits: dict[int, SplitPlan]
    """By seed: what was planned."""
    versions: Versions
    """The software."""
    texts: LossTextFacts | None = None
    """The texts of the losses. Left out by `discover`, and missing in the first runs."""
    mode: Literal["discover"] | None = None
    """`discover` where nothing but the extraction was asked for. Left out by `run`."""
