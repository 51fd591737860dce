"""Test the forward passes of a loaded model: whether padding, packing and the cache leave its logits as they are.

Each is compared with whole forward passes over single prompts. Independent of model families.
"""

import logging
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import Residual
from rhumbline.models.chat_model import ChatModel, Edit, forward, fresh_cache
from rhumbline.models.forward_check import as_model_error
from rhumbline.models.hooks import hooked, resumed, run_until
from rhumbline.models.packing import (
    KeyValueSlots,
    PackedAttention,
    own_implementation,
    pack,
    packed_forward,
    slot_forward,
)

log = logging.getLogger("rhumbline")

UNSUPPORTED = (
    AttributeError, KeyError, LookupError, TypeError, ValueError, RuntimeError, NotImplementedError
)  # fmt: skip
"""Errors of models that cannot run padded or packed prompts, or cannot use their cache."""
MEMORY = (torch.OutOfMemoryError, MemoryError)
"""Errors that say nothing about the model."""
Probe = Int[Tensor, "row position"]
STEPS = 2
"""Tokens that are decoded after packed prompts."""


def needed(chat_model: ChatModel) -> AbstractContextManager[None]:
    """ModelError if a forward pass fails without which the proof cannot be made."""
    return as_model_error(chat_model.name, chat_model.model, "a forward pass that the proof needs")


def random_direction(chat_model: ChatModel) -> Float[Tensor, " d_model"]:
    """A unit vector, the same for every model of one width; float32."""
    r = torch.randn(chat_model.d_model, generator=torch.Generator().manual_seed(0))
    return r / r.norm()


def ablation(r: Float[Tensor, " d_model"]) -> Edit:
    """h - (h.r) r, computed in float32."""

    def ablate(h: Residual) -> Residual:
        unit = r.to(h.device)
        return (h.float() - (h.float() @ unit)[..., None] * unit).to(h.dtype)

    return ablate


def agree(chat_model: ChatModel, a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of logits are equal at the precision of the model."""
    tolerance = max(1e-4, 16 * torch.finfo(chat_model.dtype).eps)
    return bool((a.float() - b.float()).abs().max() <= tolerance * a.float().abs().max().clamp_min(1.0))


def padding_changes(chat_model: ChatModel, probe: Probe) -> bool:
    """Whether a left-padded prompt has other logits than the prompt alone, or cannot be run."""
    ids = probe[:1]
    pad = torch.full((1, 3), chat_model.pad_token, device=ids.device, dtype=ids.dtype)
    padded = torch.cat([torch.cat([pad, ids[:, :-3]], 1), ids], 0)
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    with torch.no_grad():
        with needed(chat_model):
            alone = forward(chat_model, ids[:, :-3], torch.ones_like(ids[:, :-3]))
        try:
            beside = forward(chat_model, padded, mask)[:1]
        except MEMORY:
            raise
        except UNSUPPORTED as error:
            log.info("%s: prompts are not padded (%s)", chat_model.name, error)
            return True
    return not agree(chat_model, alone, beside)


def cache_is_exact(chat_model: ChatModel, ids: Probe) -> bool:
    """Whether token-by-token decoding with the cache gives the logits of whole forward passes."""
    mask = torch.ones_like(ids)
    n = ids.shape[1] - 3
    if not chat_model.proof.padding_changes_logits:
        mask[0, :2] = 0
    cache = fresh_cache(chat_model)
    if cache is None:
        return False
    try:
        with torch.no_grad():
            steps = [forward(chat_model, ids[:, :n], mask[:, :n], cache)]
            for i in range(n, n + 3):
                steps.append(forward(chat_model, ids[:, i : i + 1], mask[:, : i + 1], cache))
            whole = [forward(chat_model, ids[:, :i], mask[:, :i]) for i in range(n, n + 4)]
    except MEMORY:
        raise
    except UNSUPPORTED as error:
        log.info("%s: its cache is not used (%s)", chat_model.name, error)
        return False
    return all(agree(chat_model, a, b) for a, b in zip(whole, steps, strict=True))


class PackingTest(NamedTuple):
    """The result of `check_packing`."""

    is_exact: bool
    window_is_read: bool = False
    """Whether attention receives a sliding window."""


def check_packing(chat_model: ChatModel, probe: Probe) -> PackingTest:
    """Whether packed prompts have the logits of each prompt alone, also if the pass resumes at a middle layer.

    The first tokens that are decoded after the pack are tested too: a layer can call attention twice.
    """
    ids = probe[0].tolist()
    prompts = [[*ids[:4], *ids[6:9]], [*ids[:4], *ids[8:14]], [*ids[:4], *ids[5:7]]]
    packed = pack(prompts, 1, chat_model.device)
    new = packed.ids.new_tensor([ids[i : i + STEPS] for i in (2, 0, 4)])
    middle = chat_model.n_layers // 2
    lengths = [len(p) for p in prompts] * 2
    slots = KeyValueSlots(packed.ids.new_tensor(lengths), max(lengths), max(lengths) + STEPS)
    slot_of = torch.arange(6, device=chat_model.device).view(2, 3)
    attention = PackedAttention(packed, own_implementation(chat_model), slots, slot_of)
    # Under an ablation, because packing must be exact with hooks too.
    ablated = dict.fromkeys(chat_model.ablation_points, ablation(random_direction(chat_model)))
    try:
        with torch.no_grad(), hooked(chat_model, ablated):
            alone = _whole_passes(chat_model, prompts, new)
            together = packed_forward(chat_model, packed, 2, attention)
            stream = run_until(chat_model, middle, lambda: packed_forward(chat_model, packed, 2, attention))
            with resumed(chat_model, middle, stream):
                later = packed_forward(chat_model, packed, 2, attention)
            steps = []
            for i in range(STEPS):
                steps.append(slot_forward(chat_model, slots, new[:, i].repeat(2)).unflatten(0, (2, 3)))
                slots.advance(torch.ones_like(slots.length, dtype=torch.bool))
    except MEMORY:
        raise
    except UNSUPPORTED as error:
        log.info("%s: prompts are padded, not packed (%s)", chat_model.name, error)
        return PackingTest(False)
    first, *after = alone.unbind(1)
    wanted = [first, first, *after]
    is_exact = all(
        agree(chat_model, a, logits[arm])
        for a, logits in zip(wanted, [together, later, *steps], strict=True)
        for arm in range(2)
    )
    return PackingTest(is_exact, any(window is not None for _, window in attention.masks))


def _whole_passes(
    chat_model: ChatModel, prompts: list[list[int]], new: Int[Tensor, "prompt token"]
) -> Float[Tensor, "prompt position vocab"]:
    """Logits of the last token of each prompt alone, and of the new tokens after it."""
    rows = [torch.cat([new.new_tensor(p), own])[None] for p, own in zip(prompts, new, strict=True)]
    n = 1 + new.shape[1]
    return torch.cat([forward(chat_model, row, torch.ones_like(row), keep=n)[:, -n:] for row in rows])
