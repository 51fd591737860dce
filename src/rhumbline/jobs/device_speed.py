"""The speed of this machine for a model that is not loaded: products in the shapes of its weights, timed.

The shapes come from the headers of the checkpoint, so nothing is read or downloaded. Independent of protocols.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rhumbline.inference.batching import CPU_TOKENS, MOST_CPU_ROWS
from rhumbline.inference.memory import is_processor
from rhumbline.settings import ROWS_PER_JOB

SECONDS = 0.4
"""Seconds for which each shape is timed, at least one product each."""
SHARE_OF_PRODUCTS = 0.8
"""Share of a pass that is assumed to be spent in matrix products. Measured on a processor: docs/benchmarks.md."""
TOKENS_OF_PASS, ROWS_OF_STEP = 300, 96
"""Tokens of the average pass, and rows of the average decoding step of a run, whose batches are seldom full."""
LAYER_OPERATIONS = 1800
"""Small operations that take as long as what a layer does in every pass apart from its products: calls of modules,
hooks, and operations on few elements. Measured on the organisms and on SmolLM2-135M (docs/benchmarks.md)."""
SCORING = 2.0
"""Time of reading all logits of a token (products of the head, softmax in float32), in products of the head."""
TOKENS = 16 * CPU_TOKENS
"""Tokens of a pass on an accelerator."""


@dataclass(frozen=True)
class WeightShapes:
    """The matrices that a token is multiplied with, by shape."""

    blocks: Sequence[tuple[int, int]]
    """Every matrix of all blocks."""
    head: tuple[int, int] | None
    """The unembedding; None: unknown."""
    layers: int


@dataclass(frozen=True)
class DeviceSpeed:
    """Measured times of one model on one device."""

    prompt_token: float
    """Seconds of a prompt token in a pass of many."""
    step: float
    """Seconds of one decoding step of `rows` rows."""
    rows: int
    """Rows that are decoded together."""
    scored_token: float
    """Seconds of a token of which all logits are read, besides those of its pass."""
    overhead: float
    """Seconds of a pass or a step apart from what its number of tokens determines."""

    def seconds(self, tokens: float, written: float, scored: float = 0) -> float:
        """Time of prompt tokens, generated tokens, and tokens of which all logits are read."""
        passes = tokens / TOKENS_OF_PASS + written / ROWS_OF_STEP
        products = tokens * self.prompt_token + written / self.rows * self.step + scored * self.scored_token
        return products + passes * self.overhead


def measure(shapes: WeightShapes, dtype: torch.dtype, device: torch.device) -> DeviceSpeed:
    """Time every distinct shape at the rows of a prompt pass, and at those of a decoding step."""
    tokens, rows = (CPU_TOKENS, MOST_CPU_ROWS) if is_processor(device) else (TOKENS, ROWS_PER_JOB)
    distinct = set(shapes.blocks)
    per_shape = {shape: _seconds(shape, tokens, dtype, device, SECONDS / len(distinct)) for shape in distinct}
    in_step = {shape: _seconds(shape, rows, dtype, device, SECONDS / len(distinct)) for shape in distinct}
    share = SHARE_OF_PRODUCTS
    prompt = sum(per_shape[shape] for shape in shapes.blocks) / tokens / share
    step = sum(in_step[shape] for shape in shapes.blocks) / share
    head = 0.0 if shapes.head is None else _seconds(shapes.head, rows, dtype, device, SECONDS / 4)
    overhead = shapes.layers * LAYER_OPERATIONS * _small_operation(device)
    return DeviceSpeed(prompt, step + head, rows, SCORING * head / rows, overhead)


def _small_operation(device: torch.device) -> float:
    """Seconds of one operation on few elements."""
    x, n = torch.ones(8, 64, device=device), 200

    def many() -> None:
        for _ in range(n):
            torch.mul(x, x)

    return _timed(many, SECONDS / 4, None if is_processor(device) else torch.cuda.synchronize) / n


def _seconds(shape: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device, budget: float) -> float:
    """Seconds of one product of `rows` rows with a matrix of this shape."""
    weight = torch.ones(shape, dtype=dtype, device=device)
    x = torch.ones(rows, shape[1], dtype=dtype, device=device)

    def product() -> None:
        torch.nn.functional.linear(x, weight)

    return _timed(product, budget, None if is_processor(device) else torch.cuda.synchronize)


def _timed(run: Callable[[], None], budget: float, wait: Callable[[], None] | None) -> float:
    """Shortest of the repeats within the budget, after one that is not timed."""
    run()
    best, end = float("inf"), time.perf_counter() + budget
    while best == float("inf") or time.perf_counter() < end:
        if wait is not None:
            wait()
        start = time.perf_counter()
        run()
        if wait is not None:
            wait()
        best = min(best, time.perf_counter() - start)
    return best
