"""A finished run with its model and prompts again in hand: what every analysis begins from.

Promises that model, template and prompts are those of the run (by fingerprint and hash), or refuses. A run directory
holds no prompts, so the contrast file is given anew; organisms bring their own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates
from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.statistics import bootstrap_mean
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import LABELS, ContrastSet, Label, Split, Splits
from rhumbline.records.analysis_files import LayerMean, Mean
from rhumbline.records.artefacts import AnalysisRecord
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import MetricTokens
from rhumbline.records.shared import ByLabel, Site
from rhumbline.report import build as report
from rhumbline.stages.finished_run import RunInputs, open_run

Record = TypeVar("Record", bound=AnalysisRecord)

SITE_FAMILIES = ("isotropic", "covariance", "shuffled-site")
"""Null families that are drawn at one site and need no further model pass."""


@dataclass(frozen=True)
class Subject:
    """One seed of a finished run, ready to be asked further questions."""

    directory: RunDirectory
    model: ChatModel
    chat: Chat
    seed: int
    splits: Splits
    positions: tuple[Position, ...]
    """Where candidates were read."""
    candidates: Candidates
    """Un-normalised differences in means, as the run wrote them."""
    direction: Direction | None
    """The selected one; None where no candidate passed."""
    tokens: tuple[int, ...]
    """Of the fast metric; empty where the run found none."""
    kept: Mapping[str, Mapping[str, list[bool]]]
    """Which train and val prompts the metric's sign kept."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Told the number of rows that were finished."""
    page: bool = True
    """Draw the report anew when a record is written."""
    start: tuple[int, ...] = ()
    """Generated tokens after which the metric is read."""

    @property
    def runner(self) -> Runner:
        """A runner of the model."""
        return Runner(self.model, tick=self.tick)

    @property
    def scorer(self) -> Scorer:
        """The fast metric of the run. Raises ProtocolError where the run found no tokens for it."""
        if not self.tokens:
            raise ProtocolError(
                f"{self.directory.path}: the run's fast metric has no tokens (none were found, or it compares the two "
                "responses to each prompt), and this analysis reads a metric of tokens."
            )
        return Scorer(self.runner, partial(refusal_metric, tokens=list(self.tokens)), start=self.start)

    def after_start(self, prompts: ByLabel[list[list[int]]]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the positives and negatives, followed by the tokens after which the metric is read."""
        positive, negative = ([[*ids, *self.start] for ids in prompts[label]] for label in LABELS)
        return positive, negative

    def selected(self) -> Direction:
        """The selected direction. Raises ProtocolError where no candidate passed."""
        if self.direction is None:
            raise ProtocolError(
                f"{self.directory.path}: no candidate passed the selection of seed {self.seed}, so there is no "
                "direction to analyse. `rhumbline analyze geometry` needs none."
            )
        return self.direction

    def sequences(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts of one class: those kept by the filter in train and val, all of them in test."""
        prompts = self.splits.get(split, label)
        kept = self.kept[split][label] if split in self.kept else [True] * len(prompts)
        return [self.chat.encode(p) for p, k in zip(prompts, kept, strict=True) if k]

    def ids(self, split: Split, label: Label) -> list[str]:
        """The prompts' ids, in the order of `sequences`."""
        prompts = self.splits.get(split, label)
        kept = self.kept[split][label] if split in self.kept else [True] * len(prompts)
        return [p.id for p, k in zip(prompts, kept, strict=True) if k]

    @property
    def site(self) -> Site | None:
        """The selected site; None if no candidate passed."""
        return None if self.direction is None else self.selected_site()

    def selected_site(self) -> Site:
        """The selected site. Raises ProtocolError if no candidate passed."""
        direction = self.selected()
        return Site(direction.position, direction.layer)

    def save(self, record: Record) -> Record:
        """Write the record of an analysis (and the report, if `page`); returns the record as it will be read."""
        saved = self.directory.write_record(record)
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
) -> Subject:
    """Open one seed of a finished run (default: its first) for analyses.

    `model` and `contrast` may be left out where the run is of an organism; `inputs` has whatever else the run needs.
    Raises InputError for a model, template or contrast that is not the run's, and for a run that read responses.
    """
    finished = open_run(run)
    artefacts = finished.artefacts(seed)
    if any(position.is_in_response for position in artefacts.positions):
        raise InputError(
            f"{run} read its direction from responses, and analyses read prompts. Give a run with --positions "
            "post-instruction or last-instruction."
        )
    inputs = replace(inputs, model=model or inputs.model, contrast=contrast or inputs.contrast)
    opened = finished.with_model(inputs, seed)
    metric = finished.directory.read_record(MetricTokens, artefacts.seed)
    return Subject(
        finished.directory,
        opened.model,
        opened.chat,
        artefacts.seed,
        opened.splits,
        artefacts.positions,
        artefacts.candidates,
        artefacts.direction,
        tuple(token.id for token in metric.tokens),
        to_json(artefacts.extraction.kept),
        tick,
        start=() if metric.start is None else metric.start.tokens,
    )


# -- what analyses write ----------------------------------------------------------------------------------------------


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
    found = torch.zeros(len(sequences), runner.model.n_layers, runner.model.d_model)
    for prompt, h, _ in runner.residuals(sequences, [position]):
        found[prompt] = h[:, 0].float().cpu()
    return found
