"""The arithmetic of weight edits: what is taken from a parameter along its residual axis, and what a norm makes of it.

Pure functions and the records of an edit. Knows no model beyond the parameters it is handed, and no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.errors import EditError

Basis = Float[Tensor, "rank d_model"]

COLUMNS = 1024
"""Columns of a matrix that are projected at a time: what bounds the memory of the float64 copies."""

Outcome = Literal["exact", "approximate"]


@dataclass(frozen=True)
class ParameterEdit:
    """P <- P - write^T (read . P) along one axis of a parameter; read = write, orthonormal, is the projection."""

    name: str
    """Dotted name in the model."""
    axis: int
    """The axis that is the residual stream."""
    read: Basis = field(repr=False)
    write: Basis = field(repr=False)
    writer: str
    """What it writes through, for people."""
    norm: str = ""
    """Dotted name of the norm between this parameter and the stream; empty where there is none."""
    inferred: bool = False
    """True where no probe token passed through it and a sibling of the same role decided (unrouted experts)."""


@dataclass(frozen=True)
class Plan:
    """Every parameter that writes, and what the edit of them can promise."""

    outcome: Outcome
    edits: tuple[ParameterEdit, ...]
    reasons: tuple[str, ...] = ()
    """Why the outcome is not exact, writer by writer."""


def project(parameter: Tensor, axis: int, read: Basis, write: Basis, *, in_place: bool = False) -> Tensor:
    """P - write^T (read . P) along `axis`, computed in float64 matrix by matrix, in the parameter's own dtype.

    Matrix by matrix and in float64, so that fused and separate experts, in memory or in a file, get the same bits.
    `in_place`: the parameter's own memory holds the result, and no second copy of it is made.
    """
    result = parameter if in_place else torch.empty_like(parameter)
    read64, write64 = read.double().to(parameter.device), write.double().to(parameter.device)
    for source, target in zip(matrices(parameter, axis), matrices(result, axis), strict=True):
        _project_into(target, source, read64, write64)
    return result


def matrices(parameter: Tensor, axis: int) -> Iterator[Float[Tensor, "d_model columns"]]:
    """Views of a parameter, with its residual axis first: one per expert, each in blocks of at most COLUMNS columns."""
    first = parameter.movedim(axis, 0)
    if first.ndim == 1:
        yield first[:, None]
        return
    # [d, E, ...]: one matrix per expert. The last axis stays, the others are walked through.
    for index in product(*(range(n) for n in first.shape[1:-1])):
        yield from first[(slice(None), *index)].split(COLUMNS, dim=1)


def _project_into(target: Tensor, block: Tensor, read: Tensor, write: Tensor) -> None:
    """One block [d_model, columns]; additions in one order, row after row."""
    x = block.double()
    share = [(x * r[:, None]).sum(0) for r in read]
    for r, s in zip(write, share, strict=True):
        x -= r[:, None] * s
    # By way of float32, in which the proof computes: the same bits whether the edit ran on float32 or on 16 bits.
    target.copy_(x.float().to(target.dtype))


def orthonormal(vectors: Float[Tensor, "rank d_model"]) -> Basis:
    """An orthonormal basis, float64, of the rows' span; EditError where they are not independent or not finite."""
    v = vectors.detach().double().cpu()
    if not torch.isfinite(v).all() or not bool((v.norm(dim=1) > 0).all()):
        raise EditError("a direction must be finite and not zero; nothing was changed.")
    unit = v / v.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr(unit.T)
    if float(r.diagonal().abs().min()) < 1e-6:
        raise EditError(f"the {len(v)} vectors of the subspace are not linearly independent; give fewer (--rank).")
    return (q * r.diagonal().sign()).T


def inner_vectors(
    module: nn.Module, z: Float[Tensor, "token d_model"], basis: Basis, *, oblique: bool
) -> tuple[Basis, Basis, bool] | None:
    """(read, write, is linear) of the edit of a norm's input that leaves nothing along `basis` in its output.

    With G the norm's response to the unit vectors, r.N(z) is proportional to (G r).z: `read` is G r, for an RMS norm
    the
    gain times r. Two edits remove it: orthogonally (write = read), or obliquely (write = G^-1 r), which keeps every
    other direction of the output as it was up to one scale per token. None where the module is no such thing.
    """
    d = z.shape[1]
    try:
        with torch.no_grad():
            zero = module(torch.zeros(1, 1, d, device=z.device))
            response = (module(torch.eye(d, device=z.device)[None]) - zero)[0].double().cpu()
            plain, twice = module(z[None])[0] - zero[0], module(2 * z[None])[0] - zero[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    if response.shape != (d, d) or not torch.isfinite(response).all():
        return None
    q = basis.double().cpu()
    raw = (response @ q.T).T
    linear = torch.allclose(twice, 2 * plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    if oblique or linear:
        inverse = torch.linalg.pinv(response)
        read, write = raw, q @ inverse
    else:
        read = write = torch.linalg.qr(raw.T).Q.T
    size = float(raw.norm()) / len(q) ** 0.5
    if read is raw:
        read, write = read / size, write * size
    moved = z.double().cpu() - (z.double().cpu() @ read.T) @ write
    with torch.no_grad():
        out = (module(moved.to(z)[None]) - zero)[0].double().cpu()
    if float((out @ q.T).abs().max()) > 1e-4 * float(out.norm(dim=1).max()):
        return None
    return read, write, linear


def carry_out(model: Any, plan: Plan) -> None:
    """Edit the parameters of a model in place, each in its own dtype."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for edit in plan.edits:
            parameter = parameters[edit.name]
            parameter.copy_(project(parameter.data, edit.axis, edit.read, edit.write))
