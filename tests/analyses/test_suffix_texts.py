"""Suffixes from files, and random suffixes."""

import pytest

from rhumbline.analyses.suffix_texts import random_suffixes, read_suffixes, token_count
from rhumbline.errors import InputError


def test_random_suffixes_have_the_requested_length(planted, refusal):
    for subject in (planted, refusal):
        like = "a short answer about" if subject is planted else "write about the little blue harbour"
        suffixes = random_suffixes(subject.chat, like, 4, 0)
        assert len(set(suffixes)) == 4
        assert {token_count(subject.chat, text) for text in suffixes} == {token_count(subject.chat, like)}
        assert suffixes == random_suffixes(subject.chat, like, 4, 0)


def test_suffix_files_are_read_or_refused(tmp_path):
    file = tmp_path / "s.txt"
    file.write_text("one two\n\n  three \none two\n")
    assert read_suffixes(file) == ["one two", "three"]
    file.write_text("\n \n")
    with pytest.raises(InputError, match="contains no suffix"):
        read_suffixes(file)
    with pytest.raises(InputError, match="does not exist"):
        read_suffixes(tmp_path / "none.txt")
