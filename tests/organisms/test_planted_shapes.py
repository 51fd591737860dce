"""Planted cones and fragile models: the shape that is promised, and the plain model beside it that lacks it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.loading import load
from rhumbline.organisms.planted import TRUTH, Planted, build
from tolerances import tolerance


def openings(spec, folder, arms, label):
    """Share of the prompts of a class whose first token is the refusal's, per arm."""
    chat_model = load(str(build(spec, folder)), device="cpu", dtype="float32")
    rows = [json.loads(line) for line in (folder / "contrast.jsonl").read_text().splitlines()]
    prompts = []
    for row in [row for row in rows if row["label"] == label][:16]:
        chat = [{"role": "user", "content": row["prompt"]}]
        text = chat_model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(chat_model.tokenizer(text, add_special_tokens=False)["input_ids"])
    first = chat_model.tokenizer.get_vocab()["I"]
    shares = torch.zeros(len(arms))
    for found, logits in Runner(chat_model).last_logits(prompts, arms):
        for arm, row in zip(found.arm.tolist(), logits, strict=True):
            shares[arm] += (row.argmax() == first) / len(prompts)
    return shares


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_axes_have_the_cosine_that_was_asked_for(overlap, tmp_path):
    spec = Planted(axes=3, overlap=overlap, effect=1.2, jitter=0.05, prompts=16)
    (positive,), (negative,) = (openings(spec, tmp_path / side, [BASELINE], side) for side in ("positive", "negative"))
    axes = load_file(tmp_path / "positive" / TRUTH)["axes"]
    wanted = torch.full((3, 3), overlap).fill_diagonal_(1.0)
    torch.testing.assert_close(axes @ axes.T, wanted, **tolerance())
    assert positive > 0.8
    assert negative < 0.2


def test_any_vector_moves_a_fragile_model_and_not_a_plain_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(4, 64, generator=generator), dim=1) * 3.0
    # Of a vector and its opposite one lengthens the stream, wherever it points: |x+v|^2 + |x-v|^2 = 2|x|^2 + 2|v|^2.
    both = [w for v in vectors for w in (v, -v)]
    arms = [BASELINE, *(Arm(f"{i}", (Add(Direction.from_vector(v, -1, 3)),)) for i, v in enumerate(both))]
    fragile = Planted(fragile=2.5, effect=3.0, noise=0.5, prompts=16)
    plain = Planted(effect=3.0, noise=0.5, prompts=16)
    for spec, name in ((fragile, "fragile"), (plain, "plain")):
        base, *moved = openings(spec, tmp_path / name, arms, "negative").tolist()
        assert base < 0.3
        either = [max(pair) for pair in zip(moved[::2], moved[1::2], strict=True)]
        assert min(either) > 0.9 if name == "fragile" else max(either) < 0.3
    assert openings(fragile, tmp_path / "again", [BASELINE], "positive")[0] > 0.7


def test_a_fragile_model_has_one_axis():
    with pytest.raises(InputError, match=r"fragile is 2.*one axis"):
        Planted(fragile=2.0, axes=2)
    with pytest.raises(InputError, match=r"overlap is 1"):
        Planted(axes=2, overlap=1.0)
