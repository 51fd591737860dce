"""The refusal tokens that the authors chose for a model family (models.toml), for the model that is run.

Input: the type and the name of a model. Independent of its vocabulary: the tokens are texts.
"""

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from rhumbline.records.protocol_file import PublishedTokens


class _Family(NamedTuple):
    """One row of the table."""

    family: str
    model_types: tuple[str, ...]
    name: str
    """Pattern that the name of a model contains."""
    tokens: tuple[str, ...]


@cache
def _families() -> tuple[_Family, ...]:
    table = tomllib.loads((files("rhumbline.presets") / "models.toml").read_text(encoding="utf-8"))
    return tuple(_Family(**row) for row in table["tokens"])


def published_tokens(model_type: str, *names: str) -> PublishedTokens:
    """The tokens of the family of a model; no family and no token if none are known for it.

    Of a name, which can be a path, the last part counts.
    """
    ends = [re.split(r"[/\\]", name.rstrip("/\\"))[-1] for name in names]
    for row in _families():
        if model_type in row.model_types and any(re.search(row.name, end, re.IGNORECASE) for end in ends):
            return PublishedTokens(family=row.family, tokens=tuple(row.tokens))
    return PublishedTokens(family=None, tokens=())
