"""Null directions of each family: activations at the site of the direction give vectors of its norm.

The name of a family states what its draws share with the direction, weakest first:

    isotropic       the norm only: uniformly distributed over all directions (the blog's control)
    covariance      the spread of the activations: a draw from N(0, Sigma) of the negatives at the site
    top-pc          their main axes: uniformly distributed in the span of the first principal components
    unrelated       a difference in means at the site, between topics of the negatives (categories, or clusters of their
                    activations) or classes of another contrast
    shuffled-site   the difference in means of balanced pseudo-classes at the site
    shuffled        the whole procedure, extraction and selection, on balanced pseudo-classes (drawn in refits.py)

All are rescaled to the norm of the direction. This matters for addition. Ablation ignores the norm; `energy` is the
share of the stream that it removes. Independent of prompts and models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.axes import Vector
from rhumbline.errors import ProtocolError
from rhumbline.inference.interventions import Direction
from rhumbline.records.verdict_rule import is_comparable
from rhumbline.settings import NULL_FAMILIES
from rhumbline.stages.seed_artefacts import Null

Activations = Float[Tensor, "prompt d_model"]


@dataclass(frozen=True)
class Material:
    """What null directions are drawn from: training activations at the site of the direction."""

    positive: Float[Tensor, "positive d_model"]
    negative: Float[Tensor, "negative d_model"]
    topics: Sequence[str | None] = ()
    """Topic of each negative: its category or its cluster. Without topics the family `unrelated` needs `contrast`."""
    contrast: tuple[Float[Tensor, "first d_model"], Float[Tensor, "second d_model"]] | None = None
    """Activations of the two classes of another contrast (`nulls.unrelated`)."""
    top: int = 10
    """Principal components that span the family `top-pc`."""

    def energy(self, direction: Vector) -> float:
        """Mean share of |x|^2 along a unit vector; both classes have the same weight."""
        return (energy_share(self.positive, direction) + energy_share(self.negative, direction)) / 2


def energy_share(h: Activations, r: Vector) -> float:
    """Share of the squared norm of the rows of `h` that lies along the unit vector `r`."""
    x = h.double()
    return float(((x @ r.double()) ** 2).sum() / (x**2).sum())


def generator(seed: int, family: str, draw: int) -> np.random.Generator:
    """The random numbers of one draw: they depend on the seed, the family and the number of the draw only."""
    if family not in NULL_FAMILIES:
        raise ProtocolError(f"unknown null family {family!r}; known: {', '.join(NULL_FAMILIES)}.")
    return np.random.default_rng([seed, NULL_FAMILIES.index(family), draw])


def isotropic(d_model: int, rng: np.random.Generator) -> Vector:
    """A uniformly distributed direction. Its ablation removes about 1/d of the energy, so it is a weak control."""
    return torch.tensor(rng.standard_normal(d_model), dtype=torch.float32)


def covariance(negative: Activations, rng: np.random.Generator) -> Vector:
    """A draw from N(0, Sigma) with Sigma the covariance of the negatives, up to scale."""
    # With X the centred rows and g standard normal, X^T g has the covariance X^T X. No d x d matrix is needed.
    x = negative.double()
    g = torch.tensor(rng.standard_normal(len(x)))
    return ((x - x.mean(0)).T @ g).float()


def components(negative: Activations, top: int) -> Float[Tensor, "component d_model"]:
    """The first principal components of the negatives: orthonormal rows, largest variance first."""
    x = negative.double()
    _, values, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = int((values > 1e-9 * values.max()).sum()) if len(values) else 0
    return axes[: min(top, kept)].float()


def top_pc(axes: Float[Tensor, "component d_model"], rng: np.random.Generator) -> Vector:
    """A uniformly distributed direction in the span of principal components."""
    return axes.T @ torch.tensor(rng.standard_normal(len(axes)), dtype=torch.float32)


def halves(n: int, rng: np.random.Generator) -> Float[Tensor, " prompt"]:
    """+1 for a random half of n prompts and -1 for the other half; 0 for the remaining prompt if n is odd."""
    half = n // 2
    if half == 0:
        raise ProtocolError("pseudo-classes need at least 2 training prompts of each class. Use more prompts.")
    order = torch.tensor(rng.permutation(n))
    signs = torch.zeros(n)
    signs[order[:half]], signs[order[half : 2 * half]] = 1.0, -1.0
    return signs


def shuffled_site(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"], rng: np.random.Generator
) -> Vector:
    """Difference in means of two pseudo-classes, each with exactly half of either true class.

    The shuffle is balanced, because the chance imbalance of a plain shuffle points along the true direction. An odd
    prompt is excluded.
    """
    signs = [halves(len(h), rng) for h in (positive, negative)]
    size = sum(float(s.abs().sum()) for s in signs) / 2
    total = sum((s.double() @ h.double() for s, h in zip(signs, (positive, negative), strict=True)), torch.zeros(()))
    return (total / size).float()


def split_topics(topics: Sequence[str | None], rng: np.random.Generator) -> Bool[Tensor, " prompt"] | None:
    """Which prompts belong to a random half of the topics; None for fewer than two topics, or if a topic is missing."""
    names = sorted({t for t in topics if t is not None})
    if len(names) < 2 or any(t is None for t in topics):
        return None
    chosen = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    return torch.tensor([t in chosen for t in topics])


LEAST_TOPICS = 7
"""Smallest number of categories whose halves give 19 directions up to sign (35); fewer are replaced by clusters."""
CLUSTERS = 8
"""Clusters of the negatives that take the place of topics."""


def topics_of(categories: Sequence[str | None], negative: Activations) -> tuple[Sequence[str | None], bool]:
    """The topic of each negative, and whether the topics are clusters of the activations.

    Categories, if every negative has one and there are at least `LEAST_TOPICS`; otherwise the clusters of `clusters`.
    """
    if None not in categories and len(set(categories)) >= LEAST_TOPICS:
        return categories, False
    return clusters(negative, CLUSTERS), True


def clusters(h: Activations, k: int, rounds: int = 50) -> list[str | None]:
    """The cluster of each row: k-means in the span of the first principal components (Lloyd 1982).

    Centres start at rows far from each other, so the result does not depend on chance. Fewer rows than clusters: none.
    """
    if len(h) < k:
        return [None] * len(h)
    x = (h.double() - h.double().mean(0)) @ components(h, 10).double().T
    centres = x[:1]
    for _ in range(k - 1):
        centres = torch.cat([centres, x[torch.cdist(x, centres).min(1).values.argmax()][None]])
    nearest = torch.cdist(x, centres).argmin(1)
    for _ in range(rounds):
        centres = torch.stack([x[nearest == i].mean(0) if (nearest == i).any() else centres[i] for i in range(k)])
        again = torch.cdist(x, centres).argmin(1)
        if bool((again == nearest).all()):
            break
        nearest = again
    return [str(i) for i in nearest.tolist()]


def unrelated(material: Material, rng: np.random.Generator) -> Vector | None:
    """A difference in means that is independent of the behaviour; None without a contrast and without topics.

    With another contrast: between random halves of its classes. Otherwise: between random halves of the topics of the
    negatives.
    """
    if material.contrast is not None:
        first, second = (h[halves(len(h), rng) > 0].double() for h in material.contrast)
    else:
        chosen = split_topics(material.topics, rng)
        if chosen is None:
            return None
        first, second = material.negative[chosen].double(), material.negative[~chosen].double()
    return (first.mean(0) - second.mean(0)).float()


@dataclass(frozen=True)
class Enough:
    """When a family has enough draws: those that were planned, and so many that are comparable with the direction."""

    comparable: int = 0
    """Smallest number of comparable draws."""
    same_cosine: float | None = None
    """A draw with a larger |cosine| is not comparable. None: every draw is."""
    limit: int = 1
    """Draws are added up to this many times the planned number."""

    def reached(self, nulls: Sequence[Null]) -> bool:
        """Whether these draws of one family contain enough comparable ones."""
        return sum(is_comparable(n.cosine, self.same_cosine) for n in nulls) >= self.comparable


REPEATED = 1e-5
"""Distance of two unit vectors that differ by rounding only, in float32."""


def draw_nulls(
    direction: Direction, material: Material, plan: Mapping[str, int], *, seed: int, enough: Enough = Enough()
) -> list[Null]:
    """Draws of each family at the site of the direction; `plan` is the number of draws by family, without `shuffled`.

    A family that the material does not allow (no topics, no spread, a class of one prompt) has no draws. Few topics can
    be halved in few ways only. A draw that repeats an earlier one up to sign has the same ablation; it is excluded, so
    that the floor of the rank stays correct. Draws are added until there are enough, or the limit is reached.
    """
    nulls: list[Null] = []
    axes = components(material.negative, material.top)
    for family, draws in plan.items():
        of_family: list[Null] = []
        for draw in range(draws * enough.limit):
            if draw >= draws and enough.reached(of_family):
                break
            v = _draw(family, direction, material, axes, generator(seed, family, draw))
            if v is None or not 0 < float(v.norm()) < float("inf"):
                continue
            null = as_null(family, draw, v, direction, material)
            if not any(is_repeated(null.direction.vector, other.direction.vector) for other in of_family):
                of_family.append(null)
        nulls += of_family
    return nulls


def is_repeated(v: Vector, other: Vector) -> bool:
    """Whether two unit vectors are equal up to sign and rounding."""
    return min(float((v - other).norm()), float((v + other).norm())) < REPEATED


def _draw(
    family: str,
    direction: Direction,
    material: Material,
    axes: Float[Tensor, "component d_model"],
    rng: np.random.Generator,
) -> Vector | None:
    """One draw of a family, not rescaled; None if the material does not allow it."""
    match family:
        case "isotropic":
            return isotropic(direction.vector.shape[0], rng)
        case "covariance":
            return covariance(material.negative, rng)
        case "top-pc":
            return top_pc(axes, rng)
        case "unrelated":
            return unrelated(material, rng)
        case "shuffled-site":
            is_alone = min(len(material.positive), len(material.negative)) < 2
            return None if is_alone else shuffled_site(material.positive, material.negative, rng)
    raise ProtocolError(f"family {family!r} is not drawn at a site.")


def as_null(family: str, draw: int, v: Vector, like: Direction, material: Material) -> Null:
    """A vector as a null of the direction `like`: at the same site, with the same norm."""
    v = v / v.norm() * like.norm
    null = Direction.from_vector(v, like.position, like.layer)
    return Null(family, draw, null, float(null.vector @ like.vector), material.energy(null.vector))
