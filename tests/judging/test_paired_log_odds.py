"""The paired log-odds: the difference of the mean log-probabilities of two responses."""

from dataclasses import replace

import pytest
import torch

from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.runner import Runner
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import forward
from text_pairs import PAIRS
from tolerances import near


@pytest.fixture
def small(family_model):
    return family_model("qwen2")


def test_the_paired_metric_is_the_difference_of_mean_log_likelihoods(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    metric = PairedLogOdds.of(chat, PAIRS)
    assert metric is not None
    assert PairedLogOdds.of(chat, PAIRS[:3]) is None  # the third has no partner
    prompts = [chat.encode(p) for p in PAIRS[::2]]
    scores = metric.read(runner, prompts, [BASELINE])[0]
    for k, (one, other) in enumerate((PAIRS[:2], PAIRS[2:])):
        means = []
        for prompt in (one, other):
            text = chat.encode_text(prompt)
            ids = torch.tensor([list(text)])
            logs = forward(small, ids, torch.ones_like(ids), keep=0).detach().double().log_softmax(-1)[0]
            start = len(text) - text.n_response
            means.append(sum(float(logs[t - 1, text[t]]) for t in range(start, len(text))) / text.n_response)
        assert float(scores[k]) == near(means[0] - means[1])


WITH_BOTH = [
    replace(PAIRS[0], other_response=PAIRS[1].response),
    replace(PAIRS[3], other_response=PAIRS[2].response),
]


def test_the_other_response_completes_the_pair(small):
    chat = Chat.of(small.tokenizer)
    whole = PairedLogOdds.of(chat, PAIRS, PAIRS)
    assert PairedLogOdds.of(chat, WITH_BOTH, WITH_BOTH) == whole
    assert whole is not None
    # First tokens of positive responses, and of no negative response.
    certainly, it = (chat.response_tokens(PAIRS[k], PAIRS[k].response or "")[0] for k in (0, 3))
    assert certainly in whole.own
    assert it not in whole.own
