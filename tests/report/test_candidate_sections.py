from dataclasses import replace

import pytest

from make_run import make_run
from rhumbline.records.positions import Position
from rhumbline.report.candidate_sections import position_labels
from rhumbline.report.run_record import read_run


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("run"), seeds=(0,), draws=1)).context.chat


def test_prompt_positions_have_their_token(chat):
    tokens = ("\n", "<|a_very_long_special_token|>")
    positions = tuple(Position(number) for number in (-2, -1, 0))
    labels = position_labels(replace(chat, suffix_tokens=tokens, positions=positions))
    assert list(labels) == [Position(number) for number in (-3, -2, -1, 0)]
    assert labels[Position(-2)] == r'-2 "\n"'
    assert labels[Position(-1)].startswith('-1 "<|a_very')
    assert len(labels[Position(-1)]) < 24
    assert labels[Position(0)] == "response mean"
    assert labels[Position(-3)] == "-3 (instruction)"
