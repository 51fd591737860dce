"""What limits the sequences of a model: its positions and the rows of its embedding. Checked before a forward pass.

Depends on the config and the embeddings of a model; independent of prompts.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from rhumbline.axes import TokenIds
from rhumbline.errors import InputError, ModelError
from rhumbline.models.chat_model import ChatModel

MOST_LISTED = 20
"""Sequences that an error lists."""
_TABLE_SIZES = ("n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
"""Fields of a config without `max_position_embeddings` that can be the size of a table of positions."""
_OFFSET = 8
"""Rows that a table of positions can have beyond its size."""


def vocabulary(model: ChatModel) -> int:
    """Rows of the input embedding."""
    return int(model.model.get_input_embeddings().weight.shape[0])


def most_positions(model: ChatModel) -> int | None:
    """Tokens of the longest sequence; None if the config states no limit.

    `max_position_embeddings`, or the longer context of a scaled rotary embedding. Of another config the size of a table
    of positions, if the model has a table of this size.
    """
    config = model.model.config.get_text_config()
    stated = getattr(config, "max_position_embeddings", None)
    if stated is not None:
        return max(int(stated), _scaled(config))
    rows = _rows_of_tables(model.model)
    sizes = [int(size) for name in _TABLE_SIZES if (size := getattr(config, name, None))]
    return min((size for size in sizes if any(0 <= n - size <= _OFFSET for n in rows)), default=None)


def _scaled(config: Any) -> int:
    """Context of a rotary embedding that is scaled by a factor; 0 without one."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    factor, original = (scaling.get(name) for name in ("factor", "original_max_position_embeddings"))
    return int(factor * original) if isinstance(factor, int | float) and isinstance(original, int | float) else 0


def _rows_of_tables(model: Any) -> list[int]:
    """Rows of every embedding but that of the tokens."""
    own = model.get_input_embeddings()
    return [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m is not own]


def check_sequences(
    model: ChatModel, sequences: Mapping[str, TokenIds], new_tokens: int = 0, what: str = "prompts"
) -> None:
    """Check named sequences that `new_tokens` are generated after.

    Raises InputError if any needs more positions than the model has, and ModelError if an id is outside the embedding.
    """
    limit, rows = most_positions(model), vocabulary(model)
    most = sys.maxsize if limit is None else limit
    if long := {name: len(ids) for name, ids in sequences.items() if len(ids) + new_tokens > most}:
        longest = max(long.values())
        after = f" and {new_tokens} new tokens" if new_tokens else ""
        fewer = f", or at most {most - longest} new tokens (--max-new-tokens)" if new_tokens and longest < most else ""
        named = _listed({name: f"{n} tokens" for name, n in long.items()})
        raise InputError(
            f"{model.name} has {most} positions, and some {what}{after} need more ({len(long)}): {named}. Use shorter "
            f"{what}{fewer}."
        )
    ends = {name: (min(ids, default=0), max(ids, default=0)) for name, ids in sequences.items()}
    if faulty := {
        name: f"id {low if low < 0 else high}" for name, (low, high) in ends.items() if low < 0 or high >= rows
    }:
        raise ModelError(
            f"{model.name}: the embedding has {rows} rows, and some {what} have token ids beyond them "
            f"({len(faulty)}): {_listed(faulty)}. Use the tokenizer that belongs to the weights."
        )


def _listed(faults: Mapping[str, str]) -> str:
    named = [f"{name} ({fault})" for name, fault in faults.items()]
    return ", ".join(named[:MOST_LISTED]) + (
        f" and {len(named) - MOST_LISTED} more" if len(named) > MOST_LISTED else ""
    )
