"""The table of faults on a copy of SmolLM2-135M, and the same model as a GGUF file."""

import os
import shutil

import pytest
import torch

from faulty_checkpoints import FAULTS, HEALTHY
from rhumbline import load

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

SOME = ("more layers than the config has", "fewer layers than the config has", "a tensor is missing", "no layers",
        "a matrix of another shape", "infinite rms_norm_eps", "large rms_norm_eps", "one huge weight", "NaN",
        "tied weights that differ", "tokens of texts have no embedding", "half a file", "a missing shard",
        "no tokenizer", "no model_type", "half a .bin file")  # fmt: skip
PROMPTS = ("How do I boil an egg?", "Write a haiku about 3 ships!\n\n- one\n- two", "It's naïve - isn't it?  def f(x):")


@pytest.fixture
def copied(real_models, tmp_path):
    """A copy of the directory, with links in the place of its files: a change replaces files."""
    return shutil.copytree(real_models / "smollm2-135m", tmp_path / "model", copy_function=os.link)


@pytest.mark.parametrize("name", SOME)
def test_a_fault_is_refused_by_name(name, copied, call):
    FAULTS[name].make(copied)
    code, out, messages = call("model", copied, "--device", "cpu")
    assert (code, out) == (FAULTS[name].code, ""), messages
    assert [word for word in FAULTS[name].names if word not in messages] == []


@pytest.mark.parametrize("name", ["unchanged", "sharded", "a .bin file", "a head of its own"])
def test_a_healthy_directory_is_handled(name, copied, call):
    HEALTHY[name](copied)
    code, _, messages = call("model", copied, "--device", "cpu")
    assert code == 0, messages


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_a_gguf_file_predicts_what_its_source_predicts(name, real_models, tmp_path):
    gguf = pytest.importorskip("gguf")
    from make_gguf import write_gguf

    source = load(str(real_models / name), device="cpu", dtype="float32")
    path = write_gguf(source.model, tmp_path / "model.gguf", source.tokenizer, types=gguf.GGMLQuantizationType.Q8_0)
    loaded = load(str(path), device="cpu")
    assert loaded.dequantised == "GGUF (F32, Q8_0)"
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        texts = [t.apply_chat_template(chat, tokenize=False) for t in (source.tokenizer, loaded.tokenizer)]
        assert texts[0] == texts[1]
        ids, again = (m.tokenizer(texts[0], add_special_tokens=False)["input_ids"] for m in (source, loaded))
        assert ids == again
        with torch.no_grad():
            p, q = (m.model(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (source, loaded))
        assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.01  # nats
