"""Stage *separation*: how well the projection on each candidate separates the classes on test prompts.

Writes separation.json; `discover` computes the same on validation prompts. Independent of interventions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from rhumbline.evidence.statistics import auroc
from rhumbline.inference.residuals import projections
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import LABELS, Label, Prompt, Split, Splits
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Projection, Separation, SiteSeparation
from rhumbline.records.shared import ByLabel, Survivor
from rhumbline.stages.extraction import ClassMeans
from rhumbline.stages.seed_run import SeedRun, encoded


class SiteSeparations(NamedTuple):
    """The separation of some prompts at every site."""

    n: ByLabel[int]
    grid: tuple[SiteSeparation, ...]
    projections: tuple[Projection, ...]


def separate(run: SeedRun) -> Separation:
    """The separation of the test prompts."""
    tensors = run.artefacts.tensors("directions.safetensors")
    means = ClassMeans(run.positions, tensors["candidates"], tensors["negative_mean"])
    prompts = prompts_to_separate(run.splits, "test", run.positions)
    result = separations(run.runner("separation"), run.chat, prompts, means, run.selection.selected)
    return Separation("test", result.n, result.grid, result.projections)


def prompts_to_separate(
    splits: Splits, split: Split, positions: Sequence[Position]
) -> Mapping[Label, Sequence[Prompt]]:
    """The prompts of a split by class; the rows with responses if a position is in the response."""
    of_texts = any(p.is_in_response for p in positions)
    return {label: splits.texts(split, label) if of_texts else splits.get(split, label) for label in LABELS}


def separations(
    runner: Runner, chat: Chat, prompts: Mapping[Label, Sequence[Prompt]], means: ClassMeans, selected: Survivor | None
) -> SiteSeparations:
    """AUROC of the projection, cosine of the class means and norm at every site; projections at the selected site."""
    candidates, positions = means.candidates, means.positions
    projected = {
        label: projections(runner, encoded(chat, some, positions), candidates, positions).numpy()
        for label, some in prompts.items()
    }
    cosines = torch.cosine_similarity(means.negative_mean + candidates, means.negative_mean, dim=-1)
    norms = candidates.norm(dim=-1)
    grid = tuple(
        SiteSeparation(
            position,
            layer,
            auroc(projected["positive"][:, p, layer], projected["negative"][:, p, layer]),
            float(cosines[p, layer]),
            float(norms[p, layer]),
        )
        for p, position in enumerate(positions)
        for layer in range(candidates.shape[1])
    )
    rows = []
    if selected is not None:
        p, layer = list(positions).index(selected.position), selected.layer
        rows = [
            Projection(prompt.id, label, float(value))
            for label in LABELS
            for prompt, value in zip(prompts[label], projected[label][:, p, layer], strict=True)
        ]
    return SiteSeparations(ByLabel(*(len(prompts[label]) for label in LABELS)), grid, tuple(rows))


def mean_over_seeds(grids: Sequence[Sequence[SiteSeparation]]) -> tuple[SiteSeparation, ...]:
    """The means of AUROC, cosine and norm at every site; None where one of them is."""
    return tuple(
        SiteSeparation(
            sites[0].position,
            sites[0].layer,
            *(_mean([getattr(site, name) for site in sites]) for name in ("auroc", "cosine", "norm")),
        )
        for sites in zip(*grids, strict=True)
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
