"""Hostile direction files and run directories, and hostile changes of a run. Independent of the commands."""

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from hostile_values import DEEP, Kind, Value, file, just, place, places
from safetensors.torch import save

# -- directions -------------------------------------------------------------------------------------------------------


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header, and a length that may be another one."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor_file(*tensors: torch.Tensor, **metadata: str) -> Callable[[Path], object]:
    """A file of well-formed tensors."""
    names = ("direction", "second", "third")
    return lambda path: path.write_bytes(save(dict(zip(names, tensors, strict=False)), metadata or None))


EXECUTED = "executed"
"""File of the current directory that exists once the code of a pickle ran."""


class _Executes:
    """Code that runs when its pickle is read."""

    def __reduce__(self):
        return (os.system, (f"touch {EXECUTED}",))


def _header(**entry: object) -> bytes:
    return json.dumps({"direction": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}}).encode()


def numpy_file(array: np.ndarray) -> Callable[[Path], object]:
    """A .npy file."""
    return lambda path: np.save(path, array, allow_pickle=True)


def saved(value: Callable[[], object]) -> Callable[[Path], object]:
    """A .pt file."""

    def save(path: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # some kinds of tensors are new or deprecated
            torch.save(value(), path)

    return save


def compressed(path: Path) -> None:
    """A .pt file that is small on disk and large in memory."""
    torch.save(torch.ones(2**24), path)
    with zipfile.ZipFile(path) as old:
        parts = {part: old.read(part) for part in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part, data in parts.items():
            new.writestr(part, data)


def control_vector(*names: str) -> Callable[[Path], object]:
    """A GGUF file with vectors of these names."""

    def make(path: Path) -> None:
        writer = gguf.GGUFWriter(str(path), "controlvector")
        for name in names:
            writer.add_tensor(name, np.ones(64, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return make


ORIGIN = {"format": "rhumbline-direction-1"}
DIRECTION_FILES: dict[str, tuple[str, Callable[[Path], object] | bytes]] = {
    "a header of 2**40 bytes": (".safetensors", safetensors(b"{}", 2**40)),
    "a header of 2**63 bytes": (".safetensors", safetensors(b"{}", 2**63)),
    "a header that is a list": (".safetensors", safetensors(b"[]")),
    "a deep header": (".safetensors", safetensors(b"[" * DEEP)),
    "a header of numbers": (".safetensors", safetensors(b'{"direction": 1}')),
    "metadata is a list": (".safetensors", safetensors(b'{"__metadata__": [1]}')),
    "metadata has numbers": (".safetensors", safetensors(b'{"__metadata__": {"layer": 1}}')),
    "no tensor": (".safetensors", safetensors(b"{}")),
    "seven bytes": (".safetensors", b"1234567"),
    "tensors of 2**40 bytes": (".safetensors", safetensors(_header(shape=[2**38], data_offsets=[0, 2**40]))),
    "data that is cut off": (".safetensors", safetensors(_header(), data=b"1234")),
    "more data than the header states": (".safetensors", safetensors(_header(), data=b"1234" * 40)),
    "an unknown dtype": (".safetensors", safetensors(_header(dtype="F99"), data=b"1234" * 4)),
    "a negative shape": (".safetensors", safetensors(_header(shape=[-4]), data=b"1234" * 4)),
    "shape (0,)": (".safetensors", tensor_file(torch.zeros(0))),
    "shape (0, 5)": (".safetensors", tensor_file(torch.zeros(0, 5))),
    "shape (5, 0)": (".safetensors", tensor_file(torch.zeros(5, 0))),
    "shape ()": (".safetensors", tensor_file(torch.tensor(1.0))),
    "four axes": (".safetensors", tensor_file(torch.ones(2, 2, 2, 2))),
    "a vector of zeros": (".safetensors", tensor_file(torch.zeros(64))),
    "NaN": (".safetensors", tensor_file(torch.full((64,), float("nan")))),
    "infinity": (".safetensors", tensor_file(torch.full((64,), float("inf")))),
    "a norm that overflows": (".safetensors", tensor_file(torch.full((64,), 1e30))),
    "whole numbers": (".safetensors", tensor_file(torch.ones(64, dtype=torch.int64))),
    "layer is a text": (".safetensors", tensor_file(torch.ones(64), layer="x", **ORIGIN)),
    "layer is negative": (".safetensors", tensor_file(torch.ones(64), layer="-3", **ORIGIN)),
    "layer has many digits": (".safetensors", tensor_file(torch.ones(64), layer="9" * 5000, **ORIGIN)),
    "position is a text": (".safetensors", tensor_file(torch.ones(64), position="x", layer="1", **ORIGIN)),
    "position is minus zero": (".safetensors", tensor_file(torch.ones(64), position="-0", layer="1", **ORIGIN)),
    "position has a zero": (".safetensors", tensor_file(torch.ones(64), position="-01", layer="1", **ORIGIN)),
    "position is beyond any text": (".safetensors", tensor_file(torch.ones(64), position="9" * 9, layer="1", **ORIGIN)),
    "position has other digits": (".safetensors", tensor_file(torch.ones(64), position="-\u0661", layer="1", **ORIGIN)),
    "another version": (".safetensors", tensor_file(torch.ones(64), layer="1", format="rhumbline-direction-2")),
    "a format in capitals": (".safetensors", tensor_file(torch.ones(64), layer="1", format="Rhumbline-Direction-1")),
    "another format": (".safetensors", tensor_file(torch.ones(64), layer="1", format="rhumbline-sae")),
    "64-bit numbers that overflow": (".npy", numpy_file(np.full(64, 1e300))),
    "128-bit numbers that overflow": (".npy", numpy_file(np.full(64, np.longdouble("1e4000")))),
    "seed is a text": (".safetensors", tensor_file(torch.ones(64), seed="x", layer="1", **ORIGIN)),
    "an array of objects": (".npy", numpy_file(np.array([{}, "x"], dtype=object))),
    "an array of texts": (".npy", numpy_file(np.array(["a", "b"]))),
    "an array of complex numbers": (".npy", numpy_file(np.ones(4, dtype=complex))),
    "an array of dates": (".npy", numpy_file(np.array(["2026-01-01"], dtype="datetime64[D]"))),
    "an array of records": (".npy", numpy_file(np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))),
    "another byte order": (".npy", numpy_file(np.ones(0, dtype=">f4"))),
    "an empty array": (".npy", numpy_file(np.zeros((0, 5), dtype=np.float32))),
    "a number": (".npy", numpy_file(np.float32(1))),
    "a header without an array": (".npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'"),
    "an array whose shape is a truth value": (
        ".npy",
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }".ljust(118),
    ),
    "a header of brackets": (".npy", b"\x93NUMPY\x01\x00\x76\x00" + (b"(" * 117).ljust(118)),
    "an array of 2**40 numbers": (
        ".npy",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(118),
    ),
    "no array": (".npy", b"banana"),
    "a text": (".pt", saved(lambda: "text")),
    "a number of Python": (".pt", saved(lambda: 1)),
    "a list of texts": (".pt", saved(lambda: ["a"])),
    "an empty table": (".pt", saved(lambda: {})),
    "mixed keys": (".pt", saved(lambda: {1: torch.ones(4), "a": torch.ones(4), None: "x"})),
    "a sparse tensor": (".pt", saved(lambda: torch.ones(4).to_sparse())),
    "a sparse tensor of rows": (".pt", saved(lambda: torch.ones(4, 4).to_sparse_csr())),
    "a nested tensor": (".pt", saved(lambda: torch.nested.nested_tensor([torch.ones(4), torch.ones(2)]))),
    "two tensors with long names": (".pt", saved(lambda: {"k" * 90_000: torch.ones(4), "b": torch.ones(4)})),
    "a meta tensor": (".pt", saved(lambda: torch.empty(4, device="meta"))),
    "a quantised tensor": (".pt", saved(lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))),
    "a complex tensor": (".pt", saved(lambda: torch.ones(4, dtype=torch.complex64))),
    "a tensor of truth values": (".pt", saved(lambda: torch.ones(4, dtype=torch.bool))),
    "an empty tensor": (".pt", saved(lambda: torch.zeros(0))),
    "an expanded tensor of 2**40 numbers": (".pt", saved(lambda: torch.ones(1).expand(2**40))),
    "a table of tables": (".pt", saved(lambda: {"direction": {"a": torch.ones(4)}})),
    "code": (".pt", saved(lambda: _Executes())),
    "a pickle that executes code": (".bin", pickle.dumps(_Executes())),
    "no pickle": (".pth", b"banana"),
    "an array in a pickle": (".pt", pickle.dumps(np.ones(4))),
    "a zip bomb": (".pt", compressed),
    "half a zip file": (".pt", b"PK\x03\x04" + b"\x00" * 50),
    "no GGUF file": (".gguf", b"banana"),
    "a GGUF file that claims 2**60 tensors": (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)),
    "a control vector of block -1": (".gguf", control_vector("direction.-1")),
    "a control vector of block 0": (".gguf", control_vector("direction.0")),
    "a control vector of block +1": (".gguf", control_vector("direction.+1")),
    "a control vector of block 1_0": (".gguf", control_vector("direction.1_0")),
    "a control vector of block x": (".gguf", control_vector("direction.x")),
    "a control vector of many digits": (".gguf", control_vector("direction." + "9" * 50)),
    "a control vector of two blocks": (".gguf", control_vector("direction.1", "direction.01")),
    "a part of a GGUF file": (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 0)),
    "an unknown kind": (".banana", b"x"),
    "no kind": ("", b"x"),
}  # fmt: skip


def _direction(suffix: str, content: Callable[[Path], object] | bytes) -> Value:
    name = f"hostile{suffix}"
    if isinstance(content, bytes):
        return file(name, content)

    def make(path: Path) -> None:
        content(path)

    return place(name, make)


DIRECTION = {
    **{what: _direction(suffix, content) for what, (suffix, content) in DIRECTION_FILES.items()},
    **{f"{what} (.safetensors)": value for what, value in places(".safetensors").items()},
    "an empty file": file("hostile.safetensors", ""),
    "a large file of zeros": place("hostile.npy", lambda path: os.truncate(_touched(path), 10 * 2**30)),
    "an empty directory": place("hostile", Path.mkdir),
    **just("hf:", "hf:../x", "hf:a", "hf:a/b@../.."),
}


def _touched(path: Path) -> Path:
    path.touch()
    return path


# -- run directories --------------------------------------------------------------------------------------------------

RUN: Kind = {
    **{name: value for name, value in places().items() if name != "a directory"},
    "an empty directory": place("hostile", Path.mkdir),
    "a file": file("hostile", "x"),
    **{
        f"protocol.json {what}": place(
            "hostile", lambda path, text=text: (path.mkdir(), (path / "protocol.json").write_text(text))
        )
        for what, text in {
            "is empty": "",
            "is a list": "[]",
            "is deep": "[" * DEEP,
            "is no JSON": "{",
            "is of another schema": '{"schema": 99}',
            "has nothing else": '{"schema": 1}',
            "has wrong types": '{"schema": 1, "seeds": "x", "model": [], "judge": {}}',
            "has many digits": '{"schema": ' + "9" * 5000 + "}",
            "has half a pair": '{"schema": 1, "preset": "\\ud800"}',
            "has a seed that is a path": '{"schema": 1, "seeds": ["../../etc"], "preset": "rhumbline"}',
        }.items()
    },
    "protocol.json is a pipe": place("hostile", lambda path: (path.mkdir(), os.mkfifo(path / "protocol.json"))),
    "protocol.json is a directory": place("hostile", lambda path: (path / "protocol.json").mkdir(parents=True)),
    "protocol.json is a device": place(
        "hostile", lambda path: (path.mkdir(), (path / "protocol.json").symlink_to("/dev/zero"))
    ),
}  # fmt: skip


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _scalars(value: object, new: object) -> object:
    """The JSON value with every scalar replaced."""
    if isinstance(value, dict):
        return {k: v if k in ("schema", "protocol_sha256") else _scalars(v, new) for k, v in value.items()}
    return [_scalars(v, new) for v in value] if isinstance(value, list) else new


def _values(new: object) -> Callable[[Path], None]:
    """Every value of a JSON or JSON Lines file replaced."""

    def change(path: Path) -> None:
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            path.write_text("".join(json.dumps(_scalars(json.loads(line), new)) + "\n" for line in lines))
        else:
            path.write_text("x")

    return change


CHANGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deep": lambda path: path.write_text("[" * DEEP),
    "deep objects": lambda path: path.write_text('{"a":' * DEEP + "1" + "}" * DEEP + "\n"),
    "a list": lambda path: path.write_text("[1]\n"),
    "null": lambda path: path.write_text("null\n"),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00" * 50),
    "removed": lambda path: path.unlink(),
    "a directory": _replaced(Path.mkdir),
    "a pipe": _replaced(os.mkfifo),
    "a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": _replaced(lambda path: path.symlink_to(path.parent / "gone")),
    "paths": _values("../../../outside"),
    "infinite numbers": _values(float("inf")),
    "negative numbers": _values(-7),
    "empty lists": _values([]),
}
"""Changes of one file of a run directory."""
