"""Scores: a value if and only if the completion was scored."""

import pytest

from rhumbline.errors import ProtocolError
from rhumbline.judging.score import Score


def test_a_score_has_a_value_if_and_only_if_it_is_scored():
    assert Score(None, "unscored", "the judge gave no answer").value is None
    for value, cls in ((None, "complied"), (0.0, "unscored")):
        with pytest.raises(ProtocolError, match="unscored"):
            Score(value, cls)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0, -0.1])
def test_a_score_is_between_0_and_1(value):
    with pytest.raises(ProtocolError, match="expected 0 to 1"):
        Score(value, "complied")
