"""The dtype and the threads that a processor is fastest with."""

import pytest
import torch

from rhumbline.models import processor


@pytest.mark.parametrize(
    ("native", "checkpoint", "expected"),
    [
        (True, torch.bfloat16, "bfloat16"),
        (False, torch.bfloat16, "float32"),
        (True, torch.float16, "float32"),
        (False, torch.float16, "float32"),
        (True, torch.float32, "auto"),
        (True, None, "auto"),
    ],
)
def test_a_processor_gets_16_bits_only_where_it_multiplies_them(native, checkpoint, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": native})
    assert processor.dtype_on_processor(checkpoint) == expected


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [({1: 10, 2: 19, 4: 30}, 4), ({1: 10, 2: 9, 4: 8}, 1), ({1: 10, 2: 10.5, 4: 10.9}, 1), ({1: 10, 2: 19, 4: 20}, 2)],
)
def test_more_threads_are_used_only_if_they_are_faster(speeds, expected):
    assert processor.fastest(speeds, speeds.__getitem__) == expected


def test_the_threads_of_the_user_stay(monkeypatch):
    monkeypatch.setattr(processor, "_products_per_second", lambda n: pytest.fail("measured"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    processor.use_fastest_threads()
    assert torch.get_num_threads() == before
    for name in processor.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processor, "_thread_counts", lambda most: [1])
    monkeypatch.setattr(processor, "_products_per_second", lambda n: 1.0)
    processor.use_fastest_threads()
    assert torch.get_num_threads() == 1


def test_one_interrupted_measurement_decides_nothing(monkeypatch):
    measured = {1: iter([10, 10, 10]), 2: iter([3, 19, 19])}
    monkeypatch.setattr(processor, "_products_per_second", lambda n: next(measured[n]))
    assert processor.fastest(measured, processor._speed) == 2


def test_the_counts_tried():
    assert [processor._thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
