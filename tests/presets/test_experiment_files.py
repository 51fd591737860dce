"""Experiment files: all faults are listed at once, and numbers and splits have either of their forms."""

import pytest

from rhumbline.errors import ProtocolError
from rhumbline.presets.experiment_files import amend
from rhumbline.presets.protocols import preset


def test_numbers_keep_their_types():
    changed = amend(preset("rhumbline"), {"dose": {"strengths": [0, 1]}, "addition": {"coefficient": 2}})
    assert changed.dose.strengths == (0.0, 1.0)
    assert [type(a) for a in (*changed.dose.strengths, changed.addition.coefficient)] == [float] * 3


def test_all_faults_are_listed_at_once():
    wrong = {
        "seeds": [True],
        "max_new_tokens": 1.5,
        "dose": {"strengths": [1, "a"]},
        "chat": {"date": "tomorrow"},
        "sizes": {"train": 0},
        "nonsense": 1,
        "selection": "unknown-rule",
        "judge": ["markers"],
    }
    with pytest.raises(ProtocolError) as error:
        amend(preset("rhumbline"), wrong, "my.toml")
    faults = (
        *("my.toml: ", "seeds", "max_new_tokens = 1.5 does not fit int", "dose.strengths", "'tomorrow'", "train 0"),
        *("unknown field nonsense", "'unknown-rule'", "judge = ['markers'] does not fit str"),
    )
    assert [words for words in faults if words not in str(error.value)] == []


def test_a_split_of_an_experiment_file_has_either_of_its_names():
    expected = amend(preset("rhumbline"), {"sizes": {"val": 7}})
    assert amend(preset("rhumbline"), {"sizes": {"validation": 7}}) == expected
    assert expected.sizes.val == 7
    quick_reads = amend(preset("rhumbline"), {"reads": {"train": 40, "validation": 7}}).reads
    assert quick_reads is not None
    assert (quick_reads.train, quick_reads.val) == (40, 7)
    with pytest.raises(ProtocolError, match=r"unknown field reads\.tset"):
        amend(preset("rhumbline"), {"reads": {"tset": 9}})
    with pytest.raises(ProtocolError, match=r"sizes\.validation and sizes\.val are the same"):
        amend(preset("rhumbline"), {"sizes": {"validation": 7, "val": 8}})
