"""The commands that README, docs, help and messages print: lines of blocks, and commands between backticks."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paths import ROOT

BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "log.md")]
"""The log keeps the commands of its time."""
SOURCES = sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".toml"))
INLINE = re.compile(r"`(rhumbline\s[^`]+)`")
VALUE = "VALUE"
"""What stands for a value that a message inserts."""


class PageCommand(NamedTuple):
    """A command of a page or of a source file, without `rhumbline`."""

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
    inline = INLINE.findall(BLOCK.sub("", text))
    return [PageCommand(page, _words(c), c in blocks) for c in dict.fromkeys([*blocks, *inline])]


def commands_of_source(path: Path, names: str) -> tuple[list[PageCommand], list[str]]:
    """The commands in the texts of a source file, and the mentions of a command of `names` that are no code.

    A command stands between backticks, or is a line of a text.
    """
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    texts = texts_of(ast.parse(text)) if path.suffix == ".py" else [text]
    lines = [line for part in texts for line in part.split("\n")]
    whole = [line for line in lines if re.match(rf"rhumbline (?:{names})(?! {{2}})", line)]
    inline = [command for line in lines for command in INLINE.findall(line)]
    bare = [m[0] for line in lines for m in re.finditer(rf"(?<!`)(?<!^)\brhumbline (?:{names})\b", line)]
    return [PageCommand(name, _words(c), c in whole) for c in (*whole, *inline)], bare


def texts_of(node: ast.AST) -> Iterator[str]:
    """The strings of a syntax tree; `VALUE` stands for the values of a formatted one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_of(child)


def _words(command: str) -> tuple[str, ...]:
    words = (word.strip("[]") for word in shlex.split(command, comments=True)[1:] if word != "&")
    return tuple("..." if word == "..." else word.removesuffix("...") for word in words)
