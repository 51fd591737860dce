"""Where an activation is read: `Position` in code, one whole number in files; made and taken apart here only.

    below 0    a token of the prompt, counted from its end: -1 is the last one before the response
    0          the mean over the tokens of the response
    k above 0  the k-th token of the response

Knows numbers and names only: no tokens, no chats. Imports no torch.
"""

from functools import total_ordering

from rhumbline.errors import InputError

MEAN_NAME, TOKEN_NAME = "response-mean", "response"
"""How the protocol names positions in the response: `response-mean`, and `response:K`."""


# No dataclass: msgspec would write one as an object, and a position is a number in every file.
@total_ordering
class Position:
    """A place of a token sequence that every prompt shares: immutable, hashable, ordered from prompt to response."""

    __slots__ = ("_number",)

    def __init__(self, number: int):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(
                f"position {number!r} is no whole number: use one below 0 (from the end of the prompt), 0 (the mean "
                "over the response) or one above 0 (a token of the response)."
            )
        object.__setattr__(self, "_number", number)

    # Making and reading

    @classmethod
    def post_instruction(cls, index: int) -> "Position":
        """A token after the instruction, by its negative index from the end of the prompt.

        The last token of the instruction is one of them: it comes just before the template's suffix.
        """
        if index >= 0:
            raise InputError(f"a position in the prompt is counted from its end, from -1 down; given: {index}.")
        return cls(index)

    @classmethod
    def response_mean(cls) -> "Position":
        """The mean over the tokens of the response."""
        return cls(0)

    @classmethod
    def response_token(cls, k: int) -> "Position":
        """The k-th token of the response, from 1; of a shorter response the last one."""
        if k < 1:
            raise InputError(f"tokens of the response are counted from 1; given: {k}.")
        return cls(k)

    @classmethod
    def parse(cls, number: int) -> "Position":
        """The position of a number in a file; the inverse of `int`. InputError for anything but a whole number."""
        return cls(number)

    @classmethod
    def of(cls, value: "Position | int") -> "Position":
        """A position, or the position of a number."""
        return value if isinstance(value, Position) else cls(value)

    @classmethod
    def named(cls, name: str) -> "Position | None":
        """The one that a protocol's `extraction.positions` names; None of names for positions in the prompt."""
        if name == MEAN_NAME:
            return cls.response_mean()
        kind, _, number = name.partition(":")
        is_token = kind == TOKEN_NAME and number.isdecimal() and int(number) > 0
        return cls.response_token(int(number)) if is_token else None

    # What it is

    @property
    def is_in_response(self) -> bool:
        """Whether it is read from the response that a text contrast carries; otherwise from the prompt."""
        return self._number >= 0

    @property
    def is_response_mean(self) -> bool:
        """Whether it is the mean over the response."""
        return self._number == 0

    @property
    def offset(self) -> int | None:
        """Tokens from the end of the prompt (below 0), or within the response (from 1); None of the mean."""
        return None if self._number == 0 else self._number

    # As text, and as a value

    def __int__(self) -> int:
        return self._number

    def __str__(self) -> str:
        if self._number < 0:
            return str(self._number)
        return "response mean" if self._number == 0 else f"response token {self._number}"

    def __repr__(self) -> str:
        return f"Position({self._number})"

    def __eq__(self, other: object) -> bool:
        return self._number == other._number if isinstance(other, Position) else NotImplemented

    def __lt__(self, other: "Position") -> bool:
        return self._number < other._number if isinstance(other, Position) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._number)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Position.{name} cannot be set: a position is a value.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Position.{name} cannot be deleted: a position is a value.")

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return Position, (self._number,)
