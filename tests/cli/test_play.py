"""The commands `chat` and `play`: both completions of a prompt, commands of the user, the address of the page."""

import io
import json
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rhumbline.organisms.planted import TRUTH
from rhumbline.play.server import PlayServer

FEW = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def prompt(planted_folder):
    rows = [json.loads(line) for line in (planted_folder / "contrast.jsonl").read_text().splitlines()]
    return next(row["prompt"] for row in rows if row["label"] == "positive")


@pytest.fixture
def chat(call, planted_folder, every_stage):
    return lambda *options: call("chat", planted_folder, "--dtype", "float32", "--direction", every_stage, *options)


def test_a_prompt_is_completed_in_both_columns(chat, prompt):
    code, shown, _ = chat("--prompt", prompt, *FEW, "--json")
    assert code == 0
    (row,) = json.loads(shown)["completions"]
    assert row["baseline"] != row["edited"]
    code, text, _ = chat("--prompt", prompt, *FEW)
    assert (code, row["baseline"] in text, row["edited"] in text) == (0, True, True)
    code, shown, _ = chat("--prompt", prompt, *FEW, "--strength", 0, "--json")
    (same,) = json.loads(shown)["completions"]
    assert same["edited"] == same["baseline"] == row["baseline"]
    code, shown, _ = chat("--prompt", prompt, *FEW, "--null", "isotropic 0", "--json")
    assert json.loads(shown)["settings"]["direction"] == "isotropic 0"


def test_a_user_chats_and_changes_the_settings(chat, prompt, monkeypatch):
    lines = [prompt, "/strength 0.5", "/layer 1", "/null", "/null isotropic 1", "/settings", "/strength x", "/layer 99"]
    lines += ["/null nothing", "/help", "/settings", "/direction", "", "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    code, shown, messages = chat(*FEW)
    assert code == 0
    assert "baseline" in shown
    assert shown.count("strength: 0.5") == 2  # a faulty command changes nothing
    assert shown.count("direction: isotropic 1") == 2
    for fault in ("expected a number", "layer is 99", "'nothing' is unknown"):
        assert fault in messages


def test_the_end_of_the_input_ends_the_chat(chat, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat(*FEW)[0] == 0


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_no_text_are_bad_input(errors, chat, monkeypatch):
    given = io.TextIOWrapper(io.BytesIO(b"/strength 0.5\n\xff\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", given)
    code, _, messages = chat(*FEW)
    assert code == 2
    assert "not text" in messages


FAULTS = {
    "strength": ("--strength", 3),
    "coefficient": ("--coefficient", "nan"),
    "--max-new-tokens": ("--max-new-tokens", 0),
    "has no seed": ("--seed", 77),
    "layer is 99": ("--layer", 99),
    "is unknown": ("--null", "nothing"),
    "--json": ("--json",),
    "no such file": ("--direction", "nothing"),
    "template": ("--chat-template", "nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_options_have_a_message(fault, chat, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, messages = chat(*FAULTS[fault])
    assert code == 2
    assert fault in messages


def test_a_direction_of_another_model_needs_force(call, organism, every_stage, prompt):
    command = ("chat", organism("refusal"), "--direction", every_stage, "--prompt", prompt, *FEW)
    code, _, messages = call(*command)
    assert code == 2
    assert "width" in messages or "another model" in messages or "template" in messages


def test_the_page_is_served_until_the_user_ends_it(call, planted_folder, monkeypatch):
    monkeypatch.setattr(PlayServer, "serve", lambda server: (_ for _ in ()).throw(KeyboardInterrupt))
    command = ("play", planted_folder, "--direction", planted_folder / TRUTH, "--layer", 2)
    code, shown, _ = call(*command)
    assert code == 0
    assert shown.startswith("page: http://127.0.0.1:")
    assert len(shown.strip().split("/")[3]) >= 32
    assert call(*command, "--port", -1)[0] == 2
    assert call("play", planted_folder, "--direction", planted_folder / TRUTH)[0] == 2  # the file has no layer


def test_the_arguments_of_the_browser_have_no_token(call, planted_folder, monkeypatch):
    opened = []
    monkeypatch.setattr(PlayServer, "serve", lambda server: None)
    monkeypatch.setattr(
        webbrowser, "open", lambda url: opened.append((url, Path(unquote(urlsplit(url).path)).read_text()))
    )
    code, shown, _ = call("play", planted_folder, "--open")
    assert code == 0
    ((url, page),) = opened
    address = shown.split()[1]
    assert address in page
    assert address.strip("/").split("/")[-1] not in url


@pytest.mark.parametrize("option", [("--seed", 0), ("--position", -1), ("--force",)])
def test_options_of_a_direction_need_one(option, call, planted_folder):
    code, _, messages = call("play", planted_folder, *option)
    assert code == 2
    assert option[0] in messages
