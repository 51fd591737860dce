"""Load and clean the rows of a declared source: from a local mirror, or through `datasets` with the user's token.

The cleaning is the same for every origin of the rows. Errors state what to do next and repeat no row. Independent of
the purpose of the rows.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import DataError
from rhumbline.prompts.declared_sets import Source
from rhumbline.records.files import file_sha256, sha256
from rhumbline.records.protocol_file import SourceFacts
from rhumbline.records.user_files import LARGEST, control_character, is_unicode, long_cells, read_text, text_lines

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".txt")
"""Formats of the files of a local mirror."""
CLEANED = {"instruction", "category"}
"""Columns of rows that are cleaned already, as in the authors' repository."""
TableRow = Mapping[str, Any]
"""Column -> value, as read from a file."""


class Item(NamedTuple):
    """One cleaned row."""

    text: str
    category: str | None


class Loaded(NamedTuple):
    """The cleaned rows of a source, and their origin."""

    items: tuple[Item, ...]
    facts: SourceFacts


def load(source: Source, data_dir: str | Path | None = None) -> Loaded:
    """The cleaned rows of a source: from files in `data_dir` if it has them, otherwise from the publisher.

    A mirror can have the files of some sources only. Raises DataError: offline and not cached, gated, missing columns,
    or other bytes than declared.
    """
    local = [] if data_dir is None else _mirrored(source, Path(data_dir))
    if local:
        rows = [row for path in local for row in read_rows(path)]
        origin, revision = ", ".join(path.name for path in local), "local files"
    else:
        rows = _from_hub(source) if source.hub else _from_urls(source)
        origin, revision = source.where, source.revision
    items = tuple(clean(source, rows))
    if not items:
        raise DataError(
            f"{source.name}: {origin} has {len(rows)} rows, and none remains after cleaning. Compare it with the "
            f"data set of the publisher ({source.publisher})."
        )
    digest = sha256([list(item) for item in items])
    expected = None if source.rows_sha256 is None else digest == source.rows_sha256
    facts = SourceFacts(
        source=source.name,
        origin=origin,
        revision=revision,
        pinned=source.pinned and not local,
        rows=len(items),
        sha256=digest,
        as_expected=expected,
    )
    return Loaded(items, facts)


def clean(source: Source, rows: Iterable[TableRow]) -> list[Item]:
    """Instructions and categories of the rows that the rules of the source keep, in order, without surrounding space.

    Rows with exactly the columns `instruction` and `category` are cleaned already.
    """
    rows = list(rows)
    if rows and all(set(row) == CLEANED for row in rows):
        return [_item(source, n, row["instruction"], row["category"]) for n, row in enumerate(rows, 1)]
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
                f"Use a file with the columns of its publisher ({source.publisher})."
            )
        cells = {column: "" if row[column] is None else str(row[column]) for column in wanted}
        if any(cells[column] != value for column, value in source.only.items()):
            continue
        if any(value.casefold() in cells[column].casefold() for column, value in source.without.items()):
            continue
        if any(cells[column].strip() for column in source.blank) or not cells[source.text].strip():
            continue
        category = cells[source.category].strip() or None if source.category else None
        kept.append(_item(source, number, cells[source.text], category))
    return kept


def _item(source: Source, number: int, text: Any, category: Any) -> Item:
    """The row of this number, checked."""
    if not isinstance(text, str) or not isinstance(category, str | None):
        raise DataError(f"{source.name}: row {number} has a value that is not text. Correct the file.")
    control = control_character(text)
    if control is not None or not is_unicode(text):
        fault = "half of a surrogate pair" if control is None else f"the control character {control}"
        raise DataError(f"{source.name}: row {number} contains {fault}, which is not text. Remove it from the file.")
    return Item(text.strip(), category)


def read_rows(path: Path) -> list[TableRow]:
    """Rows of a CSV, JSON, JSON Lines, Parquet or text file; a string without columns becomes {"text": ...}."""
    if path.suffix == ".parquet":
        try:
            return _parquet(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}. Check the file.") from error
    text = read_text(path, DataError, "a file of prompts")
    try:
        if path.suffix == ".csv":
            with long_cells():
                return list(csv.DictReader(StringIO(text, newline=""), strict=True))
        if path.suffix == ".txt":
            return [{"text": line} for line in text_lines(text) if line.strip()]
        # Not splitlines(): a JSON string can contain U+2028 and similar characters unescaped.
        lines = (line for line in text.split("\n") if line.strip())
        values = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid {path.suffix[1:]}: {type(error).__name__}. Check the file.") from error
    if not isinstance(values, list) or not all(isinstance(value, str | dict) for value in values):
        raise DataError(f"{path} is not a list of rows. Write one object or text per row.")
    return [{"text": value} if isinstance(value, str) else value for value in values]


def _parquet(path: Path) -> list[TableRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f'{path}: Parquet needs the extra `data`. Install it: pip install "rhumbline[data]".') from None
    rows: list[TableRow] = []
    size = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                size += batch.nbytes
                if size > LARGEST:
                    raise DataError(
                        f"{path} has texts of more than {LARGEST:,} bytes, and a contrast needs a few thousand "
                        "prompts. Pass a part of the file."
                    )
                rows += batch.to_pylist()
        return rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not valid Parquet: {type(error).__name__}. Check the file.") from error


def _mirrored(source: Source, folder: Path) -> list[Path]:
    """The source's files in a mirror or in one of its folders: NAME with a suffix, or the names of the publisher."""
    if not folder.is_dir():
        raise DataError(f"--data-dir {folder} is not a directory. Pass the directory of the mirror.")
    for directory in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        stems = (source.name, source.name.replace("-", "_"))
        if own := [p for stem in stems for suffix in SUFFIXES if (p := directory / f"{stem}{suffix}").is_file()]:
            return own[:1]
        # A source of several files needs all of them; for the others the first file that exists is read.
        theirs = [directory / name for name in source.files if (directory / name).is_file()]
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
            'Named data sets need `datasets`. Install it: pip install "rhumbline[data]", or pass local files with '
            "--data-dir."
        ) from None
    return datasets


def _from_hub(source: Source) -> list[TableRow]:
    datasets = _datasets()
    assert source.hub is not None
    datasets.disable_progress_bars()
    local = Path(source.hub).is_dir()
    try:
        table = datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=None if local else source.revision
        )
        return table.to_list()
    # The errors of these libraries have no common base; other errors are bugs and are not caught.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(source, error) from error


def _from_urls(source: Source) -> list[TableRow]:
    datasets = _datasets()
    datasets.disable_progress_bars()
    # Without ETags a cached file is also used offline. The URLs are pinned, and the bytes are checked below.
    manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(use_etag=False))
    try:
        paths = [Path(p) for p in manager.download(list(source.urls))]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(source, error) from error
    rows = []
    for path, url, expected in zip(paths, source.urls, source.sha256, strict=True):
        if (digest := file_sha256(path)) != expected:
            raise DataError(
                f"{source.name}: {url} has other bytes than declared (sha256 {digest}, not {expected}). Pass a local "
                "copy with --data-dir."
            )
        rows += read_rows(_named_as(path, url))
    return rows


def _named_as(path: Path, url: str) -> Path:
    """The downloaded file under a name with the suffix of its format; the cache names files by hash."""
    suffix = Path(url).suffix
    named = path.with_name(path.name + suffix)
    if not named.exists():
        os.link(path, named)
    return named


def _unavailable(source: Source, error: Exception) -> DataError:
    """The error for a source that could not be loaded, with the next step."""
    mirror = f"or put {' or '.join(source.files)} into a folder and pass it with --data-dir"
    chain = _chain(error)
    text = " ".join(str(e) for e in chain).casefold()
    page = source.publisher
    if any(type(e).__name__ == "GatedRepoError" for e in chain) or "gated" in text:
        return DataError(
            f"{source.name}: {source.hub} is gated. Accept its conditions at {page} and run `hf auth login` or set "
            f"HF_TOKEN; {mirror}."
        )
    if _is_offline() and not (source.hub and Path(source.hub).is_dir()):
        return DataError(
            f"{source.name}: not in the cache, and offline mode is on (HF_HUB_OFFLINE). Run `rhumbline data check "
            f"{source.name}` once with a connection; {mirror}."
        )
    if any(isinstance(e, ConnectionError | TimeoutError) for e in chain) or "connect" in text:
        return DataError(f"{source.name}: {source.where} cannot be reached. Check the connection; {mirror}.")
    first = str(error).splitlines()[0] if str(error) else ""
    return DataError(
        f"{source.name}: {source.where} cannot be loaded ({type(error).__name__}: {first[:200]}). See {page}; {mirror}."
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and its causes."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _is_offline() -> bool:
    hub = sys.modules.get("huggingface_hub.constants")
    return bool(getattr(hub, "HF_HUB_OFFLINE", False)) or os.environ.get("HF_DATASETS_OFFLINE", "") in ("1", "true")
