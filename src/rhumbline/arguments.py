"""Check that arguments and fields of the public API have their annotated types.

A function with `@checked` and a record that calls `check_fields` raise ArgumentError, which states what was given and
what is expected. Annotations are the only source of the types. Independent of torch.
"""

import functools
import inspect
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

from rhumbline.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")

MAKERS: Mapping[str, str] = {
    "ChatModel": "Load one with rhumbline.load(NAME), or make one of a transformers model with rhumbline.prove.",
    "ContrastSet": "Use rhumbline.read_contrast(FILE) or rhumbline.contrast_from_prompts(positives, negatives).",
    "Direction": "Use rhumbline.Direction.from_run(RUN) or Direction.from_vector(tensor, position, layer).",
    "Ablate": "Use rhumbline.Ablate(direction) or rhumbline.Add(direction, coefficient).",
    "Protocol": 'Use rhumbline.preset("rhumbline").',
    "Rule": 'Use that of a preset, such as rhumbline.preset("rhumbline").rule.',
    "SelectionRule": 'Use that of a preset, such as rhumbline.preset("rhumbline").selection.',
    "Sizes": "Use rhumbline.Sizes(train, val, test).",
    "Candidate": "Use rhumbline.read_scores(FILE).",
    "Chat": "Use model.own_chat, or rhumbline.Chat.of(tokenizer, options).",
}
"""What makes a value of a type, by its name."""


class Fault(NamedTuple):
    """A value that does not have its type."""

    place: str
    value: Any
    kind: Any

    def __str__(self) -> str:
        """What was given, and what is expected."""
        is_word = isinstance(self.value, str) and typing.get_origin(self.kind) is Literal
        given = repr(self.value) if is_word else _given(self.value)
        return f"{self.place} is {given}; expected {_described(self.kind)}"


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises ArgumentError for an argument that does not have its annotated type."""
    signature = inspect.signature(function)
    variable = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            bound = signature.bind(*arguments, **keywords).arguments
        except TypeError:
            bound = {}  # the call below raises it
        values = {name: bound[name] for name in bound if name not in variable}
        _raise_if_any(function.__qualname__.removesuffix(".__init__"), values, _hints(function))
        return function(*arguments, **keywords)

    return call


def check_fields(record: Any) -> None:
    """Raise an ArgumentError that lists the fields of a dataclass that do not have their annotated types."""
    _raise_if_any(type(record).__name__, vars(record), _hints(type(record)))


def _raise_if_any(what: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    checks = ((name, kind, values[name]) for name, kind in hints.items() if name in values)
    found = (_fault(name, value, kind) for name, kind, value in checks if type(value) not in _plain(kind))
    if faults := [fault for fault in found if fault is not None]:
        raise ArgumentError(f"{what}: {'; '.join(map(str, faults))}. {_advice(faults[0], what)}") from None


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    return typing.get_type_hints(annotated, include_extras=True)


@functools.cache
def _plain(kind: Any) -> frozenset[type]:
    """The types whose values need no further check. Most values have one, and a run makes thousands of prompts."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    return frozenset(part for part in parts if isinstance(part, type) and typing.get_origin(part) is None)


def _fault(place: str, value: Any, kind: Any) -> Fault | None:
    """The value, or the first of its parts, that does not have the type."""
    if type(value) in _plain(kind):
        return None
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if _is_list(kind) and _is_list_like(value):
        inner = parts[0] if parts else Any
        elements = value if isinstance(value, Collection) else ()  # an iterator is read once
        return next(filter(None, (_fault(f"{place}[{i}]", v, inner) for i, v in enumerate(elements))), None)
    if origin in (Union, types.UnionType):
        return None if any(_fault(place, value, part) is None for part in parts) else Fault(place, value, kind)
    return None if _has_type(value, kind, origin, parts) else Fault(place, value, kind)


def _has_type(value: Any, kind: Any, origin: Any, parts: tuple[Any, ...]) -> bool:
    if kind is int:
        return not isinstance(value, bool) and _converts(operator.index, value)
    if kind is float:
        return not isinstance(value, str | bytes | bool) and _converts(float, value)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is Annotated:
        return all(isinstance(value, part) for part in parts[1:] if isinstance(part, type))
    if origin is Mapping:
        return isinstance(value, Mapping)
    plain = kind if origin is None else origin
    return plain is Any or (isinstance(plain, type) and not _is_list(kind) and isinstance(value, plain))


def _converts(convert: Callable[[Any], Any], value: Any) -> bool:
    try:
        convert(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _is_list(kind: Any) -> bool:
    """Whether the type is that of a list, tuple or iterable with elements of one type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    is_pair = origin is tuple and parts[-1:] != (...,)
    return isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping) and not is_pair


def _is_list_like(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


# -- in words ---------------------------------------------------------------------------------------------------------


def _given(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"of type {name} ({value.dtype}, shape {tuple(value.shape)})"
    text = repr(value)
    if "\n" in text:
        return f"of type {name}"
    return f"of type {name} ({text if len(text) <= 60 else text[:57] + '...'})"


def _described(kind: Any) -> str:
    """The type in words."""
    parts = typing.get_args(kind)
    if kind in (None, types.NoneType):
        return "None"
    if _is_list(kind):
        inner = _described(parts[0])
        return f"a list of {inner.replace('a list', 'lists', 1)}"
    if typing.get_origin(kind) is Mapping:
        return "a dict"
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, parts))
    if typing.get_origin(kind) is Annotated:
        return next(part for part in parts[1:] if isinstance(part, str))
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_described, parts))
    if hasattr(kind, "dim_str"):  # an array with its shape
        return f"a {kind.array_type.__name__} of {kind.__name__.partition('[')[0].lower()} and shape [{kind.dim_str}]"
    return getattr(kind, "__name__", str(kind))


def _advice(fault: Fault, what: str) -> str:
    if type(fault.value).__module__ == "numpy" and "Tensor" in _described(fault.kind):
        return "Use torch.from_numpy(array).float()."
    for name in _names(fault.kind):
        if name in MAKERS:
            return MAKERS[name]
    if _is_list(fault.kind) and isinstance(fault.value, str):
        return "Pass a list, also for one element."
    if fault.kind is str and _is_list_like(fault.value):
        return "Pass one element at a time."
    return f"See help(rhumbline.{what})."


def _names(kind: Any) -> Iterator[str]:
    """The names of the types in a type."""
    yield getattr(kind, "__name__", "")
    for part in typing.get_args(kind):
        yield from _names(part)
