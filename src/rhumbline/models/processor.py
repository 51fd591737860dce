"""What the processor of this machine is fastest with: the dtype of the weights, and the number of threads.

Independent of the model, apart from the dtype of its checkpoint.
"""

import os
import time
from collections.abc import Callable, Iterable

import torch

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user sets the number of threads."""
GAIN = 1.1
"""Speed relative to fewer threads from which more threads are used."""
ROWS, WIDTH, SECONDS, REPEATS = 512, 1024, 0.05, 3
"""Shape of the measured matrix product, and seconds and number of the measurements for each number of threads."""


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 matrices, such as AMX or AVX512-BF16."""
    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def dtype_on_processor(checkpoint: torch.dtype | None) -> str:
    """The dtype in which a checkpoint is loaded on a processor, unless the user sets one.

    bfloat16 stays if the processor multiplies it natively. Other 16-bit weights are multiplied in float32.
    """
    if checkpoint not in (torch.bfloat16, torch.float16):
        return "auto"
    return "bfloat16" if checkpoint == torch.bfloat16 and multiplies_bfloat16() else "float32"


def use_fastest_threads() -> None:
    """Set the number of threads to the fastest measured one, unless an environment variable sets it."""
    if not any(os.environ.get(name) for name in THREAD_VARIABLES):
        torch.set_num_threads(fastest(_thread_counts(torch.get_num_threads()), _speed))


def _speed(threads: int) -> float:
    """Products per second of the fastest measurement: another process can only slow one down."""
    return max(_products_per_second(threads) for _ in range(REPEATS))


def fastest(counts: Iterable[int], speed: Callable[[int], float]) -> int:
    """The smallest number of threads that no larger one exceeds in speed by `GAIN`."""
    best, at_best = 1, 0.0
    for n in counts:
        if (now := speed(n)) > GAIN * at_best:
            best, at_best = n, now
    return best


def _thread_counts(most: int) -> list[int]:
    """1, 2, 4 ... and the most."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i < most), most})


def _products_per_second(threads: int) -> float:
    torch.set_num_threads(threads)
    x, w = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    torch.nn.functional.linear(x, w)
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        torch.nn.functional.linear(x, w)
        n += 1
    return n / (time.perf_counter() - start)
