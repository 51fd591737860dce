"""Candidate directions from means. Knows vectors; the directions they are compared with are in nulls.py."""

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates


def difference_in_means(positive: Candidates, negative: Candidates) -> Candidates:
    """mean(positive) - mean(negative) for every position and layer, not normalised, float32.

    Arditi et al. 2024, section 2.3.
    """
    return (positive.double() - negative.double()).float()


def group_cosine(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"], most: int = 20
) -> float | None:
    """Cosine between the directions of the two groups into which the positives fall; None of too few prompts.

    In the units of the negatives' own spread (whitened in the span of the main axes of both classes, shrunk by a
    tenth): the axis along which positives vary most, beyond their mean, splits them in two; each group's mean less the
    negatives' is its direction. Positives that differ from the negatives in one way give two directions that nearly
    agree, whatever the noise; positives that go two ways give a cosine near 0.
    """
    if min(len(positive), len(negative)) < 4:
        return None
    p, n = positive.double(), negative.double()
    centre = n.mean(0)
    inside = torch.cat([p - p.mean(0), n - centre, (p.mean(0) - centre)[None]])
    axes = torch.linalg.svd(inside, full_matrices=False).Vh[: min(most, len(p) // 2, len(n) // 2)]
    axes = torch.linalg.qr(torch.cat([axes, (p.mean(0) - centre)[None]]).T).Q
    x, y = (n - centre) @ axes, (p - centre) @ axes
    spread = x.T @ x / (len(n) - 1)
    values, basis = torch.linalg.eigh(spread + 0.1 * spread.diagonal().mean() * torch.eye(len(spread)))
    white = y @ basis / values.sqrt()
    off = white - white.mean(0)
    score = off @ torch.linalg.svd(off, full_matrices=False).Vh[0]
    high, low = white[score > 0], white[score <= 0]
    if len(high) == 0 or len(low) == 0:
        return None
    return float(torch.cosine_similarity(high.mean(0), low.mean(0), dim=0))
