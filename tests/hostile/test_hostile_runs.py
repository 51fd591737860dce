"""Every file of a run directory in every hostile form: each command answers with its name, and nothing outside is read.

`verify` names the file and exits with 1. Commands that read the file refuse it with 2; others are done.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_answers import Accepted
from hostile_artefacts import CHANGES

RECORDS = (
    "protocol.json", "results.json", "report.json", "agreement.json", "seed-0/directions.safetensors",
    "seed-0/selection.json", "seed-0/outcomes.jsonl", "seed-0/nulls.safetensors", "seed-0/nulls.json",
    "seed-0/splits.json", "seed-0/metric.json", "seed-0/extraction.json", "seed-0/dose.json", "seed-0/stability.json",
    "seed-0/separation.json", "seed-0/wide.json", "seed-0/losses-completions.jsonl", "timings.json",
)  # fmt: skip
"""Files of a finished run that commands read."""
OTHERS: dict[str, list[str]] = {
    "report": ["report", "RUN"],
    "compare": ["compare", "RUN", "--out", "OUT"],
    "export": ["export", "RUN", "--to", "direction", "--out", "OUT.safetensors"],
    "label": ["label", "RUN", "--out", "OUT.csv"],
    "analyze": ["analyze", "geometry", "RUN", "--contrast", "CONTRAST", "--model", "MODEL"],
    "judge": ["judge", "RUN", "--judge", "JUDGE"],
}
"""Commands that read a run directory; each change of each file is tried with one of them, in turn."""


@pytest.fixture
def run(words, tmp_path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(words["RUN"], tmp_path / "run")


def cases() -> list[tuple[str, str, str]]:
    """A file, its change and the command that reads it."""
    names = list(OTHERS)
    every = [(file, change) for file in RECORDS for change in CHANGES]
    return [(file, change, names[i % len(names)]) for i, (file, change) in enumerate(every)]


def test_the_list_of_files_is_complete(run):
    """A new record of a run needs a line here."""
    without_rows = {"seed-0/losses-text.jsonl", "seed-0/losses-responses.jsonl"}
    without_rows |= {"judgements/sheet.json"}  # of the cases of `label`
    suffixes = (".json", ".jsonl", ".safetensors")
    there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.suffix in suffixes and "figures" not in p.parts}
    assert there - without_rows == set(RECORDS)


@pytest.mark.parametrize(("file", "change", "command"), cases(), ids=str)
def test_a_changed_file_is_named(file, change, command, run, words, accepting, answer, tmp_path):
    before = (run / file).read_bytes()
    CHANGES[change](run / file)
    code, message = answer(["verify", str(run)], longest=10**6)  # every difference is listed
    is_removed = change in ("removed", "a link to nothing") and file in ("protocol.json", "results.json")
    assert code == (2 if is_removed else 1), message
    assert Path(file).name in message or (file == "report.json" and "report.html" in message)
    if (run / file).is_file() and (run / file).read_bytes() == before:
        return
    code, message = answer_or_accept(answer, line_of(command, run, words, tmp_path))
    if code in (1, 2):
        assert Path(file).stem in message or str(run) in message


def line_of(command: str, run: Path, words: dict[str, str], folder: Path) -> list[str]:
    """The arguments of a command that reads the run."""
    made = {f"OUT{suffix}": str(folder / f"out{suffix}") for suffix in ("", ".csv", ".safetensors")}
    return [(words | made | {"RUN": str(run)}).get(word, word) for word in OTHERS[command]]


def answer_or_accept(answer, arguments: list[str]) -> tuple[int, str]:
    """The answer of a command; 0 if it would go on to load a model."""
    try:
        return answer(arguments)
    except Accepted:
        return 0, ""


# -- no name leads outside --------------------------------------------------------------------------------------------


def linked(folder: str) -> Callable[[Path, Path], None]:
    """A folder of the run that is a link to another place."""

    def change(run: Path, outside: Path) -> None:
        if (run / folder).exists():
            shutil.rmtree(run / folder)
        os.symlink(outside, run / folder, target_is_directory=True)

    return change


def renamed(file: str, field: str, name: str) -> Callable[[Path, Path], None]:
    """A table of files with one further name."""

    def change(run: Path, outside: Path) -> None:
        content = json.loads((run / file).read_text())
        content[field][name.replace("OUTSIDE", str(outside))] = "0" * 64
        (run / file).write_text(json.dumps(content))

    return change


OUTSIDE: dict[str, Callable[[Path, Path], None]] = {
    **{f"{folder} is a link": linked(folder) for folder in ("figures", "analyses", "seed-0", "judgements")},
    **{
        f"{file} names {name}": renamed(file, "files", name)
        for file in ("report.json", "results.json")
        for name in (
            "../outside/mine.txt",
            "OUTSIDE/mine.txt",
            "figures/../../outside/mine.txt",
            "",
            "..",
            "figures/..",
        )
    },
    "the lock is a link": lambda run, outside: (
        (run / ".lock").unlink(missing_ok=True),
        (run / ".lock").symlink_to(outside / "mine.txt"),
    )[0],
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_nothing_outside_of_a_run_is_changed(change, run, words, answer, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    change(run, outside)
    assert answer(["verify", str(run)])[0] == 1
    for command in ("report", "analyze"):
        answer(line_of(command, run, words, tmp_path))
        assert [(p.name, p.read_text()) for p in outside.iterdir()] == [("mine.txt", "mine")]


def test_a_run_without_a_change_is_read(run, words, answer, tmp_path):
    assert answer(["verify", str(run)])[0] == 0
    for command, arguments in OTHERS.items():
        if command != "judge":
            known = (
                words | {"RUN": str(run)} | {f"OUT{s}": str(tmp_path / f"out{s}") for s in ("", ".csv", ".safetensors")}
            )
            assert answer([known.get(word, word) for word in arguments])[0] == 0, command
