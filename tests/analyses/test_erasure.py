"""LEACE: no linear probe predicts the class afterwards, and no edit with this property moves the activations less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.analyses.erasure import leace, shrunk
from rhumbline.errors import InputError
from rhumbline.inference.batch_edits import ablate
from rhumbline.inference.stream_edits import affine


def classes(seed, n=60, d=8):
    """Two classes that differ in mean, with a covariance far from a multiple of 1, the same in neither class."""
    g = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(d, d, generator=g) for _ in range(2))
    scale = torch.logspace(-1, 1, d)
    positive = torch.randn(n, d, generator=g) @ first * scale + 3 * torch.randn(d, generator=g)
    return positive, torch.randn(n, d, generator=g) @ second * scale


def edited(edit, h):
    return affine(h[None].double(), edit.write.double(), edit.read.double(), edit.centre.double(), 1.0)[0].double()


def explained(positive, negative):
    """Share of the variance of the class that the best linear probe with an intercept explains: 0 is chance."""
    x = torch.cat([positive, negative]).double()
    x = torch.cat([x - x.mean(0), torch.ones(len(x), 1)], 1)
    z = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    fitted = x @ torch.linalg.lstsq(x, z[:, None], driver="gelsd", rcond=1e-7).solution[:, 0]
    return float(1 - ((z - fitted) ** 2).sum() / ((z - z.mean()) ** 2).sum())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_no_linear_probe_is_better_than_chance_on_the_data_of_the_fit(seed, shrink):
    positive, negative = classes(seed)
    assert explained(positive, negative) > 0.05
    edit = leace(positive, negative, 3, shrink=shrink)
    assert (edit.layer, edit.write.shape) == (3, (1, 8))
    after = [edited(edit, h) for h in (positive, negative)]
    assert explained(*after) < 1e-4


def test_part_of_the_strength_and_a_direction_of_other_prompts_leave_a_probe():
    """The contrary cases. A whole ablation of the fit's own difference in means leaves none: the means are then equal.

    A direction that was read elsewhere is not the difference in means of these activations.
    """
    positive, negative = classes(1)
    other = [h[:20] for h in (positive, negative)]
    r = torch.nn.functional.normalize(other[0].mean(0) - other[1].mean(0), dim=0)
    assert explained(*(ablate(h, r) for h in (positive, negative))) > 0.02
    edit = leace(positive, negative, 0)
    half = [(h + edited(edit, h)) / 2 for h in (positive.double(), negative.double())]
    assert explained(*half) > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_it_moves_whitened_activations_less_than_the_ablation_of_the_difference_in_means(seed):
    """Both erase; with unequal variances along the axes the difference in means is not the least edit."""
    positive, negative = classes(seed)
    x = torch.cat([positive, negative]).double()
    mean = x.mean(0)
    whiten = torch.linalg.pinv((x - mean).T @ (x - mean) / len(x))
    r = torch.nn.functional.normalize(positive.mean(0) - negative.mean(0), dim=0).double()
    centred = x - ((x - mean) @ r)[:, None] * r

    def moved(after):
        return float(((after - x) @ whiten * (after - x)).sum(1).mean())

    erased = edited(leace(positive, negative, 0, shrink=False), x.float())
    assert explained(centred[: len(positive)], centred[len(positive) :]) < 1e-4
    assert moved(erased) < 0.9 * moved(centred)


def test_with_equal_spread_it_is_the_ablation_of_the_difference_in_means():
    g = torch.Generator().manual_seed(0)
    noise = torch.linalg.qr(torch.randn(64, 8, generator=g, dtype=torch.float64)).Q
    noise = noise - noise.mean(0)
    noise = torch.linalg.qr(noise).Q * 8
    shift = torch.zeros(8, dtype=torch.float64)
    shift[2] = 2.0
    edit = leace((noise + shift).float(), noise.float(), 0, shrink=False)
    assert float(edit.write[0].abs()[2] / edit.write[0].norm()) == pytest.approx(1.0, abs=1e-3)


def test_fewer_prompts_than_dimensions_are_erased_too_and_equal_means_are_refused():
    positive, negative = classes(2, n=10, d=32)
    edit = leace(positive, negative, 0)
    assert torch.isfinite(edit.write).all()
    means = [edited(edit, h).mean(0) for h in (positive, negative)]
    before = (positive.mean(0) - negative.mean(0)).norm()
    assert float((means[0] - means[1]).norm() / before) < 1e-4
    with pytest.raises(InputError, match="class means are equal"):
        leace(positive, positive, 0)


def test_shrinkage_keeps_the_trace_and_raises_the_smallest_variance():
    x = torch.randn(6, 20, dtype=torch.float64)
    sigma = x.T @ x / 6
    found = shrunk(sigma, 6)
    assert float(found.trace()) == pytest.approx(float(sigma.trace()))
    assert float(torch.linalg.eigvalsh(found)[0]) > 1e-3 > float(torch.linalg.eigvalsh(sigma)[0])
