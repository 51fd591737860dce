"""Files of a run directory: the same content has the same bytes, and a faulty file is an error that names it."""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from rhumbline.errors import OutputError
from rhumbline.records.files import tensors_bytes, tensors_metadata, written


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii"), min_size=1, max_size=5), st.integers(0, 3), min_size=1, max_size=5
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=6),
)
def test_the_same_tensors_and_metadata_have_the_same_bytes_in_any_order(sizes, metadata):
    tensors = {name: torch.arange(n, dtype=torch.float32) for name, n in sizes.items() if name != "__metadata__"}
    data = tensors_bytes(tensors, metadata)
    assert data == tensors_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    read = safetensors.torch.load(data)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in tensors.items()}
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length]).get("__metadata__", {}) == metadata
    assert length % 8 == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"123", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"nope"],
)
def test_metadata_of_another_file_is_an_error_that_names_it(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(OutputError, match=r"x\.safetensors is not a safetensors file"):
        tensors_metadata(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "error",
    [SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), OSError(28, "No space")],
)
def test_a_library_that_cannot_write_a_file_is_an_output_error(error, tmp_path):
    with (
        pytest.raises(OutputError, match=r"a\.safetensors cannot be written: .*(too large|No space)"),
        written(tmp_path / "a.safetensors"),
    ):
        raise error
    with pytest.raises(KeyError), written(tmp_path / "a.safetensors"):
        raise KeyError("another error")
