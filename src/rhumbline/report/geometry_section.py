"""Section on the geometry of candidates and classes, from analyses/geometry.json."""

from collections.abc import Iterator

from rhumbline.records.analysis_files import GeometryCell, GeometryRecord
from rhumbline.report import basic_charts, page, site_figures
from rhumbline.report.basic_charts import ChartText, Point
from rhumbline.report.figures import LIGHT, Chart
from rhumbline.report.page import Html
from rhumbline.report.site_figures import PositionLabels

LAYER = "layer (resid_pre)"
"""Title of an axis over layers."""


def geometry(record: GeometryRecord, labels: PositionLabels, draw: page.Canvas) -> Html:
    """Return cosines between candidates, and the separation of the classes."""
    return page.section("Geometry", draw(_charts(record, labels)), page.note(_note(record)))


def _charts(record: GeometryRecord, labels: PositionLabels) -> Iterator[Chart | None]:
    at, parts, val = record.read_at, record.components, record.n.val
    cells = [cell for cell in record.grid if cell.position == at.position]
    where = f"position {at.position}"
    layers = [str(cell.layer) for cell in cells]
    yield basic_charts.matrix(
        "geometry-layers", f"Cosines between layers, {where}", record.between_layers, layers, "layer"
    )
    yield site_figures.cosine_map("geometry-site", "Cosine with the direction at the site", record.grid, labels)
    drift = ChartText("geometry-drift", f"Cosines over layers, {where}", LAYER, "cosine")
    yield basic_charts.curves(drift, _cosines(cells))
    title = f"Separation, validation (n = {val.positive} + {val.negative}), {where}"
    separation = ChartText("geometry-separation", title, LAYER, "AUROC, silhouette")
    yield basic_charts.curves(separation, _separation(record, cells))
    means = ChartText("geometry-means", f"Class means of the projection, {where}", LAYER, "projection")
    colours = {label: LIGHT[label] for label in ("positive", "negative")}
    yield basic_charts.curves(means, _class_means(cells), colours)
    share = [f"{100 * v:.0f} %" for v in parts.explained[:2] if v is not None] + ["", ""]
    x, y = (f"component {k + 1} ({share[k]} of the variance)" for k in (0, 1))
    text = ChartText("geometry-components", "Prompts on the principal components of training", x, y)
    yield basic_charts.scatter(text, parts.points)


def _cosines(cells: list[GeometryCell]) -> list[Point]:
    series = {
        "with the direction at the site": lambda cell: cell.cosine,
        "with the next layer": lambda cell: cell.next,
        "two halves": lambda cell: cell.ceiling,
    }
    return [Point(name, cell.layer, value(cell)) for name, value in series.items() for cell in cells]


def _separation(record: GeometryRecord, cells: list[GeometryCell]) -> list[Point]:
    aurocs = [Point("AUROC", cell.layer, cell.auroc, cell.low, cell.high) for cell in cells]
    return aurocs + [Point("silhouette", row.layer, row.mean, row.low, row.high) for row in record.silhouette]


def _class_means(cells: list[GeometryCell]) -> list[Point]:
    positive = [Point("positive", c.layer, c.positive.mean, c.positive.low, c.positive.high) for c in cells]
    return positive + [Point("negative", c.layer, c.negative.mean, c.negative.low, c.negative.high) for c in cells]


def _note(record: GeometryRecord) -> str:
    at, n = record.read_at, record.n
    cosines = ", ".join(page.number(None if v is None else abs(v)) for v in record.components.cosine)
    return (
        f"Seed {record.seed}, position {at.position}, layer {at.layer}. n: train {n.train.positive} + "
        f"{n.train.negative}, validation {n.val.positive} + {n.val.negative}. Separation is measured on validation "
        "prompts, on which no direction is fitted. Bands are 95 % intervals. Two halves: the mean cosine of directions "
        "that are fitted on two halves of the training prompts; cosines between fitted directions are not expected to "
        f"exceed it. Two random directions have a mean |cosine| of {record.random:.2f}. |cosine| of the principal "
        f"components with the direction: {cosines}. Circles are training prompts, dots are validation prompts. These "
        "measurements are descriptive, not causal."
    )
