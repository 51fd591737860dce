"""The edit of the files of a checkpoint: bit-equal to the edit in memory, resumable, complete or absent."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rhumbline.edits import sharded, tensor_file
from rhumbline.inference.direction_files import write_directions
from rhumbline.records.edit_file import DirectionOrigin


@pytest.fixture
def sharded_checkpoint(checkpoint, direction_file):
    """The directory of a random model in several files, and a direction for it."""

    def make(family="llama", dtype=torch.bfloat16, **overrides):
        return checkpoint(family, dtype, "40KB", **overrides), direction_file

    return make


def stored(folder) -> dict[str, torch.Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.bfloat16), ("qwen2", torch.float32), ("gpt2", torch.float16), ("mixtral", torch.bfloat16),
     ("qwen3_moe", torch.bfloat16), ("gpt_oss", torch.bfloat16), ("gemma2", torch.bfloat16)],
)  # fmt: skip
def test_files_and_memory_give_the_same_bits(family, dtype, sharded_checkpoint, call, tmp_path):
    options = {"tie_word_embeddings": True} if family == "qwen2" else {}
    source, direction = sharded_checkpoint(family, dtype, **options)
    common = ("edit", source, "--direction", direction)
    code, text, messages = call(*common, "--out", tmp_path / "files", "--sharded")
    assert code == 0, messages
    card = (tmp_path / "files" / "README.md").read_text()
    for shown in (" ".join(text.split()), card):
        # The gap of an approximate edit is that of the small model, which the messages and the card state.
        assert ("was not measured: the difference above is that of a small model" in shown) == (family == "gemma2")
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


def test_an_interrupted_edit_resumes(sharded_checkpoint, call, tmp_path, monkeypatch):
    source, direction = sharded_checkpoint("llama")
    real, written = sharded._edit_file, []

    def full(file, *rest):
        written.append(file.path.name)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return real(file, *rest)

    monkeypatch.setattr(sharded, "_edit_file", full)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 2
    assert "No space left" in messages
    assert "rerun the same command to resume" in messages
    assert not (tmp_path / "edited").exists()
    before = written[:2]
    written.clear()
    # A killed process leaves a temporary file, and perhaps a part of a copied one.
    (tmp_path / ".edited.sharded" / ".x.safetensors.1").write_bytes(b"half")
    (tmp_path / ".edited.sharded" / "tokenizer_config.json").write_bytes(b"half")
    monkeypatch.setattr(sharded, "_edit_file", lambda file, *rest: written.append(file.path.name) or real(file, *rest))
    assert call(*command)[0] == 0
    assert not set(before) & set(written)
    fresh = tmp_path / "fresh"
    assert call(*command[:-2], fresh, "--sharded")[0] == 0
    assert {p.name for p in (tmp_path / "edited").iterdir()} == {p.name for p in fresh.iterdir()}
    copied = "tokenizer_config.json"
    assert (tmp_path / "edited" / copied).read_bytes() == (fresh / copied).read_bytes()
    resumed, whole = stored(tmp_path / "edited"), stored(fresh)
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)


def test_another_direction_does_not_resume(sharded_checkpoint, call, tmp_path, monkeypatch):
    source, direction = sharded_checkpoint("llama")
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


def test_missing_torn_and_renamed_tensors_are_refused(sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
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
    assert "has other tensor names" in messages
    whole = shard.read_bytes()
    for torn, words in ((b"torn", "not a complete safetensors file"), (whole[:-4], "by its header, and it has")):
        shard.write_bytes(torn)
        code, _, messages = call(*command)
        assert code == 3
        assert words in messages
    assert not (tmp_path / "edited").exists()
    assert not list(tmp_path.glob(".edited*"))


def test_nan_in_the_weights_leaves_nothing(sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
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


def test_memory_holds_one_tensor_of_a_file(sharded_checkpoint, call, tmp_path, monkeypatch):
    """No two of the tensors that an edit reads are in memory together."""
    import weakref

    source, direction = sharded_checkpoint("llama")
    alive, most = [], []
    real = sharded.TensorFile.tensor

    def counted(self, name):
        tensor = real(self, name)
        alive.append(weakref.ref(tensor))
        most.append(sum(r() is not None for r in alive))
        return tensor

    monkeypatch.setattr(sharded.TensorFile, "tensor", counted)
    assert call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")[0] == 0
    assert len(most) >= 9
    assert max(most) == 1


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(16), "width 16"),
        (torch.full((32,), float("nan")), "NaN"),
        (torch.zeros(32), "zero vector"),
        (torch.ones(2, 32), "not linearly independent"),
    ],
)
def test_bad_directions_write_nothing(tensor, words, sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
    save_file({"direction": tensor}, direction)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert code in (2, 3)
    assert words in messages
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not list(tmp_path.glob("*edited*"))


@pytest.mark.parametrize("option", ["--device cuda", "--dtype float32", "--add 2", "--dequantize"])
def test_options_that_files_are_not_edited_with_are_refused(option, direction_file, call, tmp_path):
    command = ("edit", "nowhere", "--direction", direction_file, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command, *option.split())
    assert code == 3
    assert "Omit them, or edit without --sharded" in messages


def test_a_target_that_is_not_empty_is_left_alone(sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "mine", "--sharded")
    assert code == 2
    assert "not an empty directory" in messages
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_disk_that_fills_up_within_a_file_leaves_no_part_of_it(sharded_checkpoint, call, tmp_path, monkeypatch):
    source, direction = sharded_checkpoint("llama")
    real, copied = tensor_file._copy, []

    def full(file, entry, out):
        copied.append(entry)
        if len(copied) == 12:
            out.write(b"half")
            raise OSError(28, "No space left on device")
        real(file, entry, out)

    monkeypatch.setattr(tensor_file, "_copy", full)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 2
    assert "No space left" in messages
    work = tmp_path / ".edited.sharded"
    done = json.loads((work / "state.json").read_text())["done"]
    assert {p.name for p in work.iterdir()} == {*done, "state.json"}
    monkeypatch.setattr(tensor_file, "_copy", real)
    assert call(*command)[0] == 0


@pytest.mark.parametrize("name", ["../../escaped.safetensors", "sub/dir.safetensors", "..", "", "ABSOLUTE"])
def test_a_file_name_that_leaves_the_folder_is_refused(name, sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
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
def test_an_index_of_another_form_is_refused(index, sharded_checkpoint, call, tmp_path):
    source, direction = sharded_checkpoint("llama")
    (source / "model.safetensors.index.json").write_text(index)
    code, _, messages = call("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert code == 3
    assert "weight_map" in messages


def test_a_checkpoint_that_lacks_a_shard_is_not_reported_as_done(sharded_checkpoint, call, tmp_path, monkeypatch):
    source, direction = sharded_checkpoint("llama")
    real = sharded._finish

    def losing(shards, made, copies, work):
        real(shards, made, copies, work)
        next(work.glob("*.safetensors")).unlink()

    monkeypatch.setattr(sharded, "_finish", losing)
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    code, _, messages = call(*command)
    assert code == 3
    assert "not complete" in messages
    assert not list(tmp_path.glob("*edited*"))


def test_a_finished_file_that_was_removed_is_written_again(sharded_checkpoint, call, tmp_path, monkeypatch):
    source, direction = sharded_checkpoint("llama")
    real = sharded._finish
    monkeypatch.setattr(sharded, "_finish", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    command = ("edit", source, "--direction", direction, "--out", tmp_path / "edited", "--sharded")
    assert call(*command)[0] == 2
    next((tmp_path / ".edited.sharded").glob("*.safetensors")).unlink()
    monkeypatch.setattr(sharded, "_finish", real)
    assert call(*command)[0] == 0
    assert stored(tmp_path / "edited").keys() >= stored(source).keys()


def flagged_as_tied(source):
    """Set the flag of tied embeddings in the config of a checkpoint that stores a head."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


@pytest.mark.parametrize("shard_size", ["40KB", "1GB"])
def test_a_stored_head_that_differs_from_the_embedding_is_refused(
    shard_size, checkpoint, direction_file, call, tmp_path
):
    """transformers uses this head, so the embedding must not replace it."""
    source = checkpoint("llama", torch.bfloat16, shard_size, tie_word_embeddings=False)
    flagged_as_tied(source)
    command = ("edit", source, "--direction", direction_file, "--out", tmp_path / "edited")
    in_memory, by_file = call(*command, "--device", "cpu"), call(*command, "--sharded")
    assert in_memory[0] == by_file[0] == 3
    for _, _, messages in (in_memory, by_file):
        assert "stores different values for them" in " ".join(messages.split())
    assert not list(tmp_path.glob("*edited*"))


@pytest.mark.parametrize("shard_size", ["40KB", "1GB"])
def test_a_stored_head_that_equals_the_embedding_stays_in_its_file(
    shard_size, checkpoint, direction_file, call, tmp_path
):
    source = checkpoint("llama", torch.bfloat16, shard_size, tie_word_embeddings=False)
    flagged_as_tied(source)
    embedding = stored(source)["model.embed_tokens.weight"]
    for path in source.glob("*.safetensors"):
        content = load_file(path)
        if "lm_head.weight" in content:
            save_file(content | {"lm_head.weight": embedding.clone()}, path, {"format": "pt"})
    command = ("edit", source, "--direction", direction_file, "--out", tmp_path / "edited", "--sharded")
    assert call(*command)[0] == 0
    for path in source.glob("*.safetensors"):
        assert load_file(path).keys() == load_file(tmp_path / "edited" / path.name).keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert torch.equal(model.lm_head.weight, embedding)
    assert not torch.equal(model.model.embed_tokens.weight, embedding)


def test_the_card_states_the_result_and_the_spared_tokens_of_the_run(sharded_checkpoint, call, tmp_path):
    source, _ = sharded_checkpoint("llama")
    path = tmp_path / "of-a-run.safetensors"
    write_directions(path, torch.ones(1, 32), 1, None, DirectionOrigin(sentence="One direction does it.", spared=1))
    code, text, messages = call("edit", source, "--direction", path, "--out", tmp_path / "edited", "--sharded")
    assert code == 0, messages
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "Result of the run: One direction does it." in card
    for shown in (" ".join(text.split()), card):
        assert "spare the first token of a text; this one acts at every token" in shown
