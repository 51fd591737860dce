"""Model directories with a fault end in exit code 3 (2: no model) and the names; healthy ones are handled."""

import shutil

import pytest

from families import random_model
from faulty_checkpoints import FAULTS, HEALTHY, write_contrast
from rhumbline.jobs.sizing import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, of faulty configs


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, tokenizer):
    """A tiny Llama whose head is tied, as that of SmolLM2 is."""
    folder = tmp_path_factory.mktemp("healthy") / "model"
    model = random_model("llama", num_hidden_layers=2, vocab_size=len(tokenizer), attention_bias=False,
                         tie_word_embeddings=True)  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def contrast(tmp_path_factory):
    return write_contrast(tmp_path_factory.mktemp("contrast") / "contrast.jsonl")


@pytest.fixture
def changed(healthy, tmp_path):
    """A copy of the healthy directory with a change."""

    def make(change):
        change(shutil.copytree(healthy, tmp_path / "model"))
        return tmp_path / "model"

    return make


def plan(folder, contrast):
    return "run", folder, "--contrast", contrast, "--plan", "--out", folder.parent / "out"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_by_name(name, changed, contrast, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fault = FAULTS[name]
    folder = changed(fault.make)
    code, out, messages = call("model", folder, "--device", "cpu")
    assert (code, out) == (fault.code, ""), messages
    assert [word for word in fault.names if word not in messages] == []
    if not fault.in_values:  # a plan reads no weights
        code, _, messages = call(*plan(folder, contrast))
        assert code == fault.code, messages
        assert [word for word in fault.names if word not in messages] == []
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_directory_is_handled(name, changed, contrast, call):
    folder = changed(HEALTHY[name])
    code, out, messages = call("model", folder, "--device", "cpu")
    assert code == 0, messages
    assert "model.layers" in out
    if name in ("stray files", "sharded", "a .bin file"):
        code, out, messages = call(*plan(folder, contrast))
        assert code == 0, messages
        assert "memory" in out


def test_sizes_follow_the_files_that_are_loaded(changed, healthy):
    parameters = read_checkpoint(healthy).parameters
    for change in ("stray files", "an index beside a whole file", "sharded", "a .bin file"):
        folder = changed(HEALTHY[change])
        assert read_checkpoint(folder).parameters == parameters, change
        shutil.rmtree(folder)
    assert read_checkpoint(changed(HEALTHY["a head of its own"])).parameters > parameters


def test_the_size_of_a_bin_file_is_that_of_the_same_safetensors(changed, healthy):
    assert read_checkpoint(changed(HEALTHY["a .bin file"])) == read_checkpoint(healthy)
