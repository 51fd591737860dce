"""The declared data sets: where each one comes from, what is taken of it and what is expected. No row is read here."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from rhumbline.errors import DataError


@dataclass(frozen=True)
class Source:
    """One data set of a publisher; sources.toml says what the fields mean."""

    name: str
    title: str
    reference: str
    """The paper that it is from."""
    publisher: str
    """Page of the publisher."""
    licence: str
    text: str
    """Column of the instruction."""
    rows: int
    """Expected after cleaning."""
    files: tuple[str, ...]
    """Names of the publisher's files, as a local mirror may hold them."""
    note: str
    """How the revision was verified, or that it was not."""
    pinned: bool
    """Whether the revision was verified."""
    category: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    urls: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    """Of the bytes behind `urls`."""
    only: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    blank: tuple[str, ...] = ()
    rows_sha256: str | None = None
    """Of the cleaned rows, [[text, category], ...]; None where they could not be seen."""
    gated: bool = False
    """Whether the publisher asks each user to accept conditions."""

    def record(self) -> dict[str, Any]:
        """The source as JSON."""
        return asdict(self)

    @property
    def where(self) -> str:
        """What is read, in one line."""
        if self.hub is None:
            return ", ".join(self.urls)
        config = f" ({self.config})" if self.config else ""
        return f"{self.hub}{config}, split {self.split}, revision {self.revision}"


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((files("rhumbline.prompts") / name).read_text(encoding="utf-8"))


@cache
def sources() -> Mapping[str, Source]:
    """Every declared source by its name."""
    found = {}
    for name, table in _table("sources.toml").items():
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        found[name] = Source(name=name, **plain)
    return found


@dataclass(frozen=True)
class Recipe:
    """A named contrast: which sources make up which split; contrasts.toml says what the fields mean."""

    name: str
    title: str
    positive: Mapping[str, tuple[str, ...]]
    negative: Mapping[str, tuple[str, ...]]
    at_most: int | None = None
    apart_from: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    shuffle: int | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources that it reads, each once."""
        read = [n for side in (self.positive, self.negative) for names in side.values() for n in names]
        return tuple(dict.fromkeys([*read, *self.apart_from]))


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every named contrast by its name."""
    found = {}
    for name, table in _table("contrasts.toml").items():
        sides = {side: {s: tuple(names) for s, names in table.pop(side).items()} for side in ("positive", "negative")}
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        found[name] = Recipe(name=name, **sides, **plain)
    return found


def source(name: str) -> Source:
    """The declared source of that name."""
    if name not in sources():
        raise DataError(f"Unknown data set {name!r}; known: {', '.join(sources())}. Contrasts: {', '.join(recipes())}.")
    return sources()[name]
