"""The reply of a model to one message, as text: greedy decoding, one token after the other.

`Runner.generate` gives the same tokens for many prompts and arms. Independent of arms: hooks that are on the model act.
"""

from collections.abc import Collection, Sequence

import torch

from rhumbline.errors import InputError
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel, forward, new_cache
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.sequence_limits import check_sequences


def reply(model: ChatModel, chat: Chat, text: str, max_new_tokens: int) -> str:
    """The completion of a chat with one message. Raises InputError."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
    ids = chat.encode(text)
    check_sequences(model, {"this text": ids}, max_new_tokens, "prompts")
    return chat.text(_greedy(model, ids, stop_ids(model, chat), max_new_tokens))


@torch.inference_mode()
def _greedy(model: ChatModel, ids: Sequence[int], stop: Collection[int], max_new_tokens: int) -> list[int]:
    """New tokens up to a stop token, without it."""
    cache, tokens = new_cache(at_lengths(model, [len(ids) + max_new_tokens])), []
    every = torch.tensor([list(ids)], device=model.device)
    new = every
    while len(tokens) < max_new_tokens:
        token = forward(model, new, torch.ones_like(every), cache).argmax(-1)
        if int(token) in stop:
            break
        tokens.append(int(token))
        every = torch.cat([every, token[:, None]], 1)
        new = every if cache is None else token[:, None]
    return tokens
