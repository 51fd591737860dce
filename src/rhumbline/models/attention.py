"""What every head reads: outputs and weights of attention, through transformers' own interface.

While open, each attention module calls its own plain (eager) function, whose weights are told to a watcher. Knows no
family; a model whose attention does not go through the interface (bloom, recurrent layers) tells nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from rhumbline.models.chat_model import ChatModel
from rhumbline.models.packing import own_attention

NAME = "rhumbline_watched"
See = Callable[[Float[Tensor, "row token head channel"], Float[Tensor, "row head token key"]], None]
"""Told the output of every attention call, before it is projected, and its weights."""
_SEE: ContextVar[See] = ContextVar("who watches attention")


def _watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple:
    output, weights = own_attention(module, "eager")(module, query, key, value, mask, **kwargs)
    _SEE.get()(output, weights)
    return output, weights


AttentionInterface.register(NAME, _watched)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def watched_attention(chat_model: ChatModel, see: See) -> Iterator[None]:
    """Tell `see` of every attention call while open; leaves no trace."""
    config = chat_model.model.config.get_text_config(decoder=True)
    plain, token = config._attn_implementation, _SEE.set(see)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = plain
        _SEE.reset(token)
