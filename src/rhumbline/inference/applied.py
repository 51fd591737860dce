"""Interventions on anyone's model, inside anyone's code: `with applied(model, arm): model.generate(...)`.

Knows when a forward pass belongs to a prompt and when to what was generated. The arithmetic is in interventions.py.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rhumbline.axes import Residual
from rhumbline.inference.interventions import Arm, BatchEdits, Intervention
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint
from rhumbline.models.hooks import Observer, hooked, observed
from rhumbline.models.proving import prove

_PROVED: "WeakKeyDictionary[Any, ChatModel]" = WeakKeyDictionary()
"""What was proved of a model, without the model itself, which it must not keep alive."""


@contextmanager
def applied(model: Any, arm: Arm | Intervention, *, coarse: bool = False) -> Iterator[Any]:
    """Run a transformers model (or a ChatModel) under an arm while open: every row, generated tokens too.

    Contexts nest; the inner one acts last. Nothing is left on the model. ModelError where its residual writers cannot
    be
    proved, unless `coarse`. An `Add` at positions "prompt" counts a forward pass with one new token after cached ones
    (or
    one token longer than the last) as generated.
    """
    chat_model = model if isinstance(model, ChatModel) else _proved(model, coarse)
    named = arm if isinstance(arm, Arm) else Arm(type(arm).__name__.lower(), (arm,))
    edits = BatchEdits.of([named], chat_model)
    clock = _Clock()
    with ExitStack() as stack:
        stack.enter_context(observed([Observer(chat_model.model, clock.see, "input")]))
        stack.enter_context(hooked(chat_model, {site: _timed(edits, site, clock) for site in _sites(edits)}))
        yield model


def _proved(model: Any, coarse: bool) -> ChatModel:
    known = _PROVED.get(model)
    if known is None or (known.proof.mode == "coarse" and not coarse):
        training = model.training
        found = prove(model, None, type(model).__name__, coarse=coarse)
        model.train(training)
        known = _PROVED[model] = replace(found, model=None, blocks=())
    return replace(known, model=model, blocks=tuple(model.get_submodule(known.blocks_name)))


class _Clock:
    """How many tokens of the running forward pass are prompt tokens (None: all of them)."""

    def __init__(self) -> None:
        self.n_prompt: int | None = None
        self.last: Tensor | None = None

    def see(self, args: tuple, kwargs: dict, output: Any) -> None:
        del output
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if cached:
            n_new = ids.shape[1] if ids is not None else kwargs["inputs_embeds"].shape[1]
            self.n_prompt, self.last = (0 if n_new == 1 else None), None
            return
        longer = (
            ids is not None
            and self.last is not None
            and ids.shape[0] == self.last.shape[0]
            and ids.shape[1] == self.last.shape[1] + 1
            and torch.equal(ids[:, :-1], self.last)
        )
        if not longer:
            self.n_prompt = None if ids is None else ids.shape[1]
        self.last = ids


def _sites(edits: BatchEdits) -> list[HookPoint]:
    return list(edits.on(torch.zeros(1, dtype=torch.long, device=_device(edits))))


def _device(edits: BatchEdits) -> torch.device:
    tensors = [*edits.added.values(), *([edits.ablated] if edits.ablated is not None else [])]
    return tensors[0].device if tensors else torch.device("cpu")


def _timed(edits: BatchEdits, site: HookPoint, clock: _Clock) -> Edit:
    """The edit of a site for whatever forward pass is running."""
    row = torch.zeros(1, dtype=torch.long, device=_device(edits))
    known: dict[int | None, Edit] = {}

    def edit(h: Residual) -> Residual:
        if clock.n_prompt not in known:
            known[clock.n_prompt] = edits.on(row, clock.n_prompt)[site]
        return known[clock.n_prompt](h)

    return edit
