"""The section of the analysis `damage`: the KL divergence of the ablation by position and by layer."""

from rhumbline.records.damage_file import DamageRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.basic_charts import LAYER, ChartText, CurvePoint
from rhumbline.report.page import Html, number


def damage(record: DamageRecord, draw: page.Canvas) -> Html:
    """Return the KL divergence by the positions and by the layer of the ablation."""
    rows = [[row.positions, number(row.tokens, 1), page.mean(row.kl)] for row in record.by_position]
    table = page.table(["Ablation at", "Tokens", "KL, nats [95 %]"], rows, left=1)
    points = [CurvePoint("KL", row.layer, row.mean, row.low, row.high) for row in record.by_layer]
    text = ChartText("damage-layers", "KL divergence of the ablation in one layer", LAYER, "KL divergence, nats")
    kind = "selected direction" if record.is_selected else "best discarded candidate"
    note = page.note(
        f"Seed {record.seed}, {kind}, position {record.site.position}, layer {record.site.layer}; n = "
        f"{record.by_position[0].kl.n} test negatives. Norm of the stream at the middle layer: first token "
        f"{number(record.first_norm.mean)}, median of the others {number(record.other_norm.mean)}."
    )
    return page.detail(
        "Sources of damage", page.tag("p", record.sentence), table, draw([basic_charts.curves(text, points)]), note
    )
