"""Files that a user passes: regular files of bounded size, as text, JSON or TOML. Independent of their meaning."""

import csv
import json
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rhumbline.errors import RhumblineError

LARGEST = 2**26
"""Bytes of a file of texts or options."""
DEEPEST = 50
"""Levels of nesting of JSON and TOML."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
"""Control characters, apart from white space: tabs, line breaks and page breaks."""


def control_character(text: str) -> str | None:
    """The first control character of a text, as `U+001B`, apart from white space; None if it has none."""
    found = _CONTROL.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def read_text(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> str:
    """The text of a file without a byte order mark. Raises `wrong`, which states what the file is and what is expected.

    A text has no control characters apart from white space. `option` is the option that named the file.
    """
    text = _decoded(path, wrong, expected, option)
    if (found := _CONTROL.search(text)) is not None:
        line = text[: found.start()].count("\n") + 1
        name = f"{option} {path}".strip()
        raise wrong(
            f"{name}, line {line}: the control character {control_character(text)}. Pass {expected} without it."
        )
    return text


def _decoded(path: str | Path, wrong: type[RhumblineError], expected: str, option: str) -> str:
    """The characters of a regular file of bounded size, without a null character."""
    name = f"{option} {path}".strip()
    try:
        # A FIFO or a device could block or never end.
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise wrong(f"{name} is {kind}. Pass {expected}.")
        if status.st_size > LARGEST:
            raise wrong(
                f"{name} has {status.st_size:,} bytes; at most {LARGEST:,} are read. Pass {expected} of a smaller size."
            )
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise wrong(f"{name} does not exist. Pass {expected}.") from None
    except RhumblineError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the name contains a null character
        reason = getattr(error, "strerror", None) or error
        raise wrong(f"{name:.200} cannot be read: {reason}. Pass {expected}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise wrong(f"{name}, line {line}: not UTF-8. Save the file as UTF-8 text.") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise wrong(f"{name}, line {line}: a null character, which no text has. Pass {expected}.")
    return text


def text_lines(text: str) -> list[str]:
    """The lines of a text file. Unlike `splitlines()`, a page break or U+2028 ends none: a text can contain them."""
    return re.split(r"\r\n?|\n", text)


@contextmanager
def long_cells() -> Iterator[None]:
    """Inside, `csv` reads cells as long as a file; its own limit is shorter than the texts that rhumbline accepts.

    The limit holds for the whole process, so it is restored.
    """
    before = csv.field_size_limit(LARGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_json(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> Any:
    """The value of a JSON file. Raises `wrong`."""
    try:
        return _shallow(json.loads(_decoded(path, wrong, expected, option)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RhumblineError):
            raise
        raise wrong(f"{path} is not JSON: {error}. Pass {expected}.") from error


def read_toml(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> dict[str, Any]:
    """The table of a TOML file. Raises `wrong`."""
    try:
        return _shallow(tomllib.loads(_decoded(path, wrong, expected, option)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RhumblineError):
            raise
        raise wrong(f"{path} is not TOML: {error}. Pass {expected}.") from error


def _shallow(value: Any) -> Any:
    """The value; ValueError if it is nested so deeply that its parts cannot be printed or compared."""
    parts = [value]
    for _ in range(DEEPEST):
        parts = [
            inner
            for part in parts
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
        if not parts:
            return value
    raise ValueError(f"more than {DEEPEST} levels of nesting")


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
