"""Every export, read back by its tool."""

import copy
import os

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from families import random_model
from make_directions import make_directions
from rhumbline.edits.export import FORMATS, ExportOptions, export, steering
from rhumbline.edits.proved_edit import orthogonalized
from rhumbline.edits.read_direction import read_directions
from rhumbline.errors import DirectionError, EditError, InputError, OutputError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.models import proving
from rhumbline.models.hooks import hooked
from rhumbline.records.positions import Position
from tolerances import tolerance

pytestmark = [  # warnings of peft
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
]

IDS = torch.tensor([[5, 9, 70, 11, 33, 8], [7, 100, 3, 9, 61, 2]])


@pytest.fixture
def loaded(checkpoint):
    """A checkpoint in float32, and its model."""

    def make(family, **overrides):
        folder = checkpoint(family, torch.float32, **overrides)
        return folder, AutoModelForCausalLM.from_pretrained(folder).eval()

    return make


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def hooked_logits(model, tokenizer, intervention):
    chat_model = proving.prove(model, tokenizer, "hooked")
    edits = BatchEdits.of([Arm("arm", (intervention,))], chat_model).on(torch.zeros(1, dtype=torch.long))
    with hooked(chat_model, edits):
        return logits(model)


def test_the_own_format_keeps_the_origin_of_the_direction(tmp_path):
    directions = make_directions(
        fingerprint="abc", template_sha256="def", model="org/model", verdict="SINGLE-DIRECTION-REPRODUCES"
    )
    export(directions, "direction", tmp_path / "direction.safetensors")
    again = read_directions(tmp_path / "direction.safetensors")
    torch.testing.assert_close(again.vectors, directions.vectors, atol=0, rtol=0)
    assert (again.layer, again.position) == (2, Position(-1))
    assert structs.replace(again.origin, sha256=None) == directions.origin
    with pytest.raises(OutputError, match="exists"):
        export(directions, "direction", tmp_path / "direction.safetensors")
    export(make_directions(rank=3), "direction", tmp_path / "subspace.safetensors")
    assert read_directions(tmp_path / "subspace.safetensors", rank=2).vectors.shape == (2, 32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "qwen3_moe", "granite", "qwen2"])
def test_a_lora_adapter_has_the_effect_of_the_edit_merged_or_not(family, loaded, tmp_path):
    peft = pytest.importorskip("peft")
    folder, model = loaded(family, tie_word_embeddings=False)
    directions = make_directions(rank=2)
    lines = export(directions, "lora", tmp_path / "adapter", ExportOptions(model=str(folder)))
    expected = logits(orthogonalized(model, directions.vectors))
    base = logits(model)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), expected, **tolerance())
    torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, **tolerance())
    assert (base - expected).abs().max() > 1e-3
    assert not any("untie" in line for line in lines)
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) >= 18


def test_the_export_of_a_tied_model_warns_of_merging(loaded, tmp_path):
    peft = pytest.importorskip("peft")
    folder, model = loaded("qwen2", tie_word_embeddings=True)
    directions = make_directions()
    lines = export(directions, "lora", tmp_path / "adapter", ExportOptions(model=str(folder)))
    assert any("Untie it first" in line for line in lines)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), logits(orthogonalized(model, directions.vectors)), **tolerance())


def test_an_ablation_of_a_file_says_which_tokens_its_run_spared(loaded, tmp_path):
    folder, _ = loaded("llama")
    export(make_directions(spared=1), "direction", tmp_path / "r.safetensors")
    directions = read_directions(tmp_path / "r.safetensors")
    lines = export(directions, "lora", tmp_path / "adapter", ExportOptions(model=str(folder)))
    assert any("spare the first token of a text" in line for line in lines)


def test_an_addition_says_how_it_differs_from_those_of_the_run(loaded, tmp_path):
    pytest.importorskip("gguf")
    folder, _ = loaded("llama")
    at_prompt = make_directions(added_at="prompt", coefficient=1.5)
    where, strength = "at the tokens of the prompt only", "have the coefficient 1.5; this one has 1."
    text = " ".join(export(at_prompt, "gguf", tmp_path / "a.gguf"))
    assert where in text
    assert strength in text
    text = " ".join(export(at_prompt, "lm-eval", tmp_path / "a.pt", ExportOptions(str(folder), -1.5)))
    assert where in text
    assert strength not in text
    text = " ".join(export(at_prompt, "lm-eval", tmp_path / "b.pt", ExportOptions(str(folder), ablate=True)))
    assert where not in text
    as_tested = make_directions(added_at="all", coefficient=1.0)
    assert len(export(as_tested, "gguf", tmp_path / "b.gguf")) == 2


def test_an_edit_that_lora_cannot_represent_is_refused(checkpoint, tmp_path):
    pytest.importorskip("peft")
    folder = checkpoint("gpt_oss", torch.float32)
    with pytest.raises(EditError, match=r"LoRA cannot represent.*down_proj_bias"):
        export(make_directions(), "lora", tmp_path / "adapter", ExportOptions(model=str(folder)))
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_for_the_wrong_base_is_refused(checkpoint, tmp_path):
    pytest.importorskip("peft")
    folder = checkpoint("llama", torch.float32)
    options = ExportOptions(model=str(folder))
    with pytest.raises(DirectionError, match="made for the model org/other"):
        export(make_directions(fingerprint="0" * 64, model="org/other"), "lora", tmp_path / "adapter", options)
    with pytest.raises(DirectionError, match="width 16"):
        export(make_directions(width=16), "lora", tmp_path / "adapter", options)
    with pytest.raises(InputError, match="--model"):
        export(make_directions(), "lora", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_control_vector_is_read_by_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    directions = make_directions(layer=3)
    lines = export(directions, "gguf", tmp_path / "vector.gguf", ExportOptions(coefficient=-2.0))
    reader = gguf.GGUFReader(str(tmp_path / "vector.gguf"))
    (tensor,) = reader.tensors
    assert tensor.name == "direction.2"
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    torch.testing.assert_close(torch.tensor(tensor.data.copy()), -2 * directions.vectors[0])
    assert reader.fields["controlvector.layer_count"].contents() == 4
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert "output of block 2" in lines[0]
    again = read_directions(tmp_path / "vector.gguf")
    assert again.layer == 3
    torch.testing.assert_close(again.vectors, -2 * directions.vectors)
    for layer in (0, 1):
        with pytest.raises(DirectionError, match="block 2 is the first"):
            export(make_directions(layer=layer), "gguf", tmp_path / "early.gguf")
    with pytest.raises(InputError, match="only be added"):
        export(directions, "gguf", tmp_path / "ablation.gguf", ExportOptions(ablate=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vector.gguf"]


@pytest.mark.parametrize(
    ("to", "given", "named"),
    [
        ("direction", {"coefficient": -1.0, "ablate": True}, "--coefficient, --ablate"),
        ("direction", {"model": "x", "force": True, "device": "cuda"}, "--model, --device, --force"),
        ("gguf", {"model": "x", "trust_remote_code": True}, "--model, --trust-remote-code"),
        ("lora", {"coefficient": 2.0, "ablate": True}, "--coefficient, --ablate"),
        ("lm-eval", {"ablate": True, "coefficient": 3.0}, "Omit one of them"),
    ],
)
def test_an_option_that_a_format_does_not_read_is_refused(to, given, named, tmp_path):
    with pytest.raises(InputError, match=named):
        export(make_directions(), to, tmp_path / "out", ExportOptions(**given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "name"), [("direction", "d.pt"), ("direction", "d"), ("gguf", "d.safetensors"), ("lm-eval", "d.safetensors")]
)
def test_a_name_by_which_a_format_cannot_be_read_again_is_refused(to, name, tmp_path):
    with pytest.raises(InputError, match="is read by the end of its name"):
        export(make_directions(), to, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_an_adapter_is_refused(checkpoint, tmp_path):
    pytest.importorskip("peft")
    folder = checkpoint("llama", torch.float32)
    export(make_directions(), "lora", tmp_path / "adapter", ExportOptions(model=str(folder)))
    with pytest.raises(EditError, match=r"adapter is an adapter.*Merge it"):
        export(make_directions(), "lora", tmp_path / "second", ExportOptions(model=str(tmp_path / "adapter")))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("to", ["gguf", "direction", "lora"])
def test_a_full_disk_leaves_no_part_of_an_export(to, checkpoint, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    folder = checkpoint("llama", torch.float32)
    match to:
        case "gguf":
            monkeypatch.setattr(pytest.importorskip("gguf").GGUFWriter, "write_tensors_to_file", full)
        case "direction":
            monkeypatch.setattr(os, "replace", full)
        case "lora":
            monkeypatch.setattr(pytest.importorskip("peft").PeftModel, "save_pretrained", full)
    out = tmp_path / f"out{FORMATS[to].suffix or ''}"
    with pytest.raises(OutputError, match="No space left"):
        export(make_directions(), to, out, ExportOptions(model=str(folder) if to == "lora" else None))
    assert [p.name for p in tmp_path.iterdir()] == ["llama-base"]


def test_a_control_vector_of_several_layers_needs_a_layer(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "repeng.gguf"), "controlvector")
    writer.add_uint32("controlvector.layer_count", 3)
    for n in (1, 2, 3):
        writer.add_tensor(f"direction.{n}", torch.full((8,), float(n)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DirectionError, match="blocks 2, 3, 4"):
        read_directions(tmp_path / "repeng.gguf")
    assert read_directions(tmp_path / "repeng.gguf", layer=3).vectors[0, 0] == 2


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"rhumbline\[gguf\]"):
        export(make_directions(), "gguf", tmp_path / "vector.gguf")


class Steered:
    """The computation of lm-eval's SteeredModel, written plainly; a test below compares with the real class."""

    def __init__(self, model, config):
        self.model, self.config = model, config

    def logits(self):
        handles = []
        for name, step in self.config.items():
            v, c = step["steering_vector"], step["steering_coefficient"]

            def act(module, args, output, v=v, c=c, action=step["action"]):
                x = output[0] if isinstance(output, tuple) else output
                unit = v / v.norm()
                x = x + c * v if action == "add" else x + unit * (c - (x @ unit)[..., None])
                return (x, *output[1:]) if isinstance(output, tuple) else x

            handles.append(self.model.base_model.get_submodule(name).register_forward_hook(act))
        try:
            return logits(self.model)
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "bloom"])
def test_a_steering_file_has_the_effect_of_the_hooks(family, loaded, tmp_path, tokenizer):
    folder, model = loaded(family)
    for layer, ablate in ((2, False), (0, False), (2, True)):
        directions = make_directions(layer=layer)
        out = tmp_path / f"{layer}-{ablate}.pt"
        export(directions, "lm-eval", out, ExportOptions(str(folder), None if ablate else 1.5, ablate))
        config = torch.load(out, weights_only=True)  # tensors and plain values only
        direction = Direction.from_vector(directions.vectors[0], -1, layer)
        expected = hooked_logits(model, tokenizer, Ablate(direction) if ablate else Add(direction, 1.5))
        torch.testing.assert_close(Steered(model, config).logits(), expected, **tolerance())


@pytest.mark.parametrize("ablate", [False, True])
def test_the_steered_model_of_lm_eval_has_the_effect_of_the_hooks(ablate, loaded, tmp_path, tokenizer):
    pytest.importorskip("lm_eval")
    from lm_eval.models.hf_steered import SteeredModel

    folder, model = loaded("llama")
    directions = make_directions()
    out = tmp_path / "steer.pt"
    export(directions, "lm-eval", out, ExportOptions(str(folder), None if ablate else 1.5, ablate))
    theirs = SteeredModel(pretrained=model, tokenizer=tokenizer, steer_path=str(out), device="cpu", max_length=128)
    direction = Direction.from_vector(directions.vectors[0], -1, 2)
    expected = hooked_logits(model, tokenizer, Ablate(direction) if ablate else Add(direction, 1.5))
    torch.testing.assert_close(theirs._model_call(IDS), expected, **tolerance())


def test_steering_names_every_writer(tokenizer):
    chat_model = proving.prove(random_model("llama", vocab_size=len(tokenizer)), tokenizer, "llama")
    config = steering(make_directions(), chat_model, ExportOptions(ablate=True))
    assert set(config) == {"embed_tokens"} | {
        f"layers.{i}.{m}" for i in range(4) for m in ("self_attn.o_proj", "mlp.down_proj")
    }
