"""What hostile command lines need: healthy words, a limit of time, and the check of an answer."""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

import rhumbline
from finished_runs import TEXTS
from rhumbline.organisms.planted import TRUTH
from tiny_tasks import write_tasks

CODES = {0, 1, 2, 3}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
SECONDS = 20
"""Wall-clock limit of one command in the process of the tests."""
LONGEST = 6000
"""Characters of a message, at most: a hostile value is not repeated in full."""


@pytest.fixture(scope="session")
def words(shared, planted_folder, finished) -> dict[str, str]:
    """Healthy values of the arguments of every command."""
    run = finished("planted", TEXTS, by_name=False, page=True)

    def make(folder: Path) -> None:
        folder.mkdir()
        write_tasks(folder / "tasks")
        (folder / "suffix.txt").write_text("please\nnow\n")
        (folder / "sweep.toml").write_text('models = ["organism:planted"]\nseeds = [0]\n')
        cell = {"position": -1, "layer": 1, "bypass": 1, "induce": 1, "kl": 0}
        (folder / "scores.json").write_text(json.dumps({"n_layers": 3, "candidates": [cell]}))
        (folder / "judge.toml").write_text(
            f'name = "mine"\nmodel = "{planted_folder}"\nform = "text"\nasks = "refusal"\n'
            'template = "{response}"\nanswers = {yes = "refused", no = "complied"}\n'
        )

    made = shared("hostile-words", make)
    terms = Path(rhumbline.__file__).parent / "organisms" / "data" / "refusal-base" / "terms.json"
    found = {
        "MODEL": planted_folder, "CONTRAST": planted_folder / "contrast.jsonl", "RUN": run, "TERMS": terms,
        "DIRECTION": planted_folder / TRUTH, "TASKS": made / "tasks", "SUFFIX": made / "suffix.txt",
        "SWEEP": made / "sweep.toml", "SCORES": made / "scores.json", "JUDGE": made / "judge.toml",
    }  # fmt: skip
    return {name: str(path) for name, path in found.items()}


class Accepted(BaseException):
    """A command took all of its arguments and is about to load a model."""


@pytest.fixture
def accepting(monkeypatch):
    """Models are not loaded: a command that would load one raises Accepted."""

    def accept(*arguments, **options):
        raise Accepted

    monkeypatch.setattr("rhumbline.models.places.checkpoint", accept)
    monkeypatch.setattr("rhumbline.judging.judge_models.checkpoint", accept)
    monkeypatch.setattr("rhumbline.organisms.train_variant", accept)


@contextmanager
def limited(seconds: float = SECONDS):
    """An exception after this time, even inside of a system call."""

    def end(number, frame):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def answer(capsys):
    """Call a command: its exit code and everything that it prints, checked as every answer must be."""
    from rhumbline.cli import main

    def call(arguments: list[str]) -> tuple[int, str]:
        try:
            with limited():
                code = main(arguments)
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert "Traceback" not in text, text[-3000:]
        assert code in CODES, text[-3000:]
        assert not CONTROL.search(text), ascii(CONTROL.search(text))
        assert len(printed.err) < LONGEST, printed.err[:500]
        return code, " ".join(text.split())

    return call


def names_input(message: str, option: str, value: str, names: tuple[str, ...]) -> bool:
    """Whether a message names the option or its value, as a person can recognise it."""
    squeezed = re.sub(r"\s+", "", message).casefold()
    wanted = [option.lstrip("-"), option.lstrip("-").replace("-", "_"), *names]
    if value.strip():
        wanted += [ascii(value)[1:-1][:20], Path(value[:200]).name[:30], ascii(value.rpartition(":")[2])[1:-1][:20]]
    return any(re.sub(r"\s+", "", word).casefold() in squeezed for word in wanted if word)
