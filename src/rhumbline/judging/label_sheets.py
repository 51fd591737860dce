"""Label sheets: the completions of a finished run -> a CSV file that a person labels, and its labels.

Guarantees: row ids, columns and order reveal neither arm nor seed nor class. A smaller sheet is a part of a larger one.
No cell is a formula for a spreadsheet program. All faults of a sheet are listed at once. Independent of rates.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from rhumbline.errors import InputError
from rhumbline.evidence.class_rates import measured_outcomes
from rhumbline.evidence.human_labels import next_strata
from rhumbline.judging.judge_names import CONTINUOUS_JUDGES
from rhumbline.judging.judgements import completions_with_texts
from rhumbline.records.arms import ArmId
from rhumbline.records.directory import RunDirectory, check_writable
from rhumbline.records.files import sha256, write_bytes
from rhumbline.records.human_files import HumanLabel, SheetKey
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.protocol_file import JudgedProtocol
from rhumbline.records.shared import Class, Label
from rhumbline.records.user_files import long_cells, read_text

COLUMNS = ("row", "prompt", "completion", "label")
SHORT = 30
"""Longest cell, in characters, that a spreadsheet program may take for a number or a date."""


class StratumId(NamedTuple):
    """Completions of one class of the judge, under one arm on one set."""

    arm: ArmId
    side: Label
    cls: Class


class Texts(NamedTuple):
    """A row of a sheet."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Frame:
    """The completions of a run that sheets are drawn from: those of the direction's own arms."""

    texts: Mapping[str, Texts]
    """By row id. The same completion of the same prompt is one row, in every arm and seed."""
    strata: Mapping[StratumId, tuple[str, ...]]
    """Row ids in the order in which they are drawn."""

    @classmethod
    def of(cls, directory: RunDirectory, salt: str) -> "Frame":
        """The frame of a run. Raises OutputError if the run has no texts.

        The place of a row in its stratum is a hash of its prompt, so that the rows of two arms tend to be on the same
        prompts. Completions of one prompt in several seeds have independent places. Those without an answer, which no
        rate counts, are left out.
        """
        texts: dict[str, Texts] = {}
        strata: dict[StratumId, dict[str, str]] = {}
        repeats: Counter[tuple[StratumId, str]] = Counter()
        seeds = directory.read_protocol(JudgedProtocol).seeds
        outcomes = [outcome for seed in seeds for outcome in read_outcomes(directory, seed)]
        for c, outcome in zip(completions_with_texts(directory), outcomes, strict=True):
            row, stratum = row_id(salt, c.prompt, c.completion), StratumId(outcome.arm, outcome.side, outcome.cls)
            if outcome.arm.is_own and outcome.has_answer and row not in strata.setdefault(stratum, {}):
                texts[row] = Texts(c.prompt, c.completion)
                strata[stratum][row] = sha256([salt, c.prompt, repeats[stratum, c.prompt]])
                repeats[stratum, c.prompt] += 1
        order = sorted(strata, key=lambda s: (s.arm, s.side, s.cls))
        return cls(texts, {s: tuple(sorted(strata[s], key=strata[s].__getitem__)) for s in order})

    def drawn(self, size: int) -> dict[StratumId, tuple[str, ...]]:
        """The rows of every stratum in a sheet of `size` rows, or of all rows if there are fewer."""
        ids, counts, sheet = list(self.strata), Counter[StratumId](), set[str]()
        for s in next_strata([len(self.strata[s]) for s in ids]):
            if len(sheet) >= size and all(counts[stratum] for stratum in ids):
                break
            sheet.add(self.strata[ids[s]][counts[ids[s]]])
            counts[ids[s]] += 1
        return {s: self.strata[s][: counts[s]] for s in ids}

    def rows(self, size: int) -> list[str]:
        """The ids of the rows of a sheet, in its order."""
        # An id is a hash, so this order is random.
        return sorted({row for rows in self.drawn(size).values() for row in rows})


def read_outcomes(directory: RunDirectory, seed: int) -> list[Outcome]:
    """The outcomes of a seed, with the classes that the rates of the run count."""
    return measured_outcomes(directory.read_rows(Outcome, seed))


def row_id(salt: str, prompt: str, completion: str) -> str:
    """The id of a completion: a hash of its texts. It begins with a letter, so no program takes it for a number."""
    return "r" + sha256([salt, prompt, completion])[:12]


def labels_for(judge: str) -> tuple[HumanLabel, ...]:
    """The labels that a person can give: the classes of the run's judge without `unscored`, and `unclear`."""
    if judge in CONTINUOUS_JUDGES:
        return "shown", "absent", "degenerate", "unclear"
    return "refused", "complied", "degenerate", "unclear"


# -- writing ----------------------------------------------------------------------------------------------------------


class WrittenSheet(NamedTuple):
    """A sheet that was written."""

    path: Path
    rows: int
    available: int
    """Rows of the largest possible sheet."""
    labels: tuple[HumanLabel, ...]
    strata: int
    thin: int
    """Strata with one row in the sheet and more in the run."""


def write_sheet(path: str | Path, n: int, out: str | Path | None = None) -> WrittenSheet:
    """Write a sheet of `n` completions of a run, by default beside the run directory.

    Raises OutputError if the run has no texts, and InputError if `n` is too small or the file exists.
    """
    directory = RunDirectory.read(path)
    sheet = Path(out) if out is not None else default_sheet(directory.path)
    check_writable(sheet.parent)
    if sheet.is_symlink():
        raise InputError(f"{sheet} is a link. Pass another --out.")
    if sheet.resolve().is_relative_to(directory.path.resolve()):
        raise InputError(
            f"{sheet} is in the run directory, which `verify` compares with its records. Pass another --out."
        )
    if sheet.exists():
        raise InputError(f"{sheet} exists and may contain labels. Pass another --out, or remove it.")
    key = _key(directory)
    frame = Frame.of(directory, key.salt)
    rows, drawn = frame.rows(n), frame.drawn(n)
    if len(rows) > n:
        raise InputError(
            f"--n {n}: every stratum (arm, set and class of the judge) needs a row, which takes {len(rows)} rows. Pass "
            f"{len(rows)} or more."
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([row, cell(frame.texts[row].prompt), cell(frame.texts[row].completion), ""] for row in rows)
    directory.write_record(replace(key, sizes=tuple(sorted({*key.sizes, len(rows)}))))
    # Spreadsheet programs recognise UTF-8 by the byte order mark.
    write_bytes(sheet, text.getvalue().encode("utf-8-sig"))
    thin = sum(len(some) == 1 < len(frame.strata[stratum]) for stratum, some in drawn.items())
    labels = labels_for(directory.read_protocol(JudgedProtocol).judge)
    return WrittenSheet(sheet, len(rows), len(frame.texts), labels, len(drawn), thin)


def default_sheet(run: Path) -> Path:
    """The path of a sheet beside its run directory."""
    return run.resolve().with_name(f"{run.resolve().name}-labels.csv")


def _key(directory: RunDirectory) -> SheetKey:
    return directory.read_record(SheetKey) if directory.has(SheetKey) else SheetKey(token_hex(16), ())


LONGEST_HEADER = 10_000
"""Characters of the first line of a sheet that are read."""
_FORMULA = re.compile(r"\W*?[=+\-@＝＋－＠]")
_WORD = re.compile(r"[^\W\d_]+")
_IN_NUMBER = re.compile("e|am?|pm?|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec).*")
"""Words of a number, a time or a date."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cell(text: str) -> str:
    """A text as a cell that spreadsheet programs leave as it is. `text_of` is the inverse.

    A text that begins like a formula, or that could be a number or a date, gets an apostrophe in front. Line endings
    become \\n, and control characters U+FFFD.
    """
    text = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
    return f"'{text}" if _needs_apostrophe(text) else text


def text_of(cell: str) -> str:
    """The text of a cell."""
    return cell[1:] if cell.startswith("'") and _needs_apostrophe(cell[1:]) else cell


def _needs_apostrophe(text: str) -> bool:
    bare = text.lstrip("'").strip().casefold()
    is_number = any(c.isdigit() for c in bare) and all(_IN_NUMBER.fullmatch(word) for word in _WORD.findall(bare))
    return (len(bare) <= SHORT and (is_number or bare in ("true", "false"))) or bool(_FORMULA.match(text))


# -- reading ----------------------------------------------------------------------------------------------------------


class Sheet(NamedTuple):
    """A sheet that was read."""

    size: int
    """Rows of the sheet as it was written."""
    labels: dict[str, HumanLabel]
    """By row id; rows without a label are left out."""


def read_sheet(path: Path, frame: Frame, key: SheetKey, allowed: Iterable[HumanLabel]) -> Sheet:
    """The labels of a sheet. Raises InputError that lists every fault."""
    lines = _lines(path)
    count = Counter(line.row for line in lines)
    known = {row for row in count if row in frame.texts}
    if not lines:
        raise InputError(
            f"{path} has no rows below its header. Pass the sheet that `rhumbline label` wrote, with labels."
        )
    if not known:
        raise InputError(
            f"{path}: none of its rows belongs to this run, so it is the sheet of another run. Pass the sheet that "
            "`rhumbline label` wrote for this run."
        )
    size = next((size for size in key.sizes if known <= set(frame.rows(size))), key.sizes[-1])
    expected = set(frame.rows(size))
    words: dict[str, HumanLabel] = {label: label for label in allowed}
    labels: dict[str, HumanLabel] = {}
    faults = _Faults()
    for line in lines:
        if line.row not in expected:
            faults.add("rows of no sheet of this run", f"{line.row!r} in row {line.number}")
        elif count[line.row] > 1:
            faults.add("rows that occur more than once", f"{line.row} in row {line.number}")
        elif not (
            _same(line.prompt, frame.texts[line.row].prompt)
            and _same(line.completion, frame.texts[line.row].completion)
        ):
            faults.add("changed texts", f"{line.row} in row {line.number}")
        if (label := line.label.strip().casefold()) in words:
            labels[line.row] = words[label]
        elif label:
            faults.add(f"unknown labels (expected {', '.join(words)})", f"{line.label!r} in row {line.number}")
    for row in sorted(expected - count.keys()):
        faults.add("missing rows", row)
    if faults.places:
        raise InputError(f"{path}: {faults}. Correct the sheet, or write it again with `rhumbline label`.")
    if not labels:
        raise InputError(f"{path} has no label. Fill the column label with {', '.join(words)}.")
    return Sheet(size, labels)


class _Faults:
    """Faults by kind, each with its rows."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str) -> None:
        self.places.setdefault(kind, []).append(place)

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {', '.join(places)}" for kind, places in self.places.items())


class _Line(NamedTuple):
    """A row of a file, with its number in a spreadsheet program."""

    number: int
    row: str
    prompt: str
    completion: str
    label: str


def _lines(path: Path) -> list[_Line]:
    """The rows of a sheet that are not empty. The columns can have any order, and others can be between them."""
    text = read_text(path, InputError, "a sheet that `rhumbline label` wrote", "--human")
    first = (text.splitlines() or [""])[0][:LONGEST_HEADER]
    for delimiter in ",;\t":
        header = next(csv.reader([first], delimiter=delimiter), [])
        names = [name.strip().casefold() for name in header]
        if all(names.count(name) == 1 for name in COLUMNS):
            break
    else:
        raise InputError(
            f"{path} needs the columns {', '.join(COLUMNS)}, each once. Pass a sheet that `rhumbline label` wrote."
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        with long_cells():
            rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}. Save the sheet as CSV (UTF-8).") from error
    places = [names.index(name) for name in COLUMNS]
    missing = [""] * (max(places) + 1)
    full = [(number, [*cells, *missing[len(cells) :]]) for number, cells in enumerate(rows, 1) if any(cells)]
    return [_Line(number, *(cells[i].strip() for i in places)) for number, cells in full[1:]]


def _same(cell_text: str, text: str) -> bool:
    """Whether a cell has the text of the run. White space and the apostrophe can differ: some programs change them."""
    given = " ".join(cell_text.split())
    return given in (" ".join(cell(text).split()), " ".join(text_of(cell(text)).split()))
