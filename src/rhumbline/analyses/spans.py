"""Spans of directions: orthonormal bases, prototypes of activations, and random spans to compare with.

Input and output are vectors; independent of prompts and of models. Every basis is computed by QR, so that a span does
not depend on the order of its members.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Vector
from rhumbline.stages.null_families import energy_share, isotropic

Basis = Float[Tensor, "rank d_model"]


def span_of(vectors: Float[Tensor, "member d_model"], least: float = 1e-3) -> Basis:
    """Orthonormal rows that span the vectors, float32, by QR; members within the span of others are skipped."""
    basis: list[Tensor] = []
    for v in vectors.double():
        rest = v / v.norm()
        for _ in range(2):  # twice is enough (Kahan): the rest is then orthogonal up to rounding
            for b in basis:
                rest = rest - (rest @ b) * b
        if float(rest.norm()) > least:
            basis.append(rest / rest.norm())
    q = torch.linalg.qr(torch.stack(basis).T).Q.T
    return q.float().contiguous()


def energy(h: Float[Tensor, "prompt d_model"], basis: Basis) -> float:
    """Share of the squared norm of the rows that lies in the span, which its ablation removes."""
    return sum(energy_share(h, b) for b in basis)


# -- prototypes of the positives --------------------------------------------------------------------------------------


def k_means(
    h: Float[Tensor, "prompt d_model"], k: int, rng: np.random.Generator, restarts: int = 10
) -> Float[Tensor, "cluster d_model"]:
    """Centroids of Lloyd's algorithm: the best of several k-means++ starts (Arthur and Vassilvitskii 2007)."""
    x = h.double()
    best, least = x[:1], float("inf")
    for _ in range(restarts):
        centres = x[rng.integers(len(x))][None]
        while len(centres) < min(k, len(x)):
            near = torch.cdist(x, centres).min(1).values ** 2
            total = float(near.sum())
            if total <= 0:
                break
            centres = torch.cat([centres, x[rng.choice(len(x), p=(near / near.sum()).numpy())][None]])
        for _ in range(100):
            own = torch.cdist(x, centres).argmin(1)
            moved = torch.stack([x[own == c].mean(0) if (own == c).any() else centres[c] for c in range(len(centres))])
            if torch.equal(moved, centres):
                break
            centres = moved
        spread = float((torch.cdist(x, centres).min(1).values ** 2).sum())
        if spread < least:
            best, least = centres, spread
    return best.float()


def self_organising_map(
    h: Float[Tensor, "prompt d_model"], side: int, rng: np.random.Generator, steps: int = 2000
) -> Float[Tensor, "neuron d_model"]:
    """Neurons of a small square map (Kohonen 1982); Piras et al. 2025 use it on the positives.

    The neuron nearest to a drawn prompt and its neighbours move towards it, by a rate (0.5 to 0.01) and a Gaussian
    neighbourhood (from half the side to 0.3) that both shrink geometrically.
    """
    x = h.double()
    place = torch.tensor([(i, j) for i in range(side) for j in range(side)], dtype=torch.float64)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2]
    scale = (x - x.mean(0)).std(0).norm() / max(1, side - 1)
    neurons = x.mean(0) + (place - place.mean(0))[:, : len(axes)] @ axes * scale
    for step in range(steps):
        share = step / steps
        rate, width = 0.5 * (0.01 / 0.5) ** share, max(0.5, side / 2) * (0.3 / max(0.5, side / 2)) ** share
        prompt = x[rng.integers(len(x))]
        winner = int((neurons - prompt).norm(dim=1).argmin())
        pull = torch.exp(-((place - place[winner]) ** 2).sum(1) / (2 * width**2))
        neurons = neurons + rate * pull[:, None] * (prompt - neurons)
    return neurons.float()


def prototypes(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    source: Literal["clusters", "som"],
    k: int,
    seed: int,
) -> Float[Tensor, "member d_model"]:
    """About `k` prototypes of the positives minus the mean of the negatives, as unit vectors."""
    rng = np.random.default_rng([seed, k])
    if source == "clusters":
        centres = k_means(positive, k, rng)
    else:
        centres = self_organising_map(positive, max(2, round(k**0.5)), rng)
    return torch.nn.functional.normalize(centres - negative.mean(0), dim=-1)


# -- random subspaces -------------------------------------------------------------------------------------------------


def random_span(
    fixed: Float[Tensor, "fixed d_model"],
    rank: int,
    negative: Float[Tensor, "negative d_model"],
    rng: np.random.Generator,
    match: float | None = None,
    h: Float[Tensor, "prompt d_model"] | None = None,
) -> Basis:
    """The span of `fixed` and random directions, of dimension `rank`.

    `fixed` are orthonormal and come first. Without `match` the random directions are isotropic. With `match` they are
    drawn along the principal axes of the negatives outside of `fixed`, which are independent of the behaviour. The
    weight of an axis is its variance to a power t (0: isotropic, 1/2: a draw from the covariance, large: the first
    axis), with t such that the whole span contains the share `match` of the energy of `h` (default: the negatives). If
    no t does, the nearest span is returned.
    """
    plain = torch.stack([isotropic(negative.shape[1], rng) for _ in range(rank - len(fixed))])
    if match is None:
        return span_of(torch.cat([fixed, plain]))
    measured = negative if h is None else h
    x = negative.double() - negative.double().mean(0)
    # Axes inside of `fixed` would lose their energy when the span is made orthonormal.
    x = x - x @ fixed.T.double() @ fixed.double()
    _, values, axes = torch.linalg.svd(x, full_matrices=False)
    share = (values / values[0].clamp_min(1e-30)).clamp_min(1e-3) ** 2
    along = plain.double() @ axes.T
    rest = plain.double() - along @ axes
    # A large t leaves all rows along the first axis. A basis of their span in which row k begins at axis k keeps them
    # apart, because each row has its own scale.
    first = torch.ones(len(plain), 1, dtype=torch.float64)
    if len(plain) <= len(axes):
        mix = torch.linalg.inv(along[:, : len(plain)])
        along, rest, first = (mix @ along).triu(), mix @ rest, share[: len(plain), None]

    def drawn(t: float) -> Basis:
        weighted = (along * (share / first) ** t) @ axes + rest * (share[-1] / first) ** t
        return span_of(torch.cat([fixed, weighted.float()]))

    low, high = 0.0, 4.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if energy(measured, drawn(middle)) < match else (low, middle)
    return drawn((low + high) / 2)


def cone_samples(members: Float[Tensor, "member d_model"], n: int, rng: np.random.Generator) -> list[Vector]:
    """Unit vectors drawn in the cone of the members: sums with non-negative weights (Wollschlaeger et al. 2025)."""
    if len(members) == 1:
        return [members[0]] * n
    weights = torch.tensor(np.abs(rng.standard_normal((n, len(members)))), dtype=torch.float32)
    return list(torch.nn.functional.normalize(weights @ members, dim=-1))
