"""The terms sum to the projection on every family; heads are split off if the output projection is affine."""

import pytest
import torch

from families import FAMILIES
from rhumbline.analyses.attribution import NOT_AFFINE, NOT_WATCHED, OTHER_INPUT, attribute
from rhumbline.errors import ModelError
from tolerances import near, rounding, tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9]]
WHOLE = {"gemma2": OTHER_INPUT, "gemma3_text": OTHER_INPUT, "olmo2": OTHER_INPUT, "bloom": NOT_WATCHED}
"""Families whose attention cannot be split into heads, and why."""


def direction(seed=0):
    r = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return r / r.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_sum_to_the_projection(family, family_model):
    model, r = family_model(family), direction()
    found = attribute(model, PROMPTS, r, position=-1, layer=3)
    with torch.no_grad():
        for ids, value in zip(PROMPTS, found.projection, strict=True):
            states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(float(states[3][0, -1] @ r), float(value), **tolerance())
    assert found.error() < rounding()
    heads = [p for p in found.parts if p.kind == "head"]
    if family in WHOLE:
        assert not heads
        assert set(found.whole.values()) <= {WHOLE[family]}
        assert {layer for layer, _ in found.whole} == {0, 1, 2}
    else:
        assert not found.whole
        assert len(heads) == 3 * 4
    # Without one term the sum differs.
    assert found.values[:, 1:].sum(1).sub(found.projection).abs().max() > 1e-3


def test_a_head_is_the_product_of_its_columns(family_model):
    """Computed from the weights of one architecture."""
    model, r = family_model("llama"), direction(1)
    found = attribute(model, PROMPTS[:1], r, layer=2)
    block = model.blocks[1]
    seen = {}
    handle = block.self_attn.o_proj.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad():
        model.model(torch.tensor(PROMPTS[:1]))
    handle.remove()
    for head in range(4):
        columns = slice(8 * head, 8 * head + 8)
        expected = float(r @ (block.self_attn.o_proj.weight[:, columns] @ seen["x"][0, -1, columns]).detach())
        (i,) = (k for k, p in enumerate(found.parts) if (p.kind, p.layer, p.head) == ("head", 1, head))
        assert float(found.values[0, i]) == near(expected)
    (bias,) = (k for k, p in enumerate(found.parts) if (p.kind, p.layer) == ("bias", 1))
    assert float(found.values[0, bias]) == near(float(r @ block.self_attn.o_proj.bias.detach()))


def test_attention_is_read_and_restored(family_model):
    model = family_model("qwen2")
    before = model.model.config._attn_implementation
    found = attribute(model, PROMPTS, direction(), layer=2)
    for ids, weights in zip(PROMPTS, found.attention, strict=True):
        assert len(weights) == 2 * 4
        for w in weights.values():
            assert len(w) == len(ids)
            assert float(w.sum()) == near(1)
    assert model.model.config._attn_implementation == before


def test_a_coarse_model_is_refused(family_model):
    from dataclasses import replace

    model = family_model("llama")
    coarse = replace(model, proof=replace(model.proof, mode="coarse"))
    with pytest.raises(ModelError, match="coarse"):
        attribute(coarse, PROMPTS, direction(), layer=1)


def test_a_map_that_is_not_affine_is_detected():
    from rhumbline.analyses.attribution import affine_row

    x, r = torch.randn(32).double(), direction().double()
    assert affine_row(torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU()), x, r) is None
    linear = torch.nn.Linear(32, 32)
    along, bias = affine_row(linear, x, r)
    assert float(x @ along) + bias == near(float(linear(x.float()).double().detach() @ r))
    assert NOT_AFFINE
