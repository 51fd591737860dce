"""Read texts that losses are measured on: plain documents, and exchanges of a prompt and a response.

A .jsonl file has one row per text, `{"text": "..."}` (a plain document, as in the Pile) or `{"prompt": "...",
"response": "..."}` (an exchange, as in Alpaca, which is chat-formatted later). In a .txt file, blank lines separate
documents. Independent of models and tokenizers.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline.errors import InputError
from rhumbline.records.protocol_file import LossTextFacts
from rhumbline.records.user_files import control_character, is_unicode, read_text

_MOST_LISTED = 3


@dataclass(frozen=True)
class Exchange:
    """A prompt, and the response whose tokens are predicted."""

    prompt: str
    response: str


@dataclass(frozen=True)
class LossTexts:
    """Texts that losses are measured on, in the order of the source."""

    name: str
    documents: tuple[str, ...] = ()
    """Plain texts."""
    exchanges: tuple[Exchange, ...] = ()
    """Prompts with responses."""

    def record(self) -> LossTextFacts:
        """The texts as protocol.json describes them."""
        content = json.dumps([self.documents, [[e.prompt, e.response] for e in self.exchanges]], ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        return LossTextFacts(self.name, digest, len(self.documents), len(self.exchanges))


NO_TEXTS = LossTexts("none")


def read_texts(path: str | Path) -> LossTexts:
    """Read a file of texts (.jsonl or .txt). Raises InputError with the faulty lines."""
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".txt"):
        raise InputError(
            f"{path} is not a file of texts. Use a .jsonl file (one row per text) or a .txt file (blank lines between "
            "texts)."
        )
    content = read_text(path, InputError, "a UTF-8 file of texts")
    if path.suffix.lower() == ".txt":
        texts = LossTexts(path.stem, tuple(t.strip() for t in re.split(r"\n\s*\n", content) if t.strip()))
    else:
        texts = _from_rows(path, content.split("\n"))  # a JSON string can contain U+2028
    if not texts.documents and not texts.exchanges:
        raise InputError(f"{path} has no text. Write at least one.")
    return texts


def _from_rows(path: Path, lines: Sequence[str]) -> LossTexts:
    documents: list[str] = []
    exchanges: list[Exchange] = []
    faulty = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parsed(line)
        if _are_texts(row.get(k) for k in ("prompt", "response")):
            exchanges.append(Exchange(row["prompt"], row["response"]))
        elif _are_texts([row.get("text")]):
            documents.append(row["text"])
        else:
            faulty.append(number)
    if faulty:
        more = f" and {len(faulty) - _MOST_LISTED} more" if len(faulty) > _MOST_LISTED else ""
        raise InputError(
            f"{path}, line {', '.join(map(str, faulty[:_MOST_LISTED]))}{more}: expected "
            '{"text": "..."} or {"prompt": "...", "response": "..."} with texts that are not empty and have no control '
            "characters."
        )
    return LossTexts(path.stem, tuple(documents), tuple(exchanges))


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _are_texts(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, str) and value.strip() and is_unicode(value) and control_character(value) is None
        for value in values
    )
