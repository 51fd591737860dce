"""The commands that README and docs print: lines of blocks, and commands between backticks."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from paths import ROOT

BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "log.md")]
"""The log keeps the commands of its time."""


class PageCommand(NamedTuple):
    """A command of a page, without `rhumbline`."""

    page: str
    words: tuple[str, ...]
    is_block: bool
    """Whether it stands in a block, where it is complete."""

    @property
    def text(self) -> str:
        """The command."""
        return shlex.join(self.words)


def commands_of(path: Path) -> list[PageCommand]:
    """The commands of a page, in order; optional parts in brackets are included."""
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    blocks = [line for line in map(str.strip, lines) if line.startswith("rhumbline ")]
    inline = re.findall(r"`(rhumbline\s[^`]+)`", BLOCK.sub("", text))
    return [PageCommand(page, _words(c), c in blocks) for c in dict.fromkeys([*blocks, *inline])]


def _words(command: str) -> tuple[str, ...]:
    words = (word.strip("[]") for word in shlex.split(command, comments=True)[1:] if word != "&")
    return tuple("..." if word == "..." else word.removesuffix("...") for word in words)
