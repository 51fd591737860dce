"""Quantised weights and offloaded layers: hooks work; a weight edit needs plain matrices."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import random_model
from finished_runs import TEXTS
from rhumbline import read_contrast, run
from rhumbline.edits.proved_edit import edit_in_place, orthonormal, refuse_quantised
from rhumbline.edits.read_direction import ImportedDirections
from rhumbline.edits.save import EditOptions, dequantized, edit_checkpoint
from rhumbline.edits.sharded import edit_sharded
from rhumbline.errors import EditError
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models import proving
from rhumbline.models.chat_model import forward
from rhumbline.models.loading import fingerprint, load
from rhumbline.records.files import read_json, read_rows, write_json
from rhumbline.records.positions import Position
from tolerances import near, tolerance

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
    assert edited.outcome == "exact"


def test_a_quantised_checkpoint_is_edited_on_request(checkpoint, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    chat_model = quantised(checkpoint, "bnb-4bit", tokenizer)
    source, out = tmp_path / "four-bit", tmp_path / "edited"
    chat_model.model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    found = ImportedDirections(torch.ones(1, WIDTH), 1, Position(-1), "somewhere")
    with pytest.raises(EditError, match="--dequantize"):
        edit_checkpoint(str(source), found, out, EditOptions(device="cpu"))
    assert not out.exists()
    record = edit_checkpoint(str(source), found, out, EditOptions(device="cpu", dequantize=True))
    assert record.outcome == "exact"
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


def test_a_pass_begun_in_the_middle_leaves_offloaded_layers_as_they_were(checkpoint, tokenizer, tmp_path):
    """accelerate wraps the `forward` of every block; what runs another one for a while puts that back."""
    from accelerate import dispatch_model

    model = random_model("llama", vocab_size=len(tokenizer), **SIZES)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i in (0, 1, 3) else "cpu" for i in range(4)}
    spread = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path / "offload"), force_hooks=True)
    chat_model = proving.prove(spread, tokenizer, "spread")
    assert chat_model.proof.packing_is_exact
    assert chat_model.proof.last_block_can_be_pruned
    wrapped = [vars(block)["forward"] for block in chat_model.blocks]
    ids = torch.tensor(PROMPTS)
    before = forward(chat_model, ids, torch.ones_like(ids))
    direction = Direction.from_vector(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), -1, 2)
    added = {2: [Arm("addition", (Add(direction),))]}
    found = Runner(chat_model).resumed_readings(PROMPTS, added, lambda logits: logits[:, 7])
    assert [vars(block)["forward"] for block in chat_model.blocks] == wrapped
    assert forward(chat_model, ids, torch.ones_like(ids)).equal(before)
    whole = proving.prove(random_model("llama", vocab_size=len(tokenizer), **SIZES), tokenizer, "whole")
    there = Runner(whole).resumed_readings(PROMPTS, added, lambda logits: logits[:, 7])
    torch.testing.assert_close(found[2], there[2], **tolerance())
    assert (found[2][0] - before[:, 7].double()).abs().max() > 1e-3


def test_a_whole_run_with_offloaded_layers_is_the_plain_run(planted_folder, tmp_path, monkeypatch):
    """`load(device="auto")`: accelerate places the layers; the rows and the verdict do not depend on the places."""
    import transformers.modeling_utils

    def on_disk(model, *args, **kwargs):
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        layers = range(len(model.model.layers))
        return places | {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in layers}

    whole, changed = (load(str(planted_folder), device="cpu", dtype="float32") for _ in range(2))
    monkeypatch.setattr(transformers.modeling_utils, "_get_device_map", on_disk)
    spread = load(str(planted_folder), device="auto", dtype="float32")
    assert {spread.model.model.layers[i].mlp.down_proj.weight.device.type for i in (1, 2)} == {"meta"}
    # The offloaded weights count: a model with other weights on disk is another model.
    assert fingerprint(spread) == fingerprint(whole)
    changed.model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    assert fingerprint(changed) != fingerprint(whole)
    rows, results = {}, {}
    for name, model in (("whole", whole), ("spread", spread)):
        out = tmp_path / name
        run(model, read_contrast(planted_folder / "contrast.jsonl"), out, TEXTS, page=False)
        rows[name] = read_rows(out / "seed-0" / "outcomes.jsonl")
        results[name] = read_json(out / "results.json")
    assert len(rows["whole"]) == len(rows["spread"]) > 0
    for one, other in zip(rows["whole"], rows["spread"], strict=True):
        # Weights that were read from the disk lie elsewhere in memory, which may change the order of a sum.
        assert one["metric"] is None or other["metric"] == near(one["metric"])
        assert {**one, "metric": None} == {**other, "metric": None}
    assert results["whole"]["verdict"] == results["spread"]["verdict"]
    sites = [{k: results[name]["seeds"][0]["selected"][k] for k in ("position", "layer")} for name in rows]
    assert sites[0] == sites[1]
    assert {row["class"] for row in rows["spread"]} == {"refused", "complied"}


# -- checkpoints that are stored quantised: mxfp4 and fp8 -------------------------------------------------------------

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def as_mxfp4(weight):
    """(blocks, scales, what they stand for) of an expert matrix [expert, in, out]; 32 inputs share a power of two."""
    w = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = (w.abs().amax(-1).clamp_min(1e-12) / 6).log2().ceil().clamp(-100, 100)
    scaled = w / exponent.exp2()[..., None]
    nearest = (scaled.abs()[..., None] - E2M1).abs().argmin(-1)
    code = nearest + 8 * (scaled < 0)
    blocks = (code[..., 0::2] + 16 * code[..., 1::2]).to(torch.uint8)
    value = E2M1[nearest] * scaled.sign() * exponent.exp2()[..., None]
    return blocks, (exponent + 127).to(torch.uint8), value.flatten(-2).transpose(1, 2)


def as_fp8(weight, block=128):
    """(values, scales, what they stand for) of a matrix, in square blocks."""
    rows, columns = (-(-n // block) for n in weight.shape)
    w = torch.nn.functional.pad(
        weight.float(), (0, columns * block - weight.shape[1], 0, rows * block - weight.shape[0])
    )
    tiles = w.reshape(rows, block, columns, block)
    scale = tiles.abs().amax((1, 3)).clamp_min(1e-12) / 448
    stored = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    value = (stored.float() * scale[:, None, :, None]).reshape(w.shape)[: weight.shape[0], : weight.shape[1]]
    return stored.reshape(w.shape)[: weight.shape[0], : weight.shape[1]].contiguous(), scale, value


@pytest.fixture
def stored_quantised(tmp_path, tokenizer):
    """(folder, what its quantised matrices stand for) of a checkpoint whose files hold mxfp4 or fp8."""

    def make(kind):
        folder, wanted, tensors = tmp_path / kind, {}, {}
        family = "gpt_oss" if kind == "mxfp4" else "llama"
        sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "vocab_size": len(tokenizer)}
        model = random_model(family, **sizes, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items():
            if kind == "mxfp4" and name.endswith(("gate_up_proj", "down_proj")):
                tensors[f"{name}_blocks"], tensors[f"{name}_scales"], wanted[name] = as_mxfp4(tensor)
            elif kind == "fp8" and name.endswith(("proj.weight",)) and tensor.ndim == 2 and min(tensor.shape) >= 128:
                tensors[name], tensors[f"{name}_scale_inv"], wanted[name] = as_fp8(tensor)
            else:
                tensors[name] = tensor
        plain = [n.removesuffix(".weight") for n in model.state_dict() if n not in wanted]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        config = read_json(folder / "config.json")
        config["quantization_config"] = {"quant_method": kind} | (
            {"modules_to_not_convert": ["self_attn", "router", "embed_tokens", "lm_head"]}
            if kind == "mxfp4"
            else {
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": plain,
            }
        )
        write_json(folder / "config.json", config)
        return folder, wanted

    return make


@pytest.mark.parametrize("kind", ["mxfp4", "fp8"])
def test_a_quantised_checkpoint_is_loaded_in_every_dtype(kind, stored_quantised):
    """On a processor without products of bfloat16 the default is float32."""
    source, wanted = stored_quantised(kind)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        chat_model = load(str(source), device="cpu", dtype=str(dtype).removeprefix("torch."))
        assert {parameter.dtype for parameter in chat_model.model.parameters()} == {dtype}
        for name, value in wanted.items():
            torch.testing.assert_close(chat_model.model.state_dict()[name].float(), value, **tolerance(dtype, terms=1))


@pytest.mark.parametrize("kind", ["mxfp4", "fp8"])
def test_a_checkpoint_of_four_or_eight_bit_floats(kind, stored_quantised, tmp_path):
    source, wanted = stored_quantised(kind)
    chat_model = load(str(source), device="cpu", dtype="bfloat16")
    found = chat_model.model.state_dict()
    assert len(wanted) >= 8
    for name, value in wanted.items():
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].float(), value, **tolerance(torch.bfloat16, terms=1))
    direction = Direction.from_vector(torch.randn(128, generator=torch.Generator().manual_seed(0)), -1, 1)
    assert all(len(text) > 0 for arm in completions(chat_model, direction) for text in arm)
    imported, out = ImportedDirections(direction.vector[None], 1, Position(-1), "somewhere"), tmp_path / "edited"
    for way in (edit_checkpoint, edit_sharded):
        with pytest.raises(EditError, match="quantised"):
            way(str(source), imported, out)
        assert not out.exists()
    record = edit_checkpoint(str(source), imported, out, EditOptions(device="cpu", dequantize=True))
    assert record.outcome == "exact"
    assert getattr(load(str(out), device="cpu").model.config, "quantization_config", None) is None
    stored = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
