"""`applied`: interventions inside anyone's code, on a plain transformers model."""

import pytest
import torch

from families import random_model
from rhumbline import applied
from rhumbline.errors import DirectionError
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.inference.stream_edits import AblateByLayer, Affine, Rotate
from rhumbline.models import proving
from tolerances import tolerance

PROMPT = [5, 9, 70, 11, 33, 8]


def direction(layer=2, seed=0):
    return Direction.from_vector(torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 4, -1, layer)


def generated(model, rows=1, **options):
    ids = torch.tensor([PROMPT] * rows)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None,
        **options,
    )  # fmt: skip
    return out[:, len(PROMPT) :].tolist()


@pytest.fixture
def model(tokenizer):
    return random_model("llama", vocab_size=len(tokenizer))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "intervention",
    [
        Ablate(direction()),
        Add(direction(), 3.0),
        Add(direction(), 3.0, "prompt"),
        Add(direction(0), 3.0),
        Affine(1, direction().vector[None], direction().vector[None], 9 * direction().vector, spared=2),
        Rotate(torch.eye(32)[:2], 2.5),
        AblateByLayer(direction().vector, (0.0, 1.5, 1.5, 1.0)),
    ],
    ids=["ablate", "add", "add to the prompt", "add first", "affine", "rotate", "ablate by layer"],
)
def test_generate_equals_the_runner(intervention, use_cache, model):
    chat_model = proving.prove(model, None, "llama")
    arm = Arm("arm", (intervention,))
    (ours,), *_ = Runner(chat_model).generate([PROMPT], [arm], max_new_tokens=8)
    plain = generated(model, use_cache=use_cache)
    with applied(model, intervention):
        inside = generated(model, rows=2, use_cache=use_cache)
        again = generated(model, rows=2, use_cache=use_cache)  # a second prompt starts anew
    assert inside == again == [inside[0]] * 2
    stop = next((i for i, t in enumerate(inside[0]) if t in chat_model.stop_tokens()), 8)
    assert inside[0][:stop] == ours[0]
    assert generated(model, use_cache=use_cache) == plain
    assert inside[0] != plain[0]


def test_contexts_nest_and_leave_no_trace(model):
    a, b = direction(1, seed=1), direction(3, seed=2)
    both = Arm("both", (Add(a, 2.0), Add(b, -1.0)))
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        plain = model(ids).logits
        with applied(model, both):
            wanted = model(ids).logits
        with applied(model, Add(a, 2.0)), applied(model, Add(b, -1.0)):
            torch.testing.assert_close(model(ids).logits, wanted, **tolerance())
        with pytest.raises(RuntimeError, match="on purpose"), applied(model, both):
            raise RuntimeError("on purpose")
        torch.testing.assert_close(model(ids).logits, plain, atol=0, rtol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (wanted - plain).abs().max() > 1e-2


def test_the_training_flag_and_the_model_are_left_alone(model):
    model.train()
    with applied(model, Ablate(direction())):
        pass
    assert model.training
    from rhumbline.inference.applied import _PROVED

    assert all(known.model is None and not known.blocks for known in _PROVED.values())


def test_a_direction_of_another_width_is_refused(model):
    with (
        pytest.raises(DirectionError, match="width 8"),
        applied(model, Ablate(Direction.from_vector(torch.ones(8), -1, 0))),
    ):
        pass
