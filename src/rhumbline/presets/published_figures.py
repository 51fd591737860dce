"""What the paper published in numbers besides rates and sites, as data (published_figures.toml).

Every figure has its source, and what a run needs so that it is measured. Independent of how a run is computed.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from rhumbline.records.arms import ABLATION, BASELINE, SUBTRACTION, ArmId
from rhumbline.records.codec import convert
from rhumbline.records.outcome_rows import Text

N_HARMBENCH = 159
"""Standard behaviours of the HarmBench test set."""
ARMS = (BASELINE, ABLATION, SUBTRACTION)
"""Arms of the published losses and scores, in the order of the table."""


class FigureKind(StrEnum):
    """What a published figure is."""

    SCORE = "score of the selected direction"
    LOSS = "cross-entropy"
    RUN_LOSS = "cross-entropy, authors' run"
    BENCHMARK = "benchmark"
    HARMBENCH = "HarmBench attack success"
    REFUSAL = "refusal or safety score, table 8"


class Condition(StrEnum):
    """The system prompt of a HarmBench evaluation."""

    DEFAULT = "default system prompt"
    NONE = "no system prompt"
    LLAMA_2 = "system prompt of Llama 2"


@dataclass(frozen=True)
class PublishedFigure:
    """One published number, and its key: those of the fields `score` to `condition` that its kind has."""

    kind: FigureKind
    value: float
    source: str
    baseline: float | None = None
    """The same of the unedited model, for a loss or a benchmark of an edited one."""
    score: str | None = None
    """`bypass`, `induce` or `kl`; `refusal` or `safety`."""
    text: Text | None = None
    task: str | None = None
    arm: ArmId | None = None
    condition: Condition | None = None

    @property
    def what(self) -> str:
        """The figure in words."""
        parts = (self.score, self.text, self.task, self.condition, self.arm)
        return f"{self.kind}: {', '.join(str(part) for part in parts if part is not None)}"


@dataclass(frozen=True)
class _Row:
    """The figures of one model in the table."""

    selection: tuple[float, float, float]
    benchmarks: tuple[tuple[float, float], ...]
    losses: tuple[tuple[float, float, float], ...]
    run_losses: tuple[tuple[float, float, float], ...] = ()
    harmbench: tuple[float, float, float] | None = None
    harmbench_llama_2_system: float | None = None
    refusal: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Table:
    tasks: tuple[str, ...]
    texts: tuple[Text, ...]
    models: Mapping[str, _Row]


@cache
def _table() -> _Table:
    text = (files("rhumbline.presets") / "published_figures.toml").read_text(encoding="utf-8")
    return convert(tomllib.loads(text), _Table)


def published_figures(name: str) -> tuple[PublishedFigure, ...]:
    """The figures of a model by its name in models.toml; empty if the paper has none."""
    table = _table()
    row = table.models.get(name)
    return () if row is None else tuple(_figures(table, row))


def _figures(table: _Table, row: _Row) -> Iterator[PublishedFigure]:
    for score, value in zip(("bypass", "induce", "kl"), row.selection, strict=True):
        yield PublishedFigure(FigureKind.SCORE, value, "paper, table 5, appendix C.2", score=score)
    for scores, arm in zip(row.refusal, ARMS, strict=False):
        for score, value in zip(("refusal", "safety"), scores, strict=True):
            yield PublishedFigure(FigureKind.REFUSAL, value, "paper, table 8, appendix I.2", score=score, arm=arm)
    yield from _losses(FigureKind.LOSS, "paper, table 7, appendix G.3", table, row.losses)
    yield from _losses(FigureKind.RUN_LOSS, "9d852fa, pipeline/runs, loss_evals", table, row.run_losses)
    for task, (edited, unedited) in zip(table.tasks, row.benchmarks, strict=True):
        source = "paper, table 6, appendix G.1"
        yield PublishedFigure(FigureKind.BENCHMARK, unedited, source, task=task, arm=BASELINE)
        yield PublishedFigure(FigureKind.BENCHMARK, edited, source, unedited, task=task, arm=ABLATION)
    source = "paper, table 2, section 4.2"
    places = ((ABLATION, Condition.DEFAULT), (ABLATION, Condition.NONE), (BASELINE, Condition.DEFAULT))
    for (arm, condition), value in zip(places, row.harmbench or (), strict=False):
        yield PublishedFigure(FigureKind.HARMBENCH, value, source, arm=arm, condition=condition)
    if (value := row.harmbench_llama_2_system) is not None:
        source, condition = "paper, version 3, table 7, appendix F.2", Condition.LLAMA_2
        yield PublishedFigure(FigureKind.HARMBENCH, value, source, arm=ABLATION, condition=condition)


def _losses(
    kind: FigureKind, source: str, table: _Table, rows: tuple[tuple[float, float, float], ...]
) -> Iterator[PublishedFigure]:
    for text, losses in zip(table.texts, rows, strict=False):
        for arm, value in zip(ARMS, losses, strict=True):
            baseline = None if arm == BASELINE else losses[0]
            yield PublishedFigure(kind, value, source, baseline, text=text, arm=arm)
