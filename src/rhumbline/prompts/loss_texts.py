"""Texts to measure losses on: a file in, plain documents and exchanges out. Knows no model and no tokens.

A file is JSON Lines with one row for each text, `{"text": "..."}` (a plain document, as the Pile has them) or
`{"prompt": "...", "response": "..."}` (an exchange, as Alpaca has them, chat-formatted when it is read); or a .txt file
whose documents are set apart by blank lines.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline.errors import InputError

_SHOWN = 3


@dataclass(frozen=True)
class Exchange:
    """A prompt and the answer whose tokens are predicted."""

    prompt: str
    response: str


@dataclass(frozen=True)
class LossTexts:
    """What losses are measured on, in the order of the source."""

    name: str
    documents: tuple[str, ...] = ()
    """Plain texts."""
    exchanges: tuple[Exchange, ...] = ()

    def record(self) -> dict[str, Any]:
        """What a protocol says of the texts: their number and the hash of all of them."""
        content = json.dumps([self.documents, [[e.prompt, e.response] for e in self.exchanges]], ensure_ascii=False)
        return {
            "name": self.name,
            "sha256": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
            "documents": len(self.documents),
            "exchanges": len(self.exchanges),
        }


NO_TEXTS = LossTexts("none")


def read_texts(path: str | Path) -> LossTexts:
    """Read a file of texts (.jsonl or .txt). Raises InputError that names the faulty lines."""
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".txt"):
        raise InputError(f"{path} is no file of texts: name it .jsonl (a row for each) or .txt (blank lines between).")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if path.suffix.lower() == ".txt":
        found = LossTexts(path.stem, tuple(t.strip() for t in re.split(r"\n\s*\n", content) if t.strip()))
    else:
        found = _from_rows(path, content.splitlines())
    if not found.documents and not found.exchanges:
        raise InputError(f"{path} holds no text.")
    return found


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
        more = f" and {len(faulty) - _SHOWN} more" if len(faulty) > _SHOWN else ""
        raise InputError(
            f"{path}, line {', '.join(map(str, faulty[:_SHOWN]))}{more}: expected "
            '{"text": "..."} or {"prompt": "...", "response": "..."}, none of them empty.'
        )
    return LossTexts(path.stem, tuple(documents), tuple(exchanges))


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)
