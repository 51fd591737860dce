"""Read the output and the attention weights of every head through transformers' attention interface.

While the context is active, each attention module calls its own eager function, which returns the weights. Attention
that does not use the interface (bloom, recurrent layers) is not read.
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
ReadAttention = Callable[[Float[Tensor, "row token head channel"], Float[Tensor, "row head token key"]], None]
"""Receives the output of an attention call, before its projection, and its weights."""
_READ: ContextVar[ReadAttention] = ContextVar("reader of attention")


def _watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple:
    output, weights = own_attention(module, "eager")(module, query, key, value, mask, **kwargs)
    _READ.get()(output, weights)
    return output, weights


AttentionInterface.register(NAME, _watched)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def watched_attention(chat_model: ChatModel, read: ReadAttention) -> Iterator[None]:
    """Call `read` for every attention call while the context is active."""
    config = chat_model.model.config.get_text_config(decoder=True)
    own, token = config._attn_implementation, _READ.set(read)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _READ.reset(token)
