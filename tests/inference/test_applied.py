"""`applied`: interventions inside anyone's code, on a plain transformers model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from families import random_model
from rhumbline import applied
from rhumbline.errors import DirectionError
from rhumbline.inference.applied import _PROVED
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.inference.stream_edits import AblateByLayer, Affine, Rotate
from rhumbline.models import proving
from rhumbline.models.hooks import Observer, observed
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


@pytest.mark.parametrize("family", ["mamba2", "falcon_mamba"])
def test_generate_of_recurrent_models_equals_the_runner(family):
    """Their cache does not count its tokens, and has a name of its own."""
    model = random_model(family)
    chat_model = proving.prove(model, None, family)
    for intervention in (Add(direction(), 3.0, "prompt"), Ablate(direction(), spared=2)):
        (ours,) = Runner(chat_model).completions([PROMPT], [Arm("arm", (intervention,))], max_new_tokens=8, stop=[])
        with applied(model, intervention):
            assert generated(model) == generated(model) == ours
        mask = torch.tensor([[0, 0, *[1] * len(PROMPT)]])
        with applied(model, intervention):
            padded = model.generate(
                torch.tensor([[0, 0, *PROMPT]]), attention_mask=mask, max_new_tokens=8, do_sample=False,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        assert padded[:, 2 + len(PROMPT) :].tolist() == ours


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


def test_the_training_flags_of_submodules_are_left_alone(model):
    model.train()
    frozen = next(model.children())
    frozen.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with applied(model, Ablate(direction())):
        pass
    assert {name: module.training for name, module in model.named_modules()} == before


def test_the_training_flag_and_the_model_are_left_alone(model):
    model.train()
    with applied(model, Ablate(direction())):
        pass
    assert model.training
    assert all(known.chat_model.model is None and not known.chat_model.blocks for known in _PROVED.values())


def test_a_direction_of_another_width_is_refused(model):
    with (
        pytest.raises(DirectionError, match="width 8"),
        applied(model, Ablate(Direction.from_vector(torch.ones(8), -1, 0))),
    ):
        pass


def leak_of(model, r):
    """Largest |r.x| / |x| of the block outputs under the ablation of a unit vector r."""
    states = []
    blocks = [Observer(block, lambda a, k, out: states.append(out)) for block in model.base_model.model.model.layers]
    with applied(model, Ablate(r)), observed(blocks), torch.no_grad():
        model(input_ids=torch.tensor([PROMPT]))
    return max(float(((h @ r).abs() / h.norm(dim=-1)).max()) for h in states)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_adapter_that_was_silent_in_the_proof_is_ablated():
    """A fresh adapter adds nothing, so its output is that of the layer that it wraps; so is that of a disabled one."""
    model = get_peft_model(random_model("llama"), LoraConfig(r=4, target_modules=["o_proj", "down_proj"]))
    r = direction().vector
    assert leak_of(model, r) < 1e-5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    assert leak_of(model, r) < 1e-5
    with model.disable_adapter():
        assert leak_of(model, r) < 1e-5
    assert leak_of(model, r) < 1e-5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_a_changed_structure_is_proved_again(model):
    with applied(model, Ablate(direction())):
        pass
    before = _PROVED[model]
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["o_proj"])).base_model.model
    with applied(model, Ablate(direction())):
        pass
    assert "base_layer" in " ".join(a for w in _PROVED[model].chat_model.writers for a in w.aliases)
    assert "base_layer" not in " ".join(a for w in before.chat_model.writers for a in w.aliases)
