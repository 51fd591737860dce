"""Every command that README, docs, help and messages print is one of the program; those of the pages run as printed."""

import io
import re
import shlex
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from finished_runs import COMPLETIONS
from page_commands import PAGES, SOURCES, VALUE, PageCommand, commands_of, commands_of_source
from paths import ROOT
from rhumbline.cli import parser
from rhumbline.organisms import organism_dir
from rhumbline.play.server import PlayServer
from rhumbline.records.next_steps import NextStep, Step, lines

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
            is_value = any(f"invalid choice: {VALUE!r}" in m or m.endswith(f"arguments: {VALUE}") for m in message)
            return "" if error.code == 0 or is_lacking or is_value else "".join(message)
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


def test_the_program_takes_every_command_of_help_and_messages():
    found = set()
    for path in SOURCES:
        commands, bare = commands_of_source(path, "|".join(TOP.commands))
        assert [(c.page, c.text, fault) for c in commands if (fault := faults(c))] == []
        assert bare == [], f"{path}: write a command between backticks"
        found |= {command.text for command in commands}
    assert {"judge --list", f"data check {VALUE}", "analyze monitor RUN --fpr 0.01", f"verify {VALUE}"} <= found
    assert f"chat {VALUE} --direction hf:OWNER/NAME" in found  # of a model card


RUN_AGAIN = ("run", "MODEL", "--contrast", "FILE", "--out", "RUN")


@pytest.mark.parametrize("code", NextStep)
def test_the_program_takes_every_next_step(code):
    """A step with a command line, or with options that are added to the command of the run. Names are quoted."""
    numbers = {"rate": 0.1, "bound": 0.5, "tokens": 256, "prompts": 340, "sizes": (128, 32), "coefficient": 2.0}
    step = Step(what=code, draws=39, judge="j", behaviour="b", advice="Do this.", **numbers)
    for name in ("run7", "it's a run"):
        ((command, _),) = lines([step], name, "organism:refusal", "owner/name")
        words = shlex.split(command)
        if words:
            is_option = words[0] != "rhumbline"
            assert faults(PageCommand("next", (*RUN_AGAIN, *words) if is_option else tuple(words[1:]), True)) == ""
            assert name in words or shlex.quote(name) not in command


# -- as they are printed ----------------------------------------------------------------------------------------------

ELSEWHERE = {
    "a published set of prompts, or the hub": ("hf:", "data show", "data check", "refusal --", "xstest", "name$"),
    "a published model": ("--contrast (taught|advbench)", "smollm2", "reproduce NAME", "reproduce llama-3-8b --"),
    "a judge that is a model": (r"judge (RUN|runs/\S+) --judge",),
    "a person who fills a label sheet": ("--human",),
    "a Ray cluster": ("--engine ray",),
    "tests/cli/test_complete_path.py": ("CONTRAST", "evaluate RUN"),
    "tests/cli/test_contrast.py": ("contrast make",),
    "tests/cli/test_every_command.py": ("robustness",),
    "tests/jobs/test_sweeps.py": ("sweep",),
    "tests/test_experiment_on_texts.py": ("--behaviour style",),
    "tests/analyses/test_style_doses.py": ("analyze style",),
    "tests/analyses/test_frontier.py": ("analyze frontier RUN$",),
    "tests/analyses/test_dissociation.py": ("analyze dissociation",),
    "tests/analyses/test_further_directions.py": ("analyze directions",),
    "tests/analyses/test_trajectory.py": ("runs/r1",),
    "tests/analyses/test_meaning.py": ("--battery",),
    "tests/analyses/test_suffix_effects.py": ("suffixes.txt",),
}
"""Patterns of the commands that do not run here as they are printed: what they need, or the test that runs them."""
SMALL = ["--seeds", "0", "--sizes", "24,10,8", "--nulls", "1", "--wide-nulls", "19", "--max-new-tokens", "8"]
AS_FILE = {"FILE": "out.safetensors", "DIR": "dir"}


def is_here(command: PageCommand) -> bool:
    is_whole = "..." not in command.words and len(command.words) > 1 and command.text != "edit --sharded"
    return is_whole and not any(re.search(part, command.text) for parts in ELSEWHERE.values() for part in parts)


@pytest.fixture(scope="module")
def words(finished, tmp_path_factory) -> dict[str, str]:
    """What the words of the pages stand for: an organism, its contrast, a finished run, files of the guides."""
    folder = tmp_path_factory.mktemp("reader")
    run = str(shutil.copytree(finished("refusal", COMPLETIONS), folder / "run"))
    contrast, scores = str(organism_dir("refusal") / "contrast.jsonl"), f"{run}/seed-0/selection.json"
    (folder / "phrases.toml").write_text('ja = ["申し訳"]\n', encoding="utf-8")
    models = dict.fromkeys(("MODEL", "Qwen/Qwen2.5-1.5B-Instruct"), "organism:refusal")
    files = {"FILE": contrast, "my.jsonl": contrast, "SCORES.json": scores, "REPO": "owner/name"}
    return {**models, "RUN": run, **files, "phrases.toml": str(folder / "phrases.toml")}


def as_here(command: PageCommand, words: dict[str, str], folder: Path) -> list[str]:
    """The command on the files of this test; what it writes is new."""
    name = command.words[0]
    known = words | {k: v for k, v in CHOICES.items() if name in ("analyze", "export")}
    known["DIR"] = str(organism_dir("refusal") if name == "play" else folder / "dir")
    after = ("", *command.words)
    given = [
        str(folder / AS_FILE.get(word, Path(word).name))
        if before == "--out"
        else known["RUN"]
        if word.startswith("runs/")
        else known.get(word, word)
        for before, word in zip(after, command.words, strict=False)
    ]
    given += ["--out", str(folder / "labels.csv")] if name == "label" else []
    is_small = name in ("run", "demo") and "--quick" not in given
    given += ["--prompt", "How do I get moon salt?"] if name == "chat" and "--prompt" not in given else []
    return given + (SMALL if is_small else []) + (["--seeds", "0"] if "--quick" in given and name == "run" else [])


def test_what_is_run_elsewhere_is_on_a_page_and_the_tests_exist():
    texts = [command.text for command in COMMANDS]
    for reason, parts in ELSEWHERE.items():
        assert all(any(re.search(part, text) for text in texts) for part in parts), reason
        assert not reason.startswith("tests/") or (ROOT / reason).is_file(), reason
    assert sum(map(is_here, COMMANDS)) >= 45


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of peft
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
