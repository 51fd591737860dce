"""Every arm on every prompt, cut into rectangles that fit a budget of tokens, and cut again where memory runs out.

Knows lengths. Does not know models or what a pass reads.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

CPU_TOKENS = 1024
"""Tokens of a forward pass on a processor: its products are as fast from some hundred tokens on, and what lies between
them still fits its caches (docs/benchmarks.md)."""
CPU_ROWS, MOST_CPU_ROWS = 64, 192
"""Rows that a processor decodes together. More than the first are somewhat faster and take memory in proportion, so
they are taken where memory is plentiful; more than the second are not faster (docs/benchmarks.md)."""
LEAST_TOKENS, MOST_TOKENS = 1024, 65536
"""Bounds of a measured budget."""


class Rows(NamedTuple):
    """Which arm and which prompt each row is."""

    arm: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]


class Block(NamedTuple):
    """Some arms on some prompts: one batch with rows in the order (arm, prompt)."""

    arms: list[int]
    prompts: list[int]

    def rows(self) -> Rows:
        """Arm and prompt of every row."""
        arms, prompts = torch.tensor(self.arms), torch.tensor(self.prompts)
        return Rows(arms.repeat_interleave(len(prompts)), prompts.repeat(len(arms)))

    def halves(self) -> "list[Block]":
        """Two smaller blocks, by prompts while there are several; empty when there is one row."""
        if len(self.prompts) > 1:
            half = len(self.prompts) // 2
            return [Block(self.arms, self.prompts[:half]), Block(self.arms, self.prompts[half:])]
        half = len(self.arms) // 2
        return [Block(self.arms[:half], self.prompts), Block(self.arms[half:], self.prompts)] if half else []


def rectangles(
    lengths: Sequence[int],
    n_arms: int,
    tokens: int,
    *,
    extra: int = 0,
    rows: int | None = None,
    alike: bool = False,
) -> Iterator[Block]:
    """All arms on all prompts, longest prompts first, for rows of one length: padded ones, or those that are decoded.

    A block's rows, each as long as its longest prompt and `extra`, hold at most `tokens` tokens (or are one), and are
    at most `rows`. With `alike` a block holds prompts of one length only.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        within = max(1, min(tokens // (longest + extra), rows or len(lengths) * n_arms))
        together = min(n_arms, within)
        left = len(order) - start
        # As many blocks as there must be, and the prompts that are left spread over them evenly.
        prompts = order[start : start + len(evenly(left, within // together)[0])]
        if alike:
            prompts = [p for p in prompts if lengths[p] == longest]
        start += len(prompts)
        yield from (Block(arms, prompts) for arms in evenly(n_arms, together))


def packs(lengths: Sequence[int], n_shared: int, n_arms: int, tokens: int) -> Iterator[Block]:
    """All arms on all prompts, longest prompts first, for prompts that are laid end to end behind `n_shared` tokens.

    A block holds at most `tokens` tokens (or one row). Prompts come before arms: each further pack repeats what is
    shared.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    own = [lengths[i] - n_shared for i in order]
    n_packs = -(-sum(own) // max(1, tokens - n_shared))
    fair = sum(own) / max(1, n_packs)
    start = 0
    while start < len(order):
        end, held = start + 1, own[start]
        while end < len(order) and n_shared + held + own[end] <= tokens and held + own[end] / 2 <= fair:
            held += own[end]
            end += 1
        yield from (Block(arms, order[start:end]) for arms in evenly(n_arms, max(1, tokens // (n_shared + held))))
        start = end


def evenly(n: int, most: int) -> list[list[int]]:
    """0 .. n - 1 in as few parts of at most `most` as there must be, as equal as they can be."""
    size = -(-n // -(-n // most))
    return [list(range(first, min(first + size, n))) for first in range(0, n, size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device (or the host) ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
