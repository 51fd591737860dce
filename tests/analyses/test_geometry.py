"""Geometry of runs whose direction is known, and its statistics against their definitions."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rhumbline.analyses import geometry
from rhumbline.analyses.geometry import silhouette
from rhumbline.organisms import Planted, build
from tolerances import near


def test_the_planted_axis_appears_in_the_layers_after_it_is_written(planted, tmp_path):
    record = geometry.analyse(planted)
    folder = build(Planted(), tmp_path / "m")
    truth = load_file(folder / "truth.safetensors")["direction"]
    p, layers = planted.positions.index(planted.selected().position), planted.model.n_layers
    # The gather block writes the axis: candidates align with it in later layers only.
    own = torch.nn.functional.normalize(planted.candidates[p], dim=-1) @ truth
    at = [row for row in record.grid if row.position == planted.selected().position]
    written = [layer for layer in range(layers) if abs(own[layer]) > 0.9]
    assert written
    assert written[0] > 0
    for row in at:
        assert (row.auroc > 0.95) is (row.layer in written) or row.layer < written[0]
        assert row.low <= row.auroc <= row.high
    assert min(at[layer].cosine for layer in written) > 0.9
    assert max(abs(at[layer].cosine) for layer in range(written[0])) < 0.6
    assert at[written[0]].next > 0.95
    assert at[-1].next is None
    between = torch.tensor(record.between_layers)
    torch.testing.assert_close(between, between.T)
    assert len(record.components.points) == sum(n.positive + n.negative for n in (record.n.train, record.n.val))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(0, 6))
def test_silhouettes_follow_their_definition(seed, distance):
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(9, 3, generator=rng)
    is_positive = torch.tensor([True] * 4 + [False] * 5)
    h[:4, 0] += distance
    values = silhouette(h, is_positive)
    for i in range(9):
        own = [j for j in range(9) if is_positive[j] == is_positive[i] and j != i]
        other = [j for j in range(9) if is_positive[j] != is_positive[i]]
        a, b = (float(np.mean([(h[i] - h[j]).norm() for j in rows])) for rows in (own, other))
        assert float(values[i]) == near((b - a) / max(a, b))
    assert -1 <= float(values.min()) <= float(values.max()) <= 1


def test_without_a_direction_the_largest_auroc_is_read(planted):
    record = geometry.analyse(replace(planted, direction=None), splits=2)
    assert record.site is None
    assert not record.read_at.selected
    read = [row for row in record.grid if (row.position, row.layer) == (record.read_at.position, record.read_at.layer)]
    assert [row.auroc for row in read] == [max(row.auroc for row in record.grid)]
