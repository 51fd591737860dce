"""What hostile command lines need: healthy words, a limit of time, and the check of an answer."""

import json
from pathlib import Path

import pytest
from hostile_answers import CODES, CONTROL, LONGEST, Accepted, limited

import rhumbline
from finished_runs import TEXTS
from rhumbline.organisms.planted import TRUTH
from tiny_tasks import write_tasks


@pytest.fixture(scope="session")
def words(shared, planted_folder, finished) -> dict[str, str]:
    """Healthy values of the arguments of every command."""
    run = finished("planted", TEXTS, by_name=False, page=True)

    def make(folder: Path) -> None:
        folder.mkdir()
        write_tasks(folder / "tasks")
        (folder / "suffix.txt").write_text("please\nnow\n")
        rows = [
            {"prompt": f"Question {i}", "label": c, "split": s, "system": c, "response": c, "other_response": "x"}
            for i, s in enumerate(("train", "val", "test"))
            for c in ("positive", "negative")
        ]
        (folder / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
        "MADE": made / "made.jsonl",
    }  # fmt: skip
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def accepting(monkeypatch):
    """Models are not loaded: a command that would load one raises Accepted."""

    def accept(*arguments, **options):
        raise Accepted

    monkeypatch.setattr("rhumbline.models.places.checkpoint", accept)
    monkeypatch.setattr("rhumbline.judging.judge_models.checkpoint", accept)
    monkeypatch.setattr("rhumbline.organisms.train_variant", accept)


@pytest.fixture
def answer(capsys):
    """Call a command: its exit code and everything that it prints, checked as every answer must be."""
    from rhumbline.cli import main

    def call(arguments: list[str], longest: int = LONGEST) -> tuple[int, str]:
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
        assert len(printed.err) < longest, printed.err[:500]
        return code, " ".join(text.split())

    return call
