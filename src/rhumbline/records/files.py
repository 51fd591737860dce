"""Read and write single files: canonical JSON and its hash, atomic writes, JSON Lines, headers of safetensors files.

Guarantees: a written file is complete or absent, and errors state the file and the next step. Independent of the
content of a file.
"""

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from rhumbline.errors import OutputError, RhumblineError

LARGEST = 2**31
"""Bytes of a file that is read whole."""


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no spare spaces: the same value always has the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(value: Any) -> str:
    """Hash of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """`value` with NaN and infinities turned into null, as JSON has neither; nested containers included."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(k): finite(v) for k, v in value.items()}
        case str() | bool() | int() | None:
            return value
        case Iterable():
            return [finite(v) for v in value]
        case _:
            raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under `path` only once it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # On a disk that went read-only not even this can be removed; the next run removes it.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Nothing that was already there is lost; "
            "free the disk or fix the permissions and run the same command again."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; OutputError when it cannot be written."""
    with _writing(path) as f:
        f.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable, with NaN as null."""
    write_bytes(path, (json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """A text file that lines are added to, each on disk at its end; OutputError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    with log:
        yield log


@contextmanager
def written(place: Path) -> Iterator[None]:
    """OutputError if a library, safetensors included, cannot write a file of `place` while the context is active."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{place} cannot be written: {reason}. Free the disk or fix the permissions, and rerun the same command."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file; OutputError when it is missing or malformed."""
    try:
        return _parsed(_content(path))
    except ValueError as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, as `object_pairs_hook` of `json.loads`; ValueError if a name occurs twice."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the field {max(names, key=names.count)!r} occurs twice in an object")
    return dict(pairs)


def _parsed(data: bytes) -> Any:
    """A JSON value; ValueError for NaN, infinities, half of a surrogate pair, and values that are too deep."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error


def _content(path: Path) -> bytes:
    """The bytes of a regular file; OutputError for a missing file, and for anything else than a file."""
    try:
        with open(check_regular(path), "rb") as f:
            return f.read()
    except FileNotFoundError:
        raise OutputError(f"{path} is missing: is this a finished run directory?") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}.") from error


def check_regular(path: Path) -> Path:
    """The path of a file of rhumbline; OutputError if it is a directory, a link, a pipe or a device, or too large."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link to another place" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise OutputError(f"{path} is {kind}. Remove it, and compute it again.")
    if status.st_size > LARGEST:
        raise OutputError(f"{path} has {status.st_size:,} bytes, more than rhumbline writes there. Remove it.")
    return path


def inside(folder: Path, name: str, wrong: type[RhumblineError]) -> Path:
    """`folder / name`, for a name that comes from a file; `wrong` unless it is a plain file name."""
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise wrong(f"{name!r} is no plain file name, so it may be outside {folder}. Correct the file that names it.")
    return folder / name


def read_rows(path: Path) -> list[dict]:
    """Read a JSON Lines file; OutputError names the faulty line."""
    rows = []
    for number, line in enumerate(_content(path).splitlines(), 1):
        try:
            row = _parsed(line)
        except ValueError as error:
            raise OutputError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise OutputError(f"{path}, line {number}: {type(row).__name__} found, expected a JSON object.")
        rows.append(row)
    return rows


def tensors_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose header is sorted, so that the same tensors and metadata have the same bytes."""
    from safetensors.torch import save

    data = save(dict(tensors), dict(metadata))
    (length,) = struct.unpack("<Q", data[:8])
    header = canonical(json.loads(data[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors to 8 bytes
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def tensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, read from its header alone."""
    try:
        with open(check_regular(path), "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"its header would have {length:,} bytes")
            metadata = _parsed(f.read(length)).get("__metadata__", {})
        return msgspec.convert(metadata, dict[str, str])
    except FileNotFoundError:
        raise OutputError(f"{path} is missing: is this a finished run directory?") from None
    except (OSError, ValueError, AttributeError, msgspec.ValidationError, struct.error) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is not a safetensors file: {error}") from error
