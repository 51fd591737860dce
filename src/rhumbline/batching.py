"""Every arm on every prompt, cut into rectangles that fit a budget of tokens, and cut again where memory runs out.

Knows lengths. Does not know models or what a pass reads.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

TokenIds = Sequence[int]

CPU_TOKENS = 4096
"""Tokens of a forward pass on a processor: its speed is flat from some hundred tokens on (docs/benchmarks.md)."""
LEAST_TOKENS, MOST_TOKENS = 1024, 65536
"""Bounds of a measured budget."""
CACHED_TOKENS_PER_TOKEN = 2
"""While generating on a processor, a block may cache this many tokens for each token of a forward pass: 8 times as many
are little faster and take 5 times the memory (docs/benchmarks.md)."""


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
    cached: int | None = None,
    alike: bool = False,
) -> Iterator[Block]:
    """All arms on all prompts, longest prompts first, in blocks of at most `tokens` tokens (or of one row).

    Rows to which `extra` tokens will be added hold at most `cached` tokens together. With `alike` a block holds prompts
    of one length only.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        within = [tokens // longest] + ([] if cached is None else [cached // (longest + extra)])
        rows = max(1, min(within))
        together = min(n_arms, rows)
        prompts = order[start : start + rows // together]
        if alike:
            prompts = [p for p in prompts if lengths[p] == longest]
        start += len(prompts)
        for first in range(0, n_arms, together):
            yield Block(list(range(first, min(first + together, n_arms))), prompts)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device (or the host) ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
