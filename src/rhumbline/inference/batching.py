"""Divide all arms on all prompts into batches within a budget of tokens, and into halves when memory runs out.

Depends on the lengths of prompts only.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.axes import TokenIds

CPU_TOKENS = 1024
"""Tokens of a forward pass on a processor. Matrix products reach full speed at a few hundred tokens, and activations of
this size still fit into the caches (docs/benchmarks.md)."""
CPU_ROWS, MOST_CPU_ROWS = 64, 192
"""Rows that a processor decodes together, and the most if memory is plentiful. More than the second number are not
faster (docs/benchmarks.md)."""
LEAST_TOKENS, MOST_TOKENS = 1024, 65536
"""Bounds of a measured budget."""


class RowIndex(NamedTuple):
    """The arm and the prompt of each row of a batch."""

    arm: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be divided when memory runs out."""

    def halves(self) -> Sequence[Self]:
        """Two smaller batches; empty for a single row."""
        ...


class Batch(NamedTuple):
    """Some arms on some prompts, by index: every prompt runs under every arm, in rows ordered by (arm, prompt)."""

    arms: list[int]
    prompts: list[int]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.arms) * len(self.prompts)

    def rows(self) -> RowIndex:
        """Arm and prompt of every row."""
        arms, prompts = torch.tensor(self.arms), torch.tensor(self.prompts)
        return RowIndex(arms.repeat_interleave(len(prompts)), prompts.repeat(len(arms)))

    def texts(self, sequences: Sequence[TokenIds]) -> list[TokenIds]:
        """The sequences of the prompts."""
        return [sequences[i] for i in self.prompts]

    def part(self, inner: "Batch") -> "Batch":
        """The arms and prompts of this batch at the places that `inner` names."""
        return Batch([self.arms[a] for a in inner.arms], [self.prompts[p] for p in inner.prompts])

    def halves(self) -> "list[Batch]":
        """Two smaller batches, divided by prompts, or by arms if there is one prompt; empty for a single row."""
        if len(self.prompts) > 1:
            half = len(self.prompts) // 2
            return [Batch(self.arms, self.prompts[:half]), Batch(self.arms, self.prompts[half:])]
        half = len(self.arms) // 2
        return [Batch(self.arms[:half], self.prompts), Batch(self.arms[half:], self.prompts)] if half else []


class DecodingBatch(NamedTuple):
    """Rows that are decoded together: some batches, each with its own arms, in rows ordered by (batch, arm, prompt)."""

    parts: list[Batch]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(part.n_rows for part in self.parts)

    @property
    def most_arms(self) -> int:
        """The most arms of one prompt."""
        return max(len(part.arms) for part in self.parts)

    def rows(self) -> RowIndex:
        """Arm and prompt of every row."""
        arms, prompts = zip(*(part.rows() for part in self.parts), strict=True)
        return RowIndex(torch.cat(arms), torch.cat(prompts))

    def halves(self) -> "list[DecodingBatch]":
        """Two smaller batches, divided between the parts, or the halves of the only part."""
        if len(self.parts) == 1:
            return [DecodingBatch([half]) for half in self.parts[0].halves()]
        half = len(self.parts) // 2
        return [DecodingBatch(self.parts[:half]), DecodingBatch(self.parts[half:])]


def rectangles(
    lengths: Sequence[int],
    n_arms: int,
    tokens: int,
    *,
    extra: int = 0,
    rows: int | None = None,
    same_length: bool = False,
    longest: int | None = None,
) -> Iterator[Batch]:
    """Batches of all arms on all prompts, longest prompts first, whose rows have one length: padded or decoded ones.

    A row has the length of the longest prompt of its batch plus `extra`. A batch has at most `tokens` tokens (or one
    row) and at most `rows` rows. With `same_length` its prompts have one length. Rows of more than `longest` tokens
    have the only prompt of their batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        width = lengths[order[start]]
        most_rows = max(1, min(tokens // (width + extra), rows or len(lengths) * n_arms))
        arms_together = min(n_arms, most_rows)
        # The smallest possible number of batches, with the remaining prompts spread over them evenly.
        remaining = len(order) - start
        prompts = order[start : start + len(evenly(remaining, most_rows // arms_together)[0])]
        if same_length:
            prompts = [p for p in prompts if lengths[p] == width]
        if longest is not None and width + extra > longest:
            prompts = prompts[:1]
        start += len(prompts)
        yield from (Batch(arms, prompts) for arms in evenly(n_arms, arms_together))


def packs(
    lengths: Sequence[int],
    n_shared: int,
    n_arms: int,
    tokens: int,
    *,
    longest: int | None = None,
    longest_pack: int | None = None,
) -> Iterator[Batch]:
    """Batches of all arms on all prompts, longest prompts first, for prompts packed behind `n_shared` shared tokens.

    A batch has at most `tokens` tokens (or one row). Prompts are added before arms, since every further pack repeats
    the shared tokens. Prompts of more than `longest` tokens are alone; a pack of others has at most `longest_pack`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    n_alone = sum(longest is not None and n > longest for n in lengths)
    yield from alone({i: lengths[i] for i in order[:n_alone]}, n_arms, tokens)
    order, room = order[n_alone:], min(tokens, longest_pack or tokens)
    own = [lengths[i] - n_shared for i in order]
    n_packs = -(-sum(own) // max(1, room - n_shared))
    even_share = sum(own) / max(1, n_packs)
    start = 0
    while start < len(order):
        end, n_own = start + 1, own[start]
        while end < len(order) and n_shared + n_own + own[end] <= room and n_own + own[end] / 2 <= even_share:
            n_own += own[end]
            end += 1
        yield from (Batch(arms, order[start:end]) for arms in evenly(n_arms, max(1, tokens // (n_shared + n_own))))
        start = end


def alone(lengths: Mapping[int, int], n_arms: int, tokens: int) -> Iterator[Batch]:
    """All arms on each of some prompts, with the length of their rows, in batches of at most `tokens` or one row."""
    for prompt, length in lengths.items():
        yield from (Batch(arms, [prompt]) for arms in evenly(n_arms, max(1, tokens // length)))


def numbered(sizes: Sequence[tuple[int, int]]) -> list[Batch]:
    """The arms and prompts of groups with these numbers of both, numbered consecutively."""
    parts, arm, prompt = [], 0, 0
    for n_arms, n_prompts in sizes:
        parts.append(Batch(list(range(arm, arm + n_arms)), list(range(prompt, prompt + n_prompts))))
        arm, prompt = arm + n_arms, prompt + n_prompts
    return parts


def padded_batches(
    parts: Sequence[Batch],
    lengths: Sequence[int],
    tokens: int,
    *,
    extra: int,
    rows: int,
    same_length: bool,
    longest: int | None,
) -> Iterator[DecodingBatch]:
    """The `rectangles` of each part, one after another, for padded decoding; `lengths` are those of all prompts."""
    for part in parts:
        own = [lengths[i] for i in part.prompts]
        limits = {"extra": extra, "rows": rows, "same_length": same_length, "longest": longest}
        for inner in rectangles(own, len(part.arms), tokens, **limits):
            yield DecodingBatch([part.part(inner)])


def packed_batches(
    parts: Sequence[Batch], n_slots: int, widths: Mapping[int, int], tokens: int
) -> Iterator[DecodingBatch]:
    """One batch of all prompts, for packed decoding in `n_slots`; then each prompt of `widths` alone, which gives the
    length of its rows.
    """
    together = [
        Batch([part.arms[a] for a in arms], prompts)
        for part in parts
        if (prompts := [i for i in part.prompts if i not in widths])
        for arms in evenly(len(part.arms), n_slots)
    ]
    if together:
        yield DecodingBatch(together)
    for part in parts:
        own = {place: widths[i] for place, i in enumerate(part.prompts) if i in widths}
        for inner in alone(own, len(part.arms), tokens):
            yield DecodingBatch([part.part(inner)])


def evenly(n: int, most: int) -> list[list[int]]:
    """0 .. n - 1 in the smallest number of parts of at most `most`, of nearly equal size."""
    size = -(-n // -(-n // most))
    return [list(range(first, min(first + size, n))) for first in range(0, n, size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that a device or the host has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
