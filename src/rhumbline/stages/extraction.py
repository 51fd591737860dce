"""Stage *extraction*: training means give the candidates, and the sign of the metric gives the kept prompts.

Training and validation prompts only. Independent of interventions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from rhumbline.axes import Candidates
from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.residuals import Extraction, ResidualStats, extract
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.prompts.contrasts import LABELS, Label, Split
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Extracted
from rhumbline.records.shared import ByLabel, TrainVal
from rhumbline.stages.directions import difference_in_means
from rhumbline.stages.seed_run import SeedRun

T = TypeVar("T")


@dataclass(frozen=True)
class ClassMeans:
    """The means of both classes at every site: the content of directions.safetensors."""

    positions: Sequence[Position]
    candidates: Candidates
    """Mean of the positives minus mean of the negatives, float32; NaN if a class has no prompt."""
    negative_mean: Candidates

    @classmethod
    def of(cls, positive: ResidualStats, negative: ResidualStats, positions: Sequence[Position]) -> "ClassMeans":
        """The means of two sets of training prompts."""
        candidates = difference_in_means(positive.mean(), negative.mean())
        if not (positive.n and negative.n):
            candidates = torch.full_like(candidates, float("nan"))
        return cls(positions, candidates, negative.mean().float())

    def write(self, directory: RunDirectory, seed: int) -> None:
        """Write directions.safetensors of a seed."""
        directory.save_tensors(
            directory.seed(seed) / "directions.safetensors",
            {"candidates": self.candidates, "negative_mean": self.negative_mean},
            {"positions": str([int(p) for p in self.positions]), "seed": str(seed), "form": "difference in means"},
        )


def extract_candidates(run: SeedRun) -> Extracted:
    """Write the candidates; returns which training and validation prompts the sign of the metric keeps."""
    sets = {(split, label): _extract(run, split, label) for split in ("train", "val") for label in LABELS}
    positive, negative = (sets["train", label].stats for label in LABELS)
    ClassMeans.of(positive, negative, run.positions).write(run.directory, run.seed)

    def of_each(read: Callable[[Extraction], T]) -> TrainVal[ByLabel[T]]:
        return TrainVal(*(ByLabel(*(read(sets[split, label]) for label in LABELS)) for split in ("train", "val")))

    return Extracted(
        positions=tuple(run.positions),
        kept=of_each(lambda extraction: tuple(extraction.kept.tolist())),
        n=of_each(lambda extraction: int(extraction.kept.sum())),
        metric=of_each(lambda extraction: tuple(extraction.metric.tolist())),
    )


def _extract(run: SeedRun, split: Split, label: Label) -> Extraction:
    """One pass over the prompts of a class: means, metric and kept prompts."""
    sequences, runner = run.encoded(run.rows(split, label)), run.runner("extraction")
    # The metric of a prompt is read in the same pass, unless the pass reads responses.
    if isinstance(run.metric, PairedLogOdds) or run.positions[0].is_in_response or run.metric is None:
        return extract(runner, sequences, run.positions)
    keep = None
    if run.protocol.extraction.filter:
        keep = (lambda m: m > 0) if label == "positive" else (lambda m: m < 0)
    if not run.start_tokens:
        return extract(runner, sequences, run.positions, read=run.metric, keep=keep)
    # The metric is read after tokens that the positions do not count.
    metric = run.scorer("extraction").read(sequences, [BASELINE]).metric[0]
    kept = torch.ones(len(sequences), dtype=torch.bool) if keep is None else keep(metric)
    whole = extract(runner, [s for s, is_kept in zip(sequences, kept.tolist(), strict=True) if is_kept], run.positions)
    return Extraction(whole.stats, metric, kept)
