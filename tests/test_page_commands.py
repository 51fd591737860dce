"""Every command that README and docs print is one of the program; those of the first pages run, as they are printed."""

import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from finished_runs import COMPLETIONS
from page_commands import PAGES, PageCommand, commands_of
from paths import ROOT
from rhumbline.cli import parser
from rhumbline.organisms import organism_dir
from rhumbline.play.server import PlayServer

COMMANDS = [command for page in PAGES for command in commands_of(page)]
TOP = parser()
CHOICES = {"NAME": "geometry", "FORMAT": "direction"}
"""Values of arguments with choices, for the words that stand for them."""


def faults(command: PageCommand) -> str:
    """Why the program does not take the arguments; empty for one that it takes.

    A command between backticks can lack arguments: one with `...`, and one without a value.
    """
    words = [CHOICES.get(word, word) if command.words[0] in ("analyze", "export") else word for word in command.words]
    is_cut = not command.is_block and (
        "..." in words or all(word.startswith("-") for word in words[2:]) or "--" in words[1][:2]
    )
    with redirect_stderr(io.StringIO()) as messages:
        try:
            TOP.parsed([word for word in words if word != "..."])
        except SystemExit as error:
            message = messages.getvalue().strip().splitlines()[-1:]
            is_lacking = is_cut and "arguments are required" in "".join(message)
            return "" if error.code == 0 or is_lacking else "".join(message)
    return ""


def test_the_commands_are_found():
    assert len(COMMANDS) > 120
    texts = {(command.page, command.text) for command in COMMANDS}
    assert ("docs/guide/play.md", "play MODEL --direction RUN") in texts
    assert ("docs/guide/editing.md", "export RUN --to lm-eval --out steer.pt --ablate") in texts
    assert not faults(PageCommand("p", ("verify", "RUN"), True))
    assert not faults(PageCommand("p", ("run", "--engine", "ray"), False))
    assert faults(PageCommand("p", ("run", "--engines", "ray"), False))
    for wrong in (("chat", "DIR"), ("run", "MODEL", "--sedes", "0"), ("export", "RUN", "--to", "pdf", "--out", "F")):
        assert faults(PageCommand("p", wrong, True)), wrong


@pytest.mark.parametrize("page", dict.fromkeys(command.page for command in COMMANDS))
def test_the_program_takes_every_command_of_a_page(page):
    assert [(c.text, fault) for c in COMMANDS if c.page == page and (fault := faults(c))] == []


# -- as they are printed ----------------------------------------------------------------------------------------------

GUIDES = tuple(f"docs/guide/{name}.md" for name in ("play", "sharing", "analyses"))
RUN_HERE = ("README.md", "docs/index.md", "docs/how-do-i.md", *GUIDES)
ELSEWHERE = {
    "hf:": "needs the hub",
    "push RUN owner/name": "uploads",
    "analyze style": "tests/analyses",
    "contrast make": "tests/cli/test_contrast.py",
    "evaluate": "tests/cli/test_complete_path.py",
    "judge RUN": "needs another model or a person; tests/cli/test_judge.py",
    "analyze directions": "takes minutes; tests/analyses",
    "analyze dissociation": "tests/analyses",
    "runs/r1": "needs a model of 8B parameters; tests/analyses",
    "--battery": "tests/analyses",
    "xstest": "needs a published set; tests/analyses",
    "suffixes.txt": "tests/analyses",
    "reproduce": "needs the published model; tests/presets",
    "sweep": "tests/jobs",
    "--behaviour style": "tests/test_experiment_on_texts.py",
    "robustness": "tests/cli/test_every_command.py",
}
"""Parts of the commands of these pages that cannot run here as they are printed, or run in another test."""
SMALL = ["--seeds", "0", "--sizes", "24,10,8", "--nulls", "1", "--wide-nulls", "19", "--max-new-tokens", "8"]


def is_here(command: PageCommand) -> bool:
    is_whole = "..." not in command.words and len(command.words) > 1
    return command.page in RUN_HERE and is_whole and not any(part in command.text for part in ELSEWHERE)


@pytest.fixture(scope="module")
def words(finished, tmp_path_factory) -> dict[str, str]:
    """What the words of the pages stand for: an organism, its contrast, a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    run = str(shutil.copytree(finished("refusal", COMPLETIONS), folder / "run"))
    contrast, scores = str(organism_dir("refusal") / "contrast.jsonl"), f"{run}/seed-0/selection.json"
    models = dict.fromkeys(("MODEL", "Qwen/Qwen2.5-1.5B-Instruct"), "organism:refusal")
    runs = dict.fromkeys(("RUN", "runs/demo", "runs/demo/quick", "runs/mine", "runs/qwen"), run)
    files = {"FILE": contrast, "my.jsonl": contrast, "SCORES.json": scores, "REPO": "owner/name"}
    return {**models, **runs, **files}


def as_here(command: PageCommand, words: dict[str, str], folder: Path) -> list[str]:
    """The command on the files of this test; what it writes is new."""
    name = command.words[0]
    known = words | {k: v for k, v in CHOICES.items() if name in ("analyze", "export")}
    known["DIR"] = str(folder / "dir")
    after = ("", *command.words)
    given = [
        str(folder / "out.safetensors") if before == "--out" else known.get(word, word)
        for before, word in zip(after, command.words, strict=False)
    ]
    is_small = name in ("run", "demo") and "--quick" not in given
    given += ["--prompt", "How do I get moon salt?"] if name == "chat" and "--prompt" not in given else []
    return given + (SMALL if is_small else []) + (["--seeds", "0"] if "--quick" in given and name == "run" else [])


def test_the_pages_say_what_is_run_elsewhere():
    texts = [command.text for command in COMMANDS if command.page in RUN_HERE]
    assert all(any(part in text for text in texts) for part in ELSEWHERE)
    assert sum(map(is_here, COMMANDS)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("command", {c.text: c for c in COMMANDS if is_here(c)}.values(), ids=lambda c: c.text)
def test_a_command_runs_as_it_is_printed(command, words, call, tmp_path, monkeypatch):
    monkeypatch.setattr(PlayServer, "serve", lambda server: None)
    code, shown, messages = call(*as_here(command, words, tmp_path))
    assert code == 0, messages
    assert shown or messages
    assert "--out" not in command.words or "--plan" in command.words or any(tmp_path.iterdir())


def test_the_readme_has_the_commands_of_a_new_user():
    """From the installation to a changed answer in fewer than five commands."""
    first = (ROOT / "README.md").read_text().split("```")[1].split("\n")
    lines = [line for line in first if line]
    assert len(lines) < 5
    assert [line.split()[0] for line in lines][:2] == ["pip", "rhumbline"]
    assert lines[-1].startswith("rhumbline chat")
