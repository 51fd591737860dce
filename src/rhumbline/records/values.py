"""The base of identities: immutable values that are compared and ordered by a key, and written as one text or number.

They are no dataclasses, because msgspec would write a dataclass as an object.
"""

from functools import total_ordering
from typing import Any, NoReturn


@total_ordering
class Value:
    """A value with a key. Subclasses define slots, `_key`, and `__reduce__` for copies in other processes."""

    __slots__ = ()

    def _key(self) -> Any:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, type(self)) else NotImplemented

    def __lt__(self, other: "Value") -> bool:
        return self._key() < other._key() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: {self!r} is a value.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted: {self!r} is a value.")
