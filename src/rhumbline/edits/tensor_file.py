"""Read the header of a safetensors file, and rewrite the file with edited tensors, one tensor in memory.

The format is eight bytes with the length of the header, the header as JSON (name -> dtype, shape, offsets), and the
data. The result is the file that safetensors itself would write, byte for byte. Independent of the meaning of the
tensors.
"""

import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rhumbline.errors import ModelError
from rhumbline.models.weight_files import safetensors_header

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""Formats whose values can be edited; any other format is copied as bytes."""
CHUNK = 1 << 24
"""Bytes of one copy operation."""


class Entry(NamedTuple):
    """Format and offset of one tensor in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""
    size: int
    """Bytes."""


class TensorFile(NamedTuple):
    """The header of a safetensors file."""

    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path) -> "TensorFile":
        """Read the header only; ModelError if the file is torn or not a safetensors file."""
        safetensors_header(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {}
        for name, e in header.items():
            first, end = e["data_offsets"]
            entries[name] = Entry(e["dtype"], tuple(e["shape"]), 8 + length + first, end - first)
        return cls(path, metadata, entries)

    def tensor(self, name: str) -> Tensor:
        """The values of one tensor, in their own memory; ModelError if the format cannot be edited."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ModelError(
                f"{self.path}: {name} is stored as {entry.dtype}, and only {', '.join(DTYPES)} can be edited file by "
                "file. Edit it in memory, without --sharded."
            )
        content = bytearray(entry.size)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(content) != entry.size:
                raise ModelError(f"{self.path}: {name} is cut short. Is the download complete?")
        return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def same_content(file: TensorFile, name: str, other_file: TensorFile, other: str) -> bool:
    """Whether two stored tensors have the same format, shape and bytes; compared in parts of CHUNK bytes."""
    a, b = file.entries[name], other_file.entries[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with file.path.open("rb") as first, other_file.path.open("rb") as second:
        first.seek(a.start)
        second.seek(b.start)
        parts = (min(CHUNK, a.size - at) for at in range(0, a.size, CHUNK))
        return all(first.read(size) == second.read(size) for size in parts)


def write_edited(
    source: TensorFile, target: Path, edits: Mapping[str, Callable[[Tensor], Tensor]], copies: Mapping[str, str]
) -> None:
    """Write the tensors of a file, some of them edited or copied to a further name; atomic.

    `edits`: name -> function of its values, with a result of the same shape and dtype that may use their memory.
    `copies`: further name -> the tensor whose unedited bytes it gets. All other tensors are copied as bytes.
    """
    origin = {name: name for name in source.entries} | dict(copies)
    # safetensors stores wide formats first, so that every tensor is aligned, and sorts names within a format.
    order = sorted(origin, key=lambda name: (-_width(source.entries[origin[name]]), name))
    header: dict[str, Any] = {"__metadata__": dict(source.metadata)} if source.metadata else {}
    at = 0
    for name in order:
        entry = source.entries[origin[name]]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (at, at + entry.size)}
        at += entry.size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out, source.path.open("rb") as file:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            for name in order:
                entry = source.entries[origin[name]]
                if name not in edits:
                    _copy(file, entry, out)
                    continue
                edited = edits[name](source.tensor(name)).contiguous()
                out.write(edited.view(-1).view(torch.uint8).numpy().data)
                del edited
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _width(entry: Entry) -> int:
    """Bits of one value."""
    count = prod(entry.shape)
    return 8 * entry.size // count if count else 0


def _copy(file: BinaryIO, entry: Entry, out: BinaryIO) -> None:
    file.seek(entry.start)
    left = entry.size
    while left:
        part = file.read(min(CHUNK, left))
        if not part:
            raise ModelError(f"{file.name} is cut short. Is the download complete?")
        out.write(part)
        left -= len(part)
