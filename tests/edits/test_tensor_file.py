"""A safetensors file written tensor by tensor is the file that safetensors writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rhumbline.edits.tensor_file import TensorFile, write_edited
from rhumbline.errors import ModelError


def tensors(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return {
        "z.weight": torch.randn(6, 5, generator=generator).to(dtype),
        "a.bias": torch.randn(7, generator=generator).to(dtype),
        "m.scale": torch.randn((), generator=generator).to(dtype),
        "b.experts": torch.randn(2, 3, 5, generator=generator).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float16])
def test_without_edits_the_bytes_are_the_same(dtype, tmp_path):
    save_file(tensors(dtype), tmp_path / "in.safetensors", {"format": "pt", "note": "é"})
    write_edited(TensorFile.read(tmp_path / "in.safetensors"), tmp_path / "out.safetensors", {}, {})
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_edits_and_copies_give_the_file_that_safetensors_writes(tmp_path):
    original = tensors()
    save_file(original, tmp_path / "in.safetensors", {"format": "pt"})
    edits = {"z.weight": lambda t: t.mul_(2), "b.experts": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2) - 1}
    write_edited(TensorFile.read(tmp_path / "in.safetensors"), tmp_path / "out.safetensors", edits, {"c": "z.weight"})
    expected = original | {
        "z.weight": 2 * original["z.weight"],
        "b.experts": original["b.experts"] - 1,
        "c": original["z.weight"],
    }
    save_file(expected, tmp_path / "expected.safetensors", {"format": "pt"})
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    # The source is unchanged, although an edit can use the memory of its argument.
    assert torch.equal(load_file(tmp_path / "in.safetensors")["z.weight"], original["z.weight"])


def test_formats_of_any_width_are_copied_and_aligned(tmp_path):
    original = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "fp8": torch.ones(5).to(torch.float8_e4m3fn),
        "half": torch.ones(3, dtype=torch.float16),
        "long": torch.arange(2),
        "empty": torch.ones(0, 4),
    }
    save_file(original, tmp_path / "in.safetensors")
    source = TensorFile.read(tmp_path / "in.safetensors")
    write_edited(source, tmp_path / "out.safetensors", {"half": lambda t: t + 1}, {})
    written = load_file(tmp_path / "out.safetensors")
    assert written["half"].tolist() == [2, 2, 2]
    assert all(
        torch.equal(written[n].view(torch.uint8), original[n].view(torch.uint8)) for n in ("bytes", "fp8", "long")
    )
    assert TensorFile.read(tmp_path / "out.safetensors").entries["long"].start % 8 == 0
    with pytest.raises(ModelError, match=r"fp8 is stored as F8_E4M3.*without --sharded"):
        write_edited(source, tmp_path / "other.safetensors", {"fp8": lambda t: t}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


def test_a_torn_file_is_refused_and_leaves_nothing(tmp_path):
    save_file(tensors(), tmp_path / "in.safetensors")
    content = (tmp_path / "in.safetensors").read_bytes()
    source = TensorFile.read(tmp_path / "in.safetensors")
    (tmp_path / "in.safetensors").write_bytes(content[:-4])
    with pytest.raises(ModelError, match="by its header, and it has"):
        TensorFile.read(tmp_path / "in.safetensors")
    for edits in ({}, {"z.weight": lambda t: t}):
        with pytest.raises(ModelError, match="cut short"):
            write_edited(source, tmp_path / "out.safetensors", edits, {})
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01", b"\xff" * 16, b"\x02" + bytes(7) + b"[]", b"\x0a" + bytes(7) + b'{"a": {}} ']
)
def test_a_file_of_another_format_is_refused(content, tmp_path):
    (tmp_path / "in.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        TensorFile.read(tmp_path / "in.safetensors")
