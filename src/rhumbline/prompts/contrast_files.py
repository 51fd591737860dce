"""Read contrast files (JSON Lines or CSV) as contrasts, and files of prompts; one error lists every fault of a file.

Independent of how prompts are split and of what they mean.
"""

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from msgspec import ValidationError

from rhumbline.arguments import checked
from rhumbline.errors import ContrastError
from rhumbline.prompts.contrasts import LABELS, SPLITS, ContrastSet, Label, Prompt, content_sha256, near_text
from rhumbline.records.codec import convert
from rhumbline.records.made_contrast import MadeContrast
from rhumbline.records.unicode_text import nfkc, visible
from rhumbline.records.user_files import control_character, is_unicode, long_cells, read_text, text_lines

COLUMNS = ("prompt", "label", "split", "system", "response", "category", "id", "answer", "other_response")
LONGEST = 1_000_000
"""Characters of a cell."""
LONGEST_NAME = 1000
"""Characters of an id, a category or a group, which many rows of a run repeat."""
NAMES = ("category", "id", "group")
NEUTRAL = "neutral"
"""Label of rows of neither class, which are measured only."""

PROMPT_COLUMNS = ("prompt", "category", "id", "answer")
"""Columns of a file of prompts without classes."""
MADE = "made"
"""Key of the first line of a made contrast: how it was made."""
_CONTRAST_FORM = f'{{"prompt": "...", "label": "positive" | "negative"}}, optionally with {", ".join(COLUMNS[2:])}'
_PROMPT_FORM = f'{{"prompt": "..."}}, optionally with {", ".join(PROMPT_COLUMNS[1:])}'
_MOST_FAULTS = 20


class Faults:
    """The faults of one source; the same fault in many rows is one entry."""

    def __init__(self, source: str, what: str = "a contrast", form: str = _CONTRAST_FORM):
        """The file or list, what it is read as, and the form of a row."""
        self.source, self.what, self.form = source, what, form
        self.places: dict[str, list[str]] = {}
        self.count = 0

    def add(self, place: str, message: str) -> None:
        """Add a fault of one row, or of the whole source with an empty place."""
        self.count += 1
        self.places.setdefault(message, []).append(place)

    def raise_if_any(self) -> None:
        """Raise a ContrastError that lists the faults, if there are any."""
        if not self.count:
            return
        lines = []
        for message, places in list(self.places.items())[:_MOST_FAULTS]:
            more = f" (and {len(places) - 3} more)" if len(places) > 3 else ""
            where = ", ".join(places[:3]) + more
            lines.append(f"  {where}: {message}" if where else f"  {message}")
        if len(self.places) > _MOST_FAULTS:
            lines.append(f"  ... and {len(self.places) - _MOST_FAULTS} further faults")
        head, form = f"{self.source} cannot be used as {self.what}:", f"A row is {self.form}."
        raise ContrastError("\n".join([head, *lines, form]))


@checked
def read_contrast(path: str | Path) -> ContrastSet:
    """Read a contrast file: JSON Lines (.jsonl, .json) or CSV with the same columns.

    An empty optional cell is a missing one. Raises one ContrastError that lists every fault.
    """
    path = Path(path)
    faults = Faults(str(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ContrastError(f"{path} is not a contrast file. Use a file named .jsonl (JSON Lines) or .csv.")
    rows = list(reader(read_text(path, ContrastError, "a contrast file (.jsonl or .csv)"), faults))
    made = None
    if rows and rows[0][1].keys() == {MADE}:
        made = _made(*rows.pop(0), faults)
    return replace(_assembled(path.stem, rows, faults), made=made)


def read_prompts(path: str | Path) -> tuple[Prompt, ...]:
    """Read prompts without classes: a .txt file with one per line, or JSON Lines or CSV with `PROMPT_COLUMNS`.

    Near duplicates are read once. Raises one ContrastError that lists every fault. The field `label` is not read.
    """
    path = Path(path)
    faults = Faults(str(path), "a file of prompts", _PROMPT_FORM)
    reader = {**READERS, ".txt": _text_rows}.get(path.suffix.lower())
    if reader is None:
        raise ContrastError(f"{path} is not a file of prompts. Use a file named .txt, .jsonl (JSON Lines) or .csv.")
    rows = list(reader(read_text(path, ContrastError, "a file of prompts (.txt, .jsonl or .csv)"), faults))
    kept: dict[str, Prompt] = {}
    ids: dict[str, str] = {}
    for place, row in rows:
        for column in sorted(row.keys() - set(PROMPT_COLUMNS)):
            faults.add(place, f"unknown column {brief(column)}; columns are {', '.join(PROMPT_COLUMNS)}")
        prompt = _prompt(place, {**{c: row.get(c) for c in PROMPT_COLUMNS}, "label": "positive"}, faults)
        if prompt is not None and kept.setdefault(near_text(prompt.text), prompt) is prompt and prompt.id:
            if prompt.id in ids:
                faults.add(place, f"id {brief(prompt.id)} is also the id of {ids[prompt.id]}; ids must be unique")
            ids.setdefault(prompt.id, place)
    if not rows and not faults.count:
        faults.add("", "the file has no prompts")
    faults.raise_if_any()
    return tuple(kept.values())


def _made(place: str, row: dict[str, Any], faults: Faults) -> MadeContrast | None:
    try:
        return convert(_object(row[MADE]), MadeContrast)
    except ValidationError as error:
        faults.add(place, f"{MADE} is not the record of `rhumbline contrast make`: {error}; remove this line")
        return None


@checked
def contrast_from_prompts(positive: Iterable[str], negative: Iterable[str], name: str = "prompts") -> ContrastSet:
    """A contrast of two lists of instructions. Splits are sampled by seed, as for a file without splits."""
    faults = Faults(name)
    texts_of: dict[Label, Iterable[str]] = {"positive": positive, "negative": negative}
    rows = []
    for label, texts in texts_of.items():
        rows += [(f"{label}[{i}]", {"prompt": text, "label": label}) for i, text in enumerate(texts)]
    return _assembled(name, rows, faults)


def _json_rows(text: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    if text.lstrip().startswith("["):
        faults.add("", "a JSON array; write JSON Lines, one object per line")
        return
    # Not splitlines(): a JSON string can contain U+2028 and similar characters unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except json.JSONDecodeError as error:
            faults.add(place, f"not JSON: {error.msg} at column {error.colno}")
            continue
        except (ValueError, RecursionError):  # Numbers of thousands of digits, or thousands of brackets.
            faults.add(place, "not JSON: too many digits or brackets")
            continue
        if not isinstance(pairs, _Pairs):
            faults.add(place, f"a JSON {type(pairs).__name__}, not an object")
            continue
        row = dict(pairs)
        if len(row) < len(pairs):
            faults.add(place, "a column occurs twice")
        yield place, row


def _text_rows(text: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    del faults  # any text is a prompt
    for number, line in enumerate(text_lines(text), start=1):
        if line.strip():
            yield f"line {number}", {"prompt": line.strip()}


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, with repeated keys."""


def _object(value: Any) -> Any:
    return {key: _object(part) for key, part in value} if isinstance(value, _Pairs) else value


def _csv_rows(text: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    place = "line 1"
    try:
        with long_cells():
            for cells in reader:
                line, place = place, f"line {reader.line_num + 1}"
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    if len(set(header)) < len(header):
                        faults.add(line, "a column occurs twice")
                        return
                elif len(cells) != len(header):
                    faults.add(line, f"{len(cells)} cells under a header of {len(header)} columns")
                else:
                    yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        faults.add(place, f"not CSV: {error}")


READERS = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows}
"""Rows of the text of a file, each with its place, by the ending of its name."""


def _assembled(name: str, rows: list[tuple[str, dict[str, Any]]], faults: Faults) -> ContrastSet:
    """The contrast of these rows: without exact duplicates, every prompt with an id."""
    neutral_rows = [(place, row) for place, row in rows if row.get("label") == NEUTRAL]
    rows = [(place, row) for place, row in rows if row.get("label") != NEUTRAL]
    kept: dict[tuple[str, str, str], tuple[str, Prompt]] = {}
    read = [(place, prompt) for place, row in rows if (prompt := _prompt(place, row, faults)) is not None]
    for place, prompt in read:
        if prompt.content not in kept:
            kept[prompt.content] = (place, prompt)
            continue
        first_place, first = kept[prompt.content]
        if prompt.label != first.label:
            faults.add(place, f"repeats the prompt of {first_place} with the other label; a prompt has one label")
        elif first.split is None:
            kept[prompt.content] = (first_place, replace(first, split=prompt.split))
        elif prompt.split not in (None, first.split):
            faults.add(place, f"repeats the prompt of {first_place} in another split; splits must be disjoint")
    labels: dict[tuple[str, ...], tuple[str, Prompt]] = {}
    for place, prompt in kept.values():
        first_place, first = labels.setdefault(tuple(map(_normalised, prompt.content)), (place, prompt))
        if prompt.label != first.label:
            faults.add(place, f"differs from {first_place} in spaces or forms of characters only, but not in its label")
    neutral = _neutral(neutral_rows, kept.values(), faults)
    taken = _unique_ids([*kept.values(), *neutral], faults)
    if not rows and not faults.count:
        faults.add("", "the file has no prompts")
    elif not faults.count:
        for label in LABELS:
            if all(prompt.label != label for _, prompt in read):
                faults.add("", f"no prompt is labelled {label}; a contrast needs both classes")
        with_response = sum(prompt.response is not None for _, prompt in read)
        if 0 < with_response < len(read):
            faults.add("", f"{with_response} of {len(read)} rows have a response; write one for all rows or for none")
    faults.raise_if_any()
    prompts = with_ids([prompt for _, prompt in kept.values()], taken)
    measured = _numbered([prompt for _, prompt in neutral], taken)
    duplicates = len(read) + len(neutral_rows) - len(prompts) - len(measured)
    return ContrastSet(name, prompts, content_sha256((*prompts, *measured)), duplicates, neutral=measured)


def _neutral(
    rows: list[tuple[str, dict[str, Any]]], classes: Iterable[tuple[str, Prompt]], faults: Faults
) -> list[tuple[str, Prompt]]:
    """The neutral prompts without exact duplicates; `classes` are the prompts of both classes.

    Neutral rows are completed and measured only, so the split can be `test` alone, and a response would not be read.
    """
    in_class = {tuple(map(_normalised, prompt.content[:2])): place for place, prompt in classes}
    kept: dict[tuple[str, ...], tuple[str, Prompt]] = {}
    for place, row in rows:
        prompt = _prompt(place, {**row, "label": "negative"}, faults)
        if prompt is None:
            continue
        if prompt.response is not None:
            faults.add(place, "a neutral row has a response, which is not read; leave it out")
        if prompt.split not in (None, "test"):
            faults.add(place, f"a neutral row is in the split {prompt.split}, but is only measured; leave it out")
        if (first := in_class.get(tuple(map(_normalised, prompt.content[:2])))) is not None:
            faults.add(place, f"repeats the prompt of {first} with the label {NEUTRAL}; a prompt has one label")
        kept.setdefault(prompt.content, (place, prompt))
    return list(kept.values())


def _unique_ids(prompts: Iterable[tuple[str, Prompt]], faults: Faults) -> set[str]:
    """The ids in the file; one that occurs twice is a fault."""
    places: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.id in places:
            faults.add(place, f"id {brief(prompt.id)} is also the id of {places[prompt.id]}; ids must be unique")
        elif prompt.id:
            places[prompt.id] = place
    return set(places)


def _numbered(neutral: Sequence[Prompt], taken: Collection[str]) -> tuple[Prompt, ...]:
    """The neutral prompts, each with an id: its own, or `neutral-` and a number that no other prompt has."""
    taken, named = set(taken), []
    for place, prompt in enumerate(neutral):
        new = next(name for number in count(place) if (name := f"neutral-{number:04d}") not in taken)
        named.append(replace(prompt, id=prompt.id or new))
        taken.add(named[-1].id)
    return tuple(named)


def _prompt(place: str, row: dict[str, Any], faults: Faults) -> Prompt | None:
    """The row as a prompt, with id "" if it has none; None if the row has a fault."""
    before = faults.count
    cells = text_cells(place, row, COLUMNS, ("prompt", "label"), faults)
    for column, allowed in (("label", (*LABELS, NEUTRAL)), ("split", SPLITS)):
        if column in cells and cells[column] not in allowed:
            faults.add(place, f"{column} is {brief(cells[column])}; use one of {', '.join(allowed)}")
    if "other_response" in cells and "response" not in cells:
        faults.add(place, "other_response without a response; write both")
    if faults.count > before:
        return None
    fields: dict[str, Any] = {column: cells.get(column) for column in COLUMNS[1:]}
    return Prompt(cells["prompt"], **{**fields, "id": cells.get("id", "")})


def text_cells(
    place: str, row: dict[str, Any], columns: Sequence[str], required: Collection[str], faults: Faults
) -> dict[str, str]:
    """The texts of a row by column, without empty ones; all other values and columns are added to the faults."""
    for column in sorted(row.keys() - set(columns)):
        faults.add(place, f"unknown column {brief(column)}; columns are {', '.join(columns)}")
    cells: dict[str, str] = {}
    for column in columns:
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            if column in required:
                faults.add(place, f"{column} is {'empty' if value is not None else 'missing'}")
        elif isinstance(value, str) and len(value) > (most := LONGEST_NAME if column in NAMES else LONGEST):
            faults.add(place, f"{column} has {len(value):,} characters; at most {most:,} are read")
        elif not isinstance(value, str):
            faults.add(place, f"{column} is {type(value).__name__} {brief(value)}, not text")
        elif not is_unicode(value):
            faults.add(place, f"{column} contains half of a surrogate pair, which is not text")
        elif (control := control_character(value)) is not None:
            name = f" (id {brief(row['id'])})" if row.get("id") else ""
            faults.add(f"{place}{name}", f"{column} contains the control character {control}; remove it")
        else:
            cells[column] = value
    return cells


def with_ids(prompts: Sequence[Prompt], taken: Collection[str] = ()) -> tuple[Prompt, ...]:
    """The prompts, each with an id: its own, or a new one that no other has."""
    taken, named = {*taken, *(prompt.id for prompt in prompts)}, []
    count = dict.fromkeys(LABELS, 0)
    for prompt in prompts:
        count[prompt.label] += 1
        if not prompt.id:
            while (new := f"{prompt.label[0]}{count[prompt.label]:04d}") in taken:
                count[prompt.label] += 1
            prompt = replace(prompt, id=new)
        named.append(prompt)
    return tuple(named)


def _normalised(text: str) -> str:
    """The text without invisible characters, with compatibility forms replaced, and one space for each gap."""
    return " ".join(nfkc(visible(text)).split())


def brief(value: object) -> str:
    """The beginning of a value, because a shifted column can contain a whole prompt, which messages do not repeat."""
    text = ascii(value)
    return text if len(text) <= 24 else text[:20] + "..."
