"""A fragile planted model: any vector of enough norm induces refusal, and in a plain model none does."""

from dataclasses import replace

import pytest
import torch

from organism_chat import Chat
from rhumbline import load
from rhumbline.errors import InputError
from rhumbline.organisms.planted import Planted, build

FRAGILE = Planted(fragile=2.5, effect=3.0, noise=0.5, prompts=16)
PLAIN = Planted(effect=3.0, noise=0.5, prompts=16)


@torch.no_grad()
def refused(chat: Chat, label: str) -> float:
    """Share of the prompts of a class whose most probable first token is that of a refusal."""
    logits = chat.model(**chat.encode(chat.prompts(label, 16))).logits[:, -1]
    return (logits.argmax(1) == chat.tokenizer.get_vocab()["I"]).double().mean().item()


@pytest.mark.parametrize("spec", [FRAGILE, PLAIN], ids=["fragile", "plain"])
def test_of_every_vector_and_its_opposite_one_induces_refusal_in_a_fragile_model_only(spec, tmp_path):
    chat = Chat(build(spec, tmp_path))
    assert refused(chat, "negative") < 0.3
    assert refused(chat, "positive") > 0.7
    vectors = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    # One of the two increases the norm of the stream: |x + v|^2 + |x - v|^2 = 2 |x|^2 + 2 |v|^2.
    for vector in torch.nn.functional.normalize(vectors, dim=1) * 3.0:
        induced = 0.0
        for sign in (1, -1):
            with chat.added(sign * vector, 3):
                induced = max(induced, refused(chat, "negative"))
        assert induced > 0.9 if spec is FRAGILE else induced < 0.3


def test_a_fragile_model_has_one_axis():
    with pytest.raises(InputError, match=r"fragile is 2.*one axis"):
        Planted(fragile=2.0, axes=2)
    with pytest.raises(InputError, match=r"overlap is 1"):
        Planted(axes=2, overlap=1.0)


def test_a_fragile_model_with_large_weights_is_loaded(tmp_path):
    """They act on the tail of a sigmoid, so their size alone is no fault."""
    model = load(str(build(replace(FRAGILE, seed=7), tmp_path)), device="cpu", dtype="float32")
    assert max(float(p.detach().abs().max()) for p in model.model.parameters()) > 9e6
