"""Pools in, samples out: which rows of a pool a seed takes.

Knows sizes, seeds and order. Does not know what a row is: two functions of it say its lot and what makes it a repeat.
"""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeVar

Sampling = Literal["lots", "reference"]
"""`lots`: by a hash of seed and row, without near duplicates. `reference`: as the paper's code draws."""

Row = TypeVar("Row")
Place = tuple[str, str]
"""A split and a class."""


def draw_by_lot(
    pools: Mapping[Place, Sequence[Row]],
    sizes: Mapping[str, int],
    lot: Callable[[Row], str],
    same: Callable[[Row], Hashable],
) -> tuple[dict[Place, tuple[Row, ...]], int]:
    """Up to `sizes[split]` rows of every pool, lowest lots first, and how many repeats were passed over.

    Test is drawn first, then validation, then training, so a row that repeats one of an earlier draw is left out of the
    later one. A pool that is smaller than its size is taken whole.
    """
    taken: set[Hashable] = set()
    drawn: dict[Place, tuple[Row, ...]] = {}
    repeats = 0
    for split in ("test", "val", "train"):
        for place in (p for p in pools if p[0] == split):
            chosen: list[Row] = []
            for row in sorted(pools[place], key=lot):
                if len(chosen) == sizes[split]:
                    break
                if (key := same(row)) in taken:
                    repeats += 1
                    continue
                taken.add(key)
                chosen.append(row)
            drawn[place] = tuple(chosen)
    return drawn, repeats


def draw_as_reference(
    pools: Mapping[Place, Sequence[Row]], sizes: Mapping[str, int], seed: int
) -> dict[Place, tuple[Row, ...]]:
    """The draw of the paper's code (pipeline/run_pipeline.py at 9d852fa): `random.seed(seed)`, then `random.sample` of
    positive and negative training rows, of positive and negative validation rows, and last of negative test rows.

    Positive test rows are all read, in their order, where no more are there than the size asks for; else they are
    sampled after the others. A pool that is smaller than its size gives all of its rows, in the order of the draw.
    """
    rng = random.Random(seed)
    drawn: dict[Place, tuple[Row, ...]] = {}
    order = [(s, c) for s in ("train", "val") for c in ("positive", "negative")]
    for place in [*order, ("test", "negative"), ("test", "positive")]:
        pool, size = list(pools[place]), sizes[place[0]]
        whole = place == ("test", "positive") and len(pool) <= size
        drawn[place] = tuple(pool if whole else rng.sample(pool, min(size, len(pool))))
    return drawn
