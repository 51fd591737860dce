"""The declared data sets and named contrasts, from sources.toml and contrasts.toml: no row is read here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TypeVar

import msgspec

from rhumbline.errors import DataError


@dataclass(frozen=True)
class Source:
    """One data set of a publisher."""

    name: str
    title: str
    reference: str
    """The paper that published it."""
    publisher: str
    """Page of the publisher."""
    licence: str
    text: str
    """Column of the instruction."""
    rows: int
    """Expected number of rows after cleaning."""
    files: tuple[str, ...]
    """Names of the publisher's files, as in a local mirror."""
    note: str
    """How the revision was verified, or that it was not."""
    pinned: bool
    """Whether the revision was verified."""
    category: str | None = None
    """Column of the category."""
    hub: str | None = None
    """Repository on the Hugging Face hub."""
    config: str | None = None
    """Configuration of the repository."""
    split: str = "train"
    """Split of the repository."""
    revision: str | None = None
    """Commit of the repository."""
    urls: tuple[str, ...] = ()
    """Files of a publisher without a hub repository."""
    sha256: tuple[str, ...] = ()
    """Hashes of the bytes of `urls`."""
    only: Mapping[str, str] = field(default_factory=dict)
    """Cleaning: column -> the value that it must have."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Cleaning: column -> a text that it must not contain, in any case."""
    blank: tuple[str, ...] = ()
    """Cleaning: columns that must be empty."""
    rows_sha256: str | None = None
    """Hash of the cleaned rows, [[text, category], ...]; None if they could not be read."""
    gated: bool = False
    """Whether the publisher requires each user to accept conditions."""

    @property
    def where(self) -> str:
        """What is read, in one line."""
        if self.hub is None:
            return ", ".join(self.urls)
        config = f" ({self.config})" if self.config else ""
        return f"{self.hub}{config}, split {self.split}, revision {self.revision}"


@dataclass(frozen=True)
class Recipe:
    """A named contrast: the sources of every split of either class."""

    name: str
    title: str
    positive: Mapping[str, tuple[str, ...]]
    """Split -> sources of the positives; the split `all` is divided by `shares`."""
    negative: Mapping[str, tuple[str, ...]]
    """The same for the negatives."""
    at_most: int | None = None
    """Rows that are drawn from one source; None: all."""
    apart_from: tuple[str, ...] = ()
    """Sources that must not have a prompt in common with train and validation."""
    shares: tuple[float, ...] = ()
    """Shares of train, validation and test in a source that is divided."""
    shuffle: int | None = None
    """Seed of the shuffle before it is divided."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources that are read, each once."""
        names = [n for side in (self.positive, self.negative) for of_split in side.values() for n in of_split]
        return tuple(dict.fromkeys([*names, *self.apart_from]))


D = TypeVar("D", Source, Recipe)


def _declared(file: str, kind: type[D]) -> Mapping[str, D]:
    tables = msgspec.toml.decode((files("rhumbline.prompts") / file).read_bytes(), type=dict[str, dict[str, object]])
    return {name: msgspec.convert({"name": name, **table}, kind) for name, table in tables.items()}


@cache
def sources() -> Mapping[str, Source]:
    """Every declared source by its name."""
    return _declared("sources.toml", Source)


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every named contrast by its name."""
    return _declared("contrasts.toml", Recipe)


def source(name: str) -> Source:
    """The declared source of this name. DataError if there is none."""
    if name not in sources():
        raise DataError(
            f"Unknown data set {name!r}. Use one of {', '.join(sources())}, or a contrast: {', '.join(recipes())}."
        )
    return sources()[name]
