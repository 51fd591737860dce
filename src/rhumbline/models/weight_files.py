"""The weight files of a checkpoint: a directory or a GGUF file in, the stored tensors with their sizes out.

Reads headers and no weights. Files that are missing, cut off or of another format are refused by name. Independent of
how a model is built from them.
"""

import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

from rhumbline.errors import InputError, ModelError, RhumblineError
from rhumbline.records.files import inside
from rhumbline.records.user_files import read_json

INDEX = "model.safetensors.index.json"
"""Where a checkpoint of several safetensors files says which file has which tensor."""
BIN_INDEX = "pytorch_model.bin.index.json"
GGUF = ".gguf"
_ARCHIVE = b"PK\x03\x04"
_LFS = b"version https://git-lfs"
_READ_AGAIN = "Download it again."


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """As the format names it: `BF16`, `bfloat16`, `Q8_0`."""
    bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


# -- which files ------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[str]:
    """Names of the files whose weights transformers loads from a directory; none if it has no weights.

    Other files beside them, such as `consolidated.safetensors`, are not loaded. ModelError for an index of another
    form, and for names that are no plain file names.
    """
    for single, index in (("model.safetensors", INDEX), ("pytorch_model.bin", BIN_INDEX)):
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            return _indexed(folder, folder / index)
    return []


def _indexed(folder: Path, index: Path) -> list[str]:
    content = read_json(index, ModelError, "the index of a checkpoint")
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"{index} has no weight_map of tensor names and file names. Is the download complete?")
    return [inside(folder, file, ModelError).name for file in dict.fromkeys(files.values())]


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a directory without other weights; None if it has none. ModelError if it has several."""
    files = sorted(folder.glob(f"*{GGUF}"))
    if not files or weight_files(folder) or (folder / "adapter_config.json").is_file():
        return None
    if len(files) > 1:
        raise ModelError(f"{folder} has several GGUF files: {listed([p.name for p in files])}. Pass the path of one.")
    return files[0]


# -- what they contain ------------------------------------------------------------------------------------------------


def stored_tensors(place: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint directory or of a GGUF file, by name; ModelError names the faulty files."""
    if place.is_file():
        return _gguf_tensors(place)
    files = weight_files(place)
    if not files:
        raise ModelError(
            f"{place} has no weights: neither model.safetensors, {INDEX}, pytorch_model.bin nor a {GGUF} file. Is the "
            "download complete?"
        )
    if missing := [file for file in files if not (place / file).is_file()]:
        raise ModelError(
            f"{place}: {len(missing)} of {len(files)} weight files are missing ({listed(missing)}). Is the download "
            "complete?"
        )
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors.update(_bin_tensors(place / file) if file.endswith(".bin") else safetensors_header(place / file))
    return tensors


def safetensors_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file; ModelError if the file is cut off or of another format."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if file.read(len(_LFS) - 8).startswith(_LFS[8:]) and start == _LFS[:8]:
                raise ModelError(f"{path} is a pointer of Git LFS, not the weights. Run `git lfs pull`.")
            file.seek(8)
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                raise ValueError(f"its header would have {length} bytes, and the file has {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {name: _stored(entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}. {_READ_AGAIN}") from error
    if end != size:
        raise ModelError(f"{path} should have {end} bytes by its header, and it has {size}. {_READ_AGAIN}")
    return tensors


def _stored(entry: Mapping[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    return Stored(tuple(entry["shape"]), entry["dtype"], end - begin)


def _bin_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file that torch.save wrote; no weight is read, and no code of the pickle is executed."""
    advice = "Download it again, or convert it to safetensors."
    # Files of old versions of torch are no archives, and cannot be mapped.
    loaded = unpickled(path, ModelError, advice, map_location="meta", mmap=is_zipfile(path))
    try:
        return {
            name: Stored(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.numel() * t.itemsize)
            for name, t in loaded.items()
        }
    except (AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a table of tensors. {advice}") from error


def unpickled(path: Path, wrong: type[RhumblineError], advice: str, **options: Any) -> Any:
    """The content of a file of torch.save. Raises `wrong`, with this advice, if it has anything but plain values."""
    import torch

    check_archive(path, wrong)
    try:
        with warnings.catch_warnings():  # of torch, on pickles that it did not write
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, **options)
    except Exception as error:  # The readers of pickles and archives raise errors without a common base.
        raise wrong(
            f"{path} cannot be read as tensors only ({type(error).__name__}); a pickle that would execute code is not "
            f"opened. {advice}"
        ) from error


def check_archive(path: Path, wrong: type[RhumblineError]) -> None:
    """Raise `wrong` if a file of torch.save is an archive whose parts are larger than the file.

    torch.save compresses nothing, so such a file was made to fill the memory.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_ARCHIVE)) != _ARCHIVE:
                return
        with ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (OSError, ValueError, NotImplementedError, BadZipFile) as error:
        raise wrong(f"{path} is not a complete archive: {one_line(error)}. {_READ_AGAIN}") from error
    if size > (most := path.stat().st_size):
        raise wrong(
            f"{path} has {most:,} bytes, and its unpacked parts have {size:,}. Files of torch.save are not compressed. "
            "Save it again, as .safetensors."
        )


def _gguf_tensors(path: Path) -> dict[str, Stored]:
    tensors = {
        t.name: Stored(tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.n_bytes))
        for t in _gguf_reader(path).tensors
    }
    if not tensors:
        raise ModelError(f"{path} has no tensors. Pass a GGUF file with the weights of a model.")
    return tensors


def _gguf_reader(path: Path) -> Any:
    gguf = extra("gguf", "gguf")
    try:
        status = path.stat()
        return _opened_gguf(gguf.GGUFReader, str(path), (status.st_size, status.st_mtime_ns))
    except Exception as error:  # The reader raises errors of NumPy for a file that is cut off.
        raise ModelError(f"{path} is not a complete GGUF file ({one_line(error)}). {_READ_AGAIN}") from error


@lru_cache(maxsize=1)
def _opened_gguf(reader: Any, path: str, version: tuple[int, int]) -> Any:
    """The reader of the last GGUF file; it parses each token of the vocabulary, which takes seconds."""
    del version
    return reader(path)


def gguf_config(path: Path) -> dict[str, int]:
    """The sizes in the metadata of a GGUF file, by the names that config.json has for them."""
    fields = {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
    }
    read = _gguf_reader(path).fields
    found = {key.partition(".")[2]: field.contents() for key, field in read.items() if key.partition(".")[2] in fields}
    return {fields[key]: value for key, value in found.items() if isinstance(value, int)}


def gguf_split(path: Path) -> str | None:
    """The name of the split into words in the metadata of a GGUF file."""
    field = _gguf_reader(path).fields.get("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


def integer_matrices(tensors: Mapping[str, Stored]) -> Iterator[str]:
    """Names of the weight matrices that are stored as integers, as quantisers store them."""
    for name, stored in tensors.items():
        if name.endswith(".weight") and len(stored.shape) > 1 and re.match("u?int|[UI][0-9]", stored.dtype):
            yield name


# -- messages ---------------------------------------------------------------------------------------------------------


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first names of a list, for a message."""
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def one_line(error: Exception) -> str:
    """Type and text of an exception on one line, for a message."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}" if text else type(error).__name__


def extra(name: str, module: str) -> Any:
    """An optional dependency; InputError if it is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed. Install it: pip install 'rhumbline[{name}]'") from error
