"""The report page and its figures on disk, with their hashes (report.json). Independent of what the page shows."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from rhumbline.errors import OutputError
from rhumbline.records.codec import convert, to_json
from rhumbline.records.files import file_sha256, inside, read_json, write_bytes, write_json

PAGE = "report.html"
FIGURES = "figures"
MANIFEST = "report.json"


@dataclass(frozen=True)
class PageFiles:
    """report.json: the page and its figures as they were drawn last."""

    rhumbline: str
    """Version that drew them."""
    files: dict[str, str]
    """SHA-256 of each file, by its path in the directory."""
    results: str | UnsetType = UNSET
    """The hash in results.json at that time; unset in older runs, and for a page of something else than a run."""


def write_page(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of a page and their hashes. Figures of the previous page that are no longer drawn are removed."""
    previous = read_page_files(folder) if (folder / MANIFEST).is_file() else None
    for name in set() if previous is None else previous.files.keys() - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    write_json(folder / MANIFEST, to_json(PageFiles(version("rhumbline"), hashes, _hash_of_results(folder))))


def _hash_of_results(folder: Path) -> str | UnsetType:
    path = folder / "results.json"
    results = read_json(path) if path.is_file() else None
    return results.get("sha256", UNSET) if isinstance(results, dict) else UNSET


def read_page_files(folder: Path) -> PageFiles:
    """The hashes of the page of a run directory. Raises OutputError."""
    try:
        page = convert(read_json(folder / MANIFEST), PageFiles)
        for name in page.files.keys() - {PAGE}:
            if name != f"{FIGURES}/{inside(folder / FIGURES, Path(name).name, OutputError).name}":
                raise OutputError(f"{name!r} is neither {PAGE} nor a file of {FIGURES}/")
        return page
    except (msgspec.ValidationError, OutputError) as error:
        raise OutputError(f"{folder / MANIFEST}: {error}. Draw the page again with `rhumbline report`.") from error


def page_faults(folder: Path) -> list[str]:
    """Files of the page that are missing, differ from their hashes, or show other results than results.json."""
    page, faults = read_page_files(folder), []
    if page.results not in (UNSET, _hash_of_results(folder)):
        faults.append(f"{PAGE} was drawn from other results: use `rhumbline report`")
    for name, recorded in page.files.items():
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif file_sha256(folder / name) != recorded:
            faults.append(f"{name} was changed (sha256 differs)")
    return faults
