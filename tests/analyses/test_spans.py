"""Spans and their ablation, random spans, and prototypes of activations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.analyses.spans import (
    cone_samples,
    energy,
    k_means,
    prototypes,
    random_span,
    self_organising_map,
    span_of,
)
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Arm, Direction
from rhumbline.inference.runner import Runner
from tolerances import WITH_SOFTMAX, rounding, tolerance


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_span_does_not_depend_on_the_order_of_its_members(seed, k):
    rng = torch.Generator().manual_seed(seed)
    members = torch.randn(k, 12, generator=rng)
    one, other = span_of(members), span_of(members[torch.randperm(k, generator=rng)])
    torch.testing.assert_close(one.T @ one, other.T @ other, **tolerance(terms=WITH_SOFTMAX))
    torch.testing.assert_close(one @ one.T, torch.eye(k), **tolerance())
    assert len(span_of(torch.cat([members, members[:1] * -3]))) == k  # a member within the span is skipped


def test_ablation_of_a_span_does_not_depend_on_its_basis(family_model):
    model = family_model("llama")
    rng = torch.Generator().manual_seed(0)
    span = span_of(torch.randn(3, 32, generator=rng))
    rotated = torch.linalg.qr(torch.randn(3, 3, generator=rng)).Q @ span
    prompts = [[5, 9, 70, 11, 33, 8], [7, 100, 3, 9]]
    one_direction = Direction.from_vector(span[0], -1, 0)
    arms = [
        Arm("a", (AblateSpan(span),)),
        Arm("b", (AblateSpan(rotated),)),
        Arm("c", (AblateSpan(span[:1]),)),
        Arm("d", (Ablate(one_direction),)),
        BASELINE,
    ]
    logits_of = torch.zeros(len(arms), len(prompts), model.model.config.vocab_size)
    for rows, logits in Runner(model).last_logits(prompts, arms):
        logits_of[rows.arm, rows.prompt] = logits
    torch.testing.assert_close(logits_of[0], logits_of[1], **tolerance())
    torch.testing.assert_close(logits_of[2], logits_of[3], **tolerance())
    assert (logits_of[0] - logits_of[4]).abs().max() > 1e-2
    for _, h, _ in Runner(model).residuals(prompts, (-1,), arms[0]):
        assert (h @ span.T).abs().max() < rounding()  # gone after
    for _, h, _ in Runner(model).residuals(prompts, (-1,)):
        assert (h @ span.T).abs().max() > 1e-1  # present before


def test_random_spans_contain_the_fixed_rows_and_match_the_energy():
    rng = np.random.default_rng(0)
    h = torch.randn(200, 24) * torch.linspace(3, 0.1, 24)
    fixed, own = torch.eye(24)[20:21], torch.eye(24)[[20, 3]]
    plain = random_span(fixed, 2, h, rng)
    matched = random_span(fixed, 2, h, rng, energy(h, own))
    for span in (plain, matched):
        assert (fixed - fixed @ span.T @ span).abs().max() < rounding()
        assert len(span) == 2
    assert energy(h, matched) == pytest.approx(energy(h, own), rel=0.05)
    assert energy(h, torch.eye(24)) == pytest.approx(1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0, 1))
def test_a_random_vector_orthogonal_to_the_direction_has_its_energy(seed, axis, tilt):
    """Also where the direction lies near the first axis, so that what is drawn there has none of its energy left."""
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(200, 24, generator=rng) * torch.linspace(3, 0.1, 24)
    r = torch.nn.functional.normalize(torch.eye(24)[axis] + tilt * torch.eye(24)[0], dim=0)[None]
    own, other = random_span(r, 2, h, np.random.default_rng(seed), 2 * energy(h, r), h)
    assert abs(float(own @ r[0])) == pytest.approx(1, abs=1e-5)
    assert abs(float(other @ r[0])) < rounding()
    # Between an isotropic vector and the one with the largest weight on the first axes.
    least, most = (energy(h, random_span(r, 2, h, np.random.default_rng(seed), match, h)[1:]) for match in (0.0, 1.0))
    if least < energy(h, r) < most:
        assert energy(h, other[None]) == pytest.approx(energy(h, r), rel=0.05)


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_a_span_that_cannot_have_the_energy_has_the_most_of_its_rank(rank):
    """The random rows all approach the first axis; a span of fewer dimensions would be a weaker null."""
    torch.manual_seed(0)
    h = torch.randn(60, 64) * torch.tensor([10.0, 2.0, 1.0] + [0.3] * 61)
    fixed = torch.eye(64)[-1:]
    most = torch.linalg.svd(h - h.mean(0)).Vh[: rank - 1]
    span = random_span(fixed, rank, h, np.random.default_rng(0), 0.999)
    assert len(span) == rank
    assert energy(h, span) == pytest.approx(energy(h, most) + energy(h, fixed), abs=0.01)
    within = random_span(fixed, rank, h, np.random.default_rng(0), 0.5)
    assert (len(within), energy(h, within)) == (rank, pytest.approx(0.5, abs=0.01))


def test_negatives_without_variance_have_isotropic_vectors():
    span = random_span(torch.eye(8)[:1], 2, torch.ones(4, 8), np.random.default_rng(0), 0.5)
    assert torch.isfinite(span).all()
    assert len(span) == 2


# -- prototypes


def clouds(n=60, d=8, distance=6.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centres = distance * torch.eye(d)[:3]
    return torch.cat([torch.randn(n, d, generator=rng) + c for c in centres]), centres


def test_k_means_and_the_map_locate_planted_clouds():
    h, centres = clouds()
    centroids = k_means(h, 3, np.random.default_rng(0))
    assert torch.cdist(centres, centroids).min(1).values.max() < 1.0
    neurons = self_organising_map(h, 2, np.random.default_rng(0))
    assert len(neurons) == 4
    assert torch.cdist(centres, neurons).min(1).values.max() < 2.0
    # One cloud: every prototype has nearly the direction of the mean.
    one, negative = h[:60], torch.randn(60, 8) - 6 * torch.eye(8)[0]
    for source in ("clusters", "som"):
        members = prototypes(one, negative, source, 3, 0)
        mean = one.mean(0) - negative.mean(0)
        assert torch.cosine_similarity(members, mean, dim=-1).min() > 0.9


def test_there_are_at_most_as_many_clusters_as_distinct_prompts():
    h = torch.randn(2, 4)
    assert len(k_means(h, 5, np.random.default_rng(0))) == 2
    assert len(k_means(torch.ones(4, 3), 2, np.random.default_rng(0))) == 1


def test_cone_samples_have_non_negative_weights():
    members = torch.eye(6)[:3]
    for v in cone_samples(members, 20, np.random.default_rng(1)):
        assert float((members @ v).min()) >= 0
        assert float(v.norm()) == pytest.approx(1)
