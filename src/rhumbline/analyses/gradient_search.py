"""Directions fitted by gradient (Wollschlaeger et al. 2025, refusal direction optimisation).

A unit vector u is optimised on training prompts: ablating it should lower the token metric on positives, adding it
should raise the metric on negatives, and ablating it should not change the next-token distribution of negatives. For
several vectors the same is required of every draw from their cone. Reads training prompts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import BASELINE, AblateSpan, Add, Arm, Direction
from rhumbline.inference.passes import last_logits
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.exact_lengths import at_lengths

BATCH = 8
"""Prompts of each class in a step."""
RATE = 0.05
"""Learning rate of Adam."""
BOUND = 4.0
"""|log-odds| beyond which the loss of a prompt is constant."""
ABLATION_WEIGHT, ADDITION_WEIGHT, KL_WEIGHT = 1.0, 0.5, 2.0
"""Weights of the three terms of the loss."""


@dataclass(frozen=True)
class GradientSearch:
    """A search for directions on one model. The weights of the model do not change."""

    runner: Runner
    positive: Sequence[Sequence[int]]
    """Token ids of training positives."""
    negative: Sequence[Sequence[int]]
    """Token ids of training negatives."""
    metric: TokenMetric
    like: Direction
    """Additions have the norm and the layer of this direction."""
    steps: int = 60
    """Steps of Adam."""
    spared: int = 0
    """Tokens at the start of a prompt that ablations do not edit."""
    coefficient: float = 1.0
    """Of the additions, in norms of `like`."""

    def fit(self, fixed: Float[Tensor, "fixed d_model"], *, n: int = 1, seed: int = 0) -> Float[Tensor, "n d_model"]:
        """`n` orthonormal vectors, orthogonal to the rows of `fixed`.

        In every step a draw from the cone of the vectors is ablated together with `fixed`, and the draw is added.
        """
        texts = tuple(tuple(map(tuple, sequences)) for sequences in (self.positive, self.negative))
        vectors = [(tuple(d.shape), d.numpy().tobytes()) for d in (self.like.difference, fixed)]
        inputs = (texts, self.metric, *vectors, self.like.layer, self.steps, self.spared, self.coefficient, n, seed)
        rows = self.runner.kept("directions by gradient", inputs, lambda: self._search(fixed, n, seed).tolist())
        return torch.tensor(rows, dtype=torch.float32).reshape(n, self.model.d_model)

    @property
    def model(self) -> ChatModel:
        """The model of the runner."""
        return self.runner.model

    def _search(self, fixed: Float[Tensor, "fixed d_model"], n: int, seed: int) -> Float[Tensor, "n d_model"]:
        rng = np.random.default_rng([seed, n, len(fixed)])
        start = torch.tensor(rng.standard_normal((n, self.model.d_model)), dtype=torch.float32)
        # A cone can contain the known direction, so it starts near it; an orthogonal vector starts at random.
        if len(fixed) == 0:
            start = start / self.model.d_model**0.5 + self.like.vector
        vectors = torch.nn.Parameter(_orthonormal(start, fixed))
        trainable = [p for p in self.model.model.parameters() if p.requires_grad]
        for p in trainable:
            p.requires_grad_(False)
        try:
            optimiser = torch.optim.Adam([vectors], lr=RATE)
            for _ in range(self.steps):
                optimiser.zero_grad()
                self._loss(vectors, fixed, rng).backward()
                optimiser.step()
                with torch.no_grad():
                    vectors.copy_(_orthonormal(vectors, fixed))
        finally:
            for p in trainable:
                p.requires_grad_(True)
        return vectors.detach()

    def _loss(self, vectors: torch.nn.Parameter, fixed: Tensor, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Loss of one draw from the cone on some prompts of each class."""
        weights = torch.tensor(np.abs(rng.standard_normal(len(vectors))), dtype=torch.float32)
        u = weights @ vectors
        u = u / u.norm()
        size = 1 if self._alone else BATCH
        rows = [rng.permutation(len(sequences))[:size] for sequences in (self.positive, self.negative)]
        positive, negative = [self.positive[i] for i in rows[0]], [self.negative[i] for i in rows[1]]
        ablated = self._logits(
            [*positive, *negative], Arm("ablated", (AblateSpan(torch.cat([fixed, u[None]]), spared=self.spared),))
        )
        added = self._logits(
            negative,
            Arm("added", (Add(Direction(u, self.like.norm, self.like.position, self.like.layer), self.coefficient),)),
        )
        suppressed, induced = self._log_odds(ablated[: len(positive)]), self._log_odds(added)
        before, after = self._before[rows[1]].log_softmax(-1), ablated[len(positive) :].log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        return (
            ABLATION_WEIGHT * suppressed.clamp_min(-BOUND).mean()
            - ADDITION_WEIGHT * induced.clamp_max(BOUND).mean()
            + KL_WEIGHT * kl
        )

    @cached_property
    def _before(self) -> Float[Tensor, "prompt vocab"]:
        """Next-token logits of the negatives at baseline."""
        with torch.no_grad():
            parts = (self.negative[i : i + BATCH] for i in range(0, len(self.negative), BATCH))
            return torch.cat([self._logits(some, BASELINE) for some in parts])

    @cached_property
    def _alone(self) -> bool:
        """Whether prompts of different lengths run alone."""
        lengths = map(len, [*self.positive, *self.negative])
        return at_lengths(self.model, lengths).proof.padding_changes_logits

    def _logits(self, sequences: Sequence[Sequence[int]], arm: Arm) -> Float[Tensor, "prompt vocab"]:
        batches = [[ids] for ids in sequences] if self._alone else [sequences]
        edits, arms = BatchEdits.of([arm], self.model), torch.tensor([0], device=self.model.device)
        return torch.cat([last_logits(self.model, batch, edits, arms) for batch in batches]).float()

    def _log_odds(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        """The token metric with a gradient: log P - log(1 - P) - threshold.

        It is computed from log-probabilities, so that neither end is flat.
        """
        mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        mask[list(self.metric.tokens)] = True
        return logits[:, mask].logsumexp(-1) - logits[:, ~mask].logsumexp(-1) - self.metric.threshold


def _orthonormal(
    vectors: Float[Tensor, "vector d_model"], fixed: Float[Tensor, "fixed d_model"]
) -> Float[Tensor, "vector d_model"]:
    """The nearest orthonormal rows orthogonal to `fixed`, by the polar factor, which treats all vectors alike."""
    x = vectors.detach().double()
    g = fixed.double()
    x = x - (x @ g.T) @ g
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return (u @ v).float()
