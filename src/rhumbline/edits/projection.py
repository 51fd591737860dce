"""Project parameters onto the complement of a subspace, and find the same edit for the input of a norm.

Independent of models and files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.errors import EditError
from rhumbline.records.edit_file import EditOutcome

Basis = Float[Tensor, "rank d_model"]

COLUMNS = 1024
"""Columns of a matrix that are projected at a time; this bounds the memory of the float64 copies."""


@dataclass(frozen=True)
class ParameterEdit:
    """P <- P - write^T (read . P) along one axis of a parameter; orthonormal read = write gives the projection."""

    name: str
    axis: int
    """The axis of the residual stream."""
    read: Basis = field(repr=False)
    write: Basis = field(repr=False)
    writer: str
    """The residual writer of the parameter, as text."""
    norm: str = ""
    """Dotted name of the norm between the parameter and the stream; empty if there is none."""
    inferred: bool = False
    """Whether no token of the probe reached it, so that the axis of a parameter with the same role is used."""


@dataclass(frozen=True)
class EditPlan:
    """The edits of all parameters that write into the residual stream."""

    outcome: EditOutcome
    edits: tuple[ParameterEdit, ...]
    reasons: tuple[str, ...] = ()
    """Why the outcome is not exact, one reason per writer."""


def project(parameter: Tensor, axis: int, read: Basis, write: Basis, *, in_place: bool = False) -> Tensor:
    """P - write^T (read . P) along `axis`, in the dtype of the parameter.

    Each matrix is computed separately, in float64 and row after row, so that fused and separate experts get the same
    bits, in memory and in a file. With `in_place` the result overwrites the parameter.
    """
    result = parameter if in_place else torch.empty_like(parameter)
    read, write = read.double().to(parameter.device), write.double().to(parameter.device)
    for source, target in zip(matrices(parameter, axis), matrices(result, axis), strict=True):
        x = source.double()
        shares = [(x * r[:, None]).sum(0) for r in read]
        for r, share in zip(write, shares, strict=True):
            x -= r[:, None] * share
        # Rounding to float32 first gives the same bits for float32 and 16-bit parameters; the proof is in float32.
        target.copy_(x.float().to(target.dtype))
    return result


def matrices(parameter: Tensor, axis: int) -> Iterator[Float[Tensor, "d_model columns"]]:
    """Views of a parameter with its residual axis first: one per expert, in parts of at most COLUMNS columns."""
    first = parameter.movedim(axis, 0)
    if first.ndim == 1:
        yield first[:, None]
        return
    # [d_model, expert, ...]: one matrix per expert. The last axis is kept, the others are iterated.
    for index in product(*(range(n) for n in first.shape[1:-1])):
        yield from first[(slice(None), *index)].split(COLUMNS, dim=1)


def orthonormal(vectors: Float[Tensor, "rank d_model"]) -> Basis:
    """An orthonormal basis of the span of the rows, float64; EditError if they are dependent or not finite."""
    v = vectors.detach().double().cpu()
    if not torch.isfinite(v).all() or not bool((v.norm(dim=1) > 0).all()):
        raise EditError("a direction must be finite and not zero. Nothing was changed; use another direction.")
    unit = v / v.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr(unit.T)
    if float(r.diagonal().abs().min()) < 1e-6:
        raise EditError(f"the {len(v)} vectors of the subspace are not linearly independent. Use fewer (--rank K).")
    return (q * r.diagonal().sign()).T


def inner_vectors(
    module: nn.Module, z: Float[Tensor, "token d_model"], basis: Basis, *, oblique: bool
) -> tuple[Basis, Basis, bool] | None:
    """(read, write, is linear): the edit of the input of a norm after which its output is orthogonal to `basis`.

    With G the response of the norm N to the unit vectors, r.N(z) is proportional to (G r).z. `read` is G r, which for
    an RMS norm is the gain times r. Two edits remove it: the orthogonal one (write = read) and the oblique one, whose
    `write` is G^-1 r and which keeps every other direction up to one scale per token. None for other modules.
    """
    d_model = z.shape[1]
    try:
        with torch.no_grad():
            zero = module(torch.zeros(1, 1, d_model, device=z.device))
            response = (module(torch.eye(d_model, device=z.device)[None]) - zero)[0].double().cpu()
            plain, twice = module(z[None])[0] - zero[0], module(2 * z[None])[0] - zero[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    if response.shape != (d_model, d_model) or not torch.isfinite(response).all():
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


def parameters_of(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of a model by name, with all names of shared ones."""
    return dict(model.named_parameters(remove_duplicate=False))


def leak_allowed(dtype: torch.dtype) -> float:
    """Largest share along the subspace that rounding to a dtype explains; it is of the order of its spacing."""
    return 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps


def carry_out(model: Any, plan: EditPlan) -> None:
    """Edit the parameters of a model in place, each in its own dtype."""
    parameters = parameters_of(model)
    with torch.no_grad():
        for edit in plan.edits:
            parameter = parameters[edit.name]
            parameter.copy_(project(parameter.data, edit.axis, edit.read, edit.write))
