"""Faults of the files of a run directory: changed, missing, added, damaged or replaced by a link.

Independent of whether the numbers in them follow from each other.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from rhumbline.errors import OutputError, RhumblineError
from rhumbline.records.artefacts import OF_RUN
from rhumbline.records.codec import convert
from rhumbline.records.directory import JOB_LOG, LOCK, RunDirectory, is_written_later
from rhumbline.records.evaluation_files import Comparison, EvaluationSettings, TaskResult
from rhumbline.records.files import read_json, unique_names
from rhumbline.records.human_files import HumanLabels
from rhumbline.records.judgement_files import JudgedPlace, JudgementRow
from rhumbline.records.page_files import FIGURES, MANIFEST, PAGE, page_faults, read_page_files
from rhumbline.records.results import Results
from rhumbline.records.run_files import TIMINGS, Reproduction, read_timings

RESULTS = OF_RUN[Results]
SIGNATURES = tuple(f"{name}.{ending}" for name in (RESULTS, MANIFEST) for ending in ("sig", "minisig"))
"""Signatures of a run, which no command reads."""
LATER_RECORDS: Mapping[str, type] = {
    **{name: kind for kind, name in OF_RUN.items() if kind is not Results and is_written_later(name)},
    "evaluations/*/settings.json": EvaluationSettings,
    "evaluations/*/comparison.json": Comparison,
    "evaluations/*/*/*.json": TaskResult,
}
UNFINISHED = "evaluations/*/*/*.answers"
"""Responses of an interrupted evaluation, for its next start. Their last line can be torn; no number rests on them."""
LATER_ROWS: Mapping[str, type] = {"judgements/*.index.jsonl": JudgedPlace, "judgements/*.jsonl": JudgementRow}


def file_faults(
    directory: RunDirectory, recorded: Mapping[str, Any], *, has_page: bool, is_old: bool, notes: list[str]
) -> list[str]:
    """Every fault of a file.

    `recorded` are the hashes of results.json; `has_page`: the run ended with a report; `is_old`: it is of version 0.1.
    """
    return [
        *_changed_files(directory, recorded),
        *_ambiguous(directory, RESULTS),
        *_later_faults(directory, is_old=is_old),
        *_page_faults(directory, recorded, has_page=has_page, is_old=is_old, notes=notes),
    ]


def _changed_files(directory: RunDirectory, recorded: Mapping[str, Any]) -> list[str]:
    """Artefacts whose hash differs from the recorded one, or that are missing."""
    present = directory.manifest()
    missing = [f"{name} is missing" for name in sorted(recorded.keys() - present.keys())]
    return missing + [
        f"{name} was changed (sha256 differs)"
        for name in sorted(recorded.keys() & present.keys())
        if present[name] != recorded[name]
    ]


def _ambiguous(directory: RunDirectory, name: str) -> list[str]:
    """The file if a field of a JSON object occurs twice in it: readers differ in which of the values they take."""
    try:
        json.loads((directory.path / name).read_bytes(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        return [f"{name} was changed ({error})"]
    return []


def _later_faults(directory: RunDirectory, *, is_old: bool) -> list[str]:
    """Files that are written after the results and are not of the run; their values are not verified."""
    faults = [] if (directory.path / TIMINGS).is_file() else [f"{TIMINGS} is missing"]
    for name in filter(is_written_later, directory.files()):
        try:
            if not _is_readable(directory, name, is_old=is_old):
                faults.append(f"{name} was added after the run ended")
        except (RhumblineError, msgspec.ValidationError) as error:
            faults.append(f"{name} is damaged: {error}")
    return faults


def _is_readable(directory: RunDirectory, name: str, *, is_old: bool) -> bool:
    """Whether rhumbline writes a file of this name; raises an error if it does not have the form of such a file.

    Of the records of version 0.1, only the protocol is compared.
    """
    path = directory.path / name
    if name in (RESULTS, MANIFEST, JOB_LOG, *SIGNATURES) or _matches(name, UNFINISHED):
        return True
    if name == TIMINGS:
        read_timings(path)
    elif name == "reproduction.json":
        convert(read_json(path), Reproduction)
    elif path.suffix == ".csv":
        sheets = directory.read_record(HumanLabels).sheets if directory.has(HumanLabels) else ()
        return name in {f"judgements/labels-{number}.csv" for number in range(1, len(sheets) + 1)}
    elif (kind := _kind_of(name, LATER_RECORDS)) is not None:
        _ = directory.load(path) if is_old else directory.read_as(kind, path)
    elif (kind := _kind_of(name, LATER_ROWS)) is not None:
        directory.read_rows_as(kind, path)
    else:
        return False
    return True


def _kind_of(name: str, patterns: Mapping[str, type]) -> type | None:
    """The record of the first pattern that the name of a file matches, folder by folder."""
    return next((kind for pattern, kind in patterns.items() if _matches(name, pattern)), None)


def _matches(name: str, pattern: str) -> bool:
    parts, expected = name.split("/"), pattern.split("/")
    return len(parts) == len(expected) and all(map(fnmatchcase, parts, expected))


def _page_faults(
    directory: RunDirectory, recorded: Mapping[str, Any], *, has_page: bool, is_old: bool, notes: list[str]
) -> list[str]:
    """Files of the report that were changed, and files of the directory that rhumbline did not write."""
    page = [name for name in directory.files() if name == PAGE or name.startswith(f"{FIGURES}/")]
    faults = []
    if (directory.path / MANIFEST).exists():
        try:
            faults = page_faults(directory.path) + _ambiguous(directory, MANIFEST)
            page = list(read_page_files(directory.path).files)
        except OutputError as error:
            faults = [str(error)]
    elif not page and has_page:
        faults = [f"{PAGE} is missing: use `rhumbline report`"]
    elif not page:
        notes.append("there is no report")
    elif is_old:
        notes.append("report.html and figures/ are not verified: version 0.1 recorded no hashes of them")
    else:
        faults = [f"{MANIFEST} is missing, so report.html and figures/ cannot be verified: use `rhumbline report`"]
    known = {"protocol.json", *recorded, *page}
    added = [name for name in directory.files() if name not in known and not is_written_later(name)]
    links = [name for name in directory.files() if (directory.path / name).is_symlink()]
    return [
        *faults,
        *(f"{name} was added after the run ended" for name in added),
        *(f"{name} is a link to another place" for name in links),
        *([f"{LOCK} has content; rhumbline writes none"] if _has_content(directory.path / LOCK) else []),
    ]


def _has_content(lock: Path) -> bool:
    return lock.is_file() and lock.stat().st_size > 0
