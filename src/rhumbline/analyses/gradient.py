"""Directions found by gradient instead of by means (Wollschlaeger et al. 2025, refusal direction optimisation).

A unit vector u is moved so that, on training prompts, ablating it lowers the fast metric on positives, adding it raises
it on negatives, and ablating it leaves the next token of negatives alone. With several vectors, every draw from their
cone is asked for the same. Knows prompts and a metric; sees training prompts only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.inference.interventions import Direction
from rhumbline.models.chat import token_batch
from rhumbline.models.chat_model import ChatModel, Edit, Site, forward
from rhumbline.models.hooks import hooked

BATCH = 8
"""Prompts of either class in a step."""
RATE = 0.05
"""Adam's step on a unit vector."""
BOUND = 4.0
"""Log-odds beyond which a prompt counts as moved: pushing it further earns nothing."""
WEIGHTS = {"ablation": 1.0, "addition": 0.5, "kept": 2.0}
"""Of the three losses."""


def found_by_gradient(
    model: ChatModel,
    positive: Sequence[Sequence[int]],
    negative: Sequence[Sequence[int]],
    tokens: Sequence[int],
    like: Direction,
    given: Float[Tensor, "given d_model"],
    *,
    n: int = 1,
    steps: int = 60,
    seed: int = 0,
) -> Float[Tensor, "vector d_model"]:
    """`n` orthonormal vectors, orthogonal to the rows of `given`, whose cone moves the behaviour both ways.

    What is ablated is a draw from the cone together with `given`; what is added is the draw, in the norm and at the
    site of `like`. The model's weights are not changed.
    """
    rng = np.random.default_rng([seed, n, len(given)])
    start = torch.tensor(rng.standard_normal((n, model.d_model)), dtype=torch.float32)
    # A start near the known direction for a cone that is free to hold it; a random one for what must be orthogonal.
    if len(given) == 0:
        start = start / model.d_model**0.5 + like.vector
    found = torch.nn.Parameter(_orthonormal(start, given))
    frozen = [p for p in model.model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        optimiser = torch.optim.Adam([found], lr=RATE)
        for _ in range(steps):
            _step(model, positive, negative, tokens, like, given, found, optimiser, rng)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return found.detach()


def _step(
    model: ChatModel,
    positive: Sequence[Sequence[int]],
    negative: Sequence[Sequence[int]],
    tokens: Sequence[int],
    like: Direction,
    given: Tensor,
    found: torch.nn.Parameter,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> None:
    weights = torch.tensor(np.abs(rng.standard_normal(len(found))), dtype=torch.float32)
    u = weights @ found
    u = u / u.norm()
    size = 1 if model.proof.unpadded else BATCH
    chosen = [[s[i] for i in rng.permutation(len(s))[:size]] for s in (positive, negative)]
    device = model.device
    rows, fixed = u.to(device), given.to(device)

    def ablate(h: Tensor) -> Tensor:
        x = h.float()
        x = x - (x @ fixed.T) @ fixed if len(fixed) else x
        return (x - (x @ rows)[..., None] * rows).to(h.dtype)

    def add(h: Tensor) -> Tensor:
        return (h.float() + like.norm * rows).to(h.dtype)

    taken = dict.fromkeys(model.ablation_sites, ablate)
    suppressed = _log_odds(_logits(model, chosen[0], taken), tokens)
    induced = _log_odds(_logits(model, chosen[1], {Site("resid_pre", like.layer): add}), tokens)
    with torch.no_grad():
        before = _logits(model, chosen[1], {}).log_softmax(-1)
    after = _logits(model, chosen[1], taken).log_softmax(-1)
    kept = (before.exp() * (before - after)).sum(-1).mean()
    loss = (
        WEIGHTS["ablation"] * suppressed.clamp_min(-BOUND).mean()
        - WEIGHTS["addition"] * induced.clamp_max(BOUND).mean()
        + WEIGHTS["kept"] * kept
    )
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        found.copy_(_orthonormal(found, given))


def _orthonormal(vectors: Tensor, given: Tensor) -> Tensor:
    """The nearest orthonormal rows (by the polar factor: no vector comes first) off `given`."""
    x = vectors.detach().double()
    g = given.double()
    x = x - (x @ g.T) @ g
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return (u @ v).float()


def _logits(model: ChatModel, sequences: Sequence[Sequence[int]], edits: dict[Site, Edit]) -> Tensor:
    batch = token_batch(sequences, model.pad_token)
    with hooked(model, edits):
        return forward(model, batch.input_ids.to(model.device), batch.attention_mask.to(model.device)).float()


def _log_odds(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """The fast metric with a gradient: log P - log(1 - P), from log-probabilities so that neither end is flat."""
    mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mask[list(tokens)] = True
    return logits[:, mask].logsumexp(-1) - logits[:, ~mask].logsumexp(-1)
