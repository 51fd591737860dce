"""Block inputs at positions of prompts and of responses, and positions that a prompt does not have."""

import pytest
import torch

from rhumbline.errors import InputError
from rhumbline.inference.residuals import at_site, extract, projections
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat, ChatWithResponse
from rhumbline.records.positions import Position
from text_pairs import PAIRS
from tolerances import tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46], [7, 100, 3, 9]]
WITH_RESPONSES = [ChatWithResponse(ids, [12, 13, 14]) for ids in PROMPTS]
READS = {
    "residuals": lambda runner, texts, p: list(runner.residuals(texts, [-1, p])),
    "extract": lambda runner, texts, p: extract(runner, texts, (-1, p)),
    "at_site": lambda runner, texts, p: at_site(runner, texts, p, 1),
    "projections": lambda runner, texts, p: projections(runner, texts, torch.randn(1, 4, 32), (p,)),
}


@pytest.fixture
def small(family_model):
    return family_model("qwen2")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, r"position 0 \(response mean\) is in the response, and 3 of 3 prompts have no response"),
        (2, r"position 2 \(response token 2\) is in the response, and 3 of 3 prompts have no response"),
        (-5, "position -5: the shortest of 3 prompts has 4 tokens. Use positions from -4 to -1"),
    ],
)
@pytest.mark.parametrize("kind", [int, Position])
def test_a_position_that_a_prompt_does_not_have_is_refused(kind, position, message, read, small):
    with pytest.raises(InputError, match=message):
        READS[read](Runner(small), PROMPTS, kind(position))


@pytest.mark.parametrize("read", READS)
def test_positions_that_every_prompt_has_are_read(read, small):
    runner = Runner(small)
    READS[read](runner, PROMPTS, -4)
    for position in (-4, 0, 2, 9):  # of a response that is shorter than 9 tokens the last one is read
        READS[read](runner, WITH_RESPONSES, position)


@pytest.mark.parametrize("position", [0, 1, -5])
def test_one_prompt_without_the_position_is_enough(position, small):
    mixed = [*WITH_RESPONSES[:2], PROMPTS[2]]
    with pytest.raises(InputError, match="1 of 3 prompts" if position >= 0 else "the shortest of 3 prompts"):
        at_site(Runner(small), mixed, position, 1)
    # The tokens of a response do not count as tokens of its prompt.
    if position < 0:
        with pytest.raises(InputError, match="the shortest of 3 prompts has 4 tokens"):
            at_site(Runner(small), WITH_RESPONSES, position, 1)


def test_the_mean_over_a_response_is_that_of_its_tokens(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    texts = [chat.encode_text(p) for p in PAIRS]
    together = {}
    for rows, h, _ in runner.residuals(texts, [-1, 0, 1, 2]):
        together |= {int(i): h[k] for k, i in enumerate(rows)}
    for i, text in enumerate(texts):
        assert isinstance(text, ChatWithResponse)
        each = [h[0, 0] for k in range(text.n_response) for _, h, _ in runner.residuals([text], [k + 1])]
        torch.testing.assert_close(together[i][1], torch.stack(each).mean(0), **tolerance())
        torch.testing.assert_close(together[i][3], each[min(1, len(each) - 1)], **tolerance())
        ((_, at_prompt, _),) = runner.residuals([chat.encode(PAIRS[i])], [-1])
        torch.testing.assert_close(together[i][0], at_prompt[0, 0].float(), **tolerance())
