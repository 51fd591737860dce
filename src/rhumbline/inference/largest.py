"""The index of the largest element of each row, faster than `argmax` on a processor."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
"""Elements of which the maximum is computed together."""


def index_of_largest(values: Float[Tensor, "row n"]) -> Int[Tensor, " row"]:
    """Index of the first of the largest elements of each row; a NaN counts as the largest, as for `argmax`.

    On a processor torch takes seven times as long for the index of a maximum as for its value. The index is therefore
    computed for the maxima of blocks, and for the elements of one block.
    """
    n = values.shape[1]
    if n < 2 * BLOCK:
        return values.argmax(1)
    # The last block overlaps the one before it. It is chosen only for an element that no other block has.
    maxima = torch.cat([values.unfold(1, BLOCK, BLOCK).amax(2), values[:, -BLOCK:].amax(1, keepdim=True)], 1)
    start = (maxima.argmax(1, keepdim=True) * BLOCK).clamp(max=n - BLOCK)
    elements = start + torch.arange(BLOCK, device=values.device)
    return start[:, 0] + values.gather(1, elements).argmax(1)
