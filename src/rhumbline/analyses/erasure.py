"""LEACE: the least affine edit after which no linear probe predicts the class (Belrose et al. 2023, arXiv 2306.03819).

Activations and classes in, an `Affine` edit out; float64 throughout. Independent of models and of the behaviour.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.errors import InputError
from rhumbline.inference.stream_edits import Affine

Activations = Float[Tensor, "prompt d_model"]


def leace(positive: Activations, negative: Activations, layer: int, *, shrink: bool = True, spared: int = 0) -> Affine:
    """x - u v.(x - mu), the oblique projection that makes the class means equal with the least E|W (x - x')|^2.

    Their formula for one binary concept z: W = Sigma^(-1/2), u = W^(-1) w, v = W w, w = W Cov(x, z) / |W Cov(x, z)|.
    `shrink` regularises Sigma, which has fewer samples than dimensions (`shrunk`); any invertible W erases the class,
    and the choice only says what counts as a small edit. InputError if the class means are equal.
    """
    x = torch.cat([positive, negative]).double()
    mean = x.mean(0)
    centred = x - mean
    z = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    covariance_with_class = centred.T @ (z - z.mean()) / len(x)
    if float(covariance_with_class.norm()) <= 1e-12 * float(x.norm()):
        raise InputError("LEACE: the class means are equal, so there is nothing to erase. Use another contrast.")
    sigma = centred.T @ centred / len(x)
    values, axes = torch.linalg.eigh(shrunk(sigma, len(x)) if shrink else sigma)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root = torch.where(kept, values, 0).sqrt()
    inverse = torch.where(kept, root, 1).reciprocal() * kept
    w = axes @ (inverse * (axes.T @ covariance_with_class))
    w = w / w.norm()
    write, read = axes @ (root * (axes.T @ w)), axes @ (inverse * (axes.T @ w))
    return Affine(layer, write[None].float(), read[None].float(), mean.float(), spared=spared)


def shrunk(sigma: Float[Tensor, "d_model d_model"], n: int) -> Float[Tensor, "d_model d_model"]:
    """(1 - a) Sigma + a tr(Sigma) / d I, with the oracle approximating a (Chen et al. 2010, IEEE TSP 58:5016)."""
    d = len(sigma)
    square, trace = float((sigma**2).sum()), float(sigma.trace())
    top = (1 - 2 / d) * square + trace**2
    bottom = (n + 1 - 2 / d) * (square - trace**2 / d)
    share = 1.0 if bottom <= 0 else min(1.0, top / bottom)
    return (1 - share) * sigma + share * trace / d * torch.eye(d, dtype=sigma.dtype)
