"""A wrong option or file is refused before a model is loaded: loading fails loudly here."""

import json
from pathlib import Path

import pytest

import rhumbline
from finished_runs import QUICK, TEXTS
from rhumbline.cli import main
from rhumbline.organisms.planted import TRUTH
from rhumbline.stages.seed_artefacts import SeedArtefacts
from tiny_tasks import write_tasks

ANALYSES = ("geometry", "directions", "damage", "steering", "frontier", "trajectory", "meaning", "circuit")
RUNS, BAD_CONTRASTS = ("run", "discover"), ("GONE", "ONE", "FEW")
"""No such file; positives only; too few prompts."""
DIRECTIONS = ("RUN", "DIRECTION --layer 1")
"""Of a model with another width than the organism."""
LOADERS = ("models.loading", "stages.finished_run", "edits.save", "edits.export")


class ModelLoaded(AssertionError):
    """A model was loaded."""


@pytest.fixture
def words(planted_folder, finished, tmp_path, monkeypatch) -> dict[str, str]:
    """Healthy and faulty values; loading a model raises ModelLoaded."""

    runs = {"RUN": finished("planted", TEXTS, by_name=False), "SILENT": finished("refusal", QUICK)}

    def fail(*arguments, **options):
        raise ModelLoaded

    for name in LOADERS:
        monkeypatch.setattr(f"rhumbline.{name}.load_source", fail)
    rows = (planted_folder / "contrast.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text("\n".join(r for r in rows if json.loads(r)["label"] == "positive"))
    (tmp_path / "few.jsonl").write_text("\n".join(rows[:4]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "prompts.txt").write_text("Name a colour.\nName a city.\n")
    (tmp_path / "one.txt").write_text("Name a colour.\n")
    judge = 'form = "text"\nasks = "harm"\ntemplate = "{response}"\nanswers = {yes = "unsafe", no = "safe"}\n'
    (tmp_path / "judge.toml").write_text(f'name = "mine"\nmodel = "{tmp_path}/nowhere"\n{judge}')
    write_tasks(tmp_path / "tasks")
    return {
        "MODEL": str(planted_folder),
        "CONTRAST": str(planted_folder / "contrast.jsonl"),
        "DIRECTION": str(planted_folder / TRUTH),
        **{name: str(path) for name, path in runs.items()},
        "ONE": str(tmp_path / "one.jsonl"),
        "FEW": str(tmp_path / "few.jsonl"),
        "FULL": str(tmp_path / "full"),
        "FILE": str(tmp_path / "full" / "notes.txt"),
        "NEW": str(tmp_path / "new"),
        "PROMPTS": str(tmp_path / "prompts.txt"),
        "JUDGE": str(tmp_path / "judge.toml"),
        "TERMS": str(Path(rhumbline.__file__).parent / "organisms" / "data" / "refusal-base" / "terms.json"),
        "TASKS": str(tmp_path / "tasks"),
        "GONE": str(tmp_path / "nowhere"),
    }


ROBUST, RUN = "robustness MODEL --contrast CONTRAST --out NEW", "run MODEL --contrast CONTRAST --out NEW"
EVALUATE = "evaluate RUN --tasks answers --include-path TASKS"
MAKE = "contrast make MODEL --prompts PROMPTS --system A --system B"
CASES = [
    *(
        f"{name} MODEL --contrast {bad} --out NEW"
        for name in ("run", "discover", "robustness")
        for bad in BAD_CONTRASTS
    ),
    *(
        f"{name} MODEL --contrast CONTRAST --out {bad}"
        for name in ("run", "discover")
        for bad in ("FULL", "FILE", "RUN")
    ),
    f"{RUN} --judge best",
    f"{RUN} --plan --json",
    f"{RUN} --loss-text GONE",
    f"{ROBUST} --judge best",
    "robustness MODEL GONE/model --contrast CONTRAST --out NEW",
    "robustness MODEL --contrast CONTRAST --out FILE",
    "robustness MODEL --contrast CONTRAST --out FULL",
    *(f"analyze {name} RUN --contrast {bad}" for name in ANALYSES for bad in ("GONE", "ONE", "CONTRAST --seed 7")),
    "analyze damage RUN --contrast CONTRAST --chat-template GONE",
    "analyze base RUN --contrast CONTRAST --base GONE/model",
    "analyze steering RUN --contrast CONTRAST --harm JUDGE",
    "analyze suffix RUN --contrast CONTRAST --suffix GONE",
    "analyze meaning RUN --contrast CONTRAST --battery GONE",
    "analyze frontier RUN --contrast CONTRAST --doses 9",
    "analyze circuit RUN --contrast CONTRAST --sizes 0",
    "analyze dissociation RUN GONE --model MODEL --contrasts CONTRAST CONTRAST --out NEW",
    "analyze dissociation RUN RUN --model MODEL --contrasts CONTRAST CONTRAST --out FULL",
    "analyze flinch MODEL --base GONE/model --terms TERMS --out NEW",
    "analyze flinch MODEL --base MODEL --terms TERMS --out FULL",
    "analyze style MODEL --contrast CONTRAST --out NEW",
    "play MODEL --direction GONE",
    "play MODEL --direction DIRECTION --layer 1 --null best",
    "play MODEL --layer 99",
    *(f"{name} MODEL --direction {bad} --layer 99" for name in ("play", "chat") for bad in ("RUN", "DIRECTION")),
    *(f"{name} organism:refusal --direction {bad} --force" for name in ("play", "chat") for bad in DIRECTIONS),
    "chat MODEL --direction GONE --prompt hello",
    "chat MODEL --direction DIRECTION --layer 1 --strength 9 --prompt hello",
    "edit MODEL --direction GONE --out NEW",
    "edit MODEL --direction DIRECTION --layer 1 --out FULL",
    "edit MODEL --direction DIRECTION --layer 1 --out NEW --dtype int8",
    *(f"edit MODEL --direction {bad} --layer 99 --out NEW" for bad in ("RUN", "DIRECTION")),
    *(f"edit organism:refusal --direction {bad} --force --out NEW" for bad in DIRECTIONS),
    *(f"export RUN --to {form} --out NEW --layer 99" for form in ("lora", "lm-eval", "gguf", "direction")),
    *(f"export {bad} --to lora --out NEW --model organism:refusal" for bad in DIRECTIONS),
    "export DIRECTION --to lora --model MODEL --out FULL",
    "push GONE me/mine",
    "push RUN mine",
    f"{MAKE} --system C --out NEW.jsonl",
    f"{MAKE} --out FILE",
    "contrast make MODEL --prompts GONE --system A --system B --out NEW.jsonl",
    f"{EVALUATE} --edited GONE/model",
    f"{EVALUATE} --arms best",
    "evaluate GONE --tasks answers --include-path TASKS",
    "judge SILENT --judge JUDGE",
    "judge RUN --judge GONE",
    "judge GONE --judge JUDGE",
]


def arguments_of(line, words):
    names = sorted(words, key=len, reverse=True)
    return [next((words[n] + w[len(n) :] for n in names if w.startswith(n)), w) for w in line.split()]


@pytest.mark.filterwarnings("ignore")  # of lm_eval, when it is imported
@pytest.mark.parametrize("line", CASES)
def test_it_is_refused_before_a_model_is_loaded(line, words):
    if line.startswith("evaluate"):
        pytest.importorskip("lm_eval")
    assert main(arguments_of(line, words)) in (2, 3)


NEEDS_DIRECTION = ("suffix --suffix PROMPTS", "directions", "monitor", "frontier", "meaning", "circuit")


@pytest.mark.parametrize("name", [*NEEDS_DIRECTION, "steering", "damage"])
def test_a_run_without_a_direction_is_refused_by_the_analyses_that_need_one(name, words, monkeypatch, capsys):
    monkeypatch.setattr(SeedArtefacts, "direction", None)
    analysis, *options = name.split()
    code = main(arguments_of(" ".join(["analyze", analysis, "RUN --contrast CONTRAST", *options]), words))
    assert code == (2 if name in NEEDS_DIRECTION else 70)  # 70: the model is loaded
    assert ("no direction to analyse" in " ".join(capsys.readouterr().err.split())) == (name in NEEDS_DIRECTION)


@pytest.mark.parametrize("line", [RUN, ROBUST, "analyze geometry RUN --contrast CONTRAST", EVALUATE])
def test_a_healthy_line_would_load_the_model(line, words, capsys):
    if line.startswith("evaluate"):
        pytest.importorskip("lm_eval")
    assert main(arguments_of(line, words)) == 70
    assert "ModelLoaded" in capsys.readouterr().err
