"""Checks of the plans of analyses: the faults of the numbers and names with which an analysis cannot measure.

A plan passes the faults of all fields to `refuse`, which lists them in one error.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from rhumbline.errors import InputError


def refuse(analysis: str, *faults: Iterable[str]) -> None:
    """Raise InputError with every fault, if there is any."""
    if listed := list(chain(*faults)):
        raise InputError(f"{analysis}: {'; '.join(listed)}.")


def too_small(plan: object, **least: int) -> Iterator[str]:
    """Numbers of a plan that are smaller than the least that is measured, by field."""
    for name, bound in least.items():
        if not getattr(plan, name) >= bound:
            yield f"{name} is {getattr(plan, name)}, expected {bound} or more"


def outside(name: str, value: float | Sequence[float], fits: Callable[[float], bool], expected: str) -> Iterator[str]:
    """A number that does not fit, or a list that is empty, has such a number, or has a number twice."""
    if not isinstance(value, Sequence):
        if not fits(value):
            yield f"{name} is {value}, expected {expected}"
        return
    if not value or not all(map(fits, value)):
        yield f"{name} is {list(value)}, expected {expected}"
    if len(set(value)) < len(value):
        yield f"{name} has a number twice"


def not_a_share(name: str, value: float) -> Iterator[str]:
    """A number outside of 0 to 1."""
    return outside(name, value, lambda x: 0 <= x <= 1, "a share from 0 to 1")


def ablation_strengths(values: Sequence[float]) -> Iterator[str]:
    """Faults of the strengths of an ablation: 1 removes the direction, 2 reflects it."""
    return outside("strengths", values, lambda a: 0 < a <= 2, "numbers above 0 and up to 2")


def unknown(name: str, values: Sequence[str], known: Sequence[str], needed: str | None = None) -> Iterator[str]:
    """Names that are unknown or listed twice; a list that is empty, or that lacks the one that is needed."""
    if odd := sorted(set(values) - set(known)):
        yield f"unknown {name} {', '.join(odd)} (known: {', '.join(known)})"
    if len(set(values)) < len(values):
        yield f"{name} has a name twice"
    if not values:
        yield f"{name} is empty, expected names among {', '.join(known)}"
    if needed is not None and needed not in values:
        yield f"{name} lacks {needed}, which the others are compared with"


def no_text(name: str, text: str, what: str) -> Iterator[str]:
    """A text without characters other than white space."""
    if not text.strip():
        yield f"{name} is empty, expected the text of {what}"
