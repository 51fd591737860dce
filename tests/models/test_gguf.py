"""A GGUF file is a model: its logits and its tokenizer are those of the model that it was made from."""

import copy
import json
import shutil
import sys

import pytest
import torch

from families import random_model
from rhumbline import load
from rhumbline.errors import InputError, ModelError
from rhumbline.jobs.sizing import read_checkpoint
from rhumbline.models.chat import Chat
from rhumbline.models.gguf_words import split_words
from rhumbline.models.loading import fingerprint, read_head
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source, checkpoint
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Prompt
from tolerances import tolerance

gguf = pytest.importorskip("gguf")
from make_gguf import split_name, write_gguf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, while it reads GGUF

IDS = torch.arange(1, 40)[None]
TYPES = gguf.GGMLQuantizationType
TEXTS = ("Describe the harbour 12 times!\n\nIt's é", "用三个词介绍茶")


def tiny(family, tokenizer, **options):
    sizes = {"num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    return random_model(family, **{**sizes, **({"attention_bias": False} if family == "llama" else {}), **options})


@pytest.fixture
def written(tokenizer, tmp_path):
    """A GGUF file of a tiny model in a directory of its own, and the model."""

    def make(family="llama", **options):
        metadata = {k: options.pop(k) for k in ("types", "block_count", "split") if k in options}
        model = tiny(family, tokenizer, **options)
        (tmp_path / "model").mkdir(exist_ok=True)
        return write_gguf(model, tmp_path / "model" / "tiny.gguf", tokenizer, **metadata), model

    return make


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_logits_and_the_chat_are_those_of_the_source(family, tied, written, tokenizer):
    path, model = written(family, tie_word_embeddings=tied)
    loaded = load(str(path), device="cpu")
    assert loaded.proof.mode == "exact"
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, model(IDS).logits, **tolerance())
    for text in TEXTS:
        assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
        ours, theirs = (
            Chat.of(t, ChatOptions(), ()).encode(Prompt(text, "positive", "0")) for t in (loaded.tokenizer, tokenizer)
        )
        assert ours == theirs
    assert loaded.stop_tokens() >= {tokenizer.eos_token_id}


@pytest.mark.parametrize(("types", "stored"), [(None, "F32"), (TYPES.Q8_0, "F32, Q8_0"), (TYPES.F16, "F16, F32")])
def test_the_stored_format_is_recorded(types, stored, written):
    path, model = written(types=types)
    loaded = load(str(path), device="cpu")
    assert loaded.record().dequantised == f"GGUF ({stored})"
    with torch.no_grad():
        gap = (loaded.model(IDS).logits - model(IDS).logits).abs().max()
    assert (gap < 1e-5) == (types is None)
    assert gap < 0.1
    size = read_checkpoint(path)
    parameters = sum(p.numel() for p in model.parameters())
    assert (size.parameters, size.bytes, size.layers) == (parameters, 4 * parameters, 2)
    assert size.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_other_models_are_not_dequantised(family_model):
    assert family_model("llama").record().dequantised is None


def test_a_directory_with_one_file_is_that_file(written, tmp_path):
    path, _ = written()
    (path.parent / "README.md").write_text("a model")
    with checkpoint(str(path.parent)) as where:
        assert where == str(path)
    assert fingerprint(load(str(path.parent), device="cpu")) == fingerprint(load(str(path), device="cpu"))
    shutil.copy(path, path.parent / "other.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files: other.gguf, tiny.gguf"):
        load(str(path.parent))
    assert load(str(path), device="cpu").n_layers == 2
    # A directory with other weights is that of the other weights.
    tiny("llama", tokenizer=range(400)).save_pretrained(path.parent)
    with checkpoint(str(path.parent)) as where:
        assert where == str(path.parent)


def test_faulty_files_are_refused_by_name(written, call, tmp_path):
    path, _ = written()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"<html>"):
        path.write_bytes(content)
        code, out, messages = call("model", path)
        assert (code, out) == (3, ""), messages
        assert "tiny.gguf" in messages
    code, _, messages = call("model", tmp_path / "gone.gguf")
    assert code == 2
    assert "gone.gguf: no such file" in messages


def test_blocks_that_the_metadata_do_not_count_are_refused(written, call):
    path, _ = written(block_count=1)
    code, _, messages = call("model", path)
    assert code == 3
    assert "blk.1." in messages


def test_biases_that_transformers_does_not_read_are_refused(written, call):
    path, _ = written(attention_bias=True)
    code, _, messages = call("model", path)
    assert code == 3
    assert "blk.0.attn_" in messages
    assert ".bias" in messages


def test_without_the_package_the_extra_is_named(written, monkeypatch):
    path, _ = written()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'rhumbline\[gguf\]'"):
        load(str(path))


def test_a_run_and_its_report_name_the_format(written, call, tmp_path):
    path, _ = written()
    rows = [{"prompt": f"Describe ship {i}.", "label": ("positive", "negative")[i % 2]} for i in range(40)]
    (path.parent / "contrast.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, messages = call("discover", path, "--out", tmp_path / "found")
    assert code == 0, messages
    recorded = json.loads((tmp_path / "found" / "protocol.json").read_text())["model"]
    assert recorded["dequantised"] == "GGUF (F32)"
    assert "dequantised from GGUF (F32)" in (tmp_path / "found" / "report.html").read_text()
    code, _, messages = call("run", path.parent, "--plan", "--out", tmp_path / "out")
    assert code == 0, messages


def test_an_edit_writes_plain_matrices_on_request(written, call, tmp_path):
    from safetensors.torch import save_file

    path, _ = written(types=TYPES.Q8_0)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file({"direction": direction / direction.norm()}, tmp_path / "direction.safetensors")
    command = ("edit", path, "--direction", tmp_path / "direction.safetensors", "--layer", 1, "--force")
    code, _, messages = call(*command, "--out", tmp_path / "refused", "--device", "cpu")
    assert code == 3
    assert "--dequantize" in messages
    code, _, messages = call(*command, "--out", tmp_path / "edited", "--device", "cpu", "--dequantize")
    assert code == 0, messages
    edited = load(str(tmp_path / "edited"), device="cpu")
    assert edited.record().dequantised is None
    written_by = edited.model.get_parameter("model.layers.0.mlp.down_proj.weight").float()
    assert (direction @ written_by).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("split", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_words_are_split_as_in_the_source(split, family, written, tokenizer):
    """Not as transformers splits them for the architecture: prompts would have other tokens than in the source."""
    source = copy.deepcopy(tokenizer)
    split_words(source, split)
    assert split_name(source) == split
    path, _ = written(family, split=split)
    with places_of(Source(str(path))) as places:
        head = read_head(places)
    for text in (*TEXTS, "in 2024,\n\n\n 1234567 o'clock  \t x=3;\n"):
        assert head.tokenizer(text)["input_ids"] == source(text)["input_ids"]


def test_an_unknown_split_is_recorded(written):
    known, unknown = (load(str(written(split=split)[0]), device="cpu").dequantised for split in ("qwen2", "tekken"))
    assert known == "GGUF (F32)"
    assert unknown.startswith("GGUF (F32); words are split")
    assert "tekken" in unknown
