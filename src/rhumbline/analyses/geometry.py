"""Geometry: cosines between candidates, separation of the classes, and drift of the direction over layers.

Candidates are fitted on training prompts. Separation is measured on validation prompts, which no candidate was fitted
to, although selection read them. The analysis is descriptive: it does not intervene.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.subject import Subject, layer_means, mean_interval, residuals_at
from rhumbline.evidence.statistics import auroc, auroc_interval
from rhumbline.inference.residuals import at_site, projections
from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.records.analysis_files import (
    ComponentPoint,
    Components,
    GeometryCell,
    GeometryParameters,
    GeometryRecord,
    LayerMean,
    ReadSite,
)
from rhumbline.records.positions import Position
from rhumbline.records.shared import ByLabel, TrainVal
from rhumbline.stages.null_families import generator, halves
from rhumbline.stages.refits import weighted_sums

ReadSplit = Literal["train", "val"]
"""A split whose prompts are read."""
READ_SPLITS: tuple[ReadSplit, ...] = get_args(ReadSplit)


def analyse(subject: Subject, *, components: int = 5, splits: int = 8) -> GeometryRecord:
    """Measure the geometry of a run and write analyses/geometry.json.

    `components` is the number of principal components of the training prompts at the site. `splits` is the number of
    random halvings of the training prompts; the mean cosine of two halves bounds the cosines between fitted directions
    at this sample size. If no candidate was selected, the site is the candidate with the largest AUROC.
    """
    grid = _Grid.measure(subject, splits)
    p, layer = grid.site()
    position, unit = subject.positions[p], grid.unit
    record = GeometryRecord(
        seed=subject.seed,
        site=subject.site,
        parameters=GeometryParameters(components, splits),
        read_at=ReadSite(position, layer, subject.direction is not None),
        split="val",
        n=TrainVal(*(ByLabel(*(len(subject.sequences(s, c)) for c in LABELS)) for s in READ_SPLITS)),
        random=float((2 / torch.pi / subject.model.d_model) ** 0.5),
        grid=grid.cells(p, layer),
        between_layers=_rounded_rows(unit[p] @ unit[p].T),
        between_positions=_rounded_rows(unit[:, layer] @ unit[:, layer].T),
        silhouette=_silhouettes(subject, position),
        components=_components(subject, position, layer, unit[p, layer], components),
    )
    return subject.save(record)


@dataclass(frozen=True)
class _Grid:
    """Measurements of every candidate."""

    subject: Subject
    unit: Float[Tensor, "position layer d_model"]
    """Normalised candidates."""
    projected: ByLabel[Float[np.ndarray, "prompt position layer"]]
    """Projection of every validation prompt on every candidate at its own site."""
    aurocs: Float[np.ndarray, "position layer"]
    """AUROC of the projections; NaN if a class is empty."""
    ceiling: Float[Tensor, "position layer"]

    @classmethod
    def measure(cls, subject: Subject, splits: int) -> "_Grid":
        """The validation prompts on every candidate, and the cosines of halves of the training prompts."""
        unit = torch.nn.functional.normalize(subject.candidates.float(), dim=-1)

        def read(label: Label) -> Float[np.ndarray, "prompt position layer"]:
            return projections(subject.runner, subject.sequences("val", label), unit, subject.positions).numpy()

        projected = ByLabel(*(read(c) for c in LABELS))
        aurocs = np.full(unit.shape[:2], np.nan)
        if len(projected.positive) and len(projected.negative):
            for p, layer in np.ndindex(aurocs.shape):
                aurocs[p, layer] = auroc(*(projected[c][:, p, layer] for c in LABELS))
        return cls(subject, unit, projected, aurocs, split_half_cosines(subject, splits))

    def site(self) -> tuple[int, int]:
        """Index of the position, and layer, of the selected site; otherwise of the largest AUROC."""
        direction = self.subject.direction
        if direction is not None:
            return self.subject.positions.index(direction.position), direction.layer
        p, layer = np.unravel_index(np.nan_to_num(self.aurocs, nan=0.0).argmax(), self.aurocs.shape)
        return int(p), int(layer)

    def cells(self, p: int, layer: int) -> tuple[GeometryCell, ...]:
        """Every candidate, with its cosine with the direction at the site (p, layer)."""
        return tuple(self._cell(i, at, self.unit[p, layer]) for i, at in np.ndindex(self.aurocs.shape))

    def _cell(self, p: int, layer: int, direction: Float[Tensor, " d_model"]) -> GeometryCell:
        positive, negative = (self.projected[c][:, p, layer] for c in LABELS)
        area, own = float(self.aurocs[p, layer]), self.unit[p, layer]
        low, high = auroc_interval(area, len(positive), len(negative))
        return GeometryCell(
            position=self.subject.positions[p],
            layer=layer,
            auroc=area,
            low=low,
            high=high,
            positive=mean_interval(positive),
            negative=mean_interval(negative),
            cosine=float(own @ direction),
            next=float(own @ self.unit[p, layer + 1]) if layer + 1 < self.unit.shape[1] else None,
            ceiling=float(self.ceiling[p, layer]),
            norm=float(self.subject.candidates[p, layer].norm()),
        )


def split_half_cosines(subject: Subject, splits: int) -> Float[Tensor, "position layer"]:
    """Mean cosine between the directions of two random halves of the training prompts.

    It is below 1 because of sampling alone. NaN if a class has fewer than two prompts.
    """
    means = []
    for label in LABELS:
        sequences = subject.sequences("train", label)
        if len(sequences) < 2:
            return torch.full(subject.candidates.shape[:2], float("nan"))
        signs = torch.stack(
            [halves(len(sequences), generator(subject.seed, "shuffled-site", d)) for d in range(splits)]
        )
        weights = torch.cat([signs.clamp_min(0), (-signs).clamp_min(0)]) / (len(sequences) // 2)
        means.append(weighted_sums(subject.runner, sequences, subject.positions, weights))
    first, second = (means[0] - means[1]).split(splits)
    return torch.cosine_similarity(first, second, dim=-1).mean(0)


def silhouette(h: Float[Tensor, "prompt d_model"], is_positive: Tensor) -> Float[Tensor, " prompt"]:
    """(b - a) / max(a, b) of every prompt: a its mean distance to its own class, b to the other (Rousseeuw 1987)."""
    x = h.double()
    distance = torch.cdist(x, x)
    own, n = is_positive[:, None] == is_positive[None], len(x)
    size = own.sum(1)
    a = (distance * own).sum(1) / (size - 1).clamp_min(1)
    b = (distance * ~own).sum(1) / (n - size).clamp_min(1)
    return torch.where(size > 1, (b - a) / torch.maximum(a, b).clamp_min(1e-30), 0.0)


def _silhouettes(subject: Subject, position: Position) -> tuple[LayerMean, ...]:
    sets = [residuals_at(subject.runner, subject.sequences("val", c), position) for c in LABELS]
    h = torch.cat(sets)
    is_positive = torch.arange(len(h)) < len(sets[0])
    return layer_means(silhouette(h[:, layer], is_positive) for layer in range(h.shape[1]))


def _components(
    subject: Subject, position: Position, layer: int, unit: Float[Tensor, " d_model"], n: int
) -> Components:
    """The first `n` principal components of the training prompts, and coordinates of prompts on the first two."""
    sets: list[tuple[ReadSplit, Label]] = [(split, label) for split in READ_SPLITS for label in LABELS]
    h = {at: at_site(subject.runner, subject.sequences(*at), position, layer).double() for at in sets}
    train = torch.cat([h["train", c] for c in LABELS])
    centre = train.mean(0)
    _, values, axes = torch.linalg.svd(train - centre, full_matrices=False)
    share = values**2 / (values**2).sum().clamp_min(1e-30)
    axes = axes[:n]
    # The sign of a component is arbitrary: positives get the larger values.
    axes = axes * torch.where(axes @ unit.double() < 0, -1.0, 1.0)[:, None]
    points = tuple(
        ComponentPoint(prompt.id, c, s, float(x), float(y))
        for s, c in sets
        for prompt, (x, y) in zip(subject.prompts(s, c), ((h[s, c] - centre) @ _two(axes).T).tolist(), strict=True)
    )
    return Components(_rounded(share[:n].tolist()), _rounded((axes @ unit.double()).tolist()), points)


def _two(axes: Float[Tensor, "component d_model"]) -> Float[Tensor, "2 d_model"]:
    """The first two rows, with zeros for missing ones."""
    missing = axes.new_zeros(max(0, 2 - len(axes)), axes.shape[1])
    return torch.cat([axes[:2], missing])


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)


def _rounded_rows(values: Float[Tensor, "row column"]) -> tuple[tuple[float, ...], ...]:
    return tuple(_rounded(row) for row in values.tolist())
