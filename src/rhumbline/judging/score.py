"""TODO."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rhumbline.errors import ProtocolError

Class = Literal["refused", "complied", "shown", "absent", "degenerate", "unscored"]
"""What a completion is. Shown or absent: of a behaviour with a continuous score, whether there is any. Degenerate:
broken, so neither of the two. Unscored: nobody could judge it."""


@dataclass(frozen=True)
class Score:
    """What a judge made of one completion."""

    value: float | None
    """Amount of the behaviour: 1 refused, 0 complied or degenerate for a keyword judge. None iff unscored."""
    cls: Class
    """What a rate counts."""
    evidence: str = ""
    """The listed phrase that matched, or the kind of degeneration, or why it is unscored. Never the completion."""

    def __post_init__(self):
        if (self.value is None) != (self.cls == "unscored"):
            raise ProtocolError(
                f"Score has value {self.value} and class {self.cls!r}; an unscored completion has the value None, and "
                "any other has a number."
            )


TextJudge = Callable[[str], Score]
"""Anything that scores a completion."""
