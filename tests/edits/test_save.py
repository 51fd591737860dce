"""`rhumbline edit`: the saved checkpoint is the proved one, or no file is written."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finished_runs import COMPLETIONS
from make_directions import make_directions
from rhumbline import read_contrast
from rhumbline.edits import save
from rhumbline.errors import DirectionError
from rhumbline.inference.direction_files import write_directions
from rhumbline.judging.judge_names import class_judge
from rhumbline.models.chat import Chat
from rhumbline.models.loading import fingerprint, load
from rhumbline.organisms import organism_dir
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.records.directory import RunDirectory
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.files import read_rows


@pytest.fixture
def organism_run(finished):
    """A run of the embedded organism in which the ablation was generated."""
    return finished("refusal", COMPLETIONS)


def test_the_edited_organism_behaves_as_the_ablation_arm(organism_run, call, tmp_path):
    out = tmp_path / "edited"
    code, text, _ = call(
        "edit", organism_dir("refusal"), "--direction", organism_run, "--out", out, "--dtype", "float32"
    )
    assert code == 0
    assert "weight orthogonalisation: exact" in text
    card = (out / "README.md").read_text()
    verdict = json.loads((organism_run / "results.json").read_text())["verdict"]
    assert verdict in card
    assert str(organism_run) in card
    # From here on, plain transformers.
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    rows = read_rows(organism_run / "seed-0" / "outcomes.jsonl")
    arm = {r["prompt_id"]: r for r in rows if r["arm"] == "ablation"}
    base = {r["prompt_id"]: r for r in rows if r["arm"] == "baseline"}
    compared = dict(list(arm.items())[:20])
    assert sum(arm[i]["class"] != base[i]["class"] for i in compared) > 10  # the ablation has an effect
    prompts = {p.id: p for p in read_contrast(organism_dir("refusal") / "contrast.jsonl").prompts}
    chat = Chat.of(tokenizer, ChatOptions(), [prompts[i] for i in arm])
    protocol = RunDirectory.read(organism_run).protocol
    judged = class_judge(protocol["judge"])
    for prompt_id, row in compared.items():
        ids = torch.tensor([chat.encode(prompts[prompt_id])])
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=protocol["max_new_tokens"],
            do_sample=False,
        )
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == row["completion"]
        assert judged(text).cls == row["class"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "zamba2"])
def test_the_saved_checkpoint_is_the_proved_one(family, checkpoint, direction_file, call, tmp_path):
    source, out = checkpoint(family), tmp_path / "edited"
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    code, text, messages = call("edit", source, "--direction", direction_file, "--out", out, "--json")
    assert code == 0, messages
    record = json.loads(text)
    assert record["outcome"] == ("approximate" if family in ("gemma2", "zamba2") else "exact")
    assert record["proof"]["saved"]["dtype"] == "bfloat16"
    assert record["proof"]["saved"]["leak"] < record["proof"]["saved"]["leak_allowed"]
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]
    # In zamba2 the same entry ties the shared block: it stays enabled, and the head is stored.
    assert load(str(out), device="cpu").model.config.tie_word_embeddings == (family == "zamba2")
    if family == "gemma2":
        assert "Why it is not exact" in (out / "README.md").read_text()


def test_a_saved_addition(checkpoint, direction_file, call, tmp_path):
    source, out = checkpoint("llama"), tmp_path / "edited"
    arguments = ("edit", source, "--direction", direction_file, "--add", "0.5", "--out", out)
    code, _, messages = call(*arguments)
    assert code == 2
    assert "--layer" in messages
    code, _, messages = call(*arguments, "--layer", "2", "--dtype", "float32")
    assert code == 0, messages
    assert AutoModelForCausalLM.from_pretrained(out).config.mlp_bias  # the entry that enables the bias
    assert "before block 2" in (out / "README.md").read_text()


def test_an_added_direction_says_how_it_differs_from_the_additions_of_the_run(checkpoint, call, tmp_path):
    path, out = tmp_path / "of-a-run.safetensors", tmp_path / "edited"
    origin = DirectionOrigin(added_at="prompt", coefficient=2.0)
    write_directions(path, torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), 2, None, origin)
    command = ("edit", checkpoint("llama", mlp_bias=False), "--direction", path, "--out", out, "--dtype", "float32")
    code, text, messages = call(*command, "--add", "0.5")
    assert code == 0, messages
    for shown in (" ".join(text.split()), (out / "README.md").read_text()):
        assert "at the tokens of the prompt only" in shown
        assert "have the coefficient 2; this one has 0.5." in shown


def test_bad_directions_exit_2_and_write_nothing(checkpoint, call, tmp_path):
    source, out = checkpoint(), tmp_path / "edited"
    cases = {
        "width 16": torch.ones(16),
        "NaN": torch.full((32,), float("nan")),
        "zero vector": torch.zeros(32),
        "not linearly independent": torch.ones(2, 32),
        "expected a vector": torch.ones(32, dtype=torch.int64),
    }
    for words, tensor in cases.items():
        save_file({"direction": tensor}, tmp_path / "bad.safetensors")
        code, _, messages = call("edit", source, "--direction", tmp_path / "bad.safetensors", "--out", out)
        assert code in (2, 3)
        assert words in messages
        assert not out.exists()
    code, _, messages = call("edit", source, "--direction", tmp_path / "nowhere", "--out", out)
    assert code == 2
    assert "no such file" in messages
    (tmp_path / "torn.safetensors").write_bytes(b"\x00\x01")
    code, _, messages = call("edit", source, "--direction", tmp_path / "torn.safetensors", "--out", out)
    assert code == 2


def test_a_target_that_is_not_empty_is_left_alone(checkpoint, direction_file, call, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("all I have")
    code, _, messages = call("edit", checkpoint(), "--direction", direction_file, "--out", out)
    assert code == 2
    assert "not an empty directory" in messages
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_no_part_of_a_checkpoint(checkpoint, direction_file, call, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    real = PreTrainedModel.save_pretrained

    def full(self, folder, *args, **kwargs):
        real(self, folder, *args, **kwargs)
        raise OSError(28, "No space left on device")

    source, out = checkpoint(), tmp_path / "edited"
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    code, _, messages = call("edit", source, "--direction", direction_file, "--out", out)
    assert code == 2
    assert "No space left" in messages
    assert sorted(p.name for p in tmp_path.iterdir()) == ["direction.safetensors", "llama-base"]


def test_a_checkpoint_that_loads_with_other_weights_is_removed(checkpoint, direction_file, call, tmp_path, monkeypatch):
    from rhumbline.edits import save as saving

    real = saving._write

    def torn(chat_model, folder, source):
        real(chat_model, folder, source)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    source = checkpoint()
    monkeypatch.setattr(saving, "_write", torn)
    code, _, messages = call("edit", source, "--direction", direction_file, "--out", tmp_path / "edited")
    assert code == 3
    assert "differs from the proved model" in messages
    assert not (tmp_path / "edited").exists()


def test_a_missing_shard_is_refused(checkpoint, direction_file, call, tmp_path):
    source = checkpoint()
    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    shards = sorted(source.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    code, _, messages = call("edit", source, "--direction", direction_file, "--out", tmp_path / "edited")
    assert code == 3
    assert shards[1].name in messages or "missing" in messages
    assert not (tmp_path / "edited").exists()


def test_a_run_of_another_model_is_refused_unless_forced(organism_run, call, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(organism_dir("refusal"), other)
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    os.chmod(other / "model.safetensors", 0o644)
    code, _, messages = call("edit", other, "--direction", organism_run, "--out", tmp_path / "edited")
    assert code == 2
    assert "made for the model" in messages
    assert "--force" in messages
    assert call("edit", other, "--direction", organism_run, "--out", tmp_path / "edited", "--force")[0] == 0


def test_a_direction_of_another_template_is_refused_unless_forced(checkpoint, call, tmp_path):
    from rhumbline.inference.direction_files import FORMAT

    file = tmp_path / "d.safetensors"
    save_file({"direction": torch.ones(32)}, file, {"format": FORMAT, "layer": "1", "template_sha256": "0" * 64})
    command = ("edit", checkpoint(), "--direction", file, "--out", tmp_path / "edited")
    code, _, messages = call(*command)
    assert code == 2
    assert "another chat template" in messages
    assert call(*command, "--force")[0] == 0


def test_export_from_the_command_line(organism_run, call, tmp_path):
    out = tmp_path / "direction.safetensors"
    assert call("export", organism_run, "--to", "direction", "--out", out)[0] == 0
    code, text, messages = call("edit", organism_dir("refusal"), "--direction", out, "--out", tmp_path / "edited")
    assert code == 0, messages
    assert "exact" in text
    code, _, messages = call("export", organism_run, "--to", "direction", "--out", out)
    assert code == 2
    assert "exists" in messages


def test_dequantising_accepts_a_direction_of_the_quantised_model(checkpoint, tmp_path, monkeypatch):
    """A run has the fingerprint of the packed weights, and plain matrices have another one."""
    source = str(checkpoint("llama"))
    packed = load(source, device="cpu", dtype="bfloat16")
    real = save.load_source

    def plain(chat_model):
        chat_model.model.get_input_embeddings().weight.data.mul_(2)
        return replace(chat_model, dequantised=None)

    monkeypatch.setattr(save, "load_source", lambda how: replace(real(how), dequantised="packed"))
    monkeypatch.setattr(save, "dequantized", plain)
    options = save.EditOptions(device="cpu", dequantize=True)
    own = make_directions(fingerprint=fingerprint(packed), dtype="bfloat16", model=source)
    other = make_directions(fingerprint="0" * 64, dtype="bfloat16", model="org/other")
    with pytest.raises(DirectionError, match="it was made for the model org/other"):
        save.edit_checkpoint(source, other, tmp_path / "edited", options)
    assert save.edit_checkpoint(source, own, tmp_path / "edited", options).outcome == "exact"
