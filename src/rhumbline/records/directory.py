"""The run directory: protocol, tables, tensors, hashes, atomic writes, resume. The only file that knows its layout.

Promises: a file is either whole or absent, whatever kills the process; every file names the protocol that it was made
under; a directory of another protocol is refused, and so is a second process in the same directory.
Knows nothing of models, directions or verdicts.
"""

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rhumbline.errors import OutputError, ProtocolError
from rhumbline.records.artefacts import OF_RUN, OF_SEED
from rhumbline.records.codec import R, convert, to_json
from rhumbline.records.files import (
    file_sha256,
    finite,
    read_json,
    read_rows,
    sha256,
    tensors_metadata,
    write_bytes,
    write_json,
)

SCHEMA = 1
QUICK = "quick"
"""Folder of a quick run in the directory of the whole run: a run directory of its own."""
_LOCK = ".lock"


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
                others = sorted(p.name for p in folder.iterdir() if p.name not in (_LOCK, QUICK))
                if others:
                    raise OutputError(
                        f"{folder} is not empty ({', '.join(others[:3])}) and holds no protocol. Give another --out."
                    )
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
        """Write a record to any file of the run directory; returns it as it will be read."""
        self.save(path, to_json(record))
        return self.read_as(type(record), path)

    def read_rows_as(self, kind: type[R], path: Path) -> list[R]:
        """Rows from any JSON Lines file of the run directory. Raises OutputError."""
        return [_converted(row, kind, path) for row in self.load_rows(path)]

    def write_rows_as(self, rows: Iterable[R], path: Path) -> None:
        """Write rows to any JSON Lines file of the run directory, each with the protocol's hash."""
        self.save_rows(path, [to_json(row) for row in rows])

    def save(self, path: Path, value: Mapping[str, Any]) -> dict:
        """Write a JSON artefact with the protocol's hash, and return it as it will be read."""
        write_json(path, {"protocol_sha256": self.protocol_sha256, **value})
        return self.load(path)

    def load(self, path: Path) -> dict:
        """Read a JSON artefact; one made under another protocol is refused."""
        value = read_json(path)
        if not isinstance(value, dict) or "protocol_sha256" not in value:
            raise OutputError(
                f"{path} is not what rhumbline writes there: protocol_sha256 is missing. Compute it again."
            )
        self._check(path, value["protocol_sha256"])
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
            and not name.startswith(("figures/", "judgements/", "analyses/", "evaluations/", f"{QUICK}/"))
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


def _converted(value: Any, kind: type[R], path: Path) -> R:
    try:
        return convert(value, kind)
    except msgspec.ValidationError as error:
        raise OutputError(
            f"{path} is not what rhumbline writes there: {error}. Compute it again, or use the version that made it."
        ) from error
