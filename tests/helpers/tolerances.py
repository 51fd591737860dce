"""Tolerances of comparisons: the dtype that was computed in, in; absolute and relative bounds, out.

The result of a floating-point sum depends on its order, and the order depends on shapes, threads and the processor.
"""

import pytest
import torch

FORWARD_PASS = 512
"""Roundings on the longest path through the tiny models of the tests: the widths of their sums times their layers."""
WITH_SOFTMAX = 4 * FORWARD_PASS
"""A forward pass and a log-softmax over the vocabulary."""


def rounding(dtype: torch.dtype = torch.float32, terms: int = FORWARD_PASS) -> float:
    """The largest difference, relative to numbers near 1, that `terms` roundings in `dtype` explain."""
    return terms * torch.finfo(dtype).eps


def tolerance(dtype: torch.dtype = torch.float32, terms: int = FORWARD_PASS) -> dict[str, float]:
    """`rounding` as the options of `torch.testing.assert_close`."""
    return {"atol": rounding(dtype, terms), "rtol": rounding(dtype, terms)}


def near(expected, dtype: torch.dtype = torch.float32, terms: int = FORWARD_PASS):
    """`rounding` as a `pytest.approx`."""
    return pytest.approx(expected, abs=rounding(dtype, terms), rel=rounding(dtype, terms))
