"""The files beside the weights of a checkpoint, of a directory or of the cache of the hub."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest

from rhumbline.edits.companions import PROCESSOR_FILES, copy_companions_of, files_not_cached
from rhumbline.edits.edit_card import caveats

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts a directory into a cache as the client of the hub stores it: files are links to blobs."""

    def store(name, folder):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        for part in ("refs", "blobs", f"snapshots/{COMMIT}", f".no_exist/{COMMIT}"):
            (repository / part).mkdir(parents=True, exist_ok=True)
        (repository / "refs/main").write_text(COMMIT)
        for path in folder.iterdir():
            shutil.copyfile(path, repository / "blobs" / path.name)
            (repository / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{path.name}")
        return repository

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return store


def config_of(*, is_multimodal=True, **fields):
    config = SimpleNamespace(_name_or_path="acme/tiny", _commit_hash=COMMIT, **fields)
    config.get_text_config = lambda: SimpleNamespace() if is_multimodal else config
    return config


def test_the_edit_of_a_hub_model_has_the_files_of_its_processor(cache, checkpoint, direction_file, call, tmp_path):
    source, out = checkpoint("llama"), tmp_path / "edited"
    for name in ("preprocessor_config.json", "processor_config.json", "consolidated.pth", "README.md"):
        (source / name).write_text(f'{{"of": "{name}"}}')
    cache("acme/tiny", source)
    code, _, messages = call("edit", "acme/tiny", "--direction", direction_file, "--out", out)
    assert code == 0, messages
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert json.loads((out / name).read_text()) == {"of": name}
        assert not (out / name).is_symlink()
    assert not (out / "consolidated.pth").exists()
    assert "of" not in json.loads((out / "config.json").read_text())
    assert "# tiny, edited" in (out / "README.md").read_text()
    assert json.loads((out / "rhumbline-edit.json").read_text())["not_cached"] == []  # it has no other modality


def test_files_that_are_not_in_the_cache_are_named(cache, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/processor_config.json").write_text("{}")
    repository, out = cache("acme/tiny", tmp_path / "model"), tmp_path / "edited"
    (repository / ".no_exist" / COMMIT / "chat_template.json").write_text("")  # the repository lacks it
    out.mkdir()
    copy_companions_of("acme/tiny", config_of(), out)
    missing = files_not_cached("acme/tiny", config_of(), out)
    assert missing == ("preprocessor_config.json", "video_preprocessor_config.json")
    assert files_not_cached("acme/tiny", config_of(is_multimodal=False), out) == ()
    assert files_not_cached("acme/other", SimpleNamespace(get_text_config=dict), out) == tuple(
        name for name in PROCESSOR_FILES if name != "processor_config.json"
    )
    origin = SimpleNamespace(caveats=[])
    record = SimpleNamespace(
        direction=SimpleNamespace(coefficient=None, origin=origin), not_cached=missing, base_model="acme/tiny"
    )
    (sentence,) = caveats(record)
    assert "`hf download acme/tiny preprocessor_config.json video_preprocessor_config.json`" in sentence


def test_the_files_of_a_directory_are_all_of_it(tmp_path):
    source, out = tmp_path / "model", tmp_path / "edited"
    source.mkdir()
    out.mkdir()
    (source / "processor_config.json").write_text("{}")
    config = SimpleNamespace(_name_or_path="", get_text_config=dict)
    copy_companions_of(str(source), config, out)
    assert [path.name for path in out.iterdir()] == ["processor_config.json"]
    assert files_not_cached(str(source), config, out) == ()


def test_the_base_of_an_adapter_has_the_files(cache, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text("{}")
    cache("acme/tiny", tmp_path / "model")
    adapter, out = tmp_path / "adapter", tmp_path / "edited"
    adapter.mkdir()
    out.mkdir()
    copy_companions_of(str(adapter), config_of(), out)
    assert (out / "preprocessor_config.json").is_file()
