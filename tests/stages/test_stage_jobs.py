"""Blocks: spans cover what is cut, once; what comes back stands where it was asked for, NaN included."""

import math

from hypothesis import given
from hypothesis import strategies as st

from rhumbline.engines.jobs import Job, answered
from rhumbline.engines.local import LocalPool
from rhumbline.records.positions import Position
from rhumbline.stages.finding import _scores
from rhumbline.stages.stage_jobs import CANDIDATES_PER_BLOCK, cuts


@given(st.integers(0, 300), st.integers(1, 50))
def test_spans_cover_everything_once_and_in_order(n, size):
    spans = cuts(n, size)
    assert [i for first, end in spans for i in range(first, end)] == list(range(n))
    assert all(0 < end - first <= size for first, end in spans)


def test_scores_come_back_to_their_cells_and_nan_stays_nan(tmp_path):
    """A score that overflowed is discarded as not finite; a null would have been taken for one nobody computed."""
    cells = [(Position(position), layer) for position in range(5) for layer in range(20)]
    asked: list[int] = []

    def ask(kind, arguments):
        def do(kind, given, shared):
            asked.append(len(given["cells"]))
            return [math.nan if layer == 7 else 100.0 * position + layer for position, layer in given["cells"]]

        return answered(LocalPool(do), [Job(kind, a) for a in arguments], tmp_path)

    found = _scores(ask, "bypass", cells)
    for (position, layer), value in zip(cells, found, strict=True):
        assert math.isnan(value) if layer == 7 else value == 100 * int(position) + layer
    assert max(asked) <= CANDIDATES_PER_BLOCK < sum(asked) == len(cells)
