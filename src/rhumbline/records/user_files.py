"""Files that a user passes: regular files of bounded size, as text, JSON or TOML. Independent of their meaning."""

import json
import stat
import tomllib
from pathlib import Path
from typing import Any

from rhumbline.errors import RhumblineError

LARGEST = 2**26
"""Bytes of a file of texts or options."""


def read_text(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> str:
    """The text of a file without a byte order mark. Raises `wrong`, which states what the file is and what is expected.

    `option` is the option that named the file.
    """
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
    except (OSError, ValueError) as error:  # ValueError: the name contains a null character
        reason = getattr(error, "strerror", None) or error
        raise wrong(f"{name:.200} cannot be read: {reason}. Pass {expected}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise wrong(f"{name}, line {line}: not UTF-8. Save the file as UTF-8 text.") from None


def read_json(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> Any:
    """The value of a JSON file. Raises `wrong`."""
    try:
        return json.loads(read_text(path, wrong, expected, option))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RhumblineError):
            raise
        raise wrong(f"{path} is not JSON: {error}. Pass {expected}.") from error


def read_toml(path: str | Path, wrong: type[RhumblineError], expected: str, option: str = "") -> dict[str, Any]:
    """The table of a TOML file. Raises `wrong`."""
    try:
        return tomllib.loads(read_text(path, wrong, expected, option))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RhumblineError):
            raise
        raise wrong(f"{path} is not TOML: {error}. Pass {expected}.") from error
