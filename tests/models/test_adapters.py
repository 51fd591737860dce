"""An adapter is applied as a whole or refused with the names; it can be merged into its base."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import random_model
from faulty_checkpoints import both, cut, file, tensors, write_contrast
from rhumbline import load
from rhumbline.errors import ModelError
from rhumbline.jobs.sizing import read_checkpoint
from rhumbline.models.adapters import merge_adapter
from rhumbline.models.places import places_of
from rhumbline.models.resource_limits import limited
from rhumbline.models.sources import Source
from tolerances import tolerance

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # of peft, of tied weights

WEIGHTS = "adapter_model.safetensors"
ENDLESS = r"((\w|\.)+)+ "
"""A regular expression whose time doubles with every character of a name."""
IDS = torch.tensor([[5, 9, 70, 11, 33, 8, 200, 3]])
SECOND = ".layers.1."
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "lora of the embedding": {"target_modules": ["embed_tokens", "down_proj"]},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "trained tokens": {"trainable_token_indices": [5, 7]},
}


def tiny(tokenizer, **options):
    sizes = {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "attention_bias": False, "tie_word_embeddings": True}
    return random_model("llama", **{**sizes, **options})


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tokenizer, tmp_path):
    """An adapter of the base, of a kind, and with a change of its directory."""

    def make(kind="lora", change=lambda folder: None, name="adapter", **sizes):
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(tiny(tokenizer, **sizes), peft.LoraConfig(**{**LORA, **KINDS[kind]}))
        for config in wrapped.peft_config.values():
            config.base_model_name_or_path = str(base)
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
        change(tmp_path / name)
        return tmp_path / name

    return make


def settings(**values):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(part):
    return tensors(lambda found: {k: t for k, t in found.items() if part not in k}, WEIGHTS)


FAULTS = {
    "no tensor of one matrix": (without(f"{SECOND}self_attn.q_proj.lora_B"), ("layers.1.self_attn.q_proj.lora_B",)),
    "no tensors of a layer": (without(SECOND), ("4 parameters", "layers.1.self_attn.q_proj")),
    "other tensors": (tensors(lambda found: {"x": torch.zeros(1)}, WEIGHTS), ("8 parameters",)),
    "fewer modules in the config": (settings(target_modules=["q_proj"]), ("layers.0.self_attn.v_proj.lora_A",)),
    "more modules in the config": (settings(target_modules=["q_proj", "v_proj", "o_proj"]), ("o_proj.lora_A",)),
    "modules that the base lacks": (settings(target_modules=["banana"]), ("banana",)),
    "another rank": (settings(r=3), ("lora_A", "size mismatch")),
    "NaN": (tensors(lambda found: {k: t * float("nan") for k, t in found.items()}, WEIGHTS), ("NaN", "lora_A")),
    "huge weights": (tensors(lambda found: {k: t * 1e25 for k, t in found.items()}, WEIGHTS), ("above", "lora_A")),
    "no weights": (file(WEIGHTS, None), ("adapter without weights", WEIGHTS)),
    "half a file": (cut(WEIGHTS, 0.5), (WEIGHTS, "bytes by its header")),
    "no base": (settings(base_model_name_or_path=None), ("base_model_name_or_path",)),
    "a base that is not there": (settings(base_model_name_or_path="/not/there"), ("/not/there", "no such directory")),
    "a config that is no object": (file("adapter_config.json", "[]"), ("adapter_config.json", "no base model")),
    "a config that is not JSON": (file("adapter_config.json", "{"), ("adapter_config.json", "not JSON")),
    "virtual tokens": (
        settings(peft_type="PROMPT_TUNING", num_virtual_tokens=4, task_type="CAUSAL_LM"), ("PROMPT_TUNING",)
    ),
}  # fmt: skip


IN_VALUES = ("NaN", "huge weights")


@pytest.fixture
def contrast(tmp_path):
    return write_contrast(tmp_path / "contrast.jsonl")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_by_name(name, adapter, contrast, call):
    change, words = FAULTS[name]
    folder = adapter(change=change)
    code, out, messages = call("model", folder, "--device", "cpu")
    assert (code, out) == (3, ""), messages
    assert [word for word in words if word not in messages] == []
    if name not in IN_VALUES:  # a plan reads no weights
        code, _, messages = call("run", folder, "--contrast", contrast, "--plan", "--out", folder.parent / "out")
        assert code == 3, messages
        assert [word for word in words if word not in messages] == []


@pytest.mark.parametrize("field", [{"target_modules": ENDLESS}, {"rank_pattern": {ENDLESS: 2}}], ids=str)
def test_a_pattern_without_end_is_refused(field, adapter, call, monkeypatch):
    monkeypatch.setattr("rhumbline.models.adapters.limited", partial(limited, seconds=0.2))
    code, _, messages = call("model", adapter(change=settings(**field)), "--device", "cpu")
    assert code == 3
    assert "pattern" in messages
    assert "processor time" in messages


def test_a_whole_adapter_is_planned(adapter, contrast, call):
    code, out, _ = call("run", adapter("dora"), "--contrast", contrast, "--plan", "--out", contrast.parent / "out")
    assert code == 0
    assert "memory" in out


def test_an_adapter_of_a_deeper_base_is_refused(adapter, call):
    code, _, messages = call("model", adapter(num_hidden_layers=3), "--device", "cpu")
    assert code == 3
    assert "layers.2.self_attn.q_proj.lora_A" in messages


def test_an_adapter_of_an_adapter_is_refused(adapter, call):
    first = adapter(name="first")
    code, _, messages = call("model", adapter(change=settings(base_model_name_or_path=str(first))))
    assert code == 3
    assert "is an adapter too" in messages


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_applied_and_can_be_merged(kind, adapter, base, tokenizer):
    folder = adapter(kind)
    loaded = load(str(folder), device="cpu")
    wanted = peft.PeftModel.from_pretrained(tiny(tokenizer), str(folder)).eval()
    with torch.no_grad():
        expected, plain = wanted(IDS).logits, tiny(tokenizer)(IDS).logits
        torch.testing.assert_close(loaded.model(IDS).logits, expected, **tolerance())
        assert (expected - plain).abs().max() > 1e-2
        merge_adapter(loaded.model)
        torch.testing.assert_close(loaded.model(IDS).logits, expected, **tolerance())
    names = {name for name, _ in loaded.model.named_parameters()}
    # A head that was tied has a weight of its own if the adapter acts on one of both.
    assert names - {"lm_head.weight"} == {name for name, _ in tiny(tokenizer).named_parameters()}


def test_the_parts_of_an_adapter(adapter, base, tokenizer):
    folder = adapter()
    with places_of(Source(str(folder))) as places:
        assert (places.own_tokenizer, places.base, places.whole) == (False, str(base), str(base))
        assert read_checkpoint(places.weights) == read_checkpoint(base)  # the adapter is not counted
    assert load(str(folder), device="cpu").tokenizer.get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(folder)
    with places_of(Source(str(folder))) as places:
        assert places.own_tokenizer
    # The name of the base can be relative to the adapter.
    shutil.copytree(base, folder.parent / "beside")
    settings(base_model_name_or_path="../beside")(folder)
    assert load(str(folder), device="cpu").proof.mode == "exact"


def test_an_adapter_in_the_directory_of_its_base(adapter, base, tmp_path):
    folder = adapter()
    shutil.copytree(base, tmp_path / "whole")
    for name in (WEIGHTS, "adapter_config.json"):
        shutil.copy(folder / name, tmp_path / "whole" / name)
    places = (tmp_path / "whole", folder, base)
    whole, apart, plain = (load(str(place), device="cpu").model(IDS).logits for place in places)
    assert torch.equal(whole, apart)
    assert not torch.equal(whole, plain)
    both(without(SECOND))(tmp_path / "whole")
    with pytest.raises(ModelError, match="only in part"):
        load(str(tmp_path / "whole"), device="cpu")
    # A fault of the base is not covered by the adapter.
    shutil.copy(folder / WEIGHTS, tmp_path / "whole" / WEIGHTS)
    tensors(lambda found: {k: t for k, t in found.items() if "layers.1.mlp.down_proj" not in k})(tmp_path / "whole")
    with pytest.raises(ModelError, match="1 missing"):
        load(str(tmp_path / "whole"), device="cpu")


def test_a_bin_file_and_a_config_of_the_base(adapter, base):
    folder = adapter()
    expected = load(str(folder), device="cpu").model(IDS).logits
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    shutil.copy(base / "config.json", folder / "config.json")
    assert torch.equal(load(str(folder), device="cpu").model(IDS).logits, expected)


def test_an_edit_merges_the_adapter(adapter, base, call, tmp_path):
    folder, out = adapter("lora"), tmp_path / "edited"
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file({"direction": direction / direction.norm()}, tmp_path / "direction.safetensors")
    command = ("edit", folder, "--direction", tmp_path / "direction.safetensors", "--layer", 1, "--force")
    code, _, messages = call(*command, "--out", out, "--device", "cpu")
    assert code == 0, messages
    assert not list(out.glob("adapter*"))
    edited = load(str(out), device="cpu")  # with the tokenizer of the base
    names = {name for name, _ in edited.model.named_parameters()}
    assert not any("lora" in name for name in names)
    merged = load(str(folder), device="cpu").model
    merge_adapter(merged)
    written = edited.model.get_parameter("model.layers.1.self_attn.v_proj.weight")
    torch.testing.assert_close(written, merged.get_parameter("model.layers.1.self_attn.v_proj.weight"), **tolerance())
    code, _, messages = call(*command, "--out", tmp_path / "files", "--sharded")
    assert code == 3
    assert "is an adapter, and --sharded edits whole checkpoints" in messages
    assert not (tmp_path / "files").exists()
