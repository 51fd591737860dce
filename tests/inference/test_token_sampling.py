"""Sampled tokens have the probabilities of the softmax, and depend on their own seed only."""

import numpy as np
import pytest
import torch
from scipy import stats

from rhumbline.errors import InputError
from rhumbline.inference.runner import Runner
from rhumbline.inference.token_sampling import TokenSampling

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45], [7, 100, 3, 9]]


def picks(logits, n, temperature=1.0):
    rows = torch.arange(n)
    pick = TokenSampling(temperature, [(0, i) for i in range(n)]).picker(rows)
    return pick(logits.expand(n, -1), rows, torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_have_the_probabilities_of_the_softmax(temperature):
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    counts = np.bincount(picks(logits, 4000, temperature).numpy(), minlength=4)
    expected = torch.softmax(logits[0] / temperature, 0).double().numpy()
    assert stats.chisquare(counts, 4000 * expected / expected.sum()).pvalue > 1e-3
    other = torch.softmax(logits[0] / (2 * temperature), 0).double().numpy()
    assert stats.chisquare(counts, 4000 * other / other.sum()).pvalue < 1e-3


def test_no_token_of_a_large_vocabulary_is_drawn_without_probability():
    """Random numbers in single precision are sometimes 0, which would win against any probability."""
    logits = torch.zeros(1, 2**20)
    logits[0, 7] = 60.0
    assert picks(logits, 16).eq(7).all()


def completions(model, order, temperature=1.0, budget=10_000):
    sampling = TokenSampling(temperature, [(1, i) for i in order])
    return Runner(model, budget).generate([PROMPTS[i] for i in order], max_new_tokens=8, sampling=sampling)[0][0]


@pytest.mark.parametrize("family", ["qwen2", "falcon_h1"])
def test_a_completion_depends_on_its_seed_and_not_on_its_batch(family, family_model):
    model = family_model(family)
    whole = completions(model, [0, 1, 2])
    assert completions(model, [2, 0], budget=1) == [whole[2], whole[0]]
    assert completions(model, [0, 0])[0] == completions(model, [0, 0])[1]  # one seed
    seeds = [(n,) for n in range(3)]
    three = Runner(model).generate([PROMPTS[0]] * 3, max_new_tokens=8, sampling=TokenSampling(1.0, seeds))[0][0]
    assert len(set(map(tuple, three))) == 3


def test_a_low_temperature_is_greedy_decoding(family_model):
    model = family_model("qwen2")
    assert completions(model, [0, 1, 2], 1e-6) == Runner(model).generate(PROMPTS, max_new_tokens=8)[0][0]
    with pytest.raises(InputError, match="temperature is 0"):
        TokenSampling(0, [])
