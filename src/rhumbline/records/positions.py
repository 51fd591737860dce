"""Where an activation is read: `Position` in code, one whole number in files; no other module interprets its sign.

    below 0    a token of the prompt, counted from its end: -1 is the last one before the response
    0          the mean over the tokens of the response
    k above 0  the k-th token of the response

Independent of tokens and chats. Imports no torch.
"""

from rhumbline.errors import InputError
from rhumbline.records.values import Value

FURTHEST = 10_000_000
"""Tokens from the end of a prompt or the beginning of a response, at most: more than any model reads."""
MEAN_NAME, TOKEN_NAME = "response-mean", "response"
"""Names of positions in the response in a protocol: `response-mean`, and `response:K`."""


class Position(Value):
    """A place of a token sequence that every prompt shares; the order is from prompt to response."""

    __slots__ = ("_number",)

    def __init__(self, number: int):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(
                f"position {number!r} is no whole number: use one below 0 (from the end of the prompt), 0 (the mean "
                "over the response) or one above 0 (a token of the response)."
            )
        if abs(number) > FURTHEST:
            raise InputError(f"position {number:.4g}: no text has so many tokens; use at most {FURTHEST:,}.")
        object.__setattr__(self, "_number", number)

    @classmethod
    def of(cls, value: "Position | int") -> "Position":
        """A position, or the position of a number."""
        return value if isinstance(value, Position) else cls(value)

    @classmethod
    def post_instruction(cls, index: int) -> "Position":
        """A token after the instruction, or its last token, by its negative index from the end of the prompt."""
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
    def named(cls, name: str) -> "Position | None":
        """The position of a name in a protocol's `extraction.positions`; None of names for positions in the prompt."""
        if name == MEAN_NAME:
            return cls.response_mean()
        kind, _, number = name.partition(":")
        is_token = kind == TOKEN_NAME and number.isdecimal() and len(number) < 10 and 0 < int(number) <= FURTHEST
        return cls.response_token(int(number)) if is_token else None

    @property
    def is_in_response(self) -> bool:
        """Whether it is read from the response of a contrast of texts; otherwise from the prompt."""
        return self._number >= 0

    @property
    def offset(self) -> int | None:
        """Tokens from the end of the prompt (below 0), or within the response (from 1); None of the mean."""
        return self._number or None

    def __int__(self) -> int:
        return self._number

    def __str__(self) -> str:
        if self._number < 0:
            return str(self._number)
        return "response mean" if self._number == 0 else f"response token {self._number}"

    def __repr__(self) -> str:
        return f"Position({self._number})"

    def _key(self) -> int:
        return self._number

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return Position, (self._number,)
