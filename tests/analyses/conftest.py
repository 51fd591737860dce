"""Finished runs of organisms, opened for analyses."""

import json
import shutil
from dataclasses import replace

import pytest

from finished_runs import COMPLETIONS, QUICK
from rhumbline.analyses.subject import open_subject


@pytest.fixture(scope="session")
def subject_of(finished, tmp_path_factory):
    """A finished run of an organism, opened by its name, in a copy that analyses may write in."""

    def get(name, protocol):
        path = shutil.copytree(finished(name, protocol), tmp_path_factory.mktemp(name) / "run")
        return replace(open_subject(path), page=False)

    return get


@pytest.fixture(scope="session")
def planted(subject_of):
    """The planted organism."""
    return subject_of("planted", QUICK)


@pytest.fixture(scope="session")
def refusal(subject_of):
    """The trained organism."""
    return subject_of("refusal", COMPLETIONS)


@pytest.fixture
def response_run(planted, tmp_path):
    """A run whose candidates were read in responses: the run of the planted organism with other positions."""
    path = shutil.copytree(planted.directory.path, tmp_path / "responses")
    positions = {int(p): k for k, p in enumerate(planted.positions)}
    for name in ("extraction.json", "selection.json"):
        file = path / "seed-0" / name
        record = json.loads(file.read_text())
        for cell in [record, record.get("selected"), *record.get("tied", []), *record.get("candidates", [])]:
            if cell and "position" in cell:
                cell["position"] = positions[cell["position"]]
        if "positions" in record:
            record["positions"] = [positions[p] for p in record["positions"]]
        file.write_text(json.dumps(record))
    return path
