"""Geometry: how candidates lie to each other, where the classes separate, and how the direction drifts over layers.

Directions are those of the training prompts; separation is measured on validation prompts, which no direction was
fitted to (the choice among candidates did see them). Descriptive: nothing here is causal.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.subject import Subject, mean_record, residuals_at
from rhumbline.evidence.statistics import auroc, auroc_interval
from rhumbline.inference.residuals import projections
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Split
from rhumbline.stages.nulls import generator, halves
from rhumbline.stages.refits import weighted_sums

NAME = "geometry"


def analyse(subject: Subject, *, components: int = 5, splits: int = 8) -> dict[str, Any]:
    """Measure and write the geometry of a run.

    `components` principal components of the training prompts at the site; `splits` halvings of the training prompts for
    the ceiling that cosines between fitted directions have at this sample size. Without a selected direction the site
    is the cell with the largest AUROC.
    """
    unit = torch.nn.functional.normalize(subject.candidates.float(), dim=-1)
    grid = _separation(subject, unit)
    ceiling = split_half_cosines(subject, splits)
    if subject.direction is None:
        site = max(grid, key=lambda row: row["auroc"] if row["auroc"] == row["auroc"] else 0.0)
    else:
        site = {"position": subject.direction.position, "layer": subject.direction.layer}
    p, layer = subject.positions.index(site["position"]), site["layer"]
    for row in grid:
        i, at = subject.positions.index(row["position"]), row["layer"]
        later = unit[i, at + 1] if at + 1 < unit.shape[1] else None
        row |= {
            "cosine": float(unit[i, at] @ unit[p, layer]),
            "next": None if later is None else float(unit[i, at] @ later),
            "ceiling": float(ceiling[i, at]),
            "norm": float(subject.candidates[i, at].norm()),
        }
    record = {
        "read_at": {"position": site["position"], "layer": layer, "selected": subject.direction is not None},
        "split": "val",
        "n": {s: {c: len(subject.sequences(s, c)) for c in LABELS} for s in ("train", "val")},
        "random": float((2 / torch.pi / subject.model.d_model) ** 0.5),
        "grid": grid,
        "between_layers": _rounded(unit[p] @ unit[p].T),
        "between_positions": _rounded(unit[:, layer] @ unit[:, layer].T),
        "silhouette": _silhouettes(subject, site["position"]),
        "components": _components(subject, site["position"], layer, unit[p, layer], components),
    }
    return subject.save(NAME, {"components": components, "splits": splits}, record)


def _separation(subject: Subject, unit: Tensor) -> list[dict[str, Any]]:
    """AUROC and class means of the projection on each cell's own direction."""
    read = {
        c: projections(subject.runner, subject.sequences("val", c), unit, subject.positions).numpy() for c in LABELS
    }
    rows = []
    for p, position in enumerate(subject.positions):
        for layer in range(unit.shape[1]):
            positive, negative = (read[c][:, p, layer] for c in LABELS)
            area = auroc(positive, negative) if len(positive) and len(negative) else float("nan")
            low, high = auroc_interval(area, len(positive), len(negative))
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "auroc": area,
                    "low": low,
                    "high": high,
                    "positive": mean_record(positive),
                    "negative": mean_record(negative),
                }
            )
    return rows


def split_half_cosines(subject: Subject, splits: int) -> Float[Tensor, "position layer"]:
    """Mean cosine between the directions of two halves of the training prompts: what sampling alone leaves of 1."""
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
    apart = torch.cdist(x, x)
    own, n = is_positive[:, None] == is_positive[None], len(x)
    size = own.sum(1)
    a = (apart * own).sum(1) / (size - 1).clamp_min(1)
    b = (apart * ~own).sum(1) / (n - size).clamp_min(1)
    return torch.where(size > 1, (b - a) / torch.maximum(a, b).clamp_min(1e-30), 0.0)


def _silhouettes(subject: Subject, position: int) -> list[dict[str, Any]]:
    sets = [residuals_at(subject.runner, subject.sequences("val", c), position) for c in LABELS]
    h = torch.cat(sets)
    is_positive = torch.arange(len(h)) < len(sets[0])
    return [{"layer": layer, **mean_record(silhouette(h[:, layer], is_positive))} for layer in range(h.shape[1])]


def _components(subject: Subject, position: int, layer: int, unit: Tensor, wanted: int) -> dict[str, Any]:
    """Principal components of the training prompts of both classes, and where prompts lie on the first two."""
    cells: list[tuple[Split, Label]] = [(s, c) for s in SPLITS for c in LABELS if s != "test"]
    h = {cell: subject.runner.stream(subject.sequences(*cell), position, layer).double() for cell in cells}
    train = torch.cat([h["train", c] for c in LABELS])
    centre = train.mean(0)
    _, values, axes = torch.linalg.svd(train - centre, full_matrices=False)
    share = values**2 / (values**2).sum().clamp_min(1e-30)
    axes = axes[:wanted]
    # A component's sign is arbitrary: let positives lie on the side of larger values.
    axes = axes * torch.where(axes @ unit.double() < 0, -1.0, 1.0)[:, None]
    points = [
        {"prompt_id": name, "label": c, "split": s, "x": float(x), "y": float(y)}
        for s, c in cells
        for name, (x, y) in zip(subject.ids(s, c), ((h[s, c] - centre) @ _two(axes).T).tolist(), strict=True)
    ]
    return {"explained": _rounded(share[:wanted]), "cosine": _rounded(axes @ unit.double()), "points": points}


def _two(axes: Tensor) -> Tensor:
    missing = axes.new_zeros(max(0, 2 - len(axes)), axes.shape[1])
    return torch.cat([axes[:2], missing])


def _rounded(values: Tensor) -> Any:
    return [[round(v, 4) for v in row] if isinstance(row, list) else round(row, 4) for row in values.tolist()]
