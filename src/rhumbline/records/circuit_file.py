"""analyses/circuit.json: which heads and MLPs carry the effect of the prompts on the direction, as records."""

from dataclasses import dataclass
from typing import Literal

from rhumbline.records.analysis_files import Mean, MeanRate, Rate
from rhumbline.records.plan_checks import outside, refuse, too_small
from rhumbline.records.shared import Site
from rhumbline.records.suffix_file import PartKind

PatchedQuantity = Literal["projection", "metric", "metric along the direction"]
"""What is read: the projection at the site; the metric; the metric if only the part of a write along the direction is
replaced."""
Senders = Literal["top", "random", "all"]


@dataclass(frozen=True)
class CircuitPlan:
    """What is measured."""

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of heads and MLPs that are patched together."""
    draws: int = 8
    """Random sets of other heads and MLPs, for every size."""
    prompts: int = 24
    """Test positives, at most, each with a test negative of about its length."""
    random: int = 3
    """Random suffixes for each suffix."""
    max_new_tokens: int = 48
    """Longest completion under a suffix, in tokens."""

    def __post_init__(self):
        refuse(
            "circuit",
            outside("sizes", self.sizes, lambda size: size >= 1, "numbers of 1 or more"),
            too_small(self, draws=1, prompts=2, random=1, max_new_tokens=1),
        )


QUICK = CircuitPlan(sizes=(1, 4, 16), draws=4, prompts=12, max_new_tokens=32)
"""The plan of `--quick`."""


@dataclass(frozen=True)
class CircuitPart:
    """A head or a writer, in the order of its contribution."""

    kind: PartKind
    layer: int
    module: str
    head: int | None
    difference: float
    """Mean contribution to the projection: positives minus negatives of validation."""


@dataclass(frozen=True)
class PatchedShare:
    """Share of a difference that the replaced writes carry: (prompt - patched) / (prompt - source), of the means."""

    quantity: PatchedQuantity
    share: Mean
    largest: float | None = None
    """Of random sets: the largest share of a draw."""


@dataclass(frozen=True)
class PatchedSet:
    """Some heads and MLPs whose writes are replaced at the tokens after the instruction."""

    senders: Senders
    size: int
    shares: tuple[PatchedShare, ...]
    """Of the quantities whose difference is above 0."""


@dataclass(frozen=True)
class PatchedCondition:
    """Prompts whose writes are replaced by those of other prompts."""

    name: str
    """`negative`: positives with writes of negatives. `suffix K` and `random K`: positives with a suffix, with their
    writes without it."""
    projection: Mean
    """The difference in the projection: prompt minus source; with a suffix, source minus prompt."""
    metric: Mean
    sets: tuple[PatchedSet, ...]


@dataclass(frozen=True)
class SuffixedRate:
    """Completions of the positives with suffixes of one kind."""

    name: str
    rate: Rate | None
    """Share that shows the behaviour."""
    change: MeanRate | None
    """Paired decrease from the prompts without a suffix; of random suffixes to the mean of the draws of each prompt."""
    degenerate: float | None


@dataclass(frozen=True, kw_only=True)
class CircuitRecord:
    """analyses/circuit.json: path patching of the heads and MLPs that write the direction."""

    analysis: Literal["circuit"] = "circuit"
    seed: int
    site: Site
    parameters: CircuitPlan
    parts: tuple[CircuitPart, ...]
    """The first ones of the order in which `top` sets are formed."""
    available: int
    """Heads and MLPs before the site."""
    tokens: int
    """Tokens at the end of the prompts at which writes are replaced."""
    conditions: tuple[PatchedCondition, ...]
    completions: tuple[SuffixedRate, ...] = ()
    """Without a suffix first; empty if no suffix was given."""
    suffixes: tuple[str, ...] = ()

    def share(self, condition: str, senders: Senders, size: int, quantity: PatchedQuantity) -> PatchedShare | None:
        """The share of one set; None if it was not measured."""
        found = next(c for c in self.conditions if c.name == condition)
        sets = (s for s in found.sets if (s.senders, s.size) == (senders, size))
        return next((x for s in sets for x in s.shares if x.quantity == quantity), None)
