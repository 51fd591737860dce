from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import PreTrainedTokenizerFast

from families import FAMILIES, random_model
from rhumbline.errors import ModelError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models import chat_model as models
from rhumbline.models import loading, pass_checks, proving
from rhumbline.models.architecture import architecture
from rhumbline.models.chat_model import index_on_every_device
from rhumbline.models.hooks import Trace, hooked
from rhumbline.models.loaded_weights import NOT_FINITE, fault_of
from rhumbline.organisms.planted import Planted, build
from rhumbline.records.codec import to_json
from tolerances import rounding, tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9]]
UNPACKED = {"bloom", "jamba"}  # positions by distance, and recurrent layers
POST_NORM = {"gemma2", "gemma3_text", "olmo2"}


def unit(d_model: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


def leak(chat_model: models.ChatModel, arm: Arm, r: torch.Tensor) -> tuple[float, float]:
    """Largest |r.x| / |x| in the prompt pass and while decoding, over every block input and the final state."""
    seen = []

    def watch(layer, h):
        seen.append(float(((h.float() @ r).abs() / h.float().norm(dim=-1)).max()))

    edits = BatchEdits.of([arm], chat_model)
    row = torch.zeros(1, dtype=torch.long)
    ids = torch.tensor(PROMPTS[:1])
    cache = models.new_cache(chat_model)
    with torch.inference_mode():
        with hooked(chat_model, edits.on(row), watch):
            models.forward(chat_model, ids, torch.ones_like(ids), cache)
        prefill = max(seen)
        seen.clear()
        ids = torch.cat([ids, torch.tensor([[12]])], 1)
        with hooked(chat_model, edits.on(row, n_prompt=0), watch):
            models.forward(chat_model, ids[:, -1:], torch.ones_like(ids), cache)
    assert len(seen) == chat_model.n_layers + 1
    return prefill, max(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_writers_are_proved(family, family_model):
    chat_model = family_model(family)
    assert chat_model.proof.mode == "exact"
    assert {w.layer for w in chat_model.writers} == set(range(4))
    assert max(chat_model.proof.sum_error) < rounding()
    normed = {w.module for w in chat_model.writers if w.module.endswith("norm")}
    assert bool(normed) == (family in POST_NORM)
    assert chat_model.proof.cache_is_exact
    assert not chat_model.proof.padding_changes_logits


def test_a_block_that_calls_attention_twice_is_not_packed():
    """The second call of the attention of DiffLlama wrote over the keys and values of the first."""
    model, prompt = random_model("diffllama"), [5, 9, 70, 11, 33, 8, 101, 17]
    chat_model = proving.prove(model, None, "diffllama")
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert Runner(chat_model).completions([prompt], max_new_tokens=10, stop=[])[0][0] == generated[0, 8:].tolist()
    assert not chat_model.proof.packing_is_exact


def test_the_residual_multiplier_is_found(family_model):
    assert {round(w.scale, 4) for w in family_model("granite").writers} == {0.22}
    assert {w.scale for w in family_model("llama").writers} == {1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2"])
def test_writers_are_proved_at_16_bits(family, dtype, family_model):
    whole, half = family_model(family), family_model(family, dtype)
    assert [(w.layer, w.module) for w in half.writers] == [(w.layer, w.module) for w in whole.writers]


def test_writers_are_proved_at_64_bits():
    chat_model = proving.prove(random_model("llama", dtype=torch.float64), None, "llama")
    assert chat_model.proof.mode == "exact"
    assert chat_model.proof.packing_is_exact
    assert chat_model.proof.cache_is_exact


class _Echo(nn.Module):
    """Writes the output of a layer, whose submodules are not found; a submodule returns the same values."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.copy = layer.forward, nn.Identity()

    def forward(self, x):
        written = self.layer(x)
        self.copy(written.clone())
        return written


def test_a_leak_is_refused_or_coarse():
    model = random_model("llama")
    model.model.layers[1].mlp = _Echo(model.model.layers[1].mlp)
    with pytest.raises(ModelError, match="Another submodule writes into the stream"):
        proving.prove(model, None, "m")
    proof = proving.prove(model, None, "m", coarse=True).proof
    assert proof.mode == "coarse"
    assert "Another submodule writes" in proof.note
    assert proof.leak < proof.leak_bound


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_leaves_nothing_along_the_direction(family, family_model):
    chat_model = family_model(family)
    direction = Direction.from_vector(unit(chat_model.d_model) * 3, -1, 1)
    before = leak(chat_model, Arm("baseline"), direction.vector)
    after = leak(chat_model, Arm("ablation", (Ablate(direction),)), direction.vector)
    assert min(before) > 1e-2  # present before, in the prompt and while decoding
    assert max(after) < rounding()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_arms_and_prompts_batched_equal_alone(family, packed, family_model):
    chat_model = family_model(family)
    assert chat_model.proof.packing_is_exact == (family not in UNPACKED)
    padded = replace(chat_model, proof=replace(chat_model.proof, packing_is_exact=False))
    direction = Direction.from_vector(unit(chat_model.d_model) * 2, -1, 2)
    arms = [
        Arm("baseline"),
        Arm("ablation", (Ablate(direction),)),
        Arm("addition", (Add(direction),)),
        Arm("prompt", (Add(direction, 2.0, "prompt"),)),
        Arm("both", (Ablate(direction), Add(direction, -1.0))),
    ]
    together = logits_of(Runner(chat_model if packed else padded), arms)
    for a, arm in enumerate(arms):
        for p in range(len(PROMPTS)):
            alone = next(iter(Runner(padded).last_logits([PROMPTS[p]], [arm])))[1][0]
            torch.testing.assert_close(together[a, p], alone, **tolerance())
    assert (together[0] - together[1]).abs().max() > 1e-3  # the arms do something
    assert (together[0] - together[2]).abs().max() > 1e-3


def logits_of(runner, arms):
    found = {}
    for rows, logits in runner.last_logits(PROMPTS, arms):
        for a, p, row in zip(rows.arm.tolist(), rows.prompt.tolist(), logits, strict=True):
            found[a, p] = row
    return torch.stack([torch.stack([found[a, p] for p in range(len(PROMPTS))]) for a in range(len(arms))])


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_packed_or_cached_equals_uncached(family, family_model):
    chat_model = family_model(family)
    cached = replace(chat_model, proof=replace(chat_model.proof, packing_is_exact=False))
    uncached = replace(chat_model, proof=replace(chat_model.proof, packing_is_exact=False, cache_is_exact=False))
    direction = Direction.from_vector(unit(chat_model.d_model) * 2, -1, 2)
    arms = [
        Arm("baseline"),
        Arm("ablation", (Ablate(direction),)),
        Arm("addition", (Add(direction),)),
        Arm("prompt", (Add(direction, 2.0, "prompt"),)),
    ]
    slow, first = Runner(uncached).generate(PROMPTS, arms, max_new_tokens=12, read=lambda logits: logits[:, 3])
    for model in (chat_model, cached):
        fast, again = Runner(model).generate(PROMPTS, arms, max_new_tokens=12, read=lambda logits: logits[:, 3])
        assert fast == slow
        torch.testing.assert_close(first, again, **tolerance())
    assert any(len(text) == 12 for arm in slow for text in arm)


def test_no_hook_is_left_behind(family_model):
    chat_model = family_model("qwen2")
    direction = Direction.from_vector(unit(chat_model.d_model), -1, 1)
    before = logits_of(Runner(chat_model), [Arm("baseline")])

    def hooks() -> int:
        # transformers' own, once hidden states were asked for, stay for good.
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in chat_model.model.modules())

    known, edits = hooks(), BatchEdits.of([Arm("a", (Ablate(direction),))], chat_model)
    during = []

    def fail() -> None:
        with hooked(chat_model, edits.on(torch.zeros(1, dtype=torch.long))):
            during.append(hooks())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert during[0] > known
    assert hooks() == known
    torch.testing.assert_close(logits_of(Runner(chat_model), [Arm("baseline")]), before, atol=0, rtol=0)


class Crooked(nn.Module):
    """A block that adds something that no submodule returned."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden, *args, **kwargs):
        return self.block(hidden, *args, **kwargs) + 0.1 * hidden.flip(-1)


def test_an_unexplained_stream_is_refused_or_coarse(tokenizer):
    model = random_model("llama", vocab_size=len(tokenizer))
    model.model.layers[2] = Crooked(model.model.layers[2])
    with pytest.raises(ModelError, match=r"(?s)layer 2.*--coarse") as error:
        proving.prove(model, tokenizer, "crooked")
    assert error.value.exit_code == 3
    assert "layer 1" not in str(error.value)
    coarse = proving.prove(model, tokenizer, "crooked", coarse=True)
    assert coarse.proof.mode == "coarse"
    direction = Direction.from_vector(unit(coarse.d_model), -1, 1)
    assert max(leak(coarse, Arm("ablation", (Ablate(direction),)), direction.vector)) < rounding()


def test_a_directory_round_trip(tmp_path, tokenizer):
    model = random_model("qwen2", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load(str(tmp_path), device="cpu")
    assert loading.fingerprint(loaded) == loading.fingerprint(proving.prove(model, tokenizer, "again"))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    assert loading.fingerprint(loaded) != loading.fingerprint(proving.prove(model, tokenizer, "changed"))


def test_a_model_that_cannot_be_loaded_says_why(tmp_path, tokenizer):
    with pytest.raises(ModelError, match="no such directory"):
        loading.load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a loadable"):
        loading.load(str(tmp_path / "empty"))
    good = tmp_path / "good"
    model = random_model("qwen2", vocab_size=len(tokenizer))
    model.save_pretrained(good)
    tokenizer.save_pretrained(good)
    with pytest.raises(ModelError, match="dtype"):
        loading.load(str(good), dtype="float99")
    weights = good / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="bytes by its header"):
        loading.load(str(good), device="cpu")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(good)
    with pytest.raises(ModelError, match=r"NaN.*layers.0.mlp.down_proj"):
        loading.load(str(good), device="cpu")


def test_missing_tensors_are_not_made_up(tmp_path, tokenizer):
    from safetensors.torch import load_file, save_file

    model = random_model("qwen2", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 missing"):
        loading.load(str(tmp_path), device="cpu")


def test_the_architecture_lists_writers_and_proof(family_model):
    record = to_json(architecture(family_model("granite")))
    assert record["blocks"] == "model.layers"
    assert record["writers"] == ["self_attn.o_proj x 0.22 + mlp.down_proj x 0.22   (layers 0-3)"]
    assert any("yes" in line for line in record["proof"])


def test_the_text_stack_of_a_multimodal_wrapper(tmp_path, tokenizer):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from families import SMALL

    text = {**SMALL, "vocab_size": len(tokenizer), "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5,
                          boi_token_index=6, eoi_token_index=7)  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load(str(tmp_path), device="cpu")
    assert loaded.blocks_name == "model.language_model.layers"  # not the vision tower, though it is as deep
    assert loaded.proof.mode == "exact"
    direction = Direction.from_vector(unit(loaded.d_model), -1, 1)
    assert max(leak(loaded, Arm("ablation", (Ablate(direction),)), direction.vector)) < rounding()


@pytest.mark.parametrize(("size", "writes"), [(0.0, True), (1e-9, True), (1.0, False)])
def test_a_writer_that_is_silent_in_the_probe_is_found_by_the_other_blocks(size, writes):
    """Its output is added in block 0 and far below the rounding in block 1, or it is large there and not added."""
    draw = torch.Generator().manual_seed(0)
    before, attention, mlp = (torch.randn(2, 5, 16, generator=draw) for _ in range(3))
    heard = Trace(before, before + attention + mlp, {"attention": attention, "mlp": mlp})
    silent = Trace(before, before + attention, {"attention": attention, "mlp": size * mlp})
    found = [(w.layer, w.module) for w in proving._find_writers([heard, silent]).writers]
    assert found == [(0, "attention"), (0, "mlp"), (1, "attention"), *([(1, "mlp")] if writes else [])]


def test_the_writers_of_a_block_that_writes_nothing_are_those_of_the_other_blocks():
    draw = torch.Generator().manual_seed(0)
    before, attention, mlp = (torch.randn(2, 5, 16, generator=draw) for _ in range(3))
    heard = Trace(before, before + attention + mlp, {"attention": attention, "mlp": mlp, "gate": 2 * mlp})
    empty = Trace(before, before, {"attention": 0 * attention, "mlp": 0 * mlp, "gate": 2 * mlp})
    found = [(w.layer, w.module, w.aliases) for w in proving._find_writers([heard, empty]).writers]
    # In one order in every process: the order of the hooks is that of the rounding errors.
    assert found == [(layer, name, (name,)) for layer in (0, 1) for name in ("attention", "mlp")]


def test_a_planted_model_whose_last_mlp_is_silent_in_the_probe_is_proved(tmp_path):
    """The words of the probe are unknown to it, so its decision writes under the ablation only."""
    spec = Planted(effect=3, noise=0, jitter=0, axes=4, d_model=48, n_layers=6, prompts=60, seed=5097)
    chat_model = loading.load(str(build(spec, tmp_path)), device="cpu", dtype="float32")
    assert (5, "mlp.down_proj") in {(w.layer, w.module) for w in chat_model.writers}
    assert chat_model.proof.leak < 1e-5


@pytest.mark.parametrize(("fails_on", "runs"), [("padding", True), ("every prompt", False)])
def test_a_pass_that_fails_after_the_first_is_no_traceback(fails_on, runs, monkeypatch):
    """Prompts are not padded where that fails; a model without any further pass is refused."""
    model, real = random_model("llama"), pass_checks.forward

    def failing(chat_model, ids, mask, *more):
        if fails_on == "every prompt" or not mask.all():
            raise RuntimeError("the size of tensor a must match the size of tensor b")
        return real(chat_model, ids, mask, *more)

    monkeypatch.setattr(pass_checks, "forward", failing)
    if runs:
        assert proving.prove(model, None, "m").proof.padding_changes_logits
    else:
        with pytest.raises(ModelError, match=r"that the proof needs fails: .*tensor b"):
            proving.prove(model, None, "m")


@pytest.mark.parametrize("name", ["forward", "packed_forward"])
def test_too_little_memory_says_nothing_about_the_model(name, monkeypatch):
    """It would otherwise run padded, or without a cache, for as long as it is loaded."""
    real = getattr(pass_checks, name)
    calls = []

    def failing(chat_model, *more, **options):
        calls.append(name)
        if name == "packed_forward" or len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(chat_model, *more, **options)

    monkeypatch.setattr(pass_checks, name, failing)
    with pytest.raises(torch.OutOfMemoryError):
        proving.prove(random_model("llama"), None, "m")


def test_weights_of_eight_bits_are_checked():
    assert fault_of(torch.ones(4).to(torch.float8_e4m3fn)) is None
    assert fault_of(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)) == NOT_FINITE


def test_an_index_fits_tensors_of_every_device():
    """On the processor if the layers of the model are on several devices; where it was otherwise."""
    chat_model, index = proving.prove(random_model("llama"), None, "m"), torch.tensor([0, 2], device="meta")
    assert index_on_every_device(chat_model, index) is index
    chat_model.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 0}
    assert index_on_every_device(chat_model, index) is index
    chat_model.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(NotImplementedError, match="meta"):  # it is moved: a tensor without values cannot be
        index_on_every_device(chat_model, index)


def test_a_tokenizer_that_knows_no_word_of_the_probe_is_proved_on_its_vocabulary():
    """At equal tokens all positions have the same logits: the model seemed constant, and no order was tested."""
    words = Tokenizer(WordLevel({"<unk>": 0} | {f"word{i}": i for i in range(1, 101)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    model = random_model("llama")
    ids = proving.probe_inputs(model, tokenizer)["input_ids"]
    assert len(ids.unique()) == proving.PROBE_TOKENS
    assert proving.prove(model, tokenizer, "m").proof.mode == "exact"
