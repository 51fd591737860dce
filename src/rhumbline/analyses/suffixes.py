"""Suffixes that a user brings, and random ones of the same length beside them. Searches for none.

A suffix stands after the instruction, one space between. Knows texts and tokens; does not know what a suffix does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rhumbline.errors import InputError
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import Prompt

TRIES = 200
"""Draws of a random suffix before its length counts as out of reach."""


def read_suffixes(path: str | Path) -> list[str]:
    """One suffix a line, as it is but for its ends; empty lines are left out. Raises InputError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--suffix {path} cannot be read: {error}. Give a UTF-8 text file, one suffix a line."
        ) from error
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise InputError(f"--suffix {path} holds no suffix; write one a line.")
    return found


def with_suffix(prompt: Prompt, suffix: str) -> Prompt:
    """The prompt with the suffix after its instruction."""
    return replace(prompt, text=f"{prompt.text} {suffix}")


def length(chat: Chat, suffix: str) -> int:
    """Tokens of a suffix after a space."""
    return len(chat.tokenizer(f" {suffix}", add_special_tokens=False)["input_ids"])


def random_suffixes(chat: Chat, like: str, draws: int, seed: int) -> list[str]:
    """Suffixes of tokens drawn from the vocabulary, with as many tokens as `like`; special tokens are left out.

    A draw whose text is tokenised to another length is drawn again. Raises InputError where none can be found.
    """
    tokenizer: Any = chat.tokenizer
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    vocabulary = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
    wanted, rng = length(chat, like), np.random.default_rng([seed, len(like), draws])
    found: list[str] = []
    for _ in range(TRIES * draws):
        if len(found) == draws:
            return found
        text = tokenizer.decode(rng.choice(vocabulary, wanted).tolist()).strip()
        # A replacement character is half of one: such a text is not what was drawn.
        if text and "\ufffd" not in text and length(chat, text) == wanted and text not in found:
            found.append(text)
    if len(found) == draws:
        return found
    raise InputError(
        f"no {draws} random suffixes of {wanted} tokens could be drawn beside {like!r}; give a shorter one."
    )


def encoded(chat: Chat, prompts: Sequence[Prompt], suffix: str | None = None) -> list[list[int]]:
    """Token ids of the prompts, with a suffix or without; the post-instruction tokens are proved to be in place."""
    chosen = [p if suffix is None else with_suffix(p, suffix) for p in prompts]
    chat.check(chosen)
    return [chat.encode(p) for p in chosen]
