"""One seed of a finished run with its model and prompts, and the measurements that several analyses make on them.

Model, template and prompts are those of the run, by fingerprint and hash; others are refused. A run directory contains
no prompts, so the contrast is read again; a model organism has its own.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.stored_parts import ResumableRunner, StoredParts
from rhumbline.axes import Candidates
from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.statistics import bootstrap_mean
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import LABELS, SPLITS, ContrastSet, Label, Prompt, Split, Splits
from rhumbline.protocol import Protocol
from rhumbline.records.analysis_files import LayerMean, Mean, Need
from rhumbline.records.artefacts import AnalysisRecord
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import MetricTokens, Selection
from rhumbline.records.shared import ByLabel, Site, TrainVal
from rhumbline.report import build as report
from rhumbline.stages.finished_run import RunInputs, open_run

Record = TypeVar("Record", bound=AnalysisRecord)

SITE_FAMILIES = ("isotropic", "covariance", "shuffled-site")
"""Null families that are drawn at one site and need no further model pass."""


@dataclass(frozen=True)
class Subject:
    """One seed of a finished run, opened for analyses."""

    directory: RunDirectory
    model: ChatModel
    chat: Chat
    seed: int
    splits: Splits
    positions: tuple[Position, ...]
    """Positions of the candidates."""
    candidates: Candidates
    """Un-normalised differences in means."""
    direction: Direction | None
    """The selected direction; None if no candidate passed."""
    metric: TokenMetric
    """The metric of the run; without tokens if there are none."""
    kept: TrainVal[ByLabel[tuple[bool, ...]]]
    """Whether the sign of the metric keeps each prompt."""
    parts: StoredParts
    """What is kept of an analysis that is not finished."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows after each batch."""
    page: bool = True
    """Whether the report is drawn again after a record is written."""
    start: tuple[int, ...] = ()
    """Generated tokens after which the metric is read."""

    @property
    def spared(self) -> int:
        """Tokens at the start of a text that the ablations of the run spare."""
        return Protocol.of(self.directory.protocol).ablation.spared

    @property
    def runner(self) -> Runner:
        """A runner of the model, whose completions are kept until a record is written."""
        return ResumableRunner(self.model, tick=self.tick, parts=self.parts)

    @property
    def scorer(self) -> Scorer:
        """The token metric of the run. Raises ProtocolError if it has no tokens."""
        _check_tokens(self.directory, self.tokens)
        excluded = self.tokens if Protocol.of(self.directory.protocol).selection.kl_outside else ()
        return Scorer(self.runner, self.metric, excluded, self.start)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the tokens of the metric; empty if there are none."""
        return self.metric.tokens

    def ablation(self, direction: Direction) -> Ablate:
        """The ablation of a direction as the run tests it."""
        return Ablate(direction, spared=self.spared)

    def addition(self, direction: Direction) -> Add:
        """The addition of a direction as the run tests it."""
        return Add(direction, self.coefficient, Protocol.of(self.directory.protocol).addition.positions)

    def after_start(self, prompts: ByLabel[list[list[int]]]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the positives and negatives, followed by the tokens after which the metric is read."""
        positive, negative = ([[*ids, *self.start] for ids in prompts[label]] for label in LABELS)
        return positive, negative

    def selected(self) -> Direction:
        """The selected direction. Raises ProtocolError if no candidate passed."""
        return _selected(self.directory, self.seed, self.direction)

    def sequences(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts of one class, in the order of `prompts`."""
        return [self.chat.encode(prompt) for prompt in self.prompts(split, label)]

    def prompts(self, split: Split, label: Label) -> list[Prompt]:
        """The prompts of one class: train and validation after the filter, test without it."""
        prompts = self.splits.get(split, label)
        if split == "test":
            return list(prompts)
        return [prompt for prompt, kept in zip(prompts, self.kept[split][label], strict=True) if kept]

    @property
    def site(self) -> Site | None:
        """The selected site; None if no candidate passed."""
        return None if self.direction is None else self.selected_site()

    @property
    def coefficient(self) -> float:
        """The coefficient of the additions of the run, in units of the norm of the direction."""
        return self.directory.read_record(Selection, self.seed).addition_coefficient

    def selected_site(self) -> Site:
        """The selected site. Raises ProtocolError if no candidate passed."""
        direction = self.selected()
        return Site(direction.position, direction.layer)

    def save(self, record: Record) -> Record:
        """Write the record of an analysis, and the report if `page`; returns the record as it will be read."""
        saved = self.directory.write_record(record)
        self.parts.clear()
        if self.page:
            report.build(self.directory.path)
        return saved


def open_subject(
    run: str | Path,
    model: ChatModel | str | None = None,
    contrast: ContrastSet | str | Path | None = None,
    *,
    seed: int | None = None,
    inputs: RunInputs = RunInputs(),  # noqa: B008
    tick: Callable[[int], None] = lambda rows: None,
    needs: Collection[Need] = (),
) -> Subject:
    """Open one seed of a finished run (default: its first) for analyses.

    `model` and `contrast` can be omitted for a run of a model organism; `inputs` contains what else the run needs.
    Raises InputError if the model, template or contrast is not that of the run, or if positions are in responses, and,
    before the model is loaded, ProtocolError if the run lacks what the analysis needs.
    """
    finished = open_run(run)
    artefacts = finished.artefacts(seed)
    if any(position.is_in_response for position in artefacts.positions):
        raise InputError(
            f"{run} read its direction from responses, and analyses read prompts. Use a run with --positions "
            "post-instruction, last-token or last-instruction."
        )
    inputs = replace(inputs, model=model or inputs.model, contrast=contrast or inputs.contrast)
    _ = finished.results  # refuses an unfinished run
    metric = finished.directory.read_record(MetricTokens, artefacts.seed)
    if "direction" in needs:
        _selected(finished.directory, artefacts.seed, artefacts.direction)
    if "token metric" in needs:
        _check_tokens(finished.directory, metric.tokens)
    if "classes" in needs:
        protocol_with_classes(finished.directory)
    opened = finished.with_model(inputs, seed)
    return Subject(
        finished.directory,
        opened.model,
        opened.chat,
        artefacts.seed,
        opened.splits,
        artefacts.positions,
        artefacts.candidates,
        artefacts.direction,
        TokenMetric(tuple(token.id for token in metric.tokens), metric.threshold),
        artefacts.extraction.kept,
        StoredParts.of(finished.directory.path, finished.directory.protocol_sha256, str(opened.model.device)),
        tick,
        start=() if metric.start is None else metric.start.tokens,
    )


def protocol_with_classes(directory: RunDirectory) -> Protocol:
    """The protocol of a run; ProtocolError if its judge gives no classes."""
    protocol = Protocol.of(directory.protocol)
    if protocol.is_continuous:
        raise ProtocolError(
            f"{directory.path}: judge {protocol.judge} gives a continuous score, and this analysis counts classes of "
            "completions. Use a run of a behaviour with classes, such as refusal."
        )
    return protocol


def _selected(directory: RunDirectory, seed: int, direction: Direction | None) -> Direction:
    if direction is None:
        raise ProtocolError(
            f"{directory.path}: no candidate passed the selection of seed {seed}, so there is no direction to analyse. "
            "Only `rhumbline analyze geometry`, `damage`, `steering` and `trajectory` work without one."
        )
    return direction


def _check_tokens(directory: RunDirectory, tokens: Sequence[object]) -> None:
    if not tokens:
        raise ProtocolError(
            f"{directory.path}: the metric of the run has no tokens (none were found, or it compares the two responses "
            "to each prompt), and this analysis needs a token metric. Use a run with refusal tokens."
        )


def direction_or_best(subject: Subject) -> tuple[Direction, bool]:
    """The selected direction, or the candidate with the lowest bypass score; and whether it was selected.

    Raises ProtocolError if no candidate was scored.
    """
    if subject.direction is not None:
        return subject.direction, True
    table = subject.directory.read_record(Selection, subject.seed).candidates
    scored = [row for row in table if row.bypass is not None and row.kl is not None]
    if not scored:
        raise ProtocolError(
            f"{subject.directory.path}: no candidate of seed {subject.seed} has a bypass and a KL score, so there is "
            "no direction to ablate. Use a run in which candidates were scored."
        )
    row = min(scored, key=lambda row: (row.bypass or 0.0, row.position, row.layer))
    vector = subject.candidates[subject.positions.index(row.position), row.layer]
    return Direction.from_vector(vector, row.position, row.layer), False


# -- measurements -----------------------------------------------------------------------------------------------------


def mean_interval(values: Tensor | np.ndarray) -> Mean:
    """The mean over prompts with its bootstrap interval."""
    return Mean(*bootstrap_mean(np.asarray(values, float), np.random.default_rng(0), draws=1000))


def layer_means(values: Iterable[Tensor]) -> tuple[LayerMean, ...]:
    """The mean over prompts in every layer, from the values of each layer."""
    means = (mean_interval(v) for v in values)
    return tuple(LayerMean(layer, m.mean, m.low, m.high, m.n) for layer, m in enumerate(means))


def residuals_at(
    runner: Runner, sequences: list[list[int]], position: Position
) -> Float[Tensor, "prompt layer d_model"]:
    """Every block input of every prompt at one position, float32 on the CPU."""
    values = torch.zeros(len(sequences), runner.model.n_layers, runner.model.d_model)
    for prompt, h, _ in runner.residuals(sequences, [position]):
        values[prompt] = h[:, 0].float().cpu()
    return values


@dataclass(frozen=True)
class MeasuredSet:
    """Token ids of the prompts of one split, and their token metric under arms."""

    scorer: Scorer
    positive: list[list[int]]
    negative: list[list[int]]
    baseline: Float[Tensor, "prompt vocab"]
    """Next-token logits of the negatives at baseline."""
    known: dict[Hashable, Float[Tensor, " prompt"]] = field(default_factory=dict, repr=False, compare=False)
    """Values that were measured before, by what was measured and the interventions of the arm."""

    @classmethod
    def of(cls, scorer: Scorer, positive: list[list[int]], negative: list[list[int]]) -> "MeasuredSet":
        """The prompts, with their logits at baseline."""
        return cls(scorer, positive, negative, scorer.baseline(negative))

    def metric(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """Token metric of the positives, log-odds."""
        return self._measured("metric", arms, lambda some: self.scorer.read(self.positive, some).metric)

    def induced(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """Token metric of the negatives, log-odds."""
        return self._measured("induced", arms, lambda some: self.scorer.read(self.negative, some).metric)

    def kl(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """KL divergence of the next-token distribution of the negatives, baseline to arm, nats."""
        return self._measured("kl", arms, lambda some: self.scorer.kl(self.negative, some, self.baseline))

    def _measured(
        self, what: str, arms: Sequence[Arm], measure: Callable[[Sequence[Arm]], Tensor]
    ) -> Float[Tensor, "arm prompt"]:
        """The values of every arm. Arms with the same interventions are measured once, in this and in later calls."""
        keys = [(what, arm.key) for arm in arms]
        new = {key: arm for key, arm in zip(keys, arms, strict=True) if key not in self.known}
        if new:
            self.known.update(zip(new, measure([*new.values()]), strict=True))
        return torch.stack([self.known[key] for key in keys])


@dataclass(frozen=True)
class AnalysisPrompts:
    """The prompts of every split."""

    train: ByLabel[list[list[int]]]
    val: MeasuredSet
    test: MeasuredSet

    @classmethod
    def of(cls, subject: Subject, n_test: int) -> "AnalysisPrompts":
        """The prompts of a run, with at most `n_test` test prompts per class. InputError if a class is empty."""
        train, val, test = ([subject.sequences(split, c) for c in LABELS] for split in SPLITS)
        test = [sequences[:n_test] for sequences in test]
        if not all(len(sequences) for sequences in (*train, *val, *test)):
            raise InputError(
                f"{subject.directory.path}: a class of a split has no prompt left after the metric's filter, and the "
                "analysis needs one of each. Use a run with more prompts."
            )
        scorer = subject.scorer
        return cls(ByLabel(*train), MeasuredSet.of(scorer, *val), MeasuredSet.of(scorer, *test))
