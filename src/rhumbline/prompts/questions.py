"""Cloze questions of common knowledge, which measure how much of it an edited model has lost.

Independent of tokenizers and models.
"""

import tomllib
from functools import cache
from importlib import resources
from typing import NamedTuple


class Question(NamedTuple):
    """The beginning of a sentence with its right continuation and some wrong ones, without the space between."""

    text: str
    right: str
    wrong: tuple[str, ...]


@cache
def questions() -> tuple[Question, ...]:
    """The questions of this version."""
    text = resources.files("rhumbline.prompts").joinpath("questions.toml").read_text(encoding="utf-8")
    return tuple(Question(start, right, tuple(wrong)) for start, right, *wrong in tomllib.loads(text)["questions"])
