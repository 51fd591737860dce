"""Hostile values of options, by kind: texts, numbers, and files that a user passes.

A kind is a table of named values. The kinds of files are in `hostile_files` and `hostile_artefacts`. Independent of the
commands.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONG = "x" * 5000
DEEP = 10_000
"""Brackets of a value that no recursive reader survives."""
SURROGATE = "\udcff"
"""An undecodable byte of the command line, as Python represents it."""


@dataclass(frozen=True)
class Value:
    """One hostile value."""

    make: Callable[[Path], str]
    """The argument; files that it needs are written in the folder."""
    is_late: bool = False
    """Whether only the loaded model shows that the value is wrong."""
    codes: tuple[int, ...] = (2,)
    """Exit codes that refuse it."""
    names: tuple[str, ...] = ()
    """Words of the message, one of which is enough; the option and the value always are."""


Kind = Mapping[str, Value]


def just(*values: str, late: bool = False, codes: Sequence[int] = (2,)) -> dict[str, Value]:
    """Values that need no files."""
    return {ascii(value)[:40]: Value(lambda folder, value=value: value, late, tuple(codes)) for value in values}


# -- texts and numbers ------------------------------------------------------------------------------------------------

TEXT = just(LONG, codes=(2, 3)) | just("", SURROGATE, f"a{SURROGATE}b", "a\0b")
"""No option takes these, whatever its kind."""
SWITCH = {"a value": Value(lambda folder: "yes")}


def whole(least: int) -> dict[str, Value]:
    """Not a whole number of at least `least`, or more than any computer counts to."""
    return just("", "x", "1.5", "nan", "1e3", "0x10", "9" * 6000, str(10**30), str(10**19), str(least - 1))


def real(*outside: str) -> dict[str, Value]:
    """Not a finite number, or outside the range of the option."""
    return just("", "x", "nan", "inf", "-inf", "1e999", "1,5", "1_0", "\u0661.5", "0x1p3", *outside)


# -- files ------------------------------------------------------------------------------------------------------------


def file(name: str, content: str | bytes, **options) -> Value:
    """A regular file."""

    def make(folder: Path) -> str:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(data)
        return str(folder / name)

    return Value(make, **{"names": (Path(name).stem,), **options})


def place(name: str, make: Callable[[Path], object], **options) -> Value:
    """Something else than a regular file."""

    def made(folder: Path) -> str:
        make(folder / name)
        return str(folder / name)

    return Value(made, **{"names": (Path(name).stem,), **options})


def sparse(size: int) -> Callable[[Path], None]:
    """A file of this size that takes no room."""

    def make(path: Path) -> None:
        with open(path, "wb") as f:
            f.truncate(size)

    return make


def places(suffix: str = "", **options) -> dict[str, Value]:
    """Names under which there is no file that can be read."""
    name = f"hostile{suffix}"
    return {
        "missing": place(name, lambda path: None, **options),
        "a directory": place(name, Path.mkdir, **options),
        "a pipe": place(name, os.mkfifo, **options),
        "a device": place(name, lambda path: path.symlink_to("/dev/zero"), **options),
        "a link to itself": place(name, lambda path: path.symlink_to(path), **options),
        "a name that is too long": Value(
            lambda folder: str(folder / f"{'x' * 5000}{suffix}"), names=("xxx",), **options
        ),
        "a path that is too deep": Value(lambda folder: str(folder / ("x/" * 3000) / name), names=("x/x",), **options),
        "below a file": Value(lambda folder: _below(folder, name), names=(name,), **options),
    }


def _below(folder: Path, name: str) -> str:
    (folder / "file").write_text("")
    return str(folder / "file" / name)


def texts(suffix: str = "", **options) -> dict[str, Value]:
    """Files whose content is no text, and names without a file."""
    name = f"hostile{suffix}"
    return {
        **places(suffix, **options),
        "empty": file(name, "", **options),
        "bytes": file(name, b"\xff\xfe\x00\x80" * 100, **options),
        "100 MB": place(name, sparse(100 * 2**20), **options),
        "zeros": place(name, sparse(2**20), **options),
    }


def contents(suffix: str, **named: str) -> dict[str, Value]:
    """Files of a format, by what is wrong with them."""
    return {what.replace("_", " "): file(f"hostile{suffix}", content) for what, content in named.items()}


JSON = texts(".json") | contents(
    ".json",
    cut_off='{"n_layers": 3, "cand',
    deep="[" * DEEP,
    deep_objects='{"a":' * DEEP + "1" + "}" * DEEP,
    a_list="[1, 2]",
    null="null",
    a_text='"x"',
    many_digits='{"n_layers": ' + "9" * 5000 + "}",
    infinity='{"n_layers": Infinity, "candidates": []}',
    no_fields="{}",
    two_values="{} {}",
)
TOML = texts(".toml") | contents(
    ".toml",
    cut_off="a = [1, ",
    deep="a = " + "[" * DEEP,
    deep_tables="[" + "a." * 3000 + "a]\nb = 1",
    unknown_field="banana = 1",
    many_digits="seeds = [" + "9" * 5000 + "]",
    json='{"a": 1}',
    control_characters="a = '\x1b[31m'",
)
