"""Small run directories with completions, and annotators who fill label sheets."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from make_outcomes import outcome
from rhumbline.records.directory import RunDirectory
from rhumbline.records.outcome_rows import Outcome

SHOWN = {"positive": {"baseline", "addition"}, "negative": {"addition"}}
"""Arms under which the behaviour is there, by set."""
ARMS = {"positive": ("baseline", "ablation"), "negative": ("baseline", "addition", "ablation")}


def is_refusal(completion: str) -> bool:
    """Whether a completion of these runs is a refusal."""
    return completion.startswith("No")


def label(prompt: str, completion: str) -> str:
    """The label of an annotator without errors."""
    return "refused" if is_refusal(completion) else "complied"


def rows_of(
    seed: int, n: int = 12, judge: Callable[[str, str], str] = lambda arm, text: label("", text)
) -> list[Outcome]:
    """The outcomes of a seed; `judge` gives the class of a completion under an arm."""
    rows = []
    for side, arms in ARMS.items():
        for arm in arms:
            for i in range(n):
                # The direction differs between seeds, the baseline does not.
                under = "" if arm == "baseline" else f" ({arm}, seed {seed})"
                text = f"{'No' if arm in SHOWN[side] else 'Yes'}, {i}{under}"
                prompt = f"{side} prompt {i}"
                rows.append(outcome(arm, side, prompt, judge(arm, text), prompt=prompt, completion=text))  # type: ignore[arg-type]
    return rows


def make_labelled_run(into: Path, *seeds: Iterable[Outcome], judge: str = "refusal-opening") -> Path:
    """A run directory that has no more than outcomes: those of each seed."""
    with RunDirectory.open(into, {"seeds": list(range(len(seeds))), "judge": judge}) as directory:
        for seed, rows in enumerate(seeds):
            directory.write_rows_as(rows, directory.file_of(Outcome, seed))
    return into


def read_cells(sheet: Path) -> list[list[str]]:
    """The cells of a sheet, with the header."""
    with open(sheet, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def write_cells(sheet: Path, cells: Iterable[Iterable[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """Write cells as a spreadsheet program does."""
    with open(sheet, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(cells)
    return sheet


def fill(sheet: Path, into: Path, annotator: Callable[[str, str], str] = label, rows: int | None = None) -> Path:
    """A copy of a sheet whose first `rows` rows an annotator labelled."""
    header, *cells = read_cells(sheet)
    for row in cells[:rows]:
        row[3] = annotator(row[1], row[2])
    return write_cells(into, [header, *cells])
