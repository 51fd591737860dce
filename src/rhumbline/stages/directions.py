"""Difference in means of two classes, and the cosine between the directions of two groups of positives.

Independent of prompts and models.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates
from rhumbline.records.seed_files import GroupCosines

SPLITS = 20
"""Random splits into halves for the cosines between groups."""


def difference_in_means(positive: Candidates, negative: Candidates) -> Candidates:
    """mean(positive) - mean(negative) for every position and layer, not normalised, float32.

    Arditi et al. 2024, section 2.3.
    """
    return (positive.double() - negative.double()).float()


def group_cosine(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"], most: int = 20
) -> float | None:
    """Cosine between the directions of two groups of positives; None for fewer than 4 prompts of a class.

    Activations are whitened by the covariance of the negatives (in the span of at most `most` principal components of
    both classes, shrunk by a tenth). The axis of the largest variation of the positives splits them into two groups.
    The direction of a group is its mean minus that of the negatives. If the positives differ from the negatives along
    one direction, the cosine is near 1, whatever the noise; along two directions it is near 0.
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


def group_cosines(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"], seed: int
) -> GroupCosines | None:
    """The cosine between two groups of positives on halves of the prompts, beside a null with one shift.

    For the null, the other half of the negatives, moved by the difference in means of all prompts, takes the place of
    the positives: one constant vector separates the classes by construction. Both use the same number of prompts. None
    for fewer than 8 prompts of a class.
    """
    half = min(len(positive), len(negative)) // 2
    if half < 4:
        return None
    rng = np.random.default_rng([seed, SPLITS])
    shift = positive.double().mean(0) - negative.double().mean(0)
    halves, one_shift = [], []
    for _ in range(SPLITS):
        p, n = (h[torch.tensor(rng.permutation(len(h)))].double() for h in (positive, negative))
        halves.append(group_cosine(p[:half], n[:half]))
        one_shift.append(group_cosine(n[half : 2 * half] + shift, n[:half]))
    known = ([c for c in some if c is not None] for some in (halves, one_shift))
    return GroupCosines(*(tuple(some) for some in known))
