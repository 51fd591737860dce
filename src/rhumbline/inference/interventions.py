"""Interventions as data, arms as named sets of them, and the one edit that a site applies to a batch of arms.

Knows the arithmetic of ablation and addition and which row of a batch belongs to which arm. Does not know hooks, what a
direction means, nor how it was found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rhumbline.axes import Residual, Vector
from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint
from rhumbline.records.positions import Position


@dataclass(frozen=True)
class Direction:
    """A unit vector of the residual stream and where it came from."""

    vector: Vector
    """Norm 1, float32, on the CPU."""
    norm: float
    """Length before normalisation, in units of the residual stream."""
    position: Position
    """Where the vector was read."""
    layer: int
    """The vector was read at the input of this block (`resid_pre`)."""

    def __post_init__(self):
        length = float(self.vector.norm())
        if not abs(length - 1) < 1e-4:
            raise DirectionError(
                f"Direction.vector has norm {length:.3g}, expected 1; use Direction.from_vector(v, position, layer)."
            )

    @classmethod
    def from_vector(cls, vector: Vector, position: Position | int, layer: int) -> "Direction":
        """Normalise `vector` [d_model]; a zero or non-finite one is refused."""
        v = vector.detach().double().cpu()
        norm = float(v.norm())
        if not (0 < norm < float("inf")):
            raise DirectionError(f"a direction must be finite and not zero; this vector has norm {norm}.")
        return cls((v / norm).float(), norm, Position.of(position), layer)

    @property
    def difference(self) -> Vector:
        """The un-normalised vector: norm * vector."""
        return self.vector * self.norm


@dataclass(frozen=True)
class Ablate:
    """Directional ablation, x - a r (r.x), at every write and read of the stream, all positions, generated tokens too.

    Arditi et al. 2024, section 2.4, where a = 1.
    """

    direction: Direction
    strength: float = 1.0
    """a: 0 changes nothing, 1 removes the direction, 2 reflects it. Where the writers are proved, the share a of all
    that is written along r is removed; in the coarse mode every block input and output is edited in turn."""

    def __post_init__(self):
        if not 0 <= self.strength <= 2:
            raise ProtocolError(f"Ablate.strength is {self.strength}; use 0 (nothing) to 1 (all) or at most 2.")


@dataclass(frozen=True)
class AblateSpan:
    """Ablation of a whole subspace, x - B^T B x with the rows of B orthonormal, where `Ablate` acts too."""

    basis: Float[Tensor, "rank d_model"]
    """Orthonormal rows, float32, on the CPU; which basis of the subspace does not matter."""

    def __post_init__(self):
        apart = self.basis @ self.basis.T - torch.eye(len(self.basis))
        if not (len(self.basis) and float(apart.abs().max()) < 1e-3):
            raise DirectionError("AblateSpan.basis must have orthonormal rows, at least one; use torch.linalg.qr.")


@dataclass(frozen=True)
class Add:
    """Activation addition, x + coefficient * norm * r, at the input of one block.

    Arditi et al. 2024, section 2.4 (there: coefficient +1 induces, -1 bypasses, all positions and generated tokens).
    """

    direction: Direction
    coefficient: float = 1.0
    """In units of the direction's own norm."""
    positions: Literal["all", "prompt"] = "all"
    """`prompt` leaves the generated tokens alone."""


Intervention = Ablate | AblateSpan | Add


@dataclass(frozen=True)
class Arm:
    """A named set of interventions that a prompt runs under."""

    name: str
    interventions: tuple[Intervention, ...] = ()


BASELINE = Arm("baseline")
ORTHOGONAL = 1e-4
"""Largest |cosine| of two directions that one arm ablates."""


def ablate(h: Float[Tensor, "*rows d_model"], r: Vector) -> Float[Tensor, "*rows d_model"]:
    """h - (h.r) r with r a unit vector, in float32; returns a new tensor of h's dtype."""
    # 16-bit projections round the component that is to be removed; upcasting costs little beside the matmuls.
    x = h.float()
    return torch.addcmul(x, (x @ r)[..., None], r, value=-1).to(h.dtype)


def ablate_rows(h: Residual, r: Float[Tensor, "row d_model"]) -> Residual:
    """h - (h.r) r with another unit (or zero) vector for each row."""
    x = h.float()
    share = torch.einsum("rpd,rd->rp", x, r)
    return torch.addcmul(x, share[..., None], r[:, None, :], value=-1).to(h.dtype)


def ablate_spans(h: Residual, basis: Float[Tensor, "row rank d_model"]) -> Residual:
    """h - B^T B h with another set of orthonormal (or zero) rows for each row of the batch, in float32."""
    x = h.float()
    share = torch.einsum("rpd,rkd->rpk", x, basis)
    return (x - torch.einsum("rpk,rkd->rpd", share, basis)).to(h.dtype)


@dataclass(frozen=True)
class BatchEdits:
    """The edits of a batch in which every row has its arm: one function per site.

    Built once per set of arms (`BatchEdits.of`), bound to the rows of each batch by `on`.
    """

    sites: tuple[HookPoint, ...]
    ablated: Float[Tensor, "arm d_model"] | Float[Tensor, "arm rank d_model"] | None
    """Unit vector of each arm times the root of its strength, zero where it does not ablate; None when no arm does.
    Where an arm ablates along several, the orthogonal rows of every arm, filled up with zeros."""
    added: Mapping[int, Float[Tensor, "arm d_model"]]
    """Per layer, what each arm adds to prompt tokens."""
    added_later: Mapping[int, Float[Tensor, "arm d_model"]]
    """Per layer, what each arm adds to generated tokens."""

    @classmethod
    def of(cls, arms: Sequence[Arm], chat_model: ChatModel) -> "BatchEdits":
        """Compile `arms`; an arm may hold any number of additions, and of ablations whose directions are orthogonal."""
        device, d_model = chat_model.device, chat_model.d_model
        taken: list[Tensor | None] = [None] * len(arms)
        added: dict[int, Tensor] = {}
        later: dict[int, Tensor] = {}
        for index, arm in enumerate(arms):
            for intervention in arm.interventions:
                match intervention:
                    case Ablate(direction, strength):
                        _check_fits(direction, chat_model, arm)
                        # x - (sqrt(a) r) (sqrt(a) r).x: every strength is the same edit with a shorter vector.
                        taken[index] = _with(taken[index], direction.vector * strength**0.5, arm)
                    case AblateSpan(basis):
                        _check_fits(Direction.from_vector(basis[0], -1, 0), chat_model, arm)
                        for row in basis:
                            taken[index] = _with(taken[index], row, arm)
                    case Add(direction, coefficient, positions):
                        _check_fits(direction, chat_model, arm)
                        for store, wanted in ((added, True), (later, positions == "all")):
                            rows = store.setdefault(direction.layer, torch.zeros(len(arms), d_model))
                            rows[index] += coefficient * direction.difference if wanted else 0.0
        return cls(
            chat_model.ablation_points,
            _stacked(taken, d_model, device),
            {layer: rows.to(device) for layer, rows in added.items()},
            {layer: rows.to(device) for layer, rows in later.items()},
        )

    def on(
        self, arm_of_row: Int[Tensor, " row"], n_prompt: int | Bool[Tensor, "#row position"] | None = None
    ) -> dict[HookPoint, Edit]:
        """The edits for a batch whose rows belong to these arms.

        The first `n_prompt` positions of the forward pass are prompt tokens (None: all of them), the rest generated; or
        it says of each position whether it is a prompt token, in one row where all rows have the same.
        """
        edits: dict[HookPoint, Edit] = {}
        if self.ablated is not None:
            edits = dict.fromkeys(self.sites, _ablation(self.ablated[arm_of_row]))
        for layer in self.added:
            site = HookPoint("resid_pre", layer)
            prompt, later = self.added[layer][arm_of_row], self.added_later[layer][arm_of_row]
            edits[site] = _addition(prompt, later, n_prompt, then=edits.get(site))
        return edits


def _with(taken: Tensor | None, row: Vector, arm: Arm) -> Float[Tensor, "rank d_model"]:
    """One more row; together they remove a span, so they must be orthogonal."""
    if taken is None:
        return row[None]
    if float((taken @ row).abs().max()) > ORTHOGONAL:
        raise ProtocolError(
            f"arm {arm.name!r} ablates twice along directions that are not orthogonal; give it one ablation, or an "
            "orthonormal basis."
        )
    return torch.cat([taken, row[None]])


def _stacked(
    taken: Sequence[Tensor | None], d_model: int, device: torch.device
) -> Float[Tensor, "arm d_model"] | Float[Tensor, "arm rank d_model"] | None:
    rank = max((len(rows) for rows in taken if rows is not None), default=0)
    ablated = torch.zeros(len(taken), rank, d_model)
    for index, rows in enumerate(taken):
        if rows is not None:
            ablated[index, : len(rows)] = rows
    if not ablated.any():
        return None
    return (ablated[:, 0] if rank == 1 else ablated).to(device)


def _check_fits(direction: Direction, chat_model: ChatModel, arm: Arm) -> None:
    width, depth = direction.vector.shape[0], chat_model.n_layers
    if width != chat_model.d_model or not 0 <= direction.layer < depth:
        raise DirectionError(
            f"arm {arm.name!r}: a direction of width {width} at layer {direction.layer} does not fit "
            f"{chat_model.name} (width {chat_model.d_model}, layers 0..{depth - 1})."
        )


def _ablation(r: Float[Tensor, "row d_model"] | Float[Tensor, "row rank d_model"]) -> Edit:
    one_for_all = r[0] if bool((r == r[0]).all()) else None

    def edit(h: Residual) -> Residual:
        if r.ndim == 3:
            return ablate_spans(h, r.to(h.device))
        if one_for_all is not None:
            return ablate(h, one_for_all.to(h.device))
        return ablate_rows(h, r.to(h.device))

    return edit


def _addition(
    prompt: Float[Tensor, "row d_model"],
    later: Float[Tensor, "row d_model"],
    n_prompt: int | Bool[Tensor, "#row position"] | None,
    then: Edit | None,
) -> Edit:
    def edit(h: Residual) -> Residual:
        if isinstance(n_prompt, Tensor):
            added = torch.where(n_prompt[..., None], prompt[:, None], later[:, None])
        elif n_prompt is None or n_prompt >= h.shape[1]:
            added = prompt[:, None]
        elif n_prompt == 0:
            added = later[:, None]
        else:
            counts = torch.tensor([n_prompt, h.shape[1] - n_prompt], device=prompt.device)
            added = torch.stack([prompt, later], 1).repeat_interleave(counts, dim=1)
        moved = (h.float() + added.to(h.device)).to(h.dtype)
        return moved if then is None else then(moved)

    return edit
