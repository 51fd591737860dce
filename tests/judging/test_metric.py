"""The token metric and the KL divergence: the formulas, their epsilons and their precision."""

import math

import pytest
import torch

from rhumbline.errors import ProtocolError
from rhumbline.judging.metric import kl_divergence, refusal_metric


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_refusal_metric_is_the_log_odds_of_the_refusal_tokens():
    metric = refusal_metric(logits_of([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]), [0, 1])
    expected = [math.log(0.8 + 1e-8) - math.log(0.2 + 1e-8), math.log(0.2 + 1e-8) - math.log(0.8 + 1e-8)]
    assert metric.dtype == torch.float64
    assert metric.tolist() == pytest.approx(expected, rel=1e-12)


def test_refusal_metric_is_bounded_by_its_epsilons():
    certain = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    bound = math.log(1 + 1e-8) - math.log(1e-8)
    assert refusal_metric(certain, [0]).tolist() == pytest.approx([bound, -bound])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_refusal_metric_upcasts_before_the_softmax(dtype):
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(refusal_metric(logits, [3, 7]), refusal_metric(logits.double(), [3, 7]), rtol=0, atol=0)


def test_refusal_metric_counts_a_repeated_token_once_and_keeps_nan():
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(refusal_metric(logits, [4, 4, 2]), refusal_metric(logits, [2, 4]))
    logits[1, 0] = torch.nan
    assert refusal_metric(logits, [4]).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("tokens", [[], [-1], [10], [0, 99]])
def test_refusal_tokens_must_fit_the_vocabulary(tokens):
    with pytest.raises(ProtocolError, match="vocabulary of 10"):
        refusal_metric(torch.zeros(2, 10), tokens)


def test_kl_divergence_agrees_with_torch_up_to_its_epsilon():
    a, b = torch.randn(2, 6, 30, generator=torch.Generator().manual_seed(1))
    true = torch.nn.functional.kl_div(
        b.double().log_softmax(-1), a.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    divergence = kl_divergence(a, b)
    assert divergence.dtype == torch.float64
    torch.testing.assert_close(divergence, true, rtol=1e-3, atol=1e-3)
    assert (kl_divergence(a, a) == 0).all()
    assert (divergence - kl_divergence(b, a)).abs().max() > 1e-2  # not symmetric


def test_kl_divergence_is_the_reference_formula():
    p, q = [0.9, 0.1], [0.5, 0.5]
    expected = sum(x * (math.log(x + 1e-6) - math.log(y + 1e-6)) for x, y in zip(p, q, strict=True))
    assert kl_divergence(logits_of(p), logits_of(q)).tolist() == pytest.approx([expected], rel=1e-12)
    # The epsilon bounds the cost of a token of probability 0; the true divergence is infinite.
    impossible = torch.tensor([[0.0, -1e9]])
    assert kl_divergence(logits_of([0.5, 0.5]), impossible).item() < 8
