"""Is one direction enough? Suppression and side effects by rank, compared with matched random spans, and a verdict.

Every source adds members to the run's own direction: the span of rank 1 is the direction, and every further rank adds
one member. Members are fitted on training prompts. Their order and the reported rank are selected on validation
prompts. All reported values are measured on test prompts with the token metric. The rule is written into the record
before it is applied.
"""

from collections.abc import Mapping

from rhumbline.analyses.direction_sources import SourceAnalysis
from rhumbline.analyses.subject import AnalysisPrompts, Subject
from rhumbline.evidence.statistics import wilson
from rhumbline.inference.interventions import BASELINE
from rhumbline.records.analysis_files import Mean, MeanRate, Rate
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directions_file import (
    ChosenRank,
    DirectionsParameters,
    DirectionsPlan,
    DirectionsRecord,
    DirectionsRule,
    DirectionsVerdict,
    Gain,
    SourceName,
    SourceRecord,
)
from rhumbline.records.files import canonical


def analyse(
    subject: Subject, plan: DirectionsPlan | None = None, rule: DirectionsRule | None = None
) -> DirectionsRecord:
    """Measure and decide whether one direction is enough, and write analyses/directions.json.

    Every finished source is stored, so that a stopped analysis resumes after its last source.
    """
    parameters = DirectionsParameters(plan or DirectionsPlan(), rule or DirectionsRule())
    prompts = AnalysisPrompts.of(subject, parameters.plan.prompts)

    def source(name: SourceName) -> SourceRecord:
        inputs = (name, subject.seed, canonical(to_json(parameters)))
        value = subject.parts.result("source", inputs, lambda: to_json(_source(subject, prompts, parameters, name)))
        return convert(value, SourceRecord)

    sources: dict[SourceName, SourceRecord] = {name: source(name) for name in parameters.plan.source_names}
    baseline = _baseline(prompts)
    record = DirectionsRecord(
        seed=subject.seed,
        site=subject.selected_site(),
        parameters=parameters,
        baseline=baseline,
        sources=sources,
        verdict=decide(baseline, sources, parameters.rule),
    )
    return subject.save(record)


def _source(
    subject: Subject, prompts: AnalysisPrompts, parameters: DirectionsParameters, name: SourceName
) -> SourceRecord:
    return SourceAnalysis.of(subject, prompts, parameters, name).record()


def _baseline(prompts: AnalysisPrompts) -> Rate:
    shown = prompts.test.metric([BASELINE])[0] > 0
    low, high = wilson(int(shown.sum()), len(shown))
    return Rate(float(shown.double().mean()), low, high, len(shown))


# -- the rule ---------------------------------------------------------------------------------------------------------


def decide(baseline: Rate, sources: Mapping[SourceName, SourceRecord], rule: DirectionsRule) -> DirectionsVerdict:
    """The verdict of the rule, with its reason; a pure function of the record.

    MORE-HELPS depends only on the source with the lowest rate on validation prompts, so that nothing is selected on
    test prompts. ONE-IS-ENOUGH depends on all sources.
    """
    if baseline.rate < rule.min_baseline:
        return DirectionsVerdict("NO-BASELINE", f"the rate on positives at baseline is {baseline.rate:.2f}")
    chosen: dict[SourceName, ChosenRank] = {
        name: source.chosen for name, source in sources.items() if source.chosen is not None
    }
    if chosen:
        best = min(chosen, key=lambda name: _criterion(chosen[name]))
        if _helps(chosen[best], rule):
            gain = f"{_interval(chosen[best].gain)} at rank {chosen[best].rank} ({best})"
            reason = f"further directions decrease the rate by {gain}, more than matched random spans"
            return DirectionsVerdict("MORE-HELPS", reason, best)
    first = next(iter(sources.values())).ranks[0].suppression.drop
    if not chosen:
        return DirectionsVerdict("UNDETERMINED", f"no source ({', '.join(sources)}) has a direction to add")
    none_helps = all(c.gain.high < rule.margin for c in chosen.values())
    if first.low >= rule.min_drop and none_helps:
        reason = (
            f"the first direction decreases the rate by {_interval(first)}, and no source ({', '.join(sources)}) "
            f"decreases it by {rule.margin:g} more"
        )
        return DirectionsVerdict("ONE-IS-ENOUGH", reason)
    if none_helps:
        reason = f"the first direction decreases the rate by {_interval(first)} only, and no source decreases it more"
    else:
        widest = max(chosen.values(), key=lambda c: c.gain.high)
        reason = (
            f"a further decrease is not excluded ({_interval(widest.gain)}), and not shown to exceed random spans "
            "without damage"
        )
    return DirectionsVerdict("UNDETERMINED", f"{reason}; n = {baseline.n}")


def _criterion(chosen: ChosenRank) -> tuple[float, float]:
    """Rate and metric on validation positives; the lowest is best."""
    return chosen.val_rate, float("inf") if chosen.val_metric is None else chosen.val_metric


def _helps(chosen: ChosenRank, rule: DirectionsRule) -> bool:
    """Whether the gain reaches the margin and exceeds random spans, and the KL divergence is within its bound."""
    exceeds_random = all(gap.low > 0 for gap in chosen.beyond_random.values())
    return chosen.gain.low >= rule.margin and exceeds_random and is_within(chosen.kl, rule.max_kl)


def is_within(mean: Mean, bound: float) -> bool:
    """Whether a mean was measured and is at most the bound."""
    return mean.mean is not None and mean.mean <= bound


def _interval(value: MeanRate | Gain) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
