"""Control tokens: which tokens of a vocabulary mark turns, blocks and ends; text that spells them is found and split.

Depends on the tokenizer and the text of the chat template; independent of prompts and models.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rhumbline.errors import InputError
from rhumbline.models.answer_forms import DELIMITERS

ANCHORS = ("\n", ".", "a")
"""Texts before a piece, so that a tokenizer that puts a space before the start of a text puts none into the piece."""
MOST_LISTED = 20
"""Names that an error lists."""
_MARKER = re.compile(r"<[|｜].*[|｜]>|\[/?[A-Z_]+\]|</?\w+_of_\w+>")
"""Form of a marker. An added token of another form, such as a run of spaces or an HTML tag, is ordinary text."""
_BRACKETED = re.compile(r"\s*[<\[◁].*\w.*[>\]▷]\s*")


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer under a chat template."""

    tokenizer: Any
    """A transformers tokenizer."""
    template: str
    """Jinja text of the chat template; empty without one."""
    known: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By text: what it spells. A run reads the same prompts several times."""

    @cached_property
    def ids(self) -> frozenset[int]:
        """Special tokens without the unknown token, and added tokens that are markers or occur in the template."""
        tokenizer, added = self.tokenizer, getattr(self.tokenizer, "added_tokens_decoder", {})
        ids = {int(i) for i in getattr(tokenizer, "all_special_ids", ())}
        ids |= {int(i) for i, token in added.items() if token.special or self._is_marker(token.content)}
        return frozenset(ids - ({self.unknown} - self._ends()))

    @property
    def unknown(self) -> int | None:
        """The token for what is not in the vocabulary; ordinary text can be tokenized into it."""
        return getattr(self.tokenizer, "unk_token_id", None)

    def _ends(self) -> set[int | None]:
        """Tokens that mark a beginning or an end. In GPT-2 the unknown token is one of them."""
        return {getattr(self.tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "sep", "cls")}

    def _is_marker(self, text: str) -> bool:
        content = text.strip()
        is_listed = content in DELIMITERS or _MARKER.fullmatch(content) is not None
        return bool(content) and (is_listed or (content in self.template and _BRACKETED.fullmatch(content) is not None))

    def name(self, token: int) -> str:
        """The text of a token in the vocabulary."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    # -- control tokens in a text --

    def ids_of(self, text: str) -> list[int]:
        """Token ids of a text without special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def found(self, text: str) -> list[int]:
        """The control tokens that a text is tokenized into; the unknown token only where the text spells a marker."""
        name = "" if self.unknown is None else self.name(self.unknown)
        unknown = {self.unknown} if _MARKER.fullmatch(name) and name in text else set()
        return [i for i in self.ids_of(text) if i in self.ids or i in unknown]

    def spelled(self, text: str) -> tuple[str, ...]:
        """These tokens by name, without repeats."""
        if text not in self.known:
            self.known[text] = tuple(dict.fromkeys(map(self.name, self.found(text))))
        return self.known[text]

    def cut(self, text: str, mark: str) -> str:
        """The text with `mark` inside every control token. Raises InputError if a control token cannot be cut."""
        pieces, queue = [], [text]
        while queue:
            piece = queue.pop(0)
            if self.spelled(piece):
                place = self._place(piece)
                queue[:0] = [piece[:place], piece[place:]]
            else:
                pieces.append(piece)
        return mark.join(pieces)

    def _place(self, text: str) -> int:
        """An index inside the first control token of a text."""
        start, end = self._span(text)
        content = text[start:end]
        place = start + len(content) - len(content.lstrip()) + len(content.strip()) // 2
        if not 0 < place < len(text):
            raise InputError(
                f"the control token {content!r} is one character, so it cannot be encoded as plain text. Remove it "
                "from the prompts."
            )
        return place

    def _span(self, text: str) -> tuple[int, int]:
        """Start and end of the first control token in a text."""
        spans = [(start, start + len(name)) for name in self.spelled(text) if (start := text.find(name)) >= 0]
        if not spans:  # The tokenizer normalises text before it looks for these tokens.
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            spans = [span for i, span in ids if i in self.ids]
        return min(spans)

    def encode_cut(self, text: str, mark: str) -> list[int]:
        """Token ids of a text with marks: the pieces between them are tokenized one by one, the marks are left out."""
        first, *others = text.split(mark)
        return [*self.ids_of(first), *(i for piece in others for i in self._continued(piece))]

    def _continued(self, piece: str) -> list[int]:
        """Token ids of a piece that follows other text."""
        for anchor in ANCHORS:
            before, both = self.ids_of(anchor), self.ids_of(anchor + piece)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self.ids_of(piece)

    # -- texts without a chat --

    @cached_property
    def leading(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts before a text, such as BOS."""
        text = ANCHORS[-1]
        whole, own = list(self.tokenizer(text)["input_ids"]), self.ids_of(text)
        starts = (i for i in range(len(whole)) if whole[i : i + len(own)] == own)
        return tuple(whole[: next(starts, 0)])

    def encode_text(self, text: str, *, plain: bool) -> list[int]:
        """Token ids of a text; with `plain`, text that spells control tokens is encoded as plain text."""
        mark = unused_character(text)
        return self.encode_cut(self.cut(text, mark), mark) if plain else self.ids_of(text)


def shared_leading(*all_controls: ControlTokens) -> tuple[int, ...]:
    """Special tokens before a text that several models read: the most that one of their tokenizers puts there."""
    return max((controls.leading for controls in all_controls), key=len)


def unused_character(*texts: str) -> str:
    """A character of the private use area that none of the texts contains."""
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in text for text in texts))


def check_control_tokens(controls: ControlTokens, texts: Iterable[tuple[str, str]], what: str, advice: str) -> None:
    """Raise InputError if any of the (name, text) pairs spells a control token; the message lists all of them."""
    faults = [(name, tokens) for name, text in texts if (tokens := controls.spelled(text))]
    if faults:
        listed = ", ".join(f"{name} ({' '.join(tokens)})" for name, tokens in faults[:MOST_LISTED])
        more = f" and {len(faults) - MOST_LISTED} more" if len(faults) > MOST_LISTED else ""
        raise InputError(
            f"The text of some {what} is tokenized into control tokens ({len(faults)}): {listed}{more}. {advice}"
        )
