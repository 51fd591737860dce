"""Human labels of a run: its label sheets and outcomes -> judgements/human.json.

Guarantees: the same sheets give the same record, so `verify` recomputes it. Sheets are copied into the run directory.
Independent of how a sheet is written.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rhumbline.errors import InputError
from rhumbline.evidence.class_rates import SHOWN
from rhumbline.evidence.compared_arms import EFFECTS, OutcomeTable, outcomes_by_arm
from rhumbline.evidence.human_labels import RowLabel, Stratum, corrected_change, corrected_rate, judge_accuracy
from rhumbline.evidence.readouts import agreement_of
from rhumbline.evidence.statistics import difference_of_rates, finite_or_none, paired_difference, wilson_of_rate
from rhumbline.judging.label_sheets import Frame, Sheet, StratumId, labels_for, read_outcomes, read_sheet
from rhumbline.records.arms import BASELINE, ArmId, ArmKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import file_sha256, write_bytes
from rhumbline.records.human_files import (
    CorrectedEffect,
    CorrectedRate,
    Estimate,
    HumanLabel,
    HumanLabels,
    JudgeAccuracy,
    RateOf,
    SheetFile,
    SheetKey,
)
from rhumbline.records.protocol_file import JudgedProtocol
from rhumbline.records.shared import Class, EffectName, KappaPair, Label

COPIES = "judgements/labels-*.csv"
"""Copies of the sheets inside the run directory."""


def apply_labels(path: str | Path, sheets: Sequence[str | Path]) -> HumanLabels:
    """Read the sheets of a run, one for each annotator, and write and return what follows from them.

    Raises InputError if a sheet has faults or is not of this run, and OutputError for a run without texts.
    """
    directory, paths = RunDirectory.read(path), [Path(sheet) for sheet in sheets]
    if repeated := sorted(name for name, n in Counter(p.name for p in paths).items() if n > 1):
        raise InputError(f"--human: several sheets are named {', '.join(repeated)}. Rename them, and pass each once.")
    record = _results(directory, {p.name: p for p in paths})
    data = [p.read_bytes() for p in paths]
    for copy in directory.path.glob(COPIES):
        copy.unlink()
    for number, sheet in enumerate(data, 1):
        write_bytes(_copy(directory, number), sheet)
    return directory.write_record(record)


def recomputed(directory: RunDirectory) -> HumanLabels:
    """The record of a run from the copies of its sheets. Raises RhumblineError if they are missing or have faults."""
    sheets = directory.read_record(HumanLabels).sheets
    return _results(directory, {sheet.name: _copy(directory, n) for n, sheet in enumerate(sheets, 1)})


def _copy(directory: RunDirectory, number: int) -> Path:
    return directory.path / COPIES.replace("*", str(number))


def _results(directory: RunDirectory, paths: Mapping[str, Path]) -> HumanLabels:
    if not directory.has(SheetKey):
        raise InputError(f"{directory.path} has no label sheet. Write one with `rhumbline label {directory.path}`.")
    key, protocol = directory.read_record(SheetKey), directory.read_protocol(JudgedProtocol)
    judge = protocol.judge
    frame = Frame.of(directory, key.salt)
    sheets = {name: read_sheet(path, frame, key, labels_for(judge)) for name, path in paths.items()}
    labels = _Labels.of(frame, list(sheets.values()))
    tables = {
        seed: outcomes_by_arm([row for row in read_outcomes(directory, seed) if row.has_answer])
        for seed in protocol.seeds
    }
    together = [tables] if len(tables) > 1 else []
    parts = [*({seed: table} for seed, table in tables.items()), *together]
    return HumanLabels(
        judge=judge,
        sheets=tuple(_described(name, paths[name], frame, sheet) for name, sheet in sheets.items()),
        agreement=tuple(pair for one, other in combinations(sheets.items(), 2) for pair in _agreement(one, other)),
        needed=tuple(rows[0] for s, rows in labels.drawn.items() if not labels.stratum(s, SHOWN)),
        accuracy=_accuracy(labels, tables),
        rates=tuple(rate for part in parts for rate in _rates(labels, part)),
        effects=tuple(effect for part in parts for effect in _effects(labels, part)),
    )


def _described(name: str, path: Path, frame: Frame, sheet: Sheet) -> SheetFile:
    unclear = sum(label == "unclear" for label in sheet.labels.values())
    return SheetFile(name, file_sha256(path), len(frame.rows(sheet.size)), len(sheet.labels), unclear)


def _agreement(one: tuple[str, Sheet], other: tuple[str, Sheet]) -> list[KappaPair]:
    """The agreement of two sheets; empty if they share no clear label."""
    a, b = ({row: label for row, label in sheet.labels.items() if label != "unclear"} for _, sheet in (one, other))
    both = sorted(a.keys() & b.keys())
    return [agreement_of((one[0], other[0]), [a[row] for row in both], [b[row] for row in both])] if both else []


# -- labels by stratum ------------------------------------------------------------------------------------------------


class _Labels(NamedTuple):
    """The labels of all sheets."""

    frame: Frame
    drawn: Mapping[StratumId, tuple[str, ...]]
    """The rows of the largest sheet by stratum."""
    of_row: Mapping[str, tuple[HumanLabel, ...]]
    """One label of each annotator who labelled the row."""

    @classmethod
    def of(cls, frame: Frame, sheets: Sequence[Sheet]) -> "_Labels":
        of_row: dict[str, tuple[HumanLabel, ...]] = {}
        for sheet in sheets:
            for row, label in sheet.labels.items():
                of_row[row] = (*of_row.get(row, ()), label)
        return cls(frame, frame.drawn(max(sheet.size for sheet in sheets)), of_row)

    def stratum(self, stratum: StratumId, shown: frozenset[str]) -> Stratum:
        """The labels of a stratum; those in `shown` show what is counted."""
        return [self._row_label(row, shown) for row in self.drawn[stratum] if row in self.of_row]

    def strata(self, arm: ArmId, side: Label, shown: frozenset[str]) -> dict[Class, Stratum]:
        """The labels of one arm on one set, by the class of the judge."""
        return {s.cls: self.stratum(s, shown) for s in self.drawn if (s.arm, s.side) == (arm, side)}

    def _row_label(self, row: str, shown: frozenset[str]) -> RowLabel:
        given = self.of_row[row]
        hits, clear = sum(label in shown for label in given), sum(label != "unclear" for label in given)
        return RowLabel(self.frame.texts[row].prompt, hits / len(given), clear / len(given))


# -- rates ------------------------------------------------------------------------------------------------------------

COUNTED: Mapping[RateOf, frozenset[str]] = {"behaviour": SHOWN, "degenerate": frozenset({"degenerate"})}
"""Classes and labels that each rate counts."""
_Tables = Mapping[int, OutcomeTable]
"""The outcomes of some seeds, by arm and set, then by prompt."""


def _cells(tables: _Tables) -> list[tuple[ArmId, Label]]:
    """The direction's own arms on each set."""
    cells = dict.fromkeys(cell for table in tables.values() for cell in table if cell[0].is_own)
    return sorted(cells, key=lambda cell: (cell[0], cell[1] == "negative"))


def _weighted(tables: _Tables, arm: ArmId, side: Label) -> list[tuple[Class, float]]:
    """The class of every completion, weighted so that a prompt that several seeds test counts once."""
    rows = [row for table in tables.values() for row in table.get((arm, side), {}).values()]
    times = Counter(row.prompt_id for row in rows)
    return [(row.cls, 1 / times[row.prompt_id]) for row in rows]


def _sum(rows: Sequence[tuple[Class, float]], counts: Callable[[Class], bool]) -> float:
    return sum(weight for cls, weight in rows if counts(cls))


def _seed(tables: _Tables) -> int | None:
    return next(iter(tables)) if len(tables) == 1 else None


def _rates(labels: _Labels, tables: _Tables) -> list[CorrectedRate]:
    rates = []
    for arm, side in _cells(tables):
        rows = _weighted(tables, arm, side)
        for of, shown in COUNTED.items():
            strata = labels.strata(arm, side, shown)
            sizes = [_sum(rows, lambda c, cls=cls: c == cls) for cls in strata]
            corrected = corrected_rate(sizes, list(strata.values()), np.random.default_rng(0))
            rate = _judged(rows, shown)
            rates.append(CorrectedRate(seed=_seed(tables), arm=arm, side=side, of=of, judged=rate, corrected=corrected))
    return rates


def _judged(rows: Sequence[tuple[Class, float]], shown: frozenset[str]) -> Estimate:
    """The rate by the judge's classes, with Wilson's interval."""
    n = _sum(rows, lambda cls: cls != "unscored")
    if not n:
        return Estimate(None, None, None, 0)
    rate = _sum(rows, lambda cls: cls in shown) / n
    return Estimate(rate, *wilson_of_rate(rate, n), round(n))


def _accuracy(labels: _Labels, tables: _Tables) -> tuple[JudgeAccuracy, ...]:
    """Sensitivity and specificity under every arm, over both sets and all seeds."""
    accuracy = []
    for arm in dict.fromkeys(arm for arm, _ in _cells(tables)):
        sizes, strata, finds = [], [], []
        for side in ("positive", "negative"):
            rows = _weighted(tables, arm, side)
            for cls, stratum in labels.strata(arm, side, SHOWN).items():
                if cls != "unscored":
                    sizes.append(_sum(rows, lambda c, cls=cls: c == cls))
                    strata.append(stratum)
                    finds.append(cls in SHOWN)
        accuracy.append(
            JudgeAccuracy(arm=arm, **judge_accuracy(sizes, strata, finds, np.random.default_rng(0))._asdict())
        )
    return tuple(accuracy)


# -- effects ----------------------------------------------------------------------------------------------------------


def _effects(labels: _Labels, tables: _Tables) -> list[CorrectedEffect]:
    """The change from the baseline to every other arm of the direction."""
    names: dict[tuple[ArmId, Label], EffectName] = {(effect.arm, effect.label): effect.name for effect in EFFECTS}
    effects = []
    for arm, side in _cells(tables):
        if arm.is_baseline:
            continue
        arms = (BASELINE, arm) if arm.kind is ArmKind.ABLATION else (arm, BASELINE)
        pairs = _pairs(tables, *arms, side)
        one, other = (labels.strata(a, side, SHOWN) for a in arms)
        sizes = np.array([[pairs.get((a, b), 0.0) for b in other] for a in one], dtype=float)
        effects.append(
            CorrectedEffect(
                seed=_seed(tables),
                arm=arm,
                side=side,
                name=names.get((arm, side)),
                judged=_judged_change(pairs, is_one_seed=len(tables) == 1),
                corrected=corrected_change(sizes, list(one.values()), list(other.values()), np.random.default_rng(0)),
            )
        )
    return effects


def _pairs(tables: _Tables, one: ArmId, other: ArmId, side: Label) -> dict[tuple[Class, Class], float]:
    """The number of prompts by their classes in two arms; a prompt that several seeds test counts once."""
    classes: list[tuple[str, Class, Class]] = [
        (prompt, row.cls, table[other, side][prompt].cls)
        for table in tables.values()
        for prompt, row in table.get((one, side), {}).items()
        if prompt in table.get((other, side), {})
    ]
    times = Counter(prompt for prompt, *_ in classes)
    pairs: dict[tuple[Class, Class], float] = {}
    for prompt, a, b in classes:
        pairs[a, b] = pairs.get((a, b), 0.0) + 1 / times[prompt]
    return pairs


def _judged_change(pairs: Mapping[tuple[Class, Class], float], *, is_one_seed: bool) -> Estimate:
    """The change by the judge's classes, over the prompts that are scored in both arms.

    The interval is Newcombe's: paired in one seed, and of independent rates over several.
    """
    scored = {pair: n for pair, n in pairs.items() if "unscored" not in pair}
    total = sum(scored.values())
    if not total:
        return Estimate(None, None, None, 0)
    if is_one_seed:
        flags = [(a in SHOWN, b in SHOWN) for (a, b), n in scored.items() for _ in range(round(n))]
        one, other = np.array(flags, dtype=bool).T
        change = paired_difference(one, other)
    else:
        one, other = (sum(n for pair, n in scored.items() if pair[k] in SHOWN) / total for k in (0, 1))
        change = difference_of_rates(one, other, n=total)
    return Estimate(finite_or_none(change.mean), change.low, change.high, round(total))
