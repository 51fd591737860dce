"""Section on the chat model's directions in its base model, from analyses/base.json."""

from collections.abc import Mapping
from typing import Any

from rhumbline.records.analysis_files import Auroc, BaseCondition, BaseLayer, BaseRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import ChartText, Point
from rhumbline.report.figures import Chart, printable
from rhumbline.report.page import Html

_SERIES = ("chat's direction in base", "base's direction in base", "chat's direction in chat")
_NAMES = {"template": "same chat tokens", "plain": "instruction alone"}
"""Form of the prompts, as titles name it."""


def base_model(record: BaseRecord, draw: page.Canvas) -> Html:
    """Return how the chat model's directions separate the classes in the base model."""
    conditions = {_NAMES["template"]: record.conditions.template, _NAMES["plain"]: record.conditions.plain}
    keys = dict(zip(conditions, _NAMES, strict=True))
    n = record.n.test
    drawn: list[Chart | None] = []
    for name, condition in conditions.items():
        title = f"AUROC on test prompts (n = {n.positive} + {n.negative}), {name}"
        aurocs = ChartText(f"base-auroc-{keys[name]}", title, "layer", "AUROC")
        cosines = ChartText(f"base-cosine-{keys[name]}", f"Cosine of chat and base, {name}", "layer", "cosine")
        drawn += [
            basic_charts.curves(aurocs, _auroc_points(condition)),
            basic_charts.curves(cosines, _cosine_points(condition)),
        ]
    answer = page.tag("p", page.tag("b", record.finding.answer), f": {record.finding.reason}.")
    return page.section("Base model", answer, draw(drawn), _table(record, conditions), page.note(_note(record)))


def _aurocs(layer: BaseLayer) -> tuple[Auroc, Auroc, Auroc]:
    """Return the AUROC of each series."""
    return layer.chat_in_base, layer.base_in_base, layer.chat_in_chat


def _auroc_points(condition: BaseCondition) -> list[Point]:
    points = [
        Point(series, layer.layer, auroc.value, auroc.low, auroc.high)
        for k, series in enumerate(_SERIES)
        for layer in condition.layers
        for auroc in [_aurocs(layer)[k]]
    ]
    for layer in condition.layers:
        largest = [null.auroc.max for null in layer.nulls.values() if null.auroc.max is not None]
        points.append(Point("largest null draw", layer.layer, max(largest, default=None)))
    return points


def _cosine_points(condition: BaseCondition) -> list[Point]:
    points = [Point("cosine", layer.layer, layer.cosine) for layer in condition.layers]
    return points + [
        Point(f"{family}, largest", layer.layer, layer.nulls[family].cosine.max)
        for family in condition.layers[0].nulls
        for layer in condition.layers
    ]


def _table(record: BaseRecord, conditions: Mapping[str, BaseCondition]) -> Html | str:
    if record.site is None:
        return ""
    rows: list[list[Any]] = []
    for name, condition in conditions.items():
        layer = condition.layers[record.site.layer]
        aurocs = [page.interval_text(auroc.value, auroc.low, auroc.high) for auroc in _aurocs(layer)]
        p = max(null.auroc.p for null in layer.nulls.values())
        rows.append([name, layer.layer, page.number(layer.cosine), *aurocs, page.number(p, 3)])
    head = ["Prompts", "Layer", "Cosine", *(f"AUROC: {series}" for series in _SERIES), "Largest rank p"]
    return page.table(head, rows)


def _note(record: BaseRecord) -> str:
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
