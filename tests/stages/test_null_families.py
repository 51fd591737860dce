"""Null families: the property of each family, and a case that lacks it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import ProtocolError
from rhumbline.inference.interventions import Direction
from rhumbline.settings import NULL_FAMILIES
from rhumbline.stages.null_families import (
    CLUSTERS,
    Enough,
    Material,
    clusters,
    components,
    covariance,
    draw_nulls,
    energy_share,
    generator,
    halves,
    shuffled_site,
    split_topics,
    topics_of,
    unrelated,
)
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


PLAN = {family: 30 for family in NULL_FAMILIES if family != "shuffled"}


def test_draws_have_the_norm_the_site_and_their_own_seed(truth):
    found = draw_nulls(truth, material(), PLAN, seed=1)
    again = draw_nulls(truth, material(), PLAN, seed=1)
    other = draw_nulls(truth, material(), PLAN, seed=2)
    drawn = [(n.family, n.draw) for n in found if n.family != "unrelated"]
    assert drawn == [(f, d) for f in PLAN if f != "unrelated" for d in range(30)]
    # Four topics can be halved in six ways, which are three directions and their opposites.
    assert sum(n.family == "unrelated" for n in found) == 3
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
        (energy_share(m.positive, truth.vector) + energy_share(m.negative, truth.vector)) / 2
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


# -- topics without categories ----------------------------------------------------------------------------------------


def test_clusters_find_the_topics_of_the_activations():
    g = torch.Generator().manual_seed(0)
    topic = torch.arange(96) % CLUSTERS
    h = torch.randn(96, D, generator=g) + 30 * torch.eye(D)[topic]
    found = clusters(h, CLUSTERS)
    assert len(set(found)) == CLUSTERS
    assert len({(t, f) for t, f in zip(topic.tolist(), found, strict=True)}) == CLUSTERS
    assert clusters(h, CLUSTERS) == found
    assert clusters(h[:7], CLUSTERS) == [None] * 7


def test_clusters_take_the_place_of_missing_and_of_few_categories():
    negative = material().negative
    six, seven = ([str(i % n) for i in range(40)] for n in (6, 7))
    assert topics_of(seven, negative) == (seven, False)
    # Six topics have 20 halves, which are 10 directions and their opposites.
    for few in ([None] * 40, ["a", "b"] * 20, six, [*seven[:-1], None]):
        topics, are_clusters = topics_of(few, negative)
        assert are_clusters
        assert len(set(topics)) > 6


@pytest.mark.parametrize(("topics", "directions"), [(4, 3), (6, 10), (7, 35)])
def test_a_draw_and_its_opposite_are_one_null(truth, topics, directions):
    """Their ablations are equal, so they are one draw of the rank."""
    some = material(topics=[str(i) for i in range(topics)], n=42)
    drawn = draw_nulls(truth, some, {"unrelated": 400}, seed=0)
    vectors = torch.stack([null.direction.vector for null in drawn])
    cosines = (vectors @ vectors.T).abs() - torch.eye(len(vectors))
    assert float(cosines.max()) < 1 - 1e-5
    assert len(drawn) == directions


def test_unrelated_has_enough_draws_without_categories(truth):
    plain = material(topics=(None,))
    assert draw_nulls(truth, plain, {"unrelated": 19}, seed=0) == []
    clustered = replace(plain, topics=topics_of(plain.topics, plain.negative)[0])
    assert len(draw_nulls(truth, clustered, {"unrelated": 19}, seed=0, enough=Enough(19, None, 4))) >= 19


# -- enough comparable draws ------------------------------------------------------------------------------------------


def aligned(nulls, limit=0.5):
    return sum(abs(n.cosine) > limit for n in nulls)


def test_draws_are_added_until_enough_are_comparable(truth):
    along = Direction.from_vector(torch.nn.functional.one_hot(torch.tensor(1), D).float(), -1, 3)
    planned = draw_nulls(along, material(), {"top-pc": 30}, seed=0)
    assert aligned(planned) > 11  # of a plane that contains the direction
    more = draw_nulls(along, material(), {"top-pc": 30}, seed=0, enough=Enough(19, 0.5, 4))
    assert len(more) - aligned(more) == 19
    assert len(more) > 30
    assert all(torch.equal(a.direction.vector, b.direction.vector) for a, b in zip(planned, more, strict=False))
    limited = draw_nulls(along, material(), {"top-pc": 30}, seed=0, enough=Enough(1000, 0.5, 2))
    assert len(limited) == 60
    # If the planned draws are enough, none are added.
    assert len(draw_nulls(along, material(), {"isotropic": 30}, seed=0, enough=Enough(19, 0.5, 4))) == 30
