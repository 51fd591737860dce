"""Sampled tokens: the logits of some rows and a seed for each -> one token for each row.

The random numbers of a row depend on its seed and on the number of its tokens only, so a completion depends neither on
the batch nor on the order of the prompts, but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.errors import InputError
from rhumbline.inference.decoding import PickTokens

TINY = 1e-300
"""Lower bound of the random numbers, whose logarithm is read."""


@dataclass(frozen=True)
class TokenSampling:
    """Draws from softmax(logits / temperature)."""

    temperature: float
    seeds: Sequence[Sequence[int]]
    """The seed of each sequence, as integers of at least 0; all arms of a sequence have the same."""

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; sampling needs a positive number.")

    def picker(self, sequence: Int[Tensor, " row"]) -> PickTokens:
        """The function that picks tokens in a batch; `sequence` is the index of the sequence of each row."""
        seeds = [tuple(self.seeds[i]) for i in sequence.tolist()]

        def pick(logits: Logits, row: Int[Tensor, " row"], step: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
            # The largest of logit - log(E), E exponential, is a draw from the softmax (the Gumbel-max trick).
            generators = (
                np.random.default_rng((*seeds[i], n)) for i, n in zip(row.tolist(), step.tolist(), strict=True)
            )
            # In double precision: in single precision about one number in 2**23 is 0, and a vocabulary is large.
            noise = np.stack([rng.standard_exponential(logits.shape[-1]) for rng in generators])
            noise = torch.from_numpy(np.log(np.maximum(noise, TINY))).float().to(logits.device)
            return (logits.float() / self.temperature - noise).argmax(-1)

        return pick
