"""The edit that each hook point applies to a batch whose rows belong to different arms.

Contains the arithmetic of ablation and addition. Independent of hooks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rhumbline.axes import Residual, Vector
from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.inference.interventions import Ablate, AblateSpan, Add, Arm, Direction
from rhumbline.inference.stream_edits import by_arm, composed, edits_of, spared_by
from rhumbline.inference.windows import ArmWindows, TokenPlaces
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint

ORTHOGONAL = 1e-4
"""Largest |cosine| between two directions that one arm ablates."""


def ablate(h: Float[Tensor, "*rows d_model"], r: Vector) -> Float[Tensor, "*rows d_model"]:
    """h - (h.r) r with a unit vector r, computed in float32; a new tensor of the dtype of h."""
    # 16-bit projections round the component that is removed; upcasting is cheap compared with the matrix products.
    x = h.float()
    return torch.addcmul(x, (x @ r)[..., None], r, value=-1).to(h.dtype)


def ablate_rows(h: Residual, r: Float[Tensor, "row d_model"]) -> Residual:
    """h - (h.r) r with a unit vector (or zero) for each row."""
    x = h.float()
    share = torch.einsum("rpd,rd->rp", x, r)
    return torch.addcmul(x, share[..., None], r[:, None, :], value=-1).to(h.dtype)


def ablate_spans(h: Residual, basis: Float[Tensor, "row rank d_model"]) -> Residual:
    """h - B^T B h with a set of orthonormal (or zero) vectors for each row, computed in float32."""
    x = h.float()
    share = torch.einsum("rpd,rkd->rpk", x, basis)
    return (x - torch.einsum("rpk,rkd->rpd", share, basis)).to(h.dtype)


@dataclass(frozen=True)
class BatchEdits:
    """The edits of a batch whose rows belong to different arms: one function per hook point.

    Built once for a set of arms (`BatchEdits.of`), and bound to the rows of each batch by `on`.
    """

    points: tuple[HookPoint, ...]
    """Hook points of ablations."""
    ablated: Float[Tensor, "arm d_model"] | Float[Tensor, "arm rank d_model"] | None
    """For each arm, its unit vector times the square root of its strength; zero for an arm without ablation, None if no
    arm ablates. If an arm ablates several directions: the orthogonal vectors of each arm, padded with zeros."""
    spared: Int[Tensor, " arm"] | None
    """For each arm, the tokens at the start of a text that its ablations do not edit; None: no arm spares any."""
    added: Mapping[int, Float[Tensor, "arm d_model"]]
    """By layer: the vector that each arm adds at prompt tokens."""
    added_later: Mapping[int, Float[Tensor, "arm d_model"]]
    """By layer: the vector that each arm adds at generated tokens."""
    windows: ArmWindows | None = None
    """The tokens that each arm edits; None: every arm edits all tokens."""
    others: Mapping[HookPoint, Mapping[int, Edit]] = field(default_factory=dict)
    """By hook point and arm: the edits of all other interventions, which follow the first ones."""
    others_spare: Int[Tensor, " arm"] | None = None
    """For each arm, the tokens at the start of a text that these do not edit; None: no arm spares any."""

    @classmethod
    def of(cls, arms: Sequence[Arm], chat_model: ChatModel) -> "BatchEdits":
        """The edits of `arms`. An arm can have any number of additions, and of ablations of orthogonal directions."""
        device, d_model = chat_model.device, chat_model.d_model
        ablated: list[Tensor | None] = [None] * len(arms)
        spared = [_spared(arm) for arm in arms]
        added: dict[int, Tensor] = {}
        later: dict[int, Tensor] = {}
        others: dict[HookPoint, dict[int, Edit]] = {}
        others_spare = [0] * len(arms)
        for index, arm in enumerate(arms):
            for intervention in arm.interventions:
                match intervention:
                    case Ablate(direction, strength):
                        check_fits(direction, chat_model, f"arm {arm.name!r}")
                        # x - (sqrt(a) r) (sqrt(a) r).x: every strength is the same edit with a shorter vector.
                        ablated[index] = _with_row(ablated[index], direction.vector * strength**0.5, arm)
                    case AblateSpan(basis, strength):
                        check_fits(Direction.from_vector(basis[0], -1, 0), chat_model, f"arm {arm.name!r}")
                        for row in basis:
                            ablated[index] = _with_row(ablated[index], row * strength**0.5, arm)
                    case Add(direction, coefficient, positions):
                        check_fits(direction, chat_model, f"arm {arm.name!r}")
                        for store, applies in ((added, True), (later, positions == "all")):
                            rows = store.setdefault(direction.layer, torch.zeros(len(arms), d_model))
                            rows[index] += coefficient * direction.difference if applies else 0.0
                    case other:
                        others_spare[index] = max(others_spare[index], spared_by(other))
                        for point, edit in edits_of(other, chat_model).items():
                            own = others.setdefault(point, {})
                            own[index] = composed(own.get(index), edit)
        return cls(
            chat_model.ablation_points,
            _stacked(ablated, d_model, device),
            torch.tensor(spared, device=device) if any(spared) else None,
            {layer: rows.to(device) for layer, rows in added.items()},
            {layer: rows.to(device) for layer, rows in later.items()},
            ArmWindows.of([arm.window for arm in arms], device),
            others,
            torch.tensor(others_spare, device=device) if any(others_spare) else None,
        )

    def on(
        self,
        arm_of_row: Int[Tensor, " row"],
        n_prompt: int | Bool[Tensor, "#row position"] | None = None,
        places: TokenPlaces | None = None,
    ) -> dict[HookPoint, Edit]:
        """The edits of a batch, given the arm of each row.

        The first `n_prompt` tokens of the forward pass are prompt tokens, the others are generated; None: all are
        prompt tokens. A boolean tensor states it for each token, in one row if all rows are alike. `places` are needed
        if an ablation spares tokens, unless all tokens are generated, and if an arm has a window.
        """
        return self.within(self.at_all_tokens(arm_of_row, n_prompt, places), arm_of_row, places)

    def at_all_tokens(
        self,
        arm_of_row: Int[Tensor, " row"],
        n_prompt: int | Bool[Tensor, "#row position"] | None = None,
        places: TokenPlaces | None = None,
    ) -> dict[HookPoint, Edit]:
        """The same edits without the windows of the arms."""
        edits: dict[HookPoint, Edit] = {}
        if self.ablated is not None:
            ablation = _ablation(self.ablated[arm_of_row])
            if self.spared is not None and not (isinstance(n_prompt, int) and n_prompt == 0):
                ablation = _sparing(ablation, self.spared[arm_of_row], n_prompt, places)
            edits = dict.fromkeys(self.points, ablation)
        for layer in self.added:
            point = HookPoint("resid_pre", layer)
            prompt, later = self.added[layer][arm_of_row], self.added_later[layer][arm_of_row]
            edits[point] = _addition(prompt, later, n_prompt, then=edits.get(point))
        for point, functions in self.others.items():
            edit = by_arm(functions, arm_of_row)
            if self.others_spare is not None and not (isinstance(n_prompt, int) and n_prompt == 0):
                edit = _sparing(edit, self.others_spare[arm_of_row], n_prompt, places)
            edits[point] = composed(edits.get(point), edit)
        return edits

    def within(
        self, edits: dict[HookPoint, Edit], arm_of_row: Int[Tensor, " row"], places: TokenPlaces | None
    ) -> dict[HookPoint, Edit]:
        """The edits `at_all_tokens`, limited to the window of the arm of each row."""
        if self.windows is None:
            return edits
        acts = self.windows.on(arm_of_row, places)
        return {point: _within(edit, acts, places and places.last) for point, edit in edits.items()}


def _spared(arm: Arm) -> int:
    """The number of tokens that the ablations of an arm spare, which must be the same in all."""
    numbers = {i.spared for i in arm.interventions if isinstance(i, Ablate | AblateSpan)}
    if len(numbers) > 1:
        raise ProtocolError(f"arm {arm.name!r} has ablations that spare different tokens. Use one number for all.")
    return next(iter(numbers), 0)


def _with_row(rows: Tensor | None, row: Vector, arm: Arm) -> Float[Tensor, "rank d_model"]:
    """The rows and one more. Ablating one after the other removes their span only if they are orthogonal."""
    if rows is None:
        return row[None]
    if float((rows @ row).detach().abs().max()) > ORTHOGONAL:
        raise ProtocolError(
            f"arm {arm.name!r} ablates twice, along directions that are not orthogonal. Use one ablation, or "
            "AblateSpan with an orthonormal basis."
        )
    return torch.cat([rows, row[None]])


def _stacked(
    ablated: Sequence[Tensor | None], d_model: int, device: torch.device
) -> Float[Tensor, "arm d_model"] | Float[Tensor, "arm rank d_model"] | None:
    rank = max((len(rows) for rows in ablated if rows is not None), default=0)
    stacked = torch.zeros(len(ablated), rank, d_model)
    for index, rows in enumerate(ablated):
        if rows is not None:
            stacked[index, : len(rows)] = rows
    if not stacked.any():
        return None
    return (stacked[:, 0] if rank == 1 else stacked).to(device)


def check_fits(direction: Direction, chat_model: ChatModel, what: str) -> None:
    """DirectionError if the direction is not one of the residual stream of the model."""
    width, depth = direction.vector.shape[0], chat_model.n_layers
    if width != chat_model.d_model or not 0 <= direction.layer < depth:
        raise DirectionError(
            f"{what}: a direction of width {width} at layer {direction.layer} does not fit "
            f"{chat_model.name} (width {chat_model.d_model}, layers 0..{depth - 1}). Use a direction of this model."
        )


def _ablation(r: Float[Tensor, "row d_model"] | Float[Tensor, "row rank d_model"]) -> Edit:
    same_for_all = r[0] if bool((r == r[0]).all()) else None

    def edit(h: Residual) -> Residual:
        if r.ndim == 3:
            return ablate_spans(h, r.to(h.device))
        if same_for_all is not None:
            return ablate(h, same_for_all.to(h.device))
        return ablate_rows(h, r.to(h.device))

    return edit


def _sparing(
    edit: Edit,
    spared: Int[Tensor, " row"],
    n_prompt: int | Bool[Tensor, "#row position"] | None,
    places: TokenPlaces | None,
) -> Edit:
    """The edit at all tokens but the first ones of each text; generated tokens are always edited."""
    if places is None:
        raise ProtocolError("an ablation that spares tokens cannot be applied here. Use Ablate without `spared`.")
    kept = places.in_text.to(spared.device) < spared[:, None]
    if isinstance(n_prompt, Tensor):
        kept = kept & n_prompt.to(kept.device)
    elif n_prompt is not None:
        kept = kept & (torch.arange(kept.shape[1], device=kept.device) < n_prompt)

    return _within(edit, ~kept, places.last)


def _within(edit: Edit, acts: Bool[Tensor, "row position"], last: Int[Tensor, " prompt"] | None) -> Edit:
    """The edit at the tokens on which it acts, and no change elsewhere."""

    def within(h: Residual) -> Residual:
        # The pruned last block of a pack computes the last token of each prompt only.
        here = acts if last is None or h.shape[1] == acts.shape[1] else acts[:, last]
        return torch.where(here[..., None].to(h.device), edit(h), h)

    return within


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
