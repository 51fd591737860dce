"""The run directory: protocol, tables, tensors, hashes, atomic writes, resume. The only file that knows its layout.

Promises: a file is either whole or absent, whatever kills the process; every file names the protocol that it was made
under; a directory of another protocol is refused, and so is a second process in the same directory.
Knows nothing of models, directions or verdicts.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from rhumbline.errors import OutputError, ProtocolError
from rhumbline.records.artefacts import OF_RUN, OF_SEED
from rhumbline.records.codec import JsonObject, R, convert, to_json
from rhumbline.records.files import (
    check_regular,
    file_sha256,
    finite,
    read_json,
    read_rows,
    sha256,
    tensors_bytes,
    tensors_metadata,
    write_bytes,
    write_json,
)
from rhumbline.records.page_files import FIGURES, MANIFEST

SCHEMA = 1
QUICK = "quick"
"""Folder of a quick run in the directory of the whole run: a run directory of its own."""
PARTS = ".parts"
"""Folder with the parts of an analysis that is not finished."""
LONGEST_NAME = 255
"""Bytes of a file name, on common file systems."""
LOCK = ".lock"
JOB_LOG = "jobs.log"
"""One line for each job that another process or machine ran."""
_ARTEFACTS = (".json", ".jsonl", ".safetensors")
_WRITTEN_LATER = (
    "results.json", "results.json.sig", "results.json.minisig", "timings.json", JOB_LOG, MANIFEST, f"{MANIFEST}.sig",
    f"{MANIFEST}.minisig", "reproduction.json",
    "analyses/*.json", "judgements/*.json", "judgements/*.jsonl", "judgements/labels-*.csv", "evaluations/*.json",
    "evaluations/*.answers",
)  # fmt: skip


def quick_run_in(folder: Path) -> str:
    """A sentence that names the finished quick run in a folder; empty without one."""
    return f" A quick run lies in {folder / QUICK}." if (folder / QUICK / "results.json").exists() else ""


class InUseError(OutputError):
    """Another process holds the directory."""


@dataclass(frozen=True)
class RunDirectory:
    """An open run directory: where it is and the protocol that everything in it was made under."""

    path: Path
    protocol: JsonObject
    protocol_sha256: str

    @classmethod
    def read(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory for reading; OutputError when it is none."""
        folder = Path(path)
        if not (folder / "protocol.json").exists():
            raise OutputError(f"{folder} is not a run directory: it has no protocol.json.{quick_run_in(folder)}")
        check_entries(folder)
        protocol = read_json(folder / "protocol.json")
        if not isinstance(protocol, dict):
            raise OutputError(f"{folder / 'protocol.json'} is not a JSON object.")
        _check_schema(folder / "protocol.json", protocol.get("schema"))
        return cls(folder, protocol, sha256(protocol))

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, protocol: JsonObject) -> Iterator["RunDirectory"]:
        """Create the directory, or resume it if it holds the same protocol; ProtocolError if it holds another.

        Held by one process at a time; the lock goes with the process, so a killed run leaves none behind.
        """
        folder = Path(path)
        wanted = json.loads(json.dumps(finite({"schema": SCHEMA, **protocol})))
        check_entries(folder)
        with locked(folder):
            for torn in folder.rglob(".*.tmp"):
                torn.unlink()
            if (folder / "protocol.json").exists():
                _check_same(folder, cls.read(folder).protocol, wanted)
            else:
                _check_empty(folder)
                write_json(folder / "protocol.json", wanted)
            yield cls(folder, wanted, sha256(wanted))

    def seed(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.path / f"seed-{seed}"

    def file_of(self, kind: type, seed: int | None = None) -> Path:
        """The file of a record: in the folder of `seed`, or beside the seeds where the record belongs to the run."""
        if kind in OF_RUN:
            return self.path / OF_RUN[kind]
        if seed is None:
            raise ValueError(f"{kind.__name__} is a file of a seed: give the seed.")
        return self.seed(seed) / OF_SEED[kind]

    def has(self, kind: type, seed: int | None = None) -> bool:
        """Whether the file of a record is there."""
        return self.file_of(kind, seed).is_file()

    def read_record(self, kind: type[R], seed: int | None = None) -> R:
        """The record of a seed or of the run, from its file. Raises OutputError."""
        return self.read_as(kind, self.file_of(kind, seed))

    def write_record(self, record: R, seed: int | None = None) -> R:
        """Write a record to its file with the protocol's hash; returns it as it will be read."""
        return self.write_as(record, self.file_of(type(record), seed))

    def read_protocol(self, kind: type[R]) -> R:
        """The protocol, or a part of it, as a record. Raises OutputError that names the faulty field."""
        return _converted(self.protocol, kind, self.path / "protocol.json")

    def read_rows(self, kind: type[R], seed: int) -> list[R]:
        """The rows of a JSON Lines file of a seed. Raises OutputError."""
        return self.read_rows_as(kind, self.file_of(kind, seed))

    def read_as(self, kind: type[R], path: Path) -> R:
        """A record from any file of the run directory. Raises OutputError that names the faulty field."""
        return _converted(self.load(path), kind, path)

    def write_as(self, record: R, path: Path) -> R:
        """Write a record to any file of the run directory, with the protocol's hash; returns it as it will be read."""
        write_json(path, {"protocol_sha256": self.protocol_sha256, **to_json(record)})
        return self.read_as(type(record), path)

    def read_rows_as(self, kind: type[R], path: Path) -> list[R]:
        """Rows from any JSON Lines file of the run directory. Raises OutputError."""
        rows = read_rows(path)
        for row in rows:
            self._check(path, row.get("protocol_sha256"))
        return [_converted(row, kind, path) for row in rows]

    def write_rows_as(self, rows: Iterable[R], path: Path) -> None:
        """Write rows to any JSON Lines file of the run directory, each with the protocol's hash."""
        values = [to_json(row) | {"protocol_sha256": self.protocol_sha256} for row in rows]
        write_bytes(path, "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values).encode())

    def load(self, path: Path) -> JsonObject:
        """The JSON value of an artefact; one made under another protocol is refused."""
        value = read_json(path)
        if not isinstance(value, dict) or "protocol_sha256" not in value:
            raise OutputError(
                f"{path} is not what rhumbline writes there: protocol_sha256 is missing. Compute it again."
            )
        _check_schema(path, value.get("schema", SCHEMA))
        self._check(path, value["protocol_sha256"])
        return value

    def save_tensors(self, path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Write a safetensors file with the protocol's hash in its metadata."""
        write_bytes(path, tensors_bytes(tensors, {**metadata, "protocol_sha256": self.protocol_sha256}))

    def load_tensors(self, path: Path) -> dict[str, Any]:
        """The tensors of a safetensors file, by name; one made under another protocol is refused."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._check(path, tensors_metadata(path).get("protocol_sha256"))
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise OutputError(f"{path} cannot be read: {error}. Remove it, and compute it again.") from error

    @property
    def name(self) -> str:
        """Name of the directory for readers; that of a quick run begins with the directory of the whole one."""
        path = self.path.absolute()
        return f"{path.parent.name}/{QUICK}" if path.name == QUICK else path.name

    def manifest(self) -> dict[str, str]:
        """Hash of every artefact that a verdict rests on, by its path inside the directory."""
        return {name: file_sha256(self.path / name) for name in self.files() if _is_artefact(name)}

    def files(self) -> list[str]:
        """Path inside the directory of every entry that is not a folder.

        Without the lock, a quick run and the parts of an unfinished analysis.
        """
        entries = (p for p in self.path.rglob("*") if p.is_symlink() or not p.is_dir())
        names = (p.relative_to(self.path).as_posix() for p in entries)
        return sorted(name for name in names if name != LOCK and name.split("/")[0] not in (QUICK, PARTS))

    def _check(self, path: Path, found: Any) -> None:
        if found != self.protocol_sha256:
            raise ProtocolError(
                f"{path} was made under another protocol ({str(found)[:12]}, this run's is "
                f"{self.protocol_sha256[:12]}). Remove it, or give another --out."
            )


def _check_schema(path: Path, given: Any) -> None:
    """OutputError unless a file has the version of run directories that is read here."""
    if type(given) is not int or given != SCHEMA:  # True equals 1
        raise OutputError(
            f"{path} has version {repr(given)[:40]} of run directories (schema), and this rhumbline reads version "
            f"{SCHEMA}. Use the version of rhumbline that wrote it."
        )


def _is_artefact(name: str) -> bool:
    """Whether a file was written by the run and is part of its results."""
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return name.endswith(_ARTEFACTS) and not is_hidden and not is_written_later(name) and not name.startswith(FIGURES)


def is_written_later(name: str) -> bool:
    """Whether a file is written after the manifest: results, timings, and what later commands compute."""
    return any(fnmatchcase(name, pattern) for pattern in _WRITTEN_LATER)


def check_output(path: str | Path, known: JsonObject | None = None) -> None:
    """Raise OutputError unless a run can be written to `path`: a run directory, or an empty or new one.

    `known` are the fields of the protocol that no model is needed for; ProtocolError if the run directory has others.
    Called before a model is loaded. Writes nothing.
    """
    check_writable(path)
    folder = Path(path)
    if (folder / "protocol.json").exists():
        if known is not None:
            found, wanted = RunDirectory.read(folder).protocol, json.loads(json.dumps(finite(known)))
            _check_same(folder, {name: found.get(name) for name in wanted}, wanted)
    elif folder.exists():
        _check_empty(folder)


def _check_same(folder: Path, found: JsonObject, wanted: JsonObject) -> None:
    if found == wanted:
        return
    differing = _differing(found, wanted)
    if differing == ["model.fingerprint"]:
        raise ProtocolError(
            f"{folder} holds a run of other weights under this name (it differs in: model.fingerprint): of another "
            "revision or directory, or they were replaced since. Give another --out, remove this directory, or pass "
            "the weights of that run to resume."
        )
    raise ProtocolError(
        f"{folder} holds a run of another protocol (it differs in: {', '.join(differing)}). Give another --out, or the "
        "same options to resume."
    )


def check_writable(path: str | Path) -> None:
    """Raise OutputError unless `path` is a directory that can be written to, or can become one. Writes nothing."""
    folder = Path(path)
    try:
        folder.lstat()
        existing = folder
    except FileNotFoundError:
        existing = next(p for p in folder.absolute().parents if p.exists())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"--out {path!s:.100} cannot be a directory: {reason}. Pass another --out.") from error
    if not existing.is_dir():
        raise OutputError(f"--out {folder}: {existing} is not a directory. Pass another --out.")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        raise OutputError(f"--out {path!s:.100}: a name is too long. Pass another --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"--out {folder}: {existing} is not writable. Pass another --out, or change its permissions.")


def check_outside_runs(path: str | Path) -> None:
    """Raise OutputError unless `path` can be written to and is no run directory, whose report would be replaced."""
    check_writable(path)
    if (Path(path) / "protocol.json").exists():
        raise OutputError(f"--out {path} is the directory of a run, whose files would be replaced. Pass another --out.")


def check_sheet(path: str | Path, record: str) -> None:
    """Raise OutputError unless a sheet with this record can be written to `path`.

    That is a new or empty directory, or one with an earlier sheet of the same analysis, which is replaced.
    """
    check_outside_runs(path)
    folder = Path(path)
    if folder.is_dir() and any(p.name != PARTS for p in folder.iterdir()) and not (folder / record).is_file():
        raise OutputError(f"--out {folder} is not empty and does not contain {record}. Pass another --out.")


def _check_empty(folder: Path) -> None:
    others = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK, QUICK))
    if others:
        raise OutputError(f"{folder} is not empty ({', '.join(others[:3])}) and holds no protocol. Pass another --out.")


def check_entries(folder: Path) -> None:
    """Raise OutputError if anything in a directory is a link, a pipe or a device: none of its names leads elsewhere."""
    for path in (Path(parent, name) for parent, *names in os.walk(folder) for name in (*names[0], *names[1])):
        if path.is_symlink() or not path.is_dir():
            with suppress(FileNotFoundError):  # a temporary file of another process
                check_regular(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory for this process; create it if it is missing. Raises InUseError if another process holds it.

    The operating system releases the lock when the process ends, so a lock file of a killed process holds nothing.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(
            f"{folder} is in use by another rhumbline process. Wait for it, or pass another --out."
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder} cannot be used as a run directory: {reason}. Pass another --out.") from error
    try:
        yield
    finally:
        lock.release()


def _differing(a: Any, b: Any, at: str = "") -> list[str]:
    """Dotted names of the fields in which two protocols differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d for k in sorted(a.keys() | b.keys()) for d in _differing(a.get(k), b.get(k), f"{at}.{k}" if at else k)
        ]
    return [] if a == b else [at]


def _converted(value: Any, kind: type[R], path: Path) -> R:
    try:
        return convert(value, kind)
    except msgspec.ValidationError as error:
        raise OutputError(
            f"{path} is not what rhumbline writes there: {error}. Compute it again, or use the version that made it."
        ) from error
