"""Directions fitted by gradient."""

import torch

from rhumbline.analyses.gradient_search import GradientSearch


def test_a_search_does_not_change_the_model_and_stays_orthogonal(planted):
    subject = planted
    fixed = subject.selected().vector[None]
    weights = [p.requires_grad for p in subject.model.model.parameters()]
    train = [subject.sequences("train", c) for c in ("positive", "negative")]
    search = GradientSearch(subject.model, *train, subject.tokens, subject.selected(), steps=3)
    u = search.fit(fixed)
    assert (u @ fixed.T).abs().max() < 1e-5
    assert [p.requires_grad for p in subject.model.model.parameters()] == weights
    assert all(p.grad is None for p in subject.model.model.parameters())
    assert torch.equal(u, search.fit(fixed))
