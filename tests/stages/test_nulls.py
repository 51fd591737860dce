"""Null directions: what each family promises, with the contrary case beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import ProtocolError
from rhumbline.inference.interventions import Ablate, Arm, BatchEdits, Direction, ablate
from rhumbline.protocol import FAMILIES
from rhumbline.records.positions import Position
from rhumbline.stages.directions import group_cosine
from rhumbline.stages.nulls import (
    Material,
    components,
    covariance,
    draw_nulls,
    generator,
    halves,
    removed,
    shuffled_site,
    split_topics,
    unrelated,
)
from rhumbline.stages.refits import weighted_sums
from tolerances import near, tolerance

D = 24


def material(n=40, shift=6.0, seed=0, topics=("a", "b", "c", "d")):
    """Two clouds apart along the first axis, with most of their spread along the second and third."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.ones(D)
    scale[1], scale[2] = 8.0, 5.0
    negative = torch.randn(n, D, generator=g) * scale
    positive = torch.randn(n, D, generator=g) * scale
    positive[:, 0] += shift
    return Material(positive, negative, [topics[i % len(topics)] for i in range(n)], None, 2)


@pytest.fixture
def truth():
    return Direction.from_vector(torch.nn.functional.one_hot(torch.tensor(0), D).float() * 6, -1, 3)


PLAN = {family: 30 for family in FAMILIES if family != "shuffled"}


def test_draws_have_the_norm_the_site_and_their_own_seed(truth):
    found = draw_nulls(truth, material(), PLAN, seed=1)
    again = draw_nulls(truth, material(), PLAN, seed=1)
    other = draw_nulls(truth, material(), PLAN, seed=2)
    drawn = [(n.family, n.draw) for n in found if n.family != "unrelated"]
    assert drawn == [(f, d) for f in PLAN if f != "unrelated" for d in range(30)]
    # Four topics can be halved in six ways.
    assert len({n.direction.vector.numpy().tobytes() for n in found if n.family == "unrelated"}) == 6
    assert sum(n.family == "unrelated" for n in found) == 6
    different = {n.direction.vector.numpy().tobytes() for n in other}
    for a, b in zip(found, again, strict=True):
        assert a.direction.norm == near(truth.norm)
        assert (int(a.direction.position), a.direction.layer) == (-1, 3)
        assert torch.equal(a.direction.vector, b.direction.vector)
        assert a.direction.vector.numpy().tobytes() not in different or a.family == "unrelated"
        assert a.cosine == near(float(a.direction.vector @ truth.vector), terms=D)
    # A draw does not depend on how many there are.
    assert torch.equal(
        draw_nulls(truth, material(), {"top-pc": 3}, seed=1)[2].direction.vector, found[62].direction.vector
    )


def test_matched_families_remove_energy_and_the_isotropic_one_does_not(truth):
    found = draw_nulls(truth, material(), PLAN, seed=0)
    energy = {f: np.mean([n.energy for n in found if n.family == f]) for f in PLAN}
    assert energy["isotropic"] == pytest.approx(1 / D, abs=0.03)
    assert energy["covariance"] > 5 / D
    assert energy["top-pc"] > 5 / D
    m = material()
    assert m.energy(truth.vector) == pytest.approx(
        (removed(m.positive, truth.vector) + removed(m.negative, truth.vector)) / 2
    )


def test_covariance_draws_are_distributed_as_the_negatives_are():
    m = material(n=60)
    draws = torch.stack([covariance(m.negative, generator(0, "covariance", d)) for d in range(3000)]).double()
    x = m.negative.double() - m.negative.double().mean(0)
    expected = x.T @ x
    assert torch.linalg.matrix_norm(draws.T @ draws / len(draws) - expected) < 0.1 * torch.linalg.matrix_norm(expected)


def test_top_components_span_what_they_say(truth):
    m = material()
    axes = components(m.negative, 2)
    torch.testing.assert_close(axes @ axes.T, torch.eye(2), **tolerance())
    for null in draw_nulls(truth, m, {"top-pc": 5}, seed=0):
        inside = axes.T @ (axes @ null.direction.vector)
        torch.testing.assert_close(inside, null.direction.vector, **tolerance())
    # Fewer prompts than components: as many as there are.
    assert len(components(m.negative[:3], 10)) == 2


@given(st.integers(2, 50), st.integers(0, 1000))
def test_halves_are_balanced(n, seed):
    signs = halves(n, np.random.default_rng(seed))
    assert int((signs > 0).sum()) == int((signs < 0).sum()) == n // 2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_a_balanced_shuffle_cancels_the_difference_and_a_naive_one_keeps_it(seed):
    rng = np.random.default_rng(seed)
    m = material(n=40, shift=1000.0)
    balanced = shuffled_site(m.positive, m.negative, rng)
    assert abs(float(balanced[0])) < 2.0  # within-class noise; the difference of 1000 is gone
    together = torch.cat([m.positive, m.negative])
    order = torch.tensor(rng.permutation(80))
    labels = order < 40
    naive = together[order[:40]].mean(0) - together[order[40:]].mean(0)
    imbalance = float(labels[:40].float().mean() - labels[40:].float().mean())
    assert float(naive[0]) == pytest.approx(1000 * imbalance, abs=10)


def test_a_shuffle_needs_two_prompts(truth):
    with pytest.raises(ProtocolError, match="at least 2 training prompts"):
        halves(1, np.random.default_rng(0))
    alone = Material(torch.randn(1, D), torch.randn(8, D))
    assert draw_nulls(truth, alone, {"shuffled-site": 4}, seed=0) == []


def test_unrelated_contrasts_split_topics_or_another_contrast():
    rng = np.random.default_rng(0)
    chosen = split_topics(["x", "y", "x", "z"], rng)
    assert chosen is not None
    assert chosen[0] == chosen[2]
    assert 0 < int(chosen.sum()) < 4
    assert split_topics(["x", "x"], rng) is None
    assert split_topics(["x", None], rng) is None
    assert unrelated(Material(torch.randn(4, D), torch.randn(4, D)), rng) is None
    classes = (torch.zeros(6, D), torch.ones(8, D))
    found = unrelated(Material(torch.randn(4, D), torch.randn(4, D), (), classes), rng)
    assert found is not None
    torch.testing.assert_close(found, -torch.ones(D))


def test_an_unknown_family_is_refused(truth):
    with pytest.raises(ProtocolError, match="unknown null family"):
        draw_nulls(truth, material(), {"cosmic": 1}, seed=0)


# -- strengths, and weighted means


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_an_ablation_of_some_strength_removes_that_share(strength, family_model):
    model = family_model("qwen2")
    r = Direction.from_vector(torch.randn(model.d_model), -1, 0)
    h = torch.randn(2, 5, model.d_model)
    edits = BatchEdits.of([Arm("a", (Ablate(r, strength),))], model).on(torch.zeros(2, dtype=torch.long))
    expected = h - strength * (h @ r.vector)[..., None] * r.vector
    moved = next(iter(edits.values()))(h) if edits else h
    torch.testing.assert_close(moved, expected, **tolerance())
    if strength == 1.0:
        torch.testing.assert_close(moved, ablate(h, r.vector), **tolerance())


def test_impossible_strengths_are_refused():
    r = Direction.from_vector(torch.ones(4), -1, 0)
    with pytest.raises(ProtocolError, match="strength"):
        Ablate(r, -0.1)


def test_weighted_sums_are_the_means_they_weight(family_model):
    from rhumbline.inference.residuals import extract
    from rhumbline.inference.runner import Runner

    runner = Runner(family_model("qwen2"), tokens_per_forward=40)
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16], [5, 9, 12]]
    weights = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    sums = weighted_sums(runner, prompts, (Position(-2), Position(-1)), weights)
    torch.testing.assert_close(sums[0], extract(runner, prompts, (-2, -1)).stats.mean(), **tolerance())
    torch.testing.assert_close(sums[1], extract(runner, prompts[:1], (-2, -1)).stats.mean(), **tolerance())


# -- one way or several


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
