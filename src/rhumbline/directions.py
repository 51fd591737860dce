"""Candidate directions from means, and the null directions they are compared with.

Knows vectors. Does not know prompts, layers or models beyond the site it is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, Vector
from rhumbline.errors import ProtocolError
from rhumbline.interventions import Direction

FAMILIES = ("isotropic", "shuffled")
"""Null families, weakest first."""


def difference_in_means(positive: Candidates, negative: Candidates) -> Candidates:
    """mean(positive) - mean(negative) for every position and layer, not normalised, float32.

    Arditi et al. 2024, section 2.3.
    """
    return (positive.double() - negative.double()).float()


@dataclass(frozen=True)
class Null:
    """A control direction: of the fitted one's norm, drawn without knowledge of the behaviour."""

    family: str
    draw: int
    direction: Direction
    cosine: float
    """With the direction that it is a control for."""


def isotropic(like: Direction, rng: np.random.Generator) -> Vector:
    """A uniformly random direction of the same norm: the blog's control.

    It says something about addition; an ablation of it removes about 1/d of the energy and cannot fail.
    """
    v = rng.standard_normal(like.vector.shape[0])
    return torch.tensor(v / np.linalg.norm(v) * like.norm, dtype=torch.float32)


def shuffled(
    like: Direction,
    positive: Float[Tensor, "n_positive d_model"],
    negative: Float[Tensor, "n_negative d_model"],
    rng: np.random.Generator,
) -> Vector:
    """Difference in means of two pseudo-classes, each with exactly half of either true class, at the same norm.

    Balanced, because the chance imbalance of a plain shuffle points along the true direction. An odd prompt is left
    out.
    """
    halves = []
    for h in (positive, negative):
        order = rng.permutation(len(h))
        half = len(h) // 2
        if half == 0:
            raise ProtocolError("a balanced shuffle needs at least 2 training prompts of each class; use more prompts.")
        halves.append((h[order[:half]].double(), h[order[half : 2 * half]].double()))
    (p0, p1), (n0, n1) = halves
    v = torch.cat([p0, n0]).mean(0) - torch.cat([p1, n1]).mean(0)
    return (v / v.norm() * like.norm).float()


def nulls(
    direction: Direction,
    positive: Float[Tensor, "n_positive d_model"],
    negative: Float[Tensor, "n_negative d_model"],
    *,
    families: Sequence[str],
    draws: int,
    seed: int,
) -> list[Null]:
    """`draws` null directions of each family; a draw depends on the seed, its family and its number alone.

    `positive` and `negative` are the training activations at the direction's own site.
    """
    found = []
    for family in families:
        for draw in range(draws):
            rng = np.random.default_rng([seed, FAMILIES.index(family), draw])
            match family:
                case "isotropic":
                    v = isotropic(direction, rng)
                case "shuffled":
                    v = shuffled(direction, positive, negative, rng)
                case _:
                    raise ProtocolError(f"unknown null family {family!r}; known: {', '.join(FAMILIES)}.")
            null = Direction.from_vector(v, direction.position, direction.layer)
            found.append(Null(family, draw, null, float(null.vector @ direction.vector)))
    return found
