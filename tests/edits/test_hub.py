"""Sharing on the hub: the folder that is uploaded, its upload without a network, and directions by their name."""

import json
import shutil
from html import escape

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from finished_runs import TEXTS
from rhumbline.edits import hub
from rhumbline.edits.hub import PushOptions, hub_direction, is_repository, push, shared_folder
from rhumbline.edits.read_direction import LARGEST, read_directions
from rhumbline.errors import DirectionError, InputError, OutputError, VerificationError
from rhumbline.inference.interventions import Direction
from rhumbline.organisms.planted import TRUTH
from rhumbline.records.directory import RunDirectory
from rhumbline.records.edit_file import FILE
from rhumbline.report import build as report

RUN_FILES = {"README.md", "direction.safetensors", "protocol.json", "results.json"}
"""Of a run whose report was not drawn."""


def test_a_run_is_shared_without_prompts_and_completions(every_stage, tmp_path):
    run = shutil.copytree(every_stage, tmp_path / "run")
    report.build(run)
    shared_folder(run, tmp_path / "up", PushOptions("apache-2.0"))
    assert {path.name for path in (tmp_path / "up").iterdir()} == RUN_FILES | {"report.html"}
    card, results = (tmp_path / "up/README.md").read_text(), json.loads((every_stage / "results.json").read_text())
    for part in (results["verdict"], "license: apache-2.0", "Side effects", "beats its nulls", "95 % interval"):
        assert part in card
    shared = Direction.load(tmp_path / "up/direction.safetensors")
    torch.testing.assert_close(shared.difference, Direction.from_run(every_stage).difference)
    assert read_directions(tmp_path / "up/direction.safetensors").origin.verdict == results["verdict"]


def test_a_changed_run_is_not_shared(every_stage, tmp_path):
    run = shutil.copytree(every_stage, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["verdict"] = "DAMAGED"
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(VerificationError, match="does not verify"):
        shared_folder(run, tmp_path / "up")
    assert not (tmp_path / "up").exists()


def test_completions_that_a_run_saved_are_not_shared(texts_run, tmp_path):
    assert TEXTS.save_completions
    run = shutil.copytree(texts_run, tmp_path / "run")
    report.build(run)
    assert "report.html shows completions, so it is left out" in shared_folder(run, tmp_path / "up")
    shared = "".join(path.read_bytes().decode(errors="replace") for path in (tmp_path / "up").iterdir())
    rows = [json.loads(line) for line in (run / "seed-0" / "outcomes.jsonl").read_text().splitlines()]
    texts = {text for row in rows for text in (row["prompt"], row["completion"]) if len(text) > 20}
    assert texts
    assert [text for text in texts if text in shared or escape(text) in shared] == []
    shared_folder(run, tmp_path / "without", PushOptions(report=False))
    assert not (tmp_path / "without" / "report.html").exists()


def test_evaluations_of_a_run_are_not_shared(every_stage, tmp_path):
    """Also what an interrupted one leaves, and results of earlier versions, whose scores of documents can be texts."""
    run = shutil.copytree(every_stage, tmp_path / "run")
    folder = run / "evaluations/0123456789/help"
    folder.mkdir(parents=True)
    (folder / "baseline.answers").write_text('["key", "a private text"]\n')
    scores = {"doc_id": 0, "doc_hash": "h", "filter": "none", "scores": {"bleu": ["a private text", "another"]}}
    result = {"protocol_sha256": RunDirectory.read(run).protocol_sha256, "task": "help", "arm": "baseline"}
    result |= {"results": {"help": {"bleu,none": 1.0}}, "samples": {"help": [scores]}}
    (folder / "baseline.json").write_text(json.dumps(result))
    shared_folder(run, tmp_path / "up")
    assert {path.name for path in (tmp_path / "up").iterdir()} == RUN_FILES
    assert not [path for path in (tmp_path / "up").iterdir() if b"private text" in path.read_bytes()]


@pytest.fixture
def edited(tmp_path):
    """A directory like that of an edited checkpoint, with files that are not shared."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for name in (FILE, "config.json", "model.safetensors", "README.md", "chat_template.jinja", "tokenizer.model"):
        (folder / name).write_text("{}")
    for name in ("optimizer.pt", "contrast.jsonl", ".env", "code.py", "prompts.txt", "keys.json", "states.safetensors"):
        (folder / name).write_text("private")
    (folder / "secret.json").symlink_to(folder / ".env")
    return folder


def test_only_listed_files_of_a_checkpoint_are_shared(edited, tmp_path):
    shared_folder(edited, tmp_path / "up")
    shared = {path.name for path in (tmp_path / "up").iterdir()}
    assert shared == {FILE, "config.json", "model.safetensors", "README.md", "chat_template.jinja", "tokenizer.model"}
    (edited / "model.safetensors").unlink()
    with pytest.raises(OutputError, match="no safetensors"):
        shared_folder(edited, tmp_path / "again")


@pytest.mark.parametrize("options", [PushOptions("mit"), PushOptions(report=False)])
def test_options_of_runs_are_refused_for_a_checkpoint(options, edited, tmp_path):
    with pytest.raises(InputError, match="--license and --without-report are of runs"):
        shared_folder(edited, tmp_path / "up", options)
    assert not (tmp_path / "up").exists()


def test_other_directories_and_full_targets_are_refused(tmp_path, edited):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither"):
        shared_folder(tmp_path / "empty", tmp_path / "up")
    with pytest.raises(OutputError, match="not an empty directory"):
        shared_folder(edited, edited)


@pytest.mark.parametrize("name", ["a/b", "Owner-1/name_2.x"])
def test_names_of_repositories(name):
    assert is_repository(name)


@pytest.mark.parametrize(
    "name", ["", "a", "a/b/c", "../x", "a/..", "/a/b", "a /b", "a/b\n", "-a/b", "a/" + "b" * 97, "ä/b"]
)
def test_other_names_are_refused(name, tmp_path, edited):
    assert not is_repository(name)
    with pytest.raises(InputError, match="owner/name"):
        push(edited, name)
    with pytest.raises(DirectionError, match="hf:owner/name"):
        hub_direction(f"hf:{name}")


@pytest.mark.parametrize("revision", ["../..", "a b", "a" * 101, "\n"])
def test_other_revisions_are_refused(revision):
    with pytest.raises(DirectionError, match="@REVISION"):
        hub_direction(f"hf:a/b@{revision}")


@pytest.mark.parametrize("license", ["", "MIT License", "mit\nbase_model: x", "a" * 99])
def test_faulty_licences_are_refused(license):
    with pytest.raises(InputError, match="--license"):
        PushOptions(license)


class Api:
    """The part of the hub's client that `push` uses."""

    calls: list = []  # noqa: RUF012

    def create_repo(self, *arguments, **options):
        self.calls.append((arguments, options))

    def upload_folder(self, *, folder_path, repo_id, commit_message):
        from pathlib import Path

        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_the_folder_is_uploaded_to_a_private_repository(every_stage, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "calls", [])
    push(every_stage, "me/direction")
    assert Api.calls == [
        (("me/direction",), {"private": True, "exist_ok": True}),
        ("me/direction", sorted(RUN_FILES)),
    ]


def test_without_a_network_the_upload_has_a_message(edited, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(OutputError, match="--dry-run"):
        push(edited, "me/edited")


def info_of(size, commit="main"):
    return huggingface_hub.DryRunFileInfo(commit, size, "direction.safetensors", "", False, True)


def test_a_large_direction_is_not_downloaded(monkeypatch):
    def download(repository, name, revision, dry_run=False):
        assert dry_run
        return info_of(LARGEST + 1)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DirectionError, match="at most"):
        read_directions("hf:me/direction")


@pytest.mark.parametrize("where", ["planted", "hub"])
def test_a_seed_is_one_of_a_run(where, planted_folder):
    source = "hf:me/direction" if where == "hub" else planted_folder / TRUTH
    with pytest.raises(DirectionError, match="--seed 0"):
        read_directions(source, seed=0)


def test_a_position_is_one_of_a_file(every_stage, tmp_path, monkeypatch):
    with pytest.raises(DirectionError, match="--position -1"):
        read_directions(every_stage, position=-1)
    path = tmp_path / "direction.safetensors"
    save_file({"direction": torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)}, path)
    monkeypatch.setattr(hub, "hub_direction", lambda name: hub.HubFile(path, "main"))
    assert read_directions("hf:me/table", layer=1, position=-1).vectors.tolist() == [[16, 17, 18, 19]]


def test_a_copy_of_a_checkpoint_is_independent(edited, tmp_path):
    shared_folder(edited, tmp_path / "up")
    (tmp_path / "up/model.safetensors").write_text("changed")
    assert (edited / "model.safetensors").read_text() == "{}"
    shared_folder(edited, tmp_path / "linked", link=True)
    assert (tmp_path / "linked/model.safetensors").samefile(edited / "model.safetensors")


def test_a_direction_is_read_by_its_name_with_its_revision(every_stage, tmp_path, monkeypatch):
    commit = "0123456789abcdef"
    shared_folder(every_stage, tmp_path / commit)
    asked = []

    def download(repository, name, revision, dry_run=False):
        asked.append((repository, name, revision))
        path = tmp_path / commit / name
        return info_of(path.stat().st_size, commit) if dry_run else str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    imported = read_directions("hf:me/direction@main")
    assert asked == [("me/direction", "direction.safetensors", revision) for revision in ("main", commit)]
    assert (imported.origin.hub, imported.origin.revision) == ("hf:me/direction", commit)
    assert imported.origin.fingerprint
    torch.testing.assert_close(imported.direction().difference, Direction.from_run(every_stage).difference)


@pytest.mark.parametrize("message", ["not there", ""])
def test_a_name_that_the_hub_lacks_has_a_message(message, monkeypatch):
    def download(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError(message)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DirectionError, match="could not be downloaded"):
        read_directions("hf:me/direction")


def test_a_dry_run_lists_the_files(call, every_stage, tmp_path):
    code, shown, messages = call("push", every_stage, "me/direction", "--dry-run", tmp_path / "up")
    assert code == 0
    assert {line.partition(":")[0] for line in shown.splitlines()} == RUN_FILES
    assert "nothing was uploaded" in messages
    assert "upload to me/direction, private if it is new" in " ".join(messages.split())
    messages = call("push", every_stage, "me/direction", "--dry-run", tmp_path / "open", "--public")[2]
    assert "upload to me/direction, public if it is new" in " ".join(messages.split())
    assert call("push", every_stage, "direction", "--dry-run", tmp_path / "again")[0] == 2
    assert call("push", tmp_path, "me/direction", "--dry-run", tmp_path / "again")[0] == 2
