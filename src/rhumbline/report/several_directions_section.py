"""Section on spans of several directions, from analyses/directions.json."""

from collections.abc import Callable, Mapping

from rhumbline.records.directions_file import (
    SPAN_FAMILIES,
    DirectionsRecord,
    RandomSpans,
    SourceName,
    SourceRecord,
)
from rhumbline.report import page
from rhumbline.report.basic_charts import ChartText, CurvePoint, intervals
from rhumbline.report.page import Html, number

Sources = Mapping[SourceName, SourceRecord]


def several_directions(record: DirectionsRecord, draw: page.Canvas) -> Html:
    """Return whether more directions suppress the behaviour further than one."""
    sources, verdict = record.sources, record.verdict
    negatives = f"negatives (n = {next(iter(sources.values())).ranks[0].kl.n})"
    rate = ChartText("directions-rate", f"Rate on positives, span ablated (n = {record.baseline.n})", "rank", "rate")
    kl = ChartText("directions-kl", f"Side effect: KL on {negatives}", "rank", "nats")
    cone = ChartText("directions-cone", f"Rate on {negatives}, a direction of the cone added", "members", "rate")
    charts = [
        intervals(rate, _rates_by_rank(sources), (0, 1)),
        intervals(kl, _kl_by_rank(sources)),
        intervals(cone, _rates_by_cone(sources), (0, 1)),
    ]
    answer = page.tag("p", page.tag("b", verdict.answer), f": {verdict.reason}.")
    folds = [
        page.fold("Gain of each further direction, given those before", _gain_table(sources)),
        page.fold("Each member alone, ablated on positives and added on negatives", _member_table(sources)),
        page.fold("Directions drawn in the cone of the members", _cone_table(sources)),
        page.fold("Representational independence: mean |change| of the cosine", _independence_table(sources)),
    ]
    note = page.note(_note(record))
    return page.detail("Several directions", answer, draw(charts), _selected_table(sources), *folds, note)


# -- charts -----------------------------------------------------------------------------------------------------------


def _rates_by_rank(sources: Sources) -> list[CurvePoint]:
    """Return the remaining rate with its interval; for random spans the mean over the sources."""
    points = []
    for name, source in sources.items():
        for span in source.ranks:
            rate, drop = span.suppression.rate, span.suppression.drop
            # The interval of the rate is that of the drop, because the baseline is the same at every rank.
            base = rate + drop.mean
            points.append(CurvePoint(name, span.rank, rate, max(0.0, base - drop.high), min(1.0, base - drop.low)))
    return points + _random_by_rank(sources, lambda spans: spans.suppression.rate)


def _kl_by_rank(sources: Sources) -> list[CurvePoint]:
    points = [
        CurvePoint(name, span.rank, span.kl.mean, span.kl.low, span.kl.high)
        for name, source in sources.items()
        for span in source.ranks
    ]
    return points + _random_by_rank(sources, lambda spans: spans.kl.mean)


def _random_by_rank(sources: Sources, value: Callable[[RandomSpans], float | None]) -> list[CurvePoint]:
    values: dict[tuple[str, int], list[float]] = {}
    for family in SPAN_FAMILIES:
        for source in sources.values():
            for span in source.ranks:
                number = value(span.random[family]) if family in span.random else None
                if number is not None:
                    values.setdefault((family, span.rank), []).append(number)
    return [CurvePoint(f"{family} random", rank, sum(v) / len(v)) for (family, rank), v in values.items()]


def _rates_by_cone(sources: Sources) -> list[CurvePoint]:
    return [
        CurvePoint(name, k, cone.induced.mean, cone.induced.low, cone.induced.high)
        for name, source in sources.items()
        for k, cone in enumerate(source.cone, 1)
    ]


# -- tables -----------------------------------------------------------------------------------------------------------


def _selected_table(sources: Sources) -> Html:
    """Return the gain of each source at the best rank on validation prompts."""
    head = ["Source", "Rank", "Gain over rank 1 [95 %]", "Beyond isotropic", "Beyond energy-matched", "KL", "n"]
    rows: list[list[object]] = []
    for name, source in sources.items():
        best = source.chosen
        if best is None:
            rows.append([name, "none to add", *["—"] * (len(head) - 2)])
            continue
        gains = [page.mean(m, signed=True) for m in (best.gain, *(best.beyond_random[f] for f in SPAN_FAMILIES))]
        rows.append([name, best.rank, *gains, number(best.kl.mean, 3), best.gain.n])
    return page.table(head, rows)


def _gain_table(sources: Sources) -> Html:
    rows = [
        [name, f"{gain.lower} → {gain.higher}", page.mean(gain, signed=True), page.mean(gain.metric, signed=True)]
        for name, source in sources.items()
        for gain in source.gains
    ]
    return page.table(["Source", "Rank", "Gain", "Gain in the metric"], rows, left=2)


def _member_table(sources: Sources) -> Html:
    rows = [
        [name, member.rank, number(member.cosine), page.rate(member.suppressed), page.rate(member.induced)]
        for name, source in sources.items()
        for member in source.members
    ]
    return page.table(["Source", "Member", "Cosine with the first", "Rate, ablated", "Rate, added"], rows, left=2)


def _cone_table(sources: Sources) -> Html:
    rows = []
    for name, source in sources.items():
        for cone in source.cone:
            ablated, added, random = cone.suppressed, cone.induced, cone.random.induced
            rates = (ablated.mean, ablated.worst, added.mean, added.worst, random.mean)
            rows.append([name, cone.members, *map(number, rates)])
    head = ["Source", "Members", "Rate, ablated", "Highest", "Rate, added", "Lowest", "Added, random cone"]
    return page.table(head, rows, left=2)


def _independence_table(sources: Sources) -> Html:
    rows = [
        [name, change.ablated, change.read, number(change.change, 3)]
        for name, source in sources.items()
        for change in source.independence
    ]
    return page.table(["Source", "Ablated", "Read", "Change"], rows, left=2)


def _note(record: DirectionsRecord) -> str:
    rule, baseline, site = record.parameters.rule, record.baseline, record.site
    return (
        f"Seed {record.seed}, position {site.position}, layer {site.layer}. Baseline rate {baseline.rate:.2f}, n = "
        f"{baseline.n} test positives, by the metric. Bars are 95 % intervals; random spans show the mean over all "
        "draws. Members are fitted on training prompts; their order and the rank are selected on validation prompts. "
        "Rule, fixed beforehand. MORE-HELPS: the best source on validation lowers the rate further by at least "
        f"{rule.margin:g} (its whole interval). It lowers it further than random spans of its rank, at a mean KL of at "
        f"most {rule.max_kl:g}. ONE-IS-ENOUGH: the first direction lowers the rate by at least {rule.min_drop:g}, and "
        f"every source lowers it further by less than {rule.margin:g} (whole intervals). Otherwise undetermined. The "
        "result holds for this readout and these sources; another source may lower the rate further. A member that "
        "changes the behaviour alone is not a second mechanism, because any direction near the first one does."
    )
