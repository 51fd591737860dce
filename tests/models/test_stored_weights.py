"""The lines of stored weights: every replacement of a local file, an adapter's base, hub names and organisms."""

import json
import os
from pathlib import Path

import pytest

from rhumbline.models.sources import Source
from rhumbline.models.stored_weights import stored_weights


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_text("one")
    return tmp_path / "model"


def test_a_replacement_is_noticed_whatever_its_size_and_time(folder):
    before, weights = stored_weights(Source(str(folder))), folder / "model.safetensors"
    assert stored_weights(Source(str(folder))) == before
    facts = weights.stat()
    (folder / "new").write_text("two")
    (folder / "new").replace(weights)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    after = stored_weights(Source(str(folder)))
    assert after is not None
    assert before is not None
    assert [line.split()[:3] for line in after] == [line.split()[:3] for line in before]
    assert after != before


def test_a_link_to_another_checkpoint_is_noticed(folder, tmp_path):
    other, latest = tmp_path / "other", tmp_path / "latest"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    latest.symlink_to(folder)
    before = stored_weights(Source(str(latest)))
    latest.unlink()
    latest.symlink_to(other)
    assert before == stored_weights(Source(str(folder))) != stored_weights(Source(str(latest)))


def test_the_base_of_an_adapter_is_read(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    before = stored_weights(Source(str(adapter)))
    (folder / "model.safetensors").write_text("two")
    assert stored_weights(Source(str(adapter))) != before
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/not-here"}))
    assert stored_weights(Source(str(adapter))) is None


def test_a_hub_name_is_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--someone--here"
    for commit in ("1" * 40, "2" * 40):
        write(repository / "refs" / "main", commit)
        write(repository / "snapshots" / commit / "config.json", "{}")
        assert stored_weights(Source("someone/here")) == [commit]
    assert stored_weights(Source("someone/not-here")) is None
    assert stored_weights(Source("organism:planted")) == []


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
