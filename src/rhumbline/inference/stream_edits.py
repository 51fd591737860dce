"""Interventions beside ablation and addition, as data: affine edits, rotations, and ablation with a strength per layer.

Each gives one function of the stream for every hook point at which it acts. Independent of hooks, of batches, and of
the way in which its vectors were fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import Residual, Vector
from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint

Rows = Float[Tensor, "rank d_model"]


@dataclass(frozen=True)
class Affine:
    """x - a W^T V (x - c) at the input of one block, at all positions, generated tokens included.

    With W = V = r: affine concept editing (Marshall et al. 2024, arXiv 2411.09003), which moves the component along r
    to that of c; with c = 0 it is ablation at one layer. With other W and V an oblique projection, as in LEACE.
    """

    layer: int
    write: Rows
    """W: what is removed."""
    read: Rows
    """V: the components that are read, W V^T = 1."""
    centre: Vector
    """c: the point that does not move."""
    strength: float = 1.0
    """a: 0 changes nothing, 1 is the whole projection."""
    spared: int = 0
    """Tokens at the start of a text that are not edited, generated tokens not counted."""

    def __post_init__(self):
        if not 0 <= self.strength <= 2 or self.spared < 0:
            raise ProtocolError(
                f"Affine: strength is {self.strength} (expected 0 to 2), spared is {self.spared} (expected 0 or more)."
            )


@dataclass(frozen=True)
class Rotate:
    """Rotation in a plane: a token whose component in the plane is within `angle` of the first axis is rotated to it.

    The norm of every token is kept. Angular Steering with its adaptive mask (Vu and Nguyen 2025, arXiv 2510.26243); a
    rotation of what is rotated already changes nothing. Acts at the input of every block, at all positions.
    """

    plane: Float[Tensor, "2 d_model"]
    """Orthonormal: the direction, and the axis towards which tokens are rotated."""
    angle: float
    """Radians: 0 changes nothing, pi / 2 leaves no component along the direction that is positive, pi reverses it."""

    def __post_init__(self):
        apart = self.plane @ self.plane.T - torch.eye(len(self.plane))
        if len(self.plane) != 2 or float(apart.abs().max()) > 1e-3:
            raise DirectionError("Rotate.plane must have two orthonormal rows. Use torch.linalg.qr.")
        if not 0 <= self.angle <= pi:
            raise ProtocolError(f"Rotate.angle is {self.angle}, expected 0 to pi, in radians.")


@dataclass(frozen=True)
class AblateByLayer:
    """Directional ablation with a strength for every layer, at its residual writers; the embedding is not edited.

    What `heretic` writes into the weights: strengths that fall linearly from one layer to both sides (`window`).
    """

    vector: Vector
    """Unit vector."""
    strengths: tuple[float, ...]
    """For each layer, the share of every write along the vector that is removed."""

    def __post_init__(self):
        if not abs(float(self.vector.norm()) - 1) < 1e-4:
            raise DirectionError(f"AblateByLayer.vector has norm {float(self.vector.norm()):.3g}, expected 1.")
        if not all(0 <= a <= 2 for a in self.strengths):
            raise ProtocolError(f"AblateByLayer.strengths are {list(self.strengths)}, expected 0 to 2.")


StreamEdit = Affine | Rotate | AblateByLayer


def window(n_layers: int, centre: float, width: float, strength: float) -> tuple[float, ...]:
    """Strengths that fall linearly from `strength` at the layer `centre` to 0 at the distance `width`, in layers."""
    return tuple(strength * max(0.0, 1 - abs(layer - centre) / width) for layer in range(n_layers))


def affine(h: Residual, write: Rows, read: Rows, centre: Vector, strength: float) -> Residual:
    """x - a W^T V (x - c), computed in float32; a new tensor of the dtype of h."""
    x = h.float()
    write, read, centre = (part.to(h.device) for part in (write, read, centre))
    return (x - strength * ((x - centre) @ read.T) @ write).to(h.dtype)


def rotate(h: Residual, plane: Float[Tensor, "2 d_model"], angle: float) -> Residual:
    """Rotate the component in the plane away from its first axis, to `angle` if it is nearer; in float32."""
    x, plane = h.float(), plane.to(h.device)
    part = x @ plane.T
    now = torch.atan2(part[..., 1], part[..., 0])
    # The sign of the angle is kept; a component on the first axis itself goes to the positive side.
    to = torch.where(now.abs() < angle, torch.where(now < 0, -angle, angle), now)
    moved = part.norm(dim=-1)[..., None] * torch.stack([to.cos(), to.sin()], -1)
    # A token that is near enough to the angle does not change at all.
    moved = torch.where((to == now)[..., None], part, moved)
    return (x + (moved - part) @ plane).to(h.dtype)


def edits_of(intervention: StreamEdit, model: ChatModel) -> dict[HookPoint, Edit]:
    """The function of every hook point at which an intervention acts. DirectionError if it does not fit the model."""
    device = model.device
    match intervention:
        case Affine(layer, write, read, centre, strength):
            _check(model, write.shape[1], 0 <= layer < model.n_layers, f"layer {layer}")
            parts = write.to(device), read.to(device), centre.to(device)
            return {HookPoint("resid_pre", layer): lambda h: affine(h, *parts, strength)}
        case Rotate(plane, angle):
            _check(model, plane.shape[1], True, "every layer")
            here = plane.to(device)
            points = (HookPoint("resid_pre", layer) for layer in range(model.n_layers))
            return dict.fromkeys(points, lambda h: rotate(h, here, angle))
        case AblateByLayer(vector, strengths):
            _check(model, len(vector), len(strengths) == model.n_layers, f"{len(strengths)} layers")
            row = vector.to(device)[None]
            zero = torch.zeros_like(row[0])
            points = [p for p in model.ablation_points if model.proof.mode == "coarse" or p.kind == "write"]
            return {
                p: lambda h, a=strengths[p.layer]: affine(h, row, row, zero, a) for p in points if strengths[p.layer]
            }


def _check(model: ChatModel, width: int, fits: bool, where: str) -> None:
    if width != model.d_model or not fits:
        raise DirectionError(
            f"an intervention of width {width} at {where} does not fit {model.name} (width {model.d_model}, "
            f"{model.n_layers} layers). Use one that was fitted on this model."
        )


def spared_by(intervention: StreamEdit) -> int:
    """Tokens at the start of a text that an intervention does not edit."""
    return intervention.spared if isinstance(intervention, Affine) else 0


def by_arm(edits: Mapping[int, Edit], arm_of_row: Int[Tensor, " row"]) -> Edit:
    """The edit of a batch in which every arm has its own function, by number of the arm; others are not changed.

    If `arm_of_row` has one row, all rows of the stream belong to its arm.
    """
    if len(arm_of_row) == 1:
        return edits.get(int(arm_of_row), lambda h: h)
    present = [(rows, edit) for arm, edit in edits.items() if len(rows := (arm_of_row == arm).nonzero()[:, 0])]

    def edit(h: Residual) -> Residual:
        for rows, function in present:
            here = rows.to(h.device)
            h = h.index_copy(0, here, function(h[here]))
        return h

    return edit


def composed(first: Edit | None, second: Edit) -> Edit:
    """One edit after another, if there is a first one."""
    return second if first is None else lambda h: second(first(h))
