"""Section on the projection as a detector, from analyses/monitor.json."""

from rhumbline.records.analysis_files import MonitorRecord
from rhumbline.report import basic_charts, page
from rhumbline.report.figures import printable
from rhumbline.report.page import Html


def monitor(record: MonitorRecord, draw: page.Canvas) -> Html:
    """Return ROC curves and rates of the detector on test prompts."""
    n = record.n.test
    title = f"ROC, test (n = {n.positive} + {n.negative})"
    texts = [
        [condition.name, ", ".join(repr(printable(text, 60)) for text in condition.texts)]
        for condition in record.conditions
        if condition.texts
    ]
    return page.section(
        "Monitor",
        draw([basic_charts.roc("monitor-roc", title, record.conditions)]),
        _table(record),
        page.note(_note(record)),
        page.fold("The suffixes", page.table(["", "Texts"], texts, left=2)) if texts else "",
    )


def _table(record: MonitorRecord) -> Html:
    rows = [
        [
            c.name,
            page.interval_text(c.auroc.value, c.auroc.low, c.auroc.high, 3),
            f"{page.interval_text(c.tpr.rate, c.tpr.low, c.tpr.high)} of {c.tpr.n}",
            f"{page.interval_text(c.fpr.rate, c.fpr.low, c.fpr.high)} of {c.fpr.n}",
            page.number(c.means.positive),
            page.number(c.means.negative),
        ]
        for c in record.conditions
    ]
    head = ["Test prompts with", "AUROC [95 %]", "Positives flagged", "Negatives flagged"]
    return page.table([*head, "Mean, positives", "Mean, negatives"], rows)


def _note(record: MonitorRecord) -> str:
    site = record.site
    nulls = "; ".join(
        f"{family} {page.number(null.mean)} (largest {page.number(null.max)}, p {null.p:.3f})"
        for family, null in record.nulls.items()
    )
    return (
        f"Seed {record.seed}, position {site.position}, layer {site.layer}. The threshold {record.threshold:.3g} is "
        f"fixed on {record.n.val.negative} validation negatives: at most {record.parameters.fpr:.1%} of them are above "
        f"it (they resolve no rate below {record.finest_fpr:.3f}). All rates are measured on test prompts. AUROC of "
        f"null directions at the same site, with the better of both signs: {nulls}. The detector reads what separates "
        "these two sets of prompts; its threshold does not apply to prompts of another kind."
    )
