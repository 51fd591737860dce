"""Every command that loads a model refuses a faulty directory alike: exit code and names, without a traceback."""

import shutil
from pathlib import Path

import pytest

import rhumbline
from faulty_checkpoints import FAULTS
from rhumbline.organisms.planted import TRUTH
from tiny_tasks import write_tasks

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm_eval, and of transformers for faulty configs

COMMANDS = {
    "model": ["model", "MODEL"],
    "run": ["run", "MODEL", "--out", "OUT"],
    "run, planned": ["run", "MODEL", "--out", "OUT", "--plan"],
    "discover": ["discover", "MODEL", "--out", "OUT"],
    "edit": ["edit", "MODEL", "--direction", "TRUTH", "--out", "OUT"],
    "edit, sharded": ["edit", "MODEL", "--direction", "TRUTH", "--out", "OUT", "--sharded"],
    "export": ["export", "RUN", "--to", "lora", "--model", "MODEL", "--out", "OUT"],
    "robustness": ["robustness", "MODEL", "--out", "OUT", "--ranks", "1", "--test", "8"],
    "evaluate": ["evaluate", "RUN", "--model", "MODEL", "--tasks", "answers", "--include-path", "TASKS"],
    "evaluate, edited": ["evaluate", "RUN", "--edited", "MODEL", "--tasks", "answers", "--include-path", "TASKS"],
    "analyze base": ["analyze", "base", "RUN", "--base", "MODEL", "--model", "HEALTHY", "--contrast", "CONTRAST"],
    "analyze flinch": ["analyze", "flinch", "HEALTHY", "--base", "MODEL", "--terms", "TERMS", "--out", "OUT"],
}
NEEDS = {"export": "peft", "evaluate": "lm_eval", "evaluate, edited": "lm_eval"}
SOME = ("more layers than the config has", "half a file", "an empty directory", "one huge weight")


@pytest.mark.parametrize("fault", SOME)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_faulty_directory(name, fault, planted_folder, texts_run, call, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if FAULTS[fault].in_values and name == "run, planned":
        pytest.skip("a plan reads no weights")
    folder = shutil.copytree(planted_folder, tmp_path / "model")
    contrast = shutil.copy(folder / "contrast.jsonl", tmp_path / "contrast.jsonl")
    FAULTS[fault].make(folder)
    if folder.is_dir():
        shutil.copy(contrast, folder / "contrast.jsonl")
    terms = Path(rhumbline.__file__).parent / "organisms" / "data" / "refusal-base" / "terms.json"
    words = {"MODEL": folder, "HEALTHY": planted_folder, "RUN": shutil.copytree(texts_run, tmp_path / "run"),
             "TRUTH": planted_folder / TRUTH, "OUT": tmp_path / "out", "CONTRAST": contrast, "TERMS": terms,
             "TASKS": write_tasks(tmp_path / "tasks") if name in NEEDS else ""}  # fmt: skip
    code, _, messages = call(*(words.get(word, word) for word in COMMANDS[name]))
    assert code == FAULTS[fault].code, messages
    wanted = FAULTS[fault].names if fault != "an empty directory" else ("no config.json",)
    assert [word for word in wanted if word not in messages] == []
    assert not (tmp_path / "out").exists()
