"""analyses/suffix.json of a run, as records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from rhumbline.records.analysis_files import LayerMean, Mean, MeanRate
from rhumbline.records.shared import Site

ConditionName = str
"""A kind of prompt: `positive`, `negative`, `suffix K` (a positive with suffix K), or `random K`; K from 1."""


def suffix_condition(number: int) -> ConditionName:
    """Name of the positives with a suffix."""
    return f"suffix {number}"


def random_condition(number: int) -> ConditionName:
    """Name of the positives with random suffixes of the length of a suffix."""
    return f"random {number}"


@dataclass(frozen=True)
class SuffixParameters:
    """Arguments of the analysis."""

    suffixes: int
    draws: int
    """Random suffixes for each suffix."""
    prompts: int
    heads: int
    """Heads that are reported in detail, at most."""


@dataclass(frozen=True)
class SuffixCondition:
    """Measurements on one kind of prompt."""

    name: ConditionName
    texts: tuple[str, ...]
    """The suffixes; empty without one."""
    cosine: tuple[LayerMean, ...]
    """Cosine of the residual stream with the direction, by layer."""
    projection: Mean
    """Projection on the direction at its site, in units of the residual stream."""
    metric: Mean
    rate: MeanRate
    """Share of prompts with a token metric above 0: the behaviour is the more probable first token."""


@dataclass(frozen=True)
class SuffixDrop:
    """Decrease of one quantity on the same prompts, by a suffix and by its random suffixes."""

    drop: Mean
    random: Mean
    beyond_random: Mean
    """drop - random."""


@dataclass(frozen=True)
class SuffixEffect:
    """Effect of one suffix on the same prompts."""

    suffix: int
    projection: SuffixDrop
    """Decrease of the projection, in units of the residual stream."""
    metric: SuffixDrop
    """Decrease of the token metric, log-odds."""


@dataclass(frozen=True)
class WholeWriter:
    """A residual writer, by its name within the block, that was not split into heads, with the reason."""

    layer: int
    module: str
    reason: str


PartKind = Literal["embedding", "head", "bias", "writer"]
"""Source of a term: the embedding, one head, the bias of an output projection, or a whole writer."""


@dataclass(frozen=True)
class AttributedPart:
    """One term of the projection, with its mean on each kind of prompt, in units of the residual stream."""

    kind: PartKind
    layer: int | None
    """Block of the writer; None for the embedding."""
    module: str
    """Name of the writer within the block; empty for the embedding."""
    head: int | None
    """Number of the head; None for other kinds."""
    means: dict[ConditionName, float | None]


_PART_KEYS = ("kind", "layer", "module", "head")


@dataclass(frozen=True)
class SuffixAttribution:
    """The projection as a sum of everything that writes along the direction."""

    error: float | None
    """Largest relative error of the sum of the terms."""
    whole: tuple[WholeWriter, ...]
    parts: tuple[dict[str, str | int | float | None], ...]
    """JSON form of the terms: the keys kind, layer, module and head, and a key for each condition. See `terms`."""

    @classmethod
    def of(cls, error: float, whole: Iterable[WholeWriter], terms: Iterable[AttributedPart]) -> "SuffixAttribution":
        """The record of the given terms."""
        rows = ({k: getattr(t, k) for k in _PART_KEYS} | t.means for t in terms)
        return cls(error, tuple(whole), tuple(rows))

    def terms(self) -> tuple[AttributedPart, ...]:
        """The terms as records."""
        return tuple(
            msgspec.convert(
                {k: row[k] for k in _PART_KEYS} | {"means": {k: v for k, v in row.items() if k not in _PART_KEYS}},
                AttributedPart,
            )
            for row in self.parts
        )


@dataclass(frozen=True)
class Attention:
    """Share of a head's attention on the template before the instruction, instruction, suffix, and template after."""

    before: Mean
    instruction: Mean
    suffix: Mean
    after: Mean


@dataclass(frozen=True)
class SuffixHead:
    """A head whose contribution to the projection differs between the classes; its attention at the position."""

    kind: PartKind
    layer: int
    module: str
    head: int
    contribution: dict[ConditionName, Mean]
    attention: dict[ConditionName, Attention]


@dataclass(frozen=True, kw_only=True)
class SuffixRecord:
    """analyses/suffix.json: effects of suffixes on the projection and on the metric."""

    analysis: Literal["suffix"] = "suffix"
    seed: int
    site: Site
    parameters: SuffixParameters
    conditions: tuple[SuffixCondition, ...]
    """Positives, negatives, then each suffix and its random suffixes."""
    effects: tuple[SuffixEffect, ...]
    attribution: SuffixAttribution
    heads: tuple[SuffixHead, ...]
    """Heads whose contributions differ most between the classes; empty if no writer was split."""
    n: int
