"""Suffixes: read from a file, drawn at random, and appended to prompts.

Independent of what is measured with them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rhumbline.errors import InputError
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.suffix_file import ConditionName, random_condition, suffix_condition
from rhumbline.records.user_files import read_text, text_lines

TRIES = 200
"""Draws for each random suffix, at most."""


def read_suffixes(source: str | Path | Sequence[str]) -> list[str]:
    """Suffixes that are given as texts, or those of a file, one per line.

    Lines are stripped; empty and repeated ones are skipped. Raises InputError.
    """
    if not isinstance(source, str | Path):
        return list(source)
    text = read_text(source, InputError, "a UTF-8 text file with one suffix per line", "--suffix")
    suffixes = list(dict.fromkeys(line.strip() for line in text_lines(text) if line.strip()))
    if not suffixes:
        raise InputError(f"--suffix {source} contains no suffix. Write one suffix per line.")
    return suffixes


def token_count(chat: Chat, suffix: str) -> int:
    """Tokens of a suffix after a space."""
    return len(chat.tokenizer(f" {suffix}", add_special_tokens=False)["input_ids"])


def random_suffixes(chat: Chat, like: str, draws: int, seed: int) -> list[str]:
    """Suffixes of tokens drawn from the vocabulary without special tokens, each with as many tokens as `like`.

    A draw whose text has another number of tokens is drawn again. Raises InputError if too few draws succeed.
    """
    tokenizer: Any = chat.tokenizer
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    vocabulary = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
    n, rng = token_count(chat, like), np.random.default_rng([seed, len(like), draws])
    suffixes: list[str] = []
    for _ in range(TRIES * draws):
        if len(suffixes) == draws:
            break
        text = tokenizer.decode(rng.choice(vocabulary, n).tolist()).strip()
        # A replacement character shows that the tokens split a character: such a text has other tokens.
        if text and "\ufffd" not in text and token_count(chat, text) == n and text not in suffixes:
            suffixes.append(text)
    if len(suffixes) < draws:
        raise InputError(
            f"{draws} random suffixes of {n} tokens were requested for {like!r}, {len(suffixes)} could be drawn. Use a "
            "shorter suffix."
        )
    return suffixes


def by_condition(chat: Chat, texts: Sequence[str], draws: int) -> dict[ConditionName, list[str]]:
    """Every suffix, each followed by `draws` random ones of its length."""
    conditions: dict[ConditionName, list[str]] = {}
    for k, text in enumerate(texts, 1):
        conditions[suffix_condition(k)] = [text]
        conditions[random_condition(k)] = random_suffixes(chat, text, draws, k)
    return conditions


def with_suffix(prompts: Sequence[Prompt], suffix: str | None) -> list[Prompt]:
    """The prompts, each followed by a space and a suffix; None: without one."""
    return [p if suffix is None else replace(p, text=f"{p.text} {suffix}") for p in prompts]


def encoded(chat: Chat, prompts: Sequence[Prompt], suffix: str | None = None) -> list[list[int]]:
    """Token ids of the prompts, with a suffix or without; the post-instruction tokens are checked."""
    texts = with_suffix(prompts, suffix)
    chat.check(texts)
    return [chat.encode(p) for p in texts]
