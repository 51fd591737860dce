"""Every option of every command refuses every hostile value before a model is loaded, with a message that names it."""

import pickle
from pathlib import Path

import pytest
from hostile_answers import Accepted, names_input
from hostile_artefacts import DIRECTION, EXECUTED
from hostile_cases import BASES, LATE, LATE_COMMANDS, Case, arguments_of, cases, kind_of, line, name_of, outputs

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, when hostile tensors are written and read
CASES = cases()
DONE = {"verify", "report", "select", "compare", "data list", "data show", "label", "organism list", "push"}
"""Commands that load no model."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A relative name is in an empty directory."""
    monkeypatch.chdir(tmp_path)


def test_every_option_of_every_command_has_a_hostile_case():
    tried = {(case.command, case.option) for case in CASES}
    missing = [f"{command} {name_of(a)}" for command, a in arguments_of() if (command, name_of(a)) not in tried]
    assert missing == [], "add a line to OPTIONS, and to BASES for a new command"
    assert len(CASES) > 500


def test_code_of_a_pickle_would_be_noticed(tmp_path):
    pickle.loads((Path(DIRECTION["a pickle that executes code"].make(tmp_path))).read_bytes())
    assert Path(EXECUTED).exists()


def test_a_new_option_would_be_missing():
    import argparse

    new = argparse.ArgumentParser().add_argument("--new")
    assert kind_of("run", new) is None


@pytest.mark.parametrize("command", [name for name in BASES if name not in {"report", "data check", *LATE_COMMANDS}])
def test_the_healthy_line_is_accepted(command, words, accepting, answer, tmp_path):
    if command == "evaluate":
        pytest.importorskip("lm_eval")
    arguments = line(
        command,
        words
        | {
            "OUT": str(tmp_path / "out"),
            "OUT.csv": str(tmp_path / "out.csv"),
            "OUT.jsonl": str(tmp_path / "out.jsonl"),
        },
    )
    if command in DONE:
        assert answer(arguments)[0] == 0
    else:
        with pytest.raises(Accepted):
            answer(arguments)


PLACES = sorted({(case.command, case.option) for case in CASES if not case.value.is_late})


def faults_of(case: Case, words, answer, folder: Path) -> list[str]:
    """What is wrong with the answer to a case."""
    given = folder / str(len(list(folder.iterdir())))
    given.mkdir()
    out = given / "out"
    value = case.value.make(given)
    try:
        code, message = answer(line(case.command, words | outputs(out), case.option, value))
    except Accepted:
        return [f"{case}: accepted"]
    except AssertionError as error:
        return [f"{case}: {error}"]
    faults = []
    if code not in case.value.codes:
        faults.append(f"{case}: exit code {code}: {message[-300:]}")
    if not names_input(message, case.option, value, case.value.names):
        faults.append(f"{case}: the message does not name it: {message[-300:]}")
    if code != 1 and not case.value.is_late and out.exists():  # a comparison lists the runs that it cannot read
        faults.append(f"{case}: a file was written")
    if Path(EXECUTED).exists():
        Path(EXECUTED).unlink()
        faults.append(f"{case}: code was executed")
    return faults


@pytest.mark.parametrize(("command", "option"), PLACES, ids=str)
def test_hostile_values_are_refused_before_a_model_is_loaded(command, option, words, accepting, answer, tmp_path):
    mine = [c for c in CASES if (c.command, c.option) == (command, option) and not c.value.is_late]
    assert mine
    assert [fault for case in mine for fault in faults_of(case, words, answer, tmp_path)] == []


@pytest.mark.parametrize(("command", "option"), sorted(LATE), ids=str)
def test_hostile_values_are_refused_by_the_loaded_model(command, option, words, answer, tmp_path):
    mine = [c for c in CASES if (c.command, c.option) == (command, option) and c.value.is_late]
    assert mine
    assert [fault for case in mine for fault in faults_of(case, words, answer, tmp_path)] == []
