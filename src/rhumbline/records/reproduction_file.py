"""reproduction.json of a run, and the checks before one, as records."""

from dataclasses import dataclass

from msgspec import Struct, field

Figure = tuple[int, int] | int | float | str | None
"""A site as (position, layer), a layer, a rate, a verdict; None if it was not measured."""


class FigureComparison(Struct, frozen=True, kw_only=True):
    """One figure of a run, compared with the published one."""

    what: str
    """Name of the figure."""
    seed: int | None
    """None for a figure of the whole run."""
    measured: Figure = field(name="found")
    published: Figure
    tolerance: str
    """Largest difference that counts as agreement, in words."""
    agrees: bool | None
    """None if the figure was not measured."""


@dataclass(frozen=True)
class Reproduction:
    """reproduction.json: a run of a published model, compared with the published figures."""

    model: str
    """Name of the published model."""
    rows: tuple[FigureComparison, ...]


class Check(Struct, frozen=True, kw_only=True):
    """One requirement of a reproduction, checked without weights."""

    what: str
    """Name of the requirement."""
    ok: bool | None
    """None if it could not be checked here."""
    detail: str = field(name="told")
    """What was read, and what is expected."""
