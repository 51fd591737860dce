"""Interventions on a transformers model inside other code: `with applied(model, arm): model.generate(...)`.

Determines which tokens of each forward pass are prompt tokens. The arithmetic is in interventions.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.axes import Residual
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Arm, Intervention
from rhumbline.inference.windows import TokenPlaces, index_in_text
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint, TransformersModel
from rhumbline.models.hooks import Observer, hooked, observed
from rhumbline.models.proving import prove

_CACHES = ("past_key_values", "cache_params")
"""Arguments of forward methods that can be the cache; the second one is that of recurrent models."""


class _KnownProof(NamedTuple):
    """A proof, without a reference to the model, so that the model can be freed."""

    chat_model: ChatModel
    structure: int
    """`_structure` of the model when it was proved."""


_PROVED: "WeakKeyDictionary[Any, _KnownProof]" = WeakKeyDictionary()


@checked
@contextmanager
def applied(model: ChatModel | TransformersModel, arm: Arm | Intervention, *, coarse: bool = False) -> Iterator[Any]:
    """Run a transformers model (or a ChatModel) under an arm while the context is active.

    The arm acts on every row, on generated tokens too. Contexts can be nested; the inner one acts last. All hooks are
    removed on exit. ModelError if the residual writers cannot be proved, unless `coarse`. For an `Add` at positions
    "prompt", a token counts as generated if it is a single new token after cached ones, or the only token that is added
    to the sequence of the previous forward pass.
    """
    chat_model = model if isinstance(model, ChatModel) else _proved(model, coarse)
    named = arm if isinstance(arm, Arm) else Arm(type(arm).__name__.lower(), (arm,))
    edits = BatchEdits.of([named], chat_model)
    tokens = _PassEdits(edits)
    with ExitStack() as stack:
        stack.enter_context(observed([Observer(chat_model.model, tokens.update, "input")]))
        points = edits.on(torch.zeros(1, dtype=torch.long, device=_device(edits)), n_prompt=0)
        stack.enter_context(hooked(chat_model, {point: partial(tokens.edit, point) for point in points}))
        yield model


def _proved(model: Any, coarse: bool) -> ChatModel:
    known, structure = _PROVED.get(model), _structure(model)
    if known is None or known.structure != structure or (known.chat_model.proof.mode == "coarse" and not coarse):
        training = [module for module in model.modules() if module.training]
        proved = prove(model, None, type(model).__name__, coarse=coarse)
        for module in training:
            module.training = True
        known = _PROVED[model] = _KnownProof(replace(proved, model=None, blocks=()), structure)
    found = known.chat_model
    return replace(found, model=model, blocks=tuple(model.get_submodule(found.blocks_name)))


def _structure(model: Any) -> int:
    """Hash of the names and types of all modules, and of the adapters (peft) that are active in each."""
    adapters = ("_active_adapter", "_disable_adapters")
    return hash(
        tuple((name, type(m).__name__, *(str(vars(m).get(a)) for a in adapters)) for name, m in model.named_modules())
    )


class _PassEdits:
    """The edits of the present forward pass, which depend on its tokens."""

    def __init__(self, edits: BatchEdits) -> None:
        self._edits = edits
        self._at: dict[HookPoint, Edit] | None = None
        """The edits of this pass, made when the first of them is needed."""
        self.n_prompt: int | None = None
        """Number of prompt tokens; None: all of them."""
        self.places: TokenPlaces | None = None
        self.last: Tensor | None = None
        self._cache: Callable[[], Any] = lambda: None
        """The cache of the previous pass, if it exists."""

    def update(self, args: tuple, kwargs: dict, output: Any) -> None:
        """Read the inputs of a forward pass before it runs."""
        del output
        self._at = None
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = next((c for name in _CACHES if (c := kwargs.get(name)) is not None), None)
        n_new = ids.shape[1] if ids is not None else kwargs["inputs_embeds"].shape[1]
        before = self._before(cache)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.places = TokenPlaces(index_in_text(mask)[:, -n_new:])
        else:
            self.places = TokenPlaces(before + torch.arange(n_new, device=before.device))
        if before.any():
            self.n_prompt, self.last = (0 if n_new == 1 else None), None
            return
        extends_last = (
            ids is not None
            and self.last is not None
            and ids.shape[0] == self.last.shape[0]
            and ids.shape[1] == self.last.shape[1] + 1
            and torch.equal(ids[:, :-1], self.last)
        )
        if not extends_last:
            self.n_prompt = None if ids is None else ids.shape[1]
        self.last = ids

    def _before(self, cache: Any) -> Int[Tensor, "row 1"]:
        """Tokens of each text (or of all) in a cache, which is that of the previous pass afterwards."""
        previous, self._cache = self._cache(), (lambda: None) if cache is None else ref(cache)
        try:
            return torch.tensor([[0 if cache is None else int(cache.get_seq_length())]])
        except ValueError:  # A cache of recurrent layers only does not count its tokens.
            if cache is not previous or self.places is None:
                return torch.tensor([[0]])
            return self.places.in_text[:, -1:] + 1

    def edit(self, point: HookPoint, h: Residual) -> Residual:
        """Edit the output of a hook point."""
        if self._at is None:
            row = torch.zeros(1, dtype=torch.long, device=_device(self._edits))
            self._at = self._edits.on(row, self.n_prompt, self.places)
        return self._at[point](h)


def _device(edits: BatchEdits) -> torch.device:
    tensors = [*edits.added.values(), *([edits.ablated] if edits.ablated is not None else [])]
    return tensors[0].device if tensors else torch.device("cpu")
