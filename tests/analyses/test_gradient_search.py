"""Directions fitted by gradient."""

from dataclasses import replace

import pytest
import torch

from rhumbline.analyses.gradient_search import GradientSearch
from rhumbline.inference.runner import Runner


@pytest.fixture
def search(planted):
    train = [planted.sequences("train", c)[:12] for c in ("positive", "negative")]
    return GradientSearch(Runner(planted.model), *train, planted.metric, planted.selected(), steps=3)


def test_a_search_does_not_change_the_model_and_stays_orthogonal(planted, search):
    fixed = planted.selected().vector[None]
    weights = [p.requires_grad for p in planted.model.model.parameters()]
    u = search.fit(fixed)
    assert (u @ fixed.T).abs().max() < 1e-5
    assert [p.requires_grad for p in planted.model.model.parameters()] == weights
    assert all(p.grad is None for p in planted.model.model.parameters())
    assert torch.equal(u, search.fit(fixed))


def test_packed_prompts_have_the_gradients_of_padded_ones(planted, search):
    padded = replace(planted.model, proof=replace(planted.model.proof, packing_is_exact=False))
    assert planted.model.proof.packing_is_exact
    fixed = planted.selected().vector[None]
    torch.testing.assert_close(search.fit(fixed), replace(search, runner=Runner(padded)).fit(fixed), atol=1e-3, rtol=0)


def test_the_ablations_of_a_search_spare_tokens(planted, search):
    """With more spared tokens than a prompt has, no ablation acts, and what it should suppress has no influence."""
    none = planted.selected().vector[None][:0]
    spared = replace(search, spared=1000)
    other = replace(spared, positive=search.positive[::-1])
    assert torch.equal(spared.fit(none), other.fit(none))
    assert not torch.equal(search.fit(none), replace(search, positive=search.positive[::-1]).fit(none))
