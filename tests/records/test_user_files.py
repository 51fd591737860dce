"""Files that a user passes: every fault is an error that names the file and what is expected; nothing blocks."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.errors import InputError, ProtocolError
from rhumbline.records import user_files
from rhumbline.records.user_files import read_json, read_text, read_toml


def write(content):
    return lambda path: path.write_bytes(content)


FAULTS = {
    "missing": (lambda path: None, "does not exist"),
    "a directory": (lambda path: path.mkdir(), "is a directory"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "too large": (write(b" " * 5000), "has 5,000 bytes; at most 4,096 are read"),
    "a null character": (write(b"ok\nab\0c"), "line 2: a null character"),
    "not UTF-8": (write(b"ok\nok\ncaf\xe9"), "line 3: not UTF-8"),
}


@pytest.mark.parametrize("read", [read_text, read_json, read_toml], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("make", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_cannot_be_read_is_an_error(read, make, message, tmp_path, monkeypatch):
    monkeypatch.setattr(user_files, "LARGEST", 4096)
    make(tmp_path / "file")
    with pytest.raises(ProtocolError, match=rf"--config .*file.*{message}|--config .*{message}") as caught:
        read(tmp_path / "file", ProtocolError, "a table", "--config")
    assert str(caught.value).count("Pass a table") <= 1
    assert "Pass a table" in str(caught.value) or "Save the file as UTF-8" in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "/" + "x/" * 3000])
def test_a_name_that_no_file_can_have_is_an_error(name):
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_text(name, InputError, "a text")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("read", "content"),
    [(read_json, "{"), (read_json, "[" * 100_000), (read_toml, "a = "), (read_toml, "a = " + "[" * 100_000)],
)
def test_a_malformed_or_deep_file_is_an_error(read, content, tmp_path):
    (tmp_path / "file").write_text(content)
    with pytest.raises(InputError, match=r"file is not (JSON|TOML)"):
        read(tmp_path / "file", InputError, "a table")


@pytest.mark.parametrize("character", ["\x01", "\x1b", "\x7f", "\x9b"])
def test_a_text_has_no_control_characters(character, tmp_path):
    (tmp_path / "file").write_text(f"a\tb\fc\r\n\u200b\u202e{character}", encoding="utf-8", newline="")
    with pytest.raises(InputError, match=rf"--systems .*file, line 2: the control character U\+00{ord(character):02X}"):
        read_text(tmp_path / "file", InputError, "a text", "--systems")
    (tmp_path / "file").write_text('"a\x7f\x9b"', encoding="utf-8")
    assert read_json(tmp_path / "file", InputError, "a table")  # of a model, whose tokens can be any characters


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n\v\f\r")))
def test_a_text_is_read_as_it_was_written(text):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = f"{folder}/file"
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        assert read_text(path, InputError, "a text") == text.removeprefix("\ufeff")


def test_json_and_toml_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    (tmp_path / "a.toml").write_text("a = [1]")
    assert (
        read_json(tmp_path / "a.json", InputError, "") == read_toml(tmp_path / "a.toml", InputError, "") == {"a": [1]}
    )
