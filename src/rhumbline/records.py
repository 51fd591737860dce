"""The run directory: protocol, tables, tensors, hashes, atomic writes, resume. The only file that knows its layout.

Promises: a file is either whole or absent, whatever kills the process; every file names the protocol that it was made
under; a directory of another protocol is refused, and so is a second process in the same directory.
Knows nothing of models, directions or verdicts.
"""

import fcntl
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rhumbline.errors import OutputError, ProtocolError, RhumblineError

SCHEMA = 1
_LOCK = ".lock"


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


def read_json(path: Path) -> Any:
    """Read a JSON file; OutputError when it is missing or malformed."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise OutputError(f"{path} is missing: is this a finished run directory?") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def read_given(path: Path, wrong: type[RhumblineError], expected: str) -> Any:
    """Read a JSON file that the user gave; `wrong` says what is the matter with it, and what was expected."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise wrong(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise wrong(f"{path} is not JSON: {error}. Give {expected}.") from error


def read_rows(path: Path) -> list[dict]:
    """Read a JSON Lines file; OutputError names the faulty line."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise OutputError(f"{path} is missing: is this a finished run directory?") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise OutputError(f"{path}, line {number}: not JSON: {error}") from error
    return rows


def tensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, read from its header alone."""
    try:
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            return json.loads(f.read(length)).get("__metadata__", {})
    except FileNotFoundError:
        raise OutputError(f"{path} is missing: is this a finished run directory?") from None
    except (OSError, ValueError, struct.error) as error:
        raise OutputError(f"{path} is not a safetensors file: {error}") from error


@dataclass(frozen=True)
class RunDirectory:
    """An open run directory: where it is and the protocol that everything in it was made under."""

    path: Path
    protocol: Mapping[str, Any]
    protocol_sha256: str

    @classmethod
    def read(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory for reading; OutputError when it is none."""
        folder = Path(path)
        if not (folder / "protocol.json").is_file():
            raise OutputError(f"{folder} is not a run directory: it has no protocol.json.")
        protocol = read_json(folder / "protocol.json")
        if not isinstance(protocol, dict):
            raise OutputError(f"{folder / 'protocol.json'} is not a JSON object.")
        if protocol.get("schema") != SCHEMA:
            raise OutputError(
                f"{folder} has run-directory schema {protocol.get('schema')!r}; this rhumbline reads {SCHEMA}."
            )
        return cls(folder, protocol, sha256(protocol))

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, protocol: Mapping[str, Any]) -> Iterator["RunDirectory"]:
        """Create the directory, or resume it if it holds the same protocol; ProtocolError if it holds another.

        Held by one process at a time; the lock goes with the process, so a killed run leaves none behind.
        """
        folder = Path(path)
        wanted = json.loads(json.dumps(finite({"schema": SCHEMA, **protocol})))
        with locked(folder):
            for torn in folder.rglob(".*.tmp"):
                torn.unlink()
            if (folder / "protocol.json").exists():
                found = cls.read(folder).protocol
                if found != wanted:
                    raise ProtocolError(
                        f"{folder} holds a run of another protocol (it differs in: "
                        f"{', '.join(_differing(found, wanted))}). Give another --out, or the same options to resume."
                    )
            else:
                others = sorted(p.name for p in folder.iterdir() if p.name != _LOCK)
                if others:
                    raise OutputError(
                        f"{folder} is not empty ({', '.join(others[:3])}) and holds no protocol. Give another --out."
                    )
                write_json(folder / "protocol.json", wanted)
            yield cls(folder, wanted, sha256(wanted))

    def seed(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.path / f"seed-{seed}"

    def save(self, path: Path, value: Mapping[str, Any]) -> dict:
        """Write a JSON artefact with the protocol's hash, and return it as it will be read."""
        write_json(path, {"protocol_sha256": self.protocol_sha256, **value})
        return self.load(path)

    def load(self, path: Path) -> dict:
        """Read a JSON artefact; one made under another protocol is refused."""
        value = read_json(path)
        self._check(path, value.get("protocol_sha256") if isinstance(value, dict) else None)
        return value

    def stage(self, path: Path, compute: Callable[[], Mapping[str, Any]]) -> dict:
        """The artefact at `path`, computed only if it is not there yet."""
        return self.load(path) if path.is_file() else self.save(path, compute())

    def save_rows(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict]:
        """Write JSON Lines, every row with the protocol's hash, and return the rows as they will be read."""
        lines = [
            json.dumps(finite({**row, "protocol_sha256": self.protocol_sha256}), ensure_ascii=False) for row in rows
        ]
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        return self.load_rows(path)

    def load_rows(self, path: Path) -> list[dict]:
        """Read JSON Lines; a row made under another protocol is refused."""
        rows = read_rows(path)
        for row in rows:
            self._check(path, row.get("protocol_sha256"))
        return rows

    def save_tensors(self, path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Write a safetensors file with the protocol's hash in its metadata."""
        from safetensors.torch import save

        write_bytes(path, save(dict(tensors), {**metadata, "protocol_sha256": self.protocol_sha256}))

    def load_tensors(self, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
        """Read a safetensors file and its metadata; one made under another protocol is refused."""
        from safetensors.torch import load_file

        metadata = tensors_metadata(path)
        self._check(path, metadata.get("protocol_sha256"))
        return load_file(path), metadata

    def manifest(self) -> dict[str, str]:
        """Hash of every artefact that a verdict rests on, by its path inside the directory."""
        kept = sorted(
            p for p in self.path.rglob("*") if p.is_file() and p.suffix in {".json", ".jsonl", ".safetensors"}
        )
        inside = {p.relative_to(self.path).as_posix(): p for p in kept}
        skip = {"results.json", "timings.json"}
        return {
            name: file_sha256(p)
            for name, p in inside.items()
            if name not in skip
            and not name.startswith(("figures/", "judgements/", "analyses/", "evaluations/"))
            and not any(part[0] == "." for part in name.split("/"))
        }

    def _check(self, path: Path, found: Any) -> None:
        if found != self.protocol_sha256:
            raise ProtocolError(
                f"{path} was made under another protocol ({str(found)[:12]}, this run's is "
                f"{self.protocol_sha256[:12]}). Remove it, or give another --out."
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory, made if need be, while open; OutputError where another process does.

    The lock is the process's and goes with it: a lock file that a dead process left behind holds nobody up.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as a run directory: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{folder} is in use by another rhumbline process. Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise OutputError(f"{folder} cannot be locked: {error.strerror}.") from error
        yield


def _differing(a: Any, b: Any, at: str = "") -> list[str]:
    """Dotted names of the fields in which two protocols differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d for k in sorted(a.keys() | b.keys()) for d in _differing(a.get(k), b.get(k), f"{at}.{k}" if at else k)
        ]
    return [] if a == b else [at]
