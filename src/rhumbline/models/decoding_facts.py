"""How the completions of a model are decoded: the stop tokens with their sources, and settings that are not applied.

Reads the generation config, the tokenizer and the chat template. Independent of prompts.
"""

import json
from typing import Any

from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.protocol_file import DecodingFacts, StopSource, StopToken

NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1,
    "bad_words_ids": None,
    "force_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "stop_strings": None,
    "constraints": None,
    "dola_layers": None,
    "token_healing": False,
}
"""Settings of a generation config that change a completion, with the value that changes nothing; so does None."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that are read with `do_sample` only."""


def decoding_facts(model: ChatModel, chat: Chat) -> DecodingFacts:
    """The record of protocol.json."""
    return DecodingFacts(stop_tokens(model, chat), chat.turn_end, ignored_settings(model.generation_config))


def stop_tokens(model: ChatModel, chat: Chat) -> tuple[StopToken, ...]:
    """The tokens that end a completion of a chat, by id."""
    ids: dict[StopSource, frozenset[int]] = {
        **model.stop_sources(),
        "chat template": frozenset(chat.turn_ends),
    }
    return tuple(
        StopToken(token, chat.controls.name(token), tuple(source for source, some in ids.items() if token in some))
        for token in sorted(set().union(*ids.values()))
    )


def stop_ids(model: ChatModel, chat: Chat) -> frozenset[int]:
    """The ids of these tokens."""
    return model.stop_tokens().union(chat.turn_ends)


def ignored_settings(config: Any) -> dict[str, str]:
    """The settings of a generation config (None: it has none) that greedy decoding does not apply, as JSON."""
    values = {name: getattr(config, name, None) for name in NEUTRAL}
    ignored = {name: v for name, v in values.items() if v is not None and v != NEUTRAL[name] and v not in ([], {})}
    if "do_sample" in ignored:
        ignored |= {name: v for name in SAMPLING if (v := getattr(config, name, None)) is not None}
    return {name: json.dumps(value, default=str) for name, value in ignored.items()}
