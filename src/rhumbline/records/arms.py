"""The name of an arm: `ArmId` in code, one text in files; made and taken apart here and nowhere else.

    baseline                          no intervention
    ablation, addition, subtraction   the direction of the run; subtraction adds it with the coefficient negated
    addition-all, addition-prompt     the addition at the positions that the run's own addition does not use
    edited                            another model, whose weights hold the edit (evaluations only)
    null:<family>:<draw>:ablation     the same with a null direction; also `:addition`
    direction, null:<family>:<draw>   the direction itself; a row of the dose curves names the intervention beside it

Knows names only: no vectors, no models. Imports no torch.
"""

from enum import StrEnum
from typing import Final, Literal

from rhumbline.errors import InputError
from rhumbline.records.values import Value

Positions = Literal["all", "prompt"]
"""Where an addition acts: generated tokens too, or the prompt alone."""


class ArmKind(StrEnum):
    """What an arm does, in the order in which arms are listed."""

    BASELINE = "baseline"
    DIRECTION = "direction"
    """The intervention is named beside the arm, with its strength."""
    ABLATION = "ablation"
    ADDITION = "addition"
    SUBTRACTION = "subtraction"
    EDITED = "edited"


_ORDER: Final = tuple(ArmKind)
_NULL_KINDS: Final = (ArmKind.DIRECTION, ArmKind.ABLATION, ArmKind.ADDITION)
_KNOWN = (
    "baseline, ablation, addition, addition-all, addition-prompt, subtraction, edited, direction, "
    "null:FAMILY:DRAW, null:FAMILY:DRAW:ablation or null:FAMILY:DRAW:addition"
)


class ArmId(Value):
    """Which arm of a run: immutable, hashable, ordered as tables list them (own arms first, then nulls by family)."""

    __slots__ = ("draw", "family", "kind", "positions")

    kind: ArmKind
    family: str | None
    draw: int | None
    positions: Positions | None
    """Of an addition at other positions than the run's own; None of every other arm."""

    def __init__(
        self,
        kind: ArmKind,
        *,
        family: str | None = None,
        draw: int | None = None,
        positions: Positions | None = None,
    ):
        faults = []
        if (family is None) != (draw is None):
            faults.append("a null arm has both a family and a draw")
        if family is not None and (not family or ":" in family):
            faults.append(f"family {family!r} is empty or contains a colon")
        if draw is not None and draw < 0:
            faults.append(f"draw is {draw}, expected 0 or more")
        if family is not None and kind not in _NULL_KINDS:
            faults.append(f"a null arm is one of {', '.join(_NULL_KINDS)}, not {kind}")
        if positions is not None and (kind is not ArmKind.ADDITION or family is not None):
            faults.append("only the addition of the direction itself has other positions")
        if positions not in (None, "all", "prompt"):
            faults.append(f"positions is {positions!r}, expected all or prompt")
        if faults:
            raise InputError(f"arm: {'; '.join(faults)}.")
        for name, value in (("kind", kind), ("family", family), ("draw", draw), ("positions", positions)):
            object.__setattr__(self, name, value)

    # Making and reading

    @classmethod
    def null(cls, family: str, draw: int, kind: ArmKind = ArmKind.DIRECTION) -> "ArmId":
        """An arm of a null draw; without a kind, the null direction itself."""
        return cls(kind, family=family, draw=draw)

    @classmethod
    def parse(cls, text: str) -> "ArmId":
        """The arm of a name in a file or on the command line; the inverse of `str`. InputError for any other text."""
        match text.split(":"):
            case ["null", family, draw, *rest] if family and _is_number(draw) and len(rest) < 2:
                kind = rest[0] if rest else ArmKind.DIRECTION
                if kind in _NULL_KINDS[1:] or not rest:
                    return cls(ArmKind(kind), family=family, draw=int(draw))
            case ["addition-all"]:
                return ADDITION_ALL
            case ["addition-prompt"]:
                return ADDITION_PROMPT
            case [name] if name in _ORDER:
                return cls(ArmKind(name))
        raise InputError(f"arm {text!r} is unknown: use {_KNOWN}.")

    # What it is

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is done."""
        return self.kind is ArmKind.BASELINE

    @property
    def is_null(self) -> bool:
        """Whether the direction is a control that was drawn at random."""
        return self.family is not None

    @property
    def is_own(self) -> bool:
        """Whether it is one of the arms of the direction itself that complete test prompts (the baseline included)."""
        return self in OWN_ARMS

    @property
    def null_draw(self) -> tuple[str, int] | None:
        """(family, draw) of a null arm, as the rows of nulls.json are named; None of any other."""
        return None if self.family is None or self.draw is None else (self.family, self.draw)

    @property
    def label(self) -> str:
        """For readers: a null by its family and its intervention, without the draw."""
        if self.family is None:
            return str(self)
        return f"{self.family} null" if self.kind is ArmKind.DIRECTION else f"{self.family} null, {self.kind}"

    # As text, and as a value

    def __str__(self) -> str:
        if self.family is not None:
            name = f"null:{self.family}:{self.draw}"
            return name if self.kind is ArmKind.DIRECTION else f"{name}:{self.kind}"
        return str(self.kind) if self.positions is None else f"{self.kind}-{self.positions}"

    def __repr__(self) -> str:
        return f"ArmId.parse({str(self)!r})"

    def _key(self) -> tuple[str, int, int, int]:
        place = 0 if self.positions is None else 1 if self.positions == "prompt" else 2
        return self.family or "", -1 if self.draw is None else self.draw, _ORDER.index(self.kind), place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return ArmId.parse, (str(self),)


def _is_number(text: str) -> bool:
    """Whether `str(int(text))` is the text again."""
    return text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")


BASELINE: Final = ArmId(ArmKind.BASELINE)
DIRECTION: Final = ArmId(ArmKind.DIRECTION)
"""The direction in the rows of the dose curves."""
ABLATION: Final = ArmId(ArmKind.ABLATION)
ADDITION: Final = ArmId(ArmKind.ADDITION)
ADDITION_PROMPT: Final = ArmId(ArmKind.ADDITION, positions="prompt")
ADDITION_ALL: Final = ArmId(ArmKind.ADDITION, positions="all")
SUBTRACTION: Final = ArmId(ArmKind.SUBTRACTION)
EDITED: Final = ArmId(ArmKind.EDITED)
OWN_ARMS: Final = (BASELINE, ABLATION, ADDITION, ADDITION_PROMPT, ADDITION_ALL, SUBTRACTION)
"""Arms of the direction itself that complete test prompts, in the order of tables."""
