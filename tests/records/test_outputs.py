"""An output directory that cannot be used is an error before any work; nothing is written by the check."""

import os
from pathlib import Path

import pytest

from rhumbline.errors import OutputError
from rhumbline.records.directory import RunDirectory, check_output, check_writable

UNUSABLE = {
    "a file": (lambda p: p.write_text(""), lambda p: p, "is not a directory"),
    "below a file": (lambda p: p.write_text(""), lambda p: p / "x" / "y", "is not a directory|Not a directory"),
    "a device": (lambda p: None, lambda p: "/dev/null", "is not a directory"),
    "below a device": (lambda p: None, lambda p: "/dev/null/x", "is not a directory|Not a directory"),
    "a long name": (lambda p: None, lambda p: p / ("x" * 300), "too long"),
    "a null character": (lambda p: None, lambda p: f"{p}\0", "null"),
    "a link to nothing": (lambda p: p.symlink_to(p.parent / "none"), lambda p: p, "is not a directory"),
}


@pytest.mark.parametrize("check", [check_output, check_writable], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("make", "place", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_place_that_cannot_be_a_directory_is_an_error(check, make, place, message, tmp_path):
    make(tmp_path / "out")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=message) as caught:
        check(place(tmp_path / "out"))
    assert "another --out" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="every directory is writable for root")
def test_a_directory_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_new_empty_and_run_directories_can_be_used_and_others_cannot(tmp_path):
    check_output(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").write_text("")
    check_output(tmp_path)
    (tmp_path / "thesis.pdf").write_text("")
    with pytest.raises(OutputError, match=r"not empty \(thesis\.pdf\)"):
        check_output(tmp_path)
    check_writable(tmp_path)
    (tmp_path / "protocol.json").write_text("{}")
    check_output(tmp_path)


def test_the_name_of_a_quick_run_begins_with_that_of_the_whole_one(tmp_path, monkeypatch):
    def name(path):
        return RunDirectory(Path(path), {}, "").name

    assert name("runs/qwen/quick") == "qwen/quick"
    assert name("runs/qwen") == "qwen"
    (tmp_path / "quick").mkdir()
    monkeypatch.chdir(tmp_path / "quick")
    assert name(".") == f"{tmp_path.name}/quick"
