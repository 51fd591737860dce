"""How a byte-level tokenizer of a GGUF file splits a text into words: the name in the file -> the pre-tokenizer.

transformers derives the split from the architecture, and prompts would be tokenized differently from the source.
The names and their expressions are those of llama.cpp (src/llama-vocab.cpp). Independent of weights and of templates.
"""

from typing import Any

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = _QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
SPLITS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "jais"), "gpt-2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), "digits"),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), _QWEN),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA),
}
"""Name of a split: its kind, or the expression whose matches are words."""


def is_split_known(tokenizer: Any, name: str | None) -> bool:
    """Whether the words of a text are those of the source; a tokenizer without such a split has no names of them."""
    return not _is_byte_level(tokenizer) or name in SPLITS


def split_words(tokenizer: Any, name: str | None) -> None:
    """Make a byte-level tokenizer split words as its file states, if the name is known."""
    from tokenizers import Regex, pre_tokenizers

    split = SPLITS.get(name or "")
    if split is None or not _is_byte_level(tokenizer):
        return
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt-2", "digits"))]
    if split == "digits":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif split != "gpt-2":
        parts.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)


def _is_byte_level(tokenizer: Any) -> bool:
    from tokenizers import models

    backend = tokenizer.backend_tokenizer
    return isinstance(backend.model, models.BPE) and "ByteLevel" in str(backend.pre_tokenizer)
