import pytest
import torch

from rhumbline.inference.interventions import Ablate, Arm, Direction
from rhumbline.inference.residuals import at_site, extract, projections
from rhumbline.inference.runner import Runner
from rhumbline.records.positions import Position
from tolerances import rounding, tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9], [8, 8, 2, 9, 5]]


def plain_residuals(chat_model, positions):
    """The oracle: one prompt at a time, through transformers' own recording of hidden states."""
    found = []
    for ids in PROMPTS:
        with torch.no_grad():
            out = chat_model.model(torch.tensor([ids]), output_hidden_states=True)
        states = torch.stack(out.hidden_states[: chat_model.n_layers])  # input of block l is hidden_states[l]
        found.append(states[:, 0, positions].transpose(0, 1).double())
    return torch.stack(found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "granite"])
@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_means_equal_the_oracle_at_any_batch_size(family, budget, family_model):
    chat_model = family_model(family)
    found = extract(Runner(chat_model, budget), PROMPTS, (-3, -2, -1))
    expected = plain_residuals(chat_model, [-3, -2, -1])
    torch.testing.assert_close(found.stats.mean(), expected.mean(0), **tolerance())
    assert found.stats.n == len(PROMPTS)
    assert found.stats.total.dtype == torch.float64


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_padding_on_either_side_and_packing_agree(family, family_model):
    sides = {}
    for side in ("left", "right", None):
        found = torch.zeros(len(PROMPTS), 2, 4, 32)
        last = torch.zeros(len(PROMPTS), family_model(family).model.config.vocab_size)
        runner = Runner(family_model(family))
        for prompt, h, logits in runner.residuals(PROMPTS, (-2, -1), padding=side, read=lambda logits: logits):
            found[prompt], last[prompt] = h, logits
        sides[side] = found, last
    for padded in ("right", None):  # None packs them
        for a, b in zip(sides["left"], sides[padded], strict=True):
            torch.testing.assert_close(a, b, **tolerance())


def test_a_filter_leaves_prompts_out_of_the_mean(family_model):
    runner = Runner(family_model("qwen2"))
    everyone = extract(runner, PROMPTS, (-1,), read=lambda logits: logits[:, 7])
    cut = float(everyone.metric.median())
    some = extract(runner, PROMPTS, (-1,), read=lambda logits: logits[:, 7], keep=lambda m: m > cut)
    assert some.kept.tolist() == (everyone.metric > cut).tolist()
    assert 0 < some.stats.n < len(PROMPTS)
    alone = extract(runner, [p for p, k in zip(PROMPTS, some.kept, strict=True) if k], (-1,))
    torch.testing.assert_close(some.stats.mean(), alone.stats.mean(), **tolerance())


def test_sites_and_projections_are_the_same_numbers(family_model):
    chat_model = family_model("qwen3")
    runner = Runner(chat_model)
    expected = plain_residuals(chat_model, [-2, -1])
    torch.testing.assert_close(at_site(runner, PROMPTS, Position(-2), 3).double(), expected[:, 0, 3], **tolerance())
    candidates = torch.randn(2, 4, 32)
    unit = candidates / candidates.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        projections(runner, PROMPTS, candidates, (-2, -1)),
        (expected * unit.double()).sum(-1),
        **tolerance(),
    )


def test_the_stream_is_seen_after_the_edit(family_model):
    chat_model = family_model("gemma2")
    r = Direction.from_vector(torch.randn(32), -1, 0)
    arm = Arm("ablation", (Ablate(r),))
    ((_, edited, _),) = Runner(chat_model).residuals(PROMPTS, (-1,), arm)
    ((_, clean, _),) = Runner(chat_model).residuals(PROMPTS, (-1,))
    assert (edited @ r.vector).abs().max() < rounding()
    assert (clean @ r.vector).abs().max() > 1e-1
