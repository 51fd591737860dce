"""Sizes from the headers of safetensors files, and the work of a protocol."""

import pytest
import torch

from families import random_model
from rhumbline.errors import ModelError
from rhumbline.jobs.sizing import Device, estimate, read_checkpoint, work
from rhumbline.presets.protocols import preset


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_headers_give_the_sizes_of_the_loaded_model(family, dtype, tmp_path):
    model = random_model(family, dtype=dtype)
    model.save_pretrained(tmp_path)
    size = read_checkpoint(tmp_path)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.bytes == size.parameters * dtype.itemsize
    assert size.layers == 4
    assert size.kv_bytes_per_token == 2 * 4 * 2 * 8 * dtype.itemsize


def test_a_directory_without_weights_and_a_torn_file_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no weights"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        read_checkpoint(tmp_path)


def test_the_estimate_follows_protocol_gpus_and_dtype(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    size = read_checkpoint(tmp_path)._replace(parameters=70 * 10**9, bytes=140 * 10**9, layers=80)
    one, two = preset("rhumbline", seeds=(0,)), preset("rhumbline", seeds=(0, 1))
    assert sum(work(two, 80)[0].values()) == pytest.approx(2 * sum(work(one, 80)[0].values()))
    whole = preset("rhumbline", seeds=(0,), full_grid=True)
    assert sum(work(whole, 80)[0].values()) > 2 * sum(work(one, 80)[0].values())
    alone, four = (estimate(size, one, gpus=n) for n in (1, 4))
    assert not alone.fits
    assert four.fits
    assert alone.seconds == pytest.approx(4 * four.seconds)
    assert not estimate(size, one, gpus=4, device=Device(memory=24e9)).fits
    assert estimate(size, one, gpus=1, dtype="float32").memory_per_gpu > 280e9
