"""Rows of a declared source: from a local mirror, or through `datasets` with the user's own cache and token.

Promises: the same cleaning whatever the rows come from; what could not be had says what to do; messages repeat no row.
Does not know what the rows are for.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import DataError
from rhumbline.prompts.declared_sets import Source
from rhumbline.records.files import file_sha256, sha256

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".txt")
"""Forms that a local mirror may have."""


CLEANED = {"instruction", "category"}
"""Columns of rows that were cleaned before, in the form of the paper's repository."""


class Item(NamedTuple):
    """One cleaned row."""

    text: str
    category: str | None


class Loaded(NamedTuple):
    """The cleaned rows of a source, and where they came from."""

    items: tuple[Item, ...]
    provenance: dict[str, Any]
    """{"source", "from", "revision", "pinned", "rows", "sha256", "as_expected"}; the last is None where no hash is
    declared."""


def load(source: Source, data_dir: str | Path | None = None) -> Loaded:
    """The cleaned rows of a source: from files in `data_dir` where it has them, else from the publisher.

    A directory without the source's files is passed over, so that one mirror may hold some sources and the hub the
    others. Raises DataError that says what to do: offline and not cached, gated, missing columns, other bytes.
    """
    local = [] if data_dir is None else _mirrored(source, Path(data_dir))
    if local:
        rows = [row for path in local for row in read_rows(path)]
        told, revision = ", ".join(path.name for path in local), "local files"
    else:
        rows = _from_hub(source) if source.hub else _from_urls(source)
        told, revision = source.where, source.revision
    items = tuple(clean(source, rows))
    if not items:
        raise DataError(f"{source.name}: {told} holds {len(rows)} rows, and cleaning leaves none of them.")
    digest = sha256([list(item) for item in items])
    expected = None if source.rows_sha256 is None else digest == source.rows_sha256
    provenance = {
        "source": source.name,
        "from": told,
        "revision": revision,
        "pinned": source.pinned and not local,
        "rows": len(items),
        "sha256": digest,
        "as_expected": expected,
    }
    return Loaded(items, provenance)


def clean(source: Source, rows: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Instructions and categories of the rows that the source's rules keep, in order, without surrounding space.

    Rows that have the columns `instruction` and `category` alone are taken as cleaned already.
    """
    rows = list(rows)
    if rows and set(rows[0]) == CLEANED:
        return [Item(row["instruction"].strip(), row["category"]) for row in rows]
    kept = []
    wanted = [
        source.text,
        *([source.category] if source.category else []),
        *source.only,
        *source.without,
        *source.blank,
    ]
    for number, row in enumerate(rows, 1):
        if missing := [column for column in wanted if column not in row]:
            raise DataError(
                f"{source.name}: row {number} has no column {', '.join(missing)}; it has {', '.join(map(str, row))}. "
                f"Its publisher's columns are expected ({source.publisher})."
            )
        cells = {column: "" if row[column] is None else str(row[column]) for column in wanted}
        if any(cells[column] != value for column, value in source.only.items()):
            continue
        if any(value.casefold() in cells[column].casefold() for column, value in source.without.items()):
            continue
        if any(cells[column].strip() for column in source.blank) or not cells[source.text].strip():
            continue
        category = cells[source.category].strip() or None if source.category else None
        kept.append(Item(cells[source.text].strip(), category))
    return kept


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, JSON, JSON Lines, Parquet or text file; a bare string becomes {"text": ...}."""
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines(keepends=True), strict=True))
        lines = [line for line in text.splitlines() if line.strip()]
        if path.suffix == ".txt":
            return [{"text": line} for line in lines]
        values = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path} is not {path.suffix[1:]} as it should be: {type(error).__name__}.") from error
    if not isinstance(values, list) or not all(isinstance(value, str | dict) for value in values):
        raise DataError(f"{path} is not a list of rows.")
    return [{"text": value} if isinstance(value, str) else value for value in values]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f'{path}: reading Parquet needs the extra `data`: pip install "rhumbline[data]".') from None
    try:
        return parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not Parquet as it should be: {type(error).__name__}.") from error


def _mirrored(source: Source, folder: Path) -> list[Path]:
    """The source's files in a mirror or in a folder of it: NAME.csv and the like, or the publisher's own names."""
    if not folder.is_dir():
        raise DataError(f"--data-dir {folder} is not a directory.")
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        stems = (source.name, source.name.replace("-", "_"))
        if own := [p for stem in stems for suffix in SUFFIXES if (p := place / f"{stem}{suffix}").is_file()]:
            return own[:1]
        # A source of several files needs all of them; any other takes the first name that is there.
        theirs = [place / name for name in source.files if (place / name).is_file()]
        if len(source.urls) > 1 and len(theirs) == len(source.files):
            return theirs
        if len(source.urls) <= 1 and theirs:
            return theirs[:1]
    return []


# -- from the publisher -----------------------------------------------------------------------------------------------


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            'Named data sets need `datasets`: pip install "rhumbline[data]", or give local files with --data-dir.'
        ) from None
    return datasets


def _from_hub(source: Source) -> list[dict[str, Any]]:
    datasets = _datasets()
    assert source.hub is not None
    datasets.disable_progress_bars()
    local = Path(source.hub).is_dir()
    try:
        found = datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=None if local else source.revision
        )
        return found.to_list()
    # What the libraries raise here has no common base; anything else is a fault of ours and goes through.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(source, error) from error


def _from_urls(source: Source) -> list[dict[str, Any]]:
    datasets = _datasets()
    datasets.disable_progress_bars()
    # Without ETags a cached file is used offline too; the URLs are pinned, and the bytes are checked below.
    manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(use_etag=False))
    try:
        paths = [Path(p) for p in manager.download(list(source.urls))]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(source, error) from error
    rows = []
    for path, url, expected in zip(paths, source.urls, source.sha256, strict=True):
        if (found := file_sha256(path)) != expected:
            raise DataError(f"{source.name}: {url} holds other bytes than declared (sha256 {found}, not {expected}).")
        rows += read_rows(_named_as(path, url))
    return rows


def _named_as(path: Path, url: str) -> Path:
    """The downloaded file under a name that says its form; the cache names files by hash."""
    suffix = Path(url).suffix
    named = path.with_name(path.name + suffix)
    if not named.exists():
        os.link(path, named)
    return named


def _unavailable(source: Source, error: Exception) -> DataError:
    """What to do where a source could not be had."""
    mirror = f"or put {' or '.join(source.files)} into a folder and give it with --data-dir"
    chain = _chain(error)
    told = " ".join(str(e) for e in chain)
    page = source.publisher
    if any(type(e).__name__ == "GatedRepoError" for e in chain) or "gated" in told.casefold():
        return DataError(
            f"{source.name}: {source.hub} is gated. Accept its conditions at {page}, then `hf auth login` or "
            f"set HF_TOKEN; {mirror}."
        )
    if _is_offline() and not (source.hub and Path(source.hub).is_dir()):
        return DataError(
            f"{source.name}: not in the cache, and offline mode is on (HF_HUB_OFFLINE). Run `rhumbline data check "
            f"{source.name}` once with a connection; {mirror}."
        )
    if any(isinstance(e, ConnectionError | TimeoutError) for e in chain) or "connect" in told.casefold():
        return DataError(f"{source.name}: {source.where} cannot be reached. Check the connection; {mirror}.")
    first = str(error).splitlines()[0] if str(error) else ""
    return DataError(
        f"{source.name}: {source.where} cannot be loaded ({type(error).__name__}: {first[:200]}). See {page}; {mirror}."
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_offline() -> bool:
    hub = sys.modules.get("huggingface_hub.constants")
    return bool(getattr(hub, "HF_HUB_OFFLINE", False)) or os.environ.get("HF_DATASETS_OFFLINE", "") in ("1", "true")
