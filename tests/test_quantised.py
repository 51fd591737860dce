"""Quantised weights and offloaded layers: hooks work; a weight edit needs plain matrices."""

import pytest
import torch

from families import random_model
from rhumbline import proving
from rhumbline.errors import EditError
from rhumbline.importing import Imported
from rhumbline.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.loading import load
from rhumbline.running import Runner
from rhumbline.saving import EditOptions, dequantized, edit_checkpoint
from rhumbline.weights import edit_in_place, orthonormal, refuse_quantised

WIDTH = 128  # bitsandbytes packs blocks of 64
SIZES = {"hidden_size": WIDTH, "intermediate_size": 192, "head_dim": 32, "dtype": torch.float32}
PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45]]
pytestmark = pytest.mark.filterwarnings("ignore")  # the quantisers' own


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    random_model("llama", vocab_size=len(tokenizer), **SIZES).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(kind):
    import transformers

    match kind:
        case "bnb-4bit" | "bnb-8bit":
            pytest.importorskip("bitsandbytes")
            return transformers.BitsAndBytesConfig(load_in_4bit=kind == "bnb-4bit", load_in_8bit=kind == "bnb-8bit")
        case "torchao":
            pytest.importorskip("torchao")
            from torchao.quantization import Int8WeightOnlyConfig

            return transformers.TorchAoConfig(Int8WeightOnlyConfig())
        case "quanto":
            pytest.importorskip("optimum.quanto")
            return transformers.QuantoConfig(weights="int8")


def quantised(checkpoint, kind, tokenizer):
    from transformers import AutoModelForCausalLM

    config = settings(kind)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config, device_map="cpu")
    return proving.prove(model, tokenizer, kind)


def completions(chat_model, direction):
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    return Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=6)[0]


@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit", "torchao", "quanto"])
def test_hooks_work_and_edits_are_refused(kind, checkpoint, tokenizer):
    chat_model = quantised(checkpoint, kind, tokenizer)
    assert chat_model.proof.mode == "exact"
    assert chat_model.proof.leak <= chat_model.proof.leak_bound
    direction = Direction.from_vector(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    ((_, logits),) = Runner(chat_model).last_logits(PROMPTS[:1], arms)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert all(len(text) > 0 for arm in completions(chat_model, direction) for text in arm)
    with pytest.raises(EditError, match=r"quantised.*--dequantize"):
        refuse_quantised(chat_model.model)


@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit"])
def test_a_dequantised_model_can_be_edited(kind, checkpoint, tokenizer):
    chat_model = dequantized(quantised(checkpoint, kind, tokenizer))
    chat_model.model.float()
    edited = edit_in_place(proving.prove(chat_model.model, tokenizer, kind), orthonormal(torch.ones(1, WIDTH)))
    assert edited.proof.outcome == "exact"


def test_a_quantised_checkpoint_is_edited_on_request(checkpoint, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    chat_model = quantised(checkpoint, "bnb-4bit", tokenizer)
    source, out = tmp_path / "four-bit", tmp_path / "edited"
    chat_model.model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    found = Imported(torch.ones(1, WIDTH), 1, -1, "somewhere")
    with pytest.raises(EditError, match="--dequantize"):
        edit_checkpoint(str(source), found, out, EditOptions(device="cpu"))
    assert not out.exists()
    record = edit_checkpoint(str(source), found, out, EditOptions(device="cpu", dequantize=True))
    assert record["outcome"] == "exact"
    assert not hasattr(load(str(out), device="cpu").model.config, "quantization_config")


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_layers_on_other_devices_run_all_the_same(where, checkpoint, tokenizer, tmp_path):
    from accelerate import dispatch_model

    whole = proving.prove(random_model("llama", vocab_size=len(tokenizer), **SIZES), tokenizer, "whole")
    model = random_model("llama", vocab_size=len(tokenizer), **SIZES)
    # Nothing but a CPU is needed: offloaded weights live on the meta device between the calls of their layer.
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": where if i in (1, 2) else "cpu" for i in range(4)}
    spread = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path / "offload"), force_hooks=True)
    if where == "disk":
        assert spread.model.layers[1].mlp.down_proj.weight.device.type == "meta"
    chat_model = proving.prove(spread, tokenizer, "spread")
    direction = Direction.from_vector(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), -1, 1)
    assert completions(chat_model, direction) == completions(whole, direction)
