"""The lengths up to which the proof of padding, packing and the cache holds, from the fields of a model's config.

The probe of the proof is short. Beyond these lengths some models compute attention or positions in another way, which
depends on the whole batch. A longer text runs alone and without a cache, which is always exact.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rhumbline.models.chat_model import ChatModel

_LENGTHS = ("attention_chunk_size", "index_topk")
"""Fields of a config that are such lengths: tokens of a chunk of attention, and keys that attention selects."""
_ROTARY = ("longrope", "dynamic")
"""Types of rotary embeddings whose frequencies depend on the longest text of a pass."""


def longest_proved(config: Any, *, window_is_read: bool) -> int | None:
    """Tokens of the longest text for which the proof holds; None: there is no such limit.

    `window_is_read`: whether packed attention receives the sliding window of the model.
    """
    lengths = [getattr(config, name, None) for name in _LENGTHS]
    lengths += [longest_pack(config), _selected_blocks(config), *_rotary(config)]
    if not window_is_read and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        lengths.append(getattr(config, "sliding_window", None))
    return min((n for n in lengths if isinstance(n, int) and n > 0), default=None)


def longest_pack(config: Any) -> int | None:
    """Tokens of the longest pack, if a factor of attention depends on the index in the row (llama4); None: any."""
    scale = getattr(config, "floor_scale", None) if getattr(config, "attn_temperature_tuning", False) else None
    return max(1, int(scale) - 1) if scale else None


def _selected_blocks(config: Any) -> int | None:
    """Keys that attention selects in blocks."""
    blocks, size = (getattr(config, name, None) for name in ("index_topk_blocks", "index_block_size"))
    return blocks * size if isinstance(blocks, int) and isinstance(size, int) else None


def _rotary(config: Any) -> Iterator[int | None]:
    parameters = getattr(config, "rope_parameters", None) or {}
    for some in (parameters, *(p for p in parameters.values() if isinstance(p, Mapping))):
        if some.get("rope_type") in _ROTARY:
            yield some.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)


def at_lengths(model: ChatModel, lengths: Iterable[int]) -> ChatModel:
    """The model for texts of these lengths: without packing, padding and cache if the proof does not hold for one."""
    longest = model.proof.longest_proved
    if longest is None or max(lengths, default=0) <= longest:
        return model
    proof = replace(model.proof, packing_is_exact=False, padding_changes_logits=True, cache_is_exact=False)
    return replace(model, proof=proof)
