"""Directions of groups of positives: they agree on one axis, and differ on two."""

import pytest
import torch

from rhumbline.stages.directions import group_cosine, group_cosines

D = 24


def two_classes(axes, n=40, noise=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    negative = torch.randn(n, D, generator=g) * noise
    positive = torch.randn(n, D, generator=g) * noise
    for i in range(n):
        positive[i, i % axes] += 12.0
    return positive, negative


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [16, 64])
def test_groups_of_positives_agree_on_one_axis_and_part_on_two(noise, n):
    one, two = (group_cosine(*two_classes(axes, n, noise)) for axes in (1, 2))
    assert one is not None
    assert two is not None
    assert one > 0.6
    assert two < 0.3


def test_too_few_positives_have_no_groups():
    assert group_cosine(torch.randn(3, D), torch.randn(9, D)) is None


def test_one_shift_by_construction_stands_beside_the_groups():
    for axes in (1, 2):
        cosines = group_cosines(*two_classes(axes, n=64), seed=0)
        assert cosines is not None
        halves, one_shift = (sum(some) / len(some) for some in (cosines.halves, cosines.one_shift))
        assert one_shift > 0.6
        assert (halves > 0.6) == (axes == 1)
    assert group_cosines(torch.randn(7, D), torch.randn(9, D), seed=0) is None
