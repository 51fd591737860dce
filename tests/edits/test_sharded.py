"""The edit of a checkpoint's files, without the model: bit-equal to the edit in memory, resumable, all or nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families import random_model
from rhumbline.edits import sharded
from rhumbline.edits import tensor_file as tensorfiles


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    def make(family, dtype=torch.bfloat16, **overrides):
        folder = tmp_path / f"{family}-base"
        model = random_model(family, vocab_size=len(tokenizer), dtype=dtype, gains=True, **overrides)
        model.save_pretrained(folder, max_shard_size="40KB")
        tokenizer.save_pretrained(folder)
        save_file(
            {"direction": torch.randn(32, generator=torch.Generator().manual_seed(3))},
            tmp_path / "direction.safetensors",
        )
        return folder, tmp_path / "direction.safetensors"

    return make


def stored(folder) -> dict[str, torch.Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.bfloat16), ("qwen2", torch.float32), ("gpt2", torch.float16), ("mixtral", torch.bfloat16),
     ("qwen3_moe", torch.bfloat16), ("gpt_oss", torch.bfloat16), ("gemma2", torch.bfloat16)],
)  # fmt: skip
def test_files_and_memory_give_the_same_bits(family, dtype, checkpoint, call, tmp_path):
    options = {"tie_word_embeddings": True} if family == "qwen2" else {}
    source, direction = checkpoint(family, dtype, **options)
    common = ("edit", source, "--direction", direction)
    code, text, messages = call(*common, "--out", tmp_path / "files", "--sharded")
    assert code == 0, messages
    card = (tmp_path / "files" / "README.md").read_text()
    for said in (" ".join(text.split()), card):
        # The gap of an approximate edit is the small model's, and whoever uses the result is told.
        assert ("was not measured: the difference above is that of a small model" in said) == (family == "gemma2")
    assert call(*common, "--out", tmp_path / "memory", "--device", "cpu")[0] == 0
    files, memory, base = (stored(f) for f in (tmp_path / "files", tmp_path / "memory", source))
    assert files.keys() == memory.keys()
    assert all(torch.equal(files[n], memory[n]) and files[n].dtype == dtype for n in files)
    changed = [n for n in base if not torch.equal(base[n], files[n])]
    assert len(changed) >= 9
    a = AutoModelForCausalLM.from_pretrained(tmp_path / "files")
    b = AutoModelForCausalLM.from_pretrained(tmp_path / "memory")
    ids = torch.tensor([[5, 9, 70, 11]])
    with torch.no_grad():
        assert torch.equal(a(ids).logits, b(ids).logits)
    assert not a.config.tie_word_embeddings
    record = json.loads((tmp_path / "files" / "rhumbline-edit.json").read_text())
    assert set(record["changed"]) == set(changed)
    assert record["outcome"] == ("approximate" if family == "gemma2" else "exact")
    assert "The model itself was not built" in card
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_edit_goes_on(checkpoint, call, tmp_path, monkeypatch):
    source, direction = checkpoint("llama")
    real, written = sharded._edit_file, []

    def full(path, *rest):
        written.append(path.name)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(sharded, "_edit_file", full)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 2
    assert "No space left" in messages
    assert "run the same command again" in messages
    assert not (tmp_path / "edited").exists()
    before = written[:2]
    written.clear()
    monkeypatch.setattr(sharded, "_edit_file", lambda path, *rest: written.append(path.name) or real(path, *rest))
    assert call(*command)[0] == 0
    assert not set(before) & set(written)
    fresh = tmp_path / "fresh"
    assert call(*command[:-2], fresh, "--sharded")[0] == 0
    resumed, whole = stored(tmp_path / "edited"), stored(fresh)
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)


def test_another_direction_does_not_resume(checkpoint, call, tmp_path, monkeypatch):
    source, direction = checkpoint("llama")
    real = sharded._finish
    monkeypatch.setattr(sharded, "_finish", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert call(*command)[0] == 2
    monkeypatch.setattr(sharded, "_finish", real)
    save_file({"direction": torch.ones(32)}, direction)
    assert call(*command)[0] == 0
    assert call(*command[:-2], tmp_path / "fresh", "--sharded")[0] == 0
    a, b = stored(tmp_path / "edited"), stored(tmp_path / "fresh")
    assert all(torch.equal(a[n], b[n]) for n in b)


def test_a_missing_file_or_a_foreign_name_is_refused(checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    content = load_file(shard)
    shard.unlink()
    code, _, messages = call(*command)
    assert code == 3
    assert "files are missing" in messages
    assert shard.name in messages
    save_file({f"old.{n}": t for n, t in content.items()}, shard, {"format": "pt"})
    code, _, messages = call(*command)
    assert code == 3
    assert "does not name its tensors" in messages
    shard.write_bytes(b"torn")
    code, _, messages = call(*command)
    assert code == 3
    assert "not a complete safetensors file" in messages
    assert not (tmp_path / "edited").exists()
    assert not list(tmp_path.glob(".edited*"))


def test_nan_in_the_weights_leaves_nothing(checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    # The last file that is edited, so that others are done by then.
    shard = next(
        p
        for p in sorted(source.glob("model-*.safetensors"), reverse=True)
        if any("down_proj" in n for n in load_file(p))
    )
    content = load_file(shard)
    name = next(n for n in content if "down_proj" in n)
    content[name][0, 0] = float("nan")
    save_file(content, shard, {"format": "pt"})
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert code == 3
    assert f"NaN or infinity (first in {name})" in messages
    assert not (tmp_path / "edited").exists()
    assert not list(tmp_path.glob(".edited*"))


def test_memory_holds_one_tensor_of_a_file(checkpoint, call, tmp_path, monkeypatch):
    """Of all tensors that an edit reads, no two are alive at once."""
    import weakref

    source, direction = checkpoint("llama")
    alive, most = [], []
    real = sharded.TensorFile.tensor

    def seen(self, name):
        found = real(self, name)
        alive.append(weakref.ref(found))
        most.append(sum(r() is not None for r in alive))
        return found

    monkeypatch.setattr(sharded.TensorFile, "tensor", seen)
    assert call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")[0] == 0
    assert len(most) >= 9
    assert max(most) == 1


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(16), "16 components"),
        (torch.full((32,), float("nan")), "NaN"),
        (torch.zeros(32), "zero vector"),
        (torch.ones(2, 32), "not linearly independent"),
    ],
)
def test_bad_directions_write_nothing(tensor, words, checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    save_file({"direction": tensor}, direction)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert code in (2, 3)
    assert words in messages
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not list(tmp_path.glob("*edited*"))


def test_a_target_that_is_not_empty_is_left_alone(checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "mine", "--sharded")
    assert code == 2
    assert "not an empty directory" in messages
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_disk_that_fills_up_within_a_file_leaves_no_half_of_it(checkpoint, call, tmp_path, monkeypatch):
    source, direction = checkpoint("llama")
    real, copied = tensorfiles._copy, []

    def full(file, entry, out):
        copied.append(entry)
        if len(copied) == 12:
            out.write(b"half")
            raise OSError(28, "No space left on device")
        real(file, entry, out)

    monkeypatch.setattr(tensorfiles, "_copy", full)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 2
    assert "No space left" in messages
    work = tmp_path / ".edited.sharded"
    done = json.loads((work / "state.json").read_text())["done"]
    assert {p.name for p in work.iterdir()} == {*done, "state.json"}
    monkeypatch.setattr(tensorfiles, "_copy", real)
    assert call(*command)[0] == 0


@pytest.mark.parametrize("name", ["../../escaped.safetensors", "sub/dir.safetensors", "..", "", "ABSOLUTE"])
def test_a_file_name_that_leaves_the_folder_is_refused(name, checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"].values()))
    name = str(source / first) if name == "ABSOLUTE" else name
    content["weight_map"] = {t: name if f == first else f for t, f in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "a" / "b" / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 3
    assert "plain file name" in messages
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}'])
def test_an_index_of_another_form_is_refused(index, checkpoint, call, tmp_path):
    source, direction = checkpoint("llama")
    (source / "model.safetensors.index.json").write_text(index)
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert code == 3
    assert "weight_map" in messages


def test_a_checkpoint_that_lacks_a_shard_is_not_reported_as_done(checkpoint, call, tmp_path, monkeypatch):
    source, direction = checkpoint("llama")
    real = sharded._finish

    def losing(shards, made, work):
        real(shards, made, work)
        next(work.glob("*.safetensors")).unlink()

    monkeypatch.setattr(sharded, "_finish", losing)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 3
    assert "not complete" in messages
    assert not list(tmp_path.glob("*edited*"))


def test_a_finished_file_that_was_removed_is_written_again(checkpoint, call, tmp_path, monkeypatch):
    source, direction = checkpoint("llama")
    real = sharded._finish
    monkeypatch.setattr(sharded, "_finish", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert call(*command)[0] == 2
    next((tmp_path / ".edited.sharded").glob("*.safetensors")).unlink()
    monkeypatch.setattr(sharded, "_finish", real)
    assert call(*command)[0] == 0
    assert stored(tmp_path / "edited").keys() >= stored(source).keys()
