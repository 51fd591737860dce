"""Draw samples from pools of rows: up to a given number of rows from every pool, determined by the seed.

Independent of what a row is: two functions return the random order of a row and the key of its near duplicates.
"""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeVar

Sampling = Literal["lots", "reference"]
"""`lots`: in the order of a hash of seed and row, without near duplicates. `reference`: as in the authors' code."""

Row = TypeVar("Row")
PoolKey = tuple[str, str]
"""Split and label of a pool."""


def draw_by_hash(
    pools: Mapping[PoolKey, Sequence[Row]],
    sizes: Mapping[str, int],
    order_of: Callable[[Row], str],
    near_key: Callable[[Row], Hashable],
) -> tuple[dict[PoolKey, tuple[Row, ...]], int]:
    """The first `sizes[split]` rows of every pool in the order of `order_of`; the number of near duplicates skipped.

    Test is drawn first, then validation, then training; a row with the `near_key` of an earlier one is skipped. A pool
    that is smaller than its size is taken as a whole.
    """
    taken: set[Hashable] = set()
    drawn: dict[PoolKey, tuple[Row, ...]] = {}
    n_skipped = 0
    for split in ("test", "val", "train"):
        for pool in (key for key in pools if key[0] == split):
            sample: list[Row] = []
            for row in sorted(pools[pool], key=order_of):
                if len(sample) == sizes[split]:
                    break
                if (key := near_key(row)) in taken:
                    n_skipped += 1
                    continue
                taken.add(key)
                sample.append(row)
            drawn[pool] = tuple(sample)
    return drawn, n_skipped


def draw_as_reference(
    pools: Mapping[PoolKey, Sequence[Row]], sizes: Mapping[str, int], seed: int
) -> dict[PoolKey, tuple[Row, ...]]:
    """The draw of the authors' code (pipeline/run_pipeline.py at 9d852fa).

    `random.seed(seed)`, then `random.sample` of positive and negative training rows, of positive and negative
    validation rows, and of negative test rows. All positive test rows are read in their order, unless there are more
    than their size; then they are sampled last. A smaller pool is taken as a whole, in the order of the draw.
    """
    rng = random.Random(seed)
    drawn: dict[PoolKey, tuple[Row, ...]] = {}
    order = [(s, c) for s in ("train", "val") for c in ("positive", "negative")]
    for key in [*order, ("test", "negative"), ("test", "positive")]:
        pool, size = list(pools[key]), sizes[key[0]]
        whole = key == ("test", "positive") and len(pool) <= size
        drawn[key] = tuple(pool if whole else rng.sample(pool, min(size, len(pool))))
    return drawn
