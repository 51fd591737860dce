"""Sections on the analyses of a run: geometry, base model and monitor here, and one module each for the others."""

from collections.abc import Iterator

from rhumbline.records.analysis_files import BaseCondition, BaseLayer, BaseRecord, GeometryRecord, MonitorRecord
from rhumbline.records.circuit_file import CircuitRecord
from rhumbline.records.damage_file import DamageRecord
from rhumbline.records.directions_file import DirectionsRecord
from rhumbline.records.frontier_file import FrontierRecord
from rhumbline.records.meaning_file import MeaningRecord
from rhumbline.records.steering_file import SteeringRecord
from rhumbline.records.suffix_file import SuffixRecord
from rhumbline.records.trajectory_file import TrajectoryRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import CLASS_COLOURS, LAYER, ChartText, CurvePoint
from rhumbline.report.candidate_sections import PositionLabels, cosine_map, position_labels
from rhumbline.report.circuit_section import circuit
from rhumbline.report.damage_section import damage
from rhumbline.report.figures import Chart, printable
from rhumbline.report.frontier_section import frontier
from rhumbline.report.meaning_section import meaning
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord
from rhumbline.report.several_directions_section import several_directions
from rhumbline.report.steering_section import steering
from rhumbline.report.suffix_section import suffix_texts, suffixes
from rhumbline.report.trajectory_section import trajectory


def analyses(run: RunRecord, draw: page.Canvas) -> Iterator[Html]:
    """Return the section of every analysis of the run."""
    for record in run.analyses:
        match record:
            case GeometryRecord():
                yield geometry(record, position_labels(run.context.chat), draw)
            case BaseRecord():
                yield base_model(record, draw)
            case SuffixRecord():
                yield suffixes(record, draw)
            case DirectionsRecord():
                yield several_directions(record, draw)
            case MonitorRecord():
                yield monitor(record, draw)
            case DamageRecord():
                yield damage(record, draw)
            case SteeringRecord():
                yield steering(record, draw)
            case TrajectoryRecord():
                yield trajectory(record, draw)
            case MeaningRecord():
                yield meaning(record, draw)
            case FrontierRecord():
                yield frontier(record, draw)
            case CircuitRecord():
                yield circuit(record, draw)


# -- geometry ---------------------------------------------------------------------------------------------------------


def geometry(record: GeometryRecord, labels: PositionLabels, draw: page.Canvas) -> Html:
    """Return cosines between candidates, and the separation of the classes."""
    at, n = record.read_at, record.n
    cosines = ", ".join(number(None if v is None else abs(v)) for v in record.components.cosine)
    note = page.note(
        f"Seed {record.seed}, position {at.position}, layer {at.layer}. n: train {n.train.positive} + "
        f"{n.train.negative}, validation {n.val.positive} + {n.val.negative}. Separation is measured on validation "
        "prompts, on which no direction is fitted. Bands are 95 % intervals. Two halves: the mean cosine of directions "
        "that are fitted on two halves of the training prompts; cosines between fitted directions are not expected to "
        f"exceed it. Two random directions have a mean |cosine| of {record.random:.2f}. |cosine| of the principal "
        f"components with the direction: {cosines}. Circles are training prompts, dots are validation prompts. These "
        "measurements are descriptive, not causal."
    )
    return page.detail("Geometry", draw(_geometry_charts(record, labels)), note)


def _geometry_charts(record: GeometryRecord, labels: PositionLabels) -> Iterator[Chart | None]:
    at, parts, val = record.read_at, record.components, record.n.val
    cells = [cell for cell in record.grid if cell.position == at.position]
    where, layers = f"position {at.position}", [str(cell.layer) for cell in cells]
    title = f"Cosines between layers, {where}"
    yield basic_charts.matrix("geometry-layers", title, record.between_layers, layers, "layer")
    yield cosine_map("geometry-site", "Cosine with the direction at the site", record.grid, labels)
    series = {
        "with the direction at the site": lambda cell: cell.cosine,
        "with the next layer": lambda cell: cell.next,
        "two halves": lambda cell: cell.ceiling,
    }
    drift = [CurvePoint(name, cell.layer, value(cell)) for name, value in series.items() for cell in cells]
    text = ChartText("geometry-drift", f"Cosines over layers, {where}", LAYER, "cosine")
    yield basic_charts.curves(text, drift)
    separation = [CurvePoint("AUROC", cell.layer, cell.auroc, cell.low, cell.high) for cell in cells]
    separation += [CurvePoint("silhouette", row.layer, row.mean, row.low, row.high) for row in record.silhouette]
    title = f"Separation, validation (n = {val.positive} + {val.negative}), {where}"
    yield basic_charts.curves(ChartText("geometry-separation", title, LAYER, "AUROC, silhouette"), separation)
    means = [
        CurvePoint(label, cell.layer, mean.mean, mean.low, mean.high)
        for label in CLASS_COLOURS
        for cell in cells
        for mean in [cell.positive if label == "positive" else cell.negative]
    ]
    text = ChartText("geometry-means", f"Class means of the projection, {where}", LAYER, "projection")
    yield basic_charts.curves(text, means, CLASS_COLOURS)
    share = [f"{100 * v:.0f} %" for v in parts.explained[:2] if v is not None] + ["", ""]
    x, y = (f"component {k + 1} ({share[k]} of the variance)" for k in (0, 1))
    text = ChartText("geometry-components", "Prompts on the principal components of training", x, y)
    yield basic_charts.scatter(text, parts.points)


# -- base model -------------------------------------------------------------------------------------------------------

_SERIES = ("chat's direction in base", "base's direction in base", "chat's direction in chat")


def base_model(record: BaseRecord, draw: page.Canvas) -> Html:
    """Return how the chat model's directions separate the classes in the base model."""
    forms = {
        "template": ("same chat tokens", record.conditions.template),
        "plain": ("instruction alone", record.conditions.plain),
    }
    charts, rows, n = [], [], record.n.test
    for key, (name, condition) in forms.items():
        title = f"AUROC on test prompts (n = {n.positive} + {n.negative}), {name}"
        charts.append(basic_charts.curves(ChartText(f"base-auroc-{key}", title, "layer", "AUROC"), _aurocs(condition)))
        text = ChartText(f"base-cosine-{key}", f"Cosine of chat and base, {name}", "layer", "cosine")
        charts.append(basic_charts.curves(text, _cosines(condition)))
        if record.site is not None:
            layer = condition.layers[record.site.layer]
            aurocs = [interval(auroc.value, auroc.low, auroc.high) for auroc in _series(layer)]
            p = max(null.auroc.p for null in layer.nulls.values())
            rows.append([name, layer.layer, number(layer.cosine), *aurocs, number(p, 3)])
    head = ["Prompts", "Layer", "Cosine", *(f"AUROC: {series}" for series in _SERIES), "Largest rank p"]
    answer = page.tag("p", page.tag("b", record.finding.answer), f": {record.finding.reason}.")
    table = page.table(head, rows) if rows else ""
    return page.detail("Base model", answer, draw(charts), table, page.note(_base_note(record)))


def _series(layer: BaseLayer) -> tuple:
    return layer.chat_in_base, layer.base_in_base, layer.chat_in_chat


def _aurocs(condition: BaseCondition) -> list[CurvePoint]:
    points = [
        CurvePoint(name, layer.layer, auroc.value, auroc.low, auroc.high)
        for k, name in enumerate(_SERIES)
        for layer in condition.layers
        for auroc in [_series(layer)[k]]
    ]
    for layer in condition.layers:
        largest = [null.auroc.max for null in layer.nulls.values() if null.auroc.max is not None]
        points.append(CurvePoint("largest null draw", layer.layer, max(largest, default=None)))
    return points


def _cosines(condition: BaseCondition) -> list[CurvePoint]:
    points = [CurvePoint("cosine", layer.layer, layer.cosine) for layer in condition.layers]
    return points + [
        CurvePoint(f"{family}, largest", layer.layer, layer.nulls[family].cosine.max)
        for family in condition.layers[0].nulls
        for layer in condition.layers
    ]


def _base_note(record: BaseRecord) -> str:
    tokens, n = record.tokens, record.n.test
    same = "Both models read the same token ids."
    if not tokens.same:
        same = "The tokenizers differ: both models read the same text, each with its own tokens, at the last token."
    unusual = ""
    if tokens.untrained:
        listed = ", ".join(repr(printable(token)) for token in tokens.untrained)
        unusual = f" Template tokens whose embedding has an unusual norm in the base model: {listed}."
    return (
        f"Base model: {record.base.name}. {same}{unusual} Test prompts: {n.positive} + {n.negative}; bands are 95 % "
        "intervals. Nulls: directions of the chat model that are independent of the behaviour, read in the base model "
        "with the better of both signs. The result refers to the selected layer; the other layers are descriptive. A "
        "direction that separates the classes in the base model can be read there. This does not show how the base "
        "model uses it."
    )


# -- monitor ----------------------------------------------------------------------------------------------------------


def monitor(record: MonitorRecord, draw: page.Canvas) -> Html:
    """Return ROC curves and rates of the detector on test prompts."""
    n, site = record.n.test, record.site
    head = ["Test prompts with", "AUROC [95 %]", "Positives flagged", "Negatives flagged"]
    rows = []
    for c in record.conditions:
        flagged = (page.join([page.rate(rate), f" of {rate.n}"]) for rate in (c.tpr, c.fpr))
        means = number(c.means.positive), number(c.means.negative)
        rows.append([c.name, interval(c.auroc.value, c.auroc.low, c.auroc.high, 3), *flagged, *means])
    nulls = ". ".join(
        f"{family}: {number(null.mean)} (largest {number(null.max)}, p {null.p:.3f})"
        for family, null in record.nulls.items()
    )
    note = page.note(
        f"Seed {record.seed}, position {site.position}, layer {site.layer}. The threshold {record.threshold:.3g} is "
        f"fixed on {record.n.val.negative} validation negatives: at most {record.parameters.fpr:.1%} of them are above "
        f"it (they resolve no rate below {record.finest_fpr:.3f}). All rates are measured on test prompts. AUROC of "
        f"null directions at the same site, with the better of both signs, follows. {nulls}. The detector reads what "
        "separates these two sets of prompts; its threshold does not apply to prompts of another kind."
    )
    title = f"ROC, test (n = {n.positive} + {n.negative})"
    return page.detail(
        "Monitor",
        draw([basic_charts.roc("monitor-roc", title, record.conditions)]),
        page.table([*head, "Mean, positives", "Mean, negatives"], rows),
        note,
        suffix_texts(record.conditions),
    )
