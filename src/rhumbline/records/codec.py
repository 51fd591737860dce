"""Records to JSON and back: an arm is a text in a file, a position a number, and NaN null.

Independent of which record belongs to which file.
"""

from functools import cache
from typing import Any, TypeVar

import msgspec

from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position

R = TypeVar("R")
JsonObject = dict[str, Any]
"""A JSON object that is not read as a record."""


def decode(data: bytes | str, kind: type[R]) -> R:
    """A record from its JSON text; unknown fields are ignored. msgspec.ValidationError names the faulty field."""
    return _decoder(kind).decode(data)


def convert(value: Any, kind: type[R]) -> R:
    """A record from its JSON value. Raises msgspec.ValidationError."""
    # Keys of JSON objects are strings, those of a record can be numbers.
    return msgspec.convert(value, kind, dec_hook=_from_json, str_keys=True)


def to_json(record: Any) -> Any:
    """The JSON value of a record, with NaN and infinities as null."""
    return msgspec.json.decode(msgspec.json.encode(record, enc_hook=_to_json))


@cache
def _decoder(kind: type[R]) -> "msgspec.json.Decoder[R]":
    return msgspec.json.Decoder(kind, dec_hook=_from_json)


def _to_json(value: Any) -> Any:
    match value:
        case ArmId():
            return str(value)
        case Position():
            return int(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be written as JSON.")


def _from_json(kind: type, value: Any) -> Any:
    # ValueErrors become msgspec.ValidationErrors that name the field.
    if kind is ArmId and isinstance(value, str):
        return ArmId.parse(value)
    if kind is Position:
        return Position(value)
    raise ValueError(f"{value!r} is not a {kind.__name__}")
