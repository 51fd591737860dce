"""judgements/sheet.json and judgements/human.json: how label sheets are drawn, and what follows from human labels."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import EffectName, KappaPair, Label

HumanLabel = Literal["refused", "complied", "shown", "absent", "degenerate", "unclear"]
"""What a person writes into a sheet: the classes of the judge, or `unclear`."""
RateOf = Literal["behaviour", "degenerate"]
"""What a rate counts."""


@dataclass(frozen=True)
class SheetKey:
    """judgements/sheet.json: joins the rows of label sheets with the completions of the run. It contains no arm."""

    salt: str
    """Random text. A row id is a hash of salt, prompt and completion."""
    sizes: tuple[int, ...]
    """Number of rows of every sheet that was written. A smaller sheet is a part of a larger one."""


@dataclass(frozen=True)
class Estimate:
    """A share (0 to 1), or a difference of shares (-1 to 1), with its 95 % interval."""

    value: float | None
    """None if it was not measured."""
    low: float | None
    high: float | None
    n: int
    """Completions of the run; of a difference prompts."""
    labelled: int = 0
    """Completions with a clear human label. The judge's own rates have none."""


@dataclass(frozen=True)
class SheetFile:
    """A sheet that was read; judgements/labels-N.csv is its copy."""

    name: str
    sha256: str
    rows: int
    labelled: int
    """Rows with a label, `unclear` included."""
    unclear: int
    """Rows with the label `unclear`; they are in no rate."""


class JudgeAccuracy(Struct, frozen=True, kw_only=True):
    """How often the judge agrees with the labels under one arm, over both sets and all seeds."""

    arm: ArmId
    sensitivity: Estimate
    """Share of the completions with the behaviour that the judge finds."""
    specificity: Estimate
    """Share of the completions without the behaviour in which the judge finds none."""


class CorrectedRate(Struct, frozen=True, kw_only=True):
    """The rate of one arm on one set, by the judge and corrected by the labels."""

    seed: int | None
    """None: all seeds, where a prompt that several seeds test counts once."""
    arm: ArmId
    side: Label = field(name="set")
    of: RateOf
    judged: Estimate
    corrected: Estimate


class CorrectedEffect(Struct, frozen=True, kw_only=True):
    """The change of the rate from the baseline to an arm, by the judge and corrected by the labels.

    Positive in the expected direction: a fall under ablation, a rise under addition.
    """

    seed: int | None
    """None: all seeds."""
    arm: ArmId
    side: Label = field(name="set")
    name: EffectName | None
    """None for a change that no claim is about."""
    judged: Estimate
    corrected: Estimate


@dataclass(frozen=True)
class HumanLabels:
    """judgements/human.json: human labels, the accuracy of the run's judge, and corrected rates and effects."""

    judge: str
    """The judge of the run."""
    sheets: tuple[SheetFile, ...]
    agreement: tuple[KappaPair, ...]
    """Agreement of every two sheets on the rows that both label clearly."""
    needed: tuple[str, ...]
    """Ids of rows: with a label for each, every stratum has one."""
    accuracy: tuple[JudgeAccuracy, ...]
    rates: tuple[CorrectedRate, ...]
    effects: tuple[CorrectedEffect, ...]
