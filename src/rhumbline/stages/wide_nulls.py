"""Stage *wide nulls*: the metric of some test prompts under the null draws (wide.json).

No completion is generated. Draws are evaluated in two rounds. A family whose rank cannot meet the rule any more stops
after the first; its rank p is valid and above the bound (Besag and Clifford 1991).
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from msgspec import UNSET, structs

from rhumbline.evidence.class_rates import measured_outcomes
from rhumbline.evidence.compared_arms import EFFECTS, NullDraw
from rhumbline.evidence.metric_effects import families_below_bound, metric_changes, shift_of
from rhumbline.evidence.rate_effects import suppressing_draws
from rhumbline.evidence.seed_results import levels_of
from rhumbline.judging.metric import TokenMetric
from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.protocol import Protocol
from rhumbline.records.arms import ABLATION, ArmId
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.seed_files import NullDirections, WideNulls, WideRow
from rhumbline.records.shared import NOT_FINITE, ByLabel, NotFinite, NullDirection
from rhumbline.records.verdict_rule import Rule
from rhumbline.stages.metric_samples import Sample, sample, samples, six_digits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import NULLS_PER_JOB, JobKind, SeedJobs, spans

log = logging.getLogger("rhumbline")

RARELY_SHOWN = -2.2
"""Log-odds of the refusal tokens at baseline up to which a negative rarely shows the behaviour: a probability of 0.1.

If an ablation removes all of it, the KL divergence is -log(1 - 0.1) = 0.11 nats, half of the bound of the default rule.
The log-odds are those before the threshold of the metric. The paired log-odds is not a probability: it has no such cut.
"""
KL_PROMPTS = 16
"""Negatives on which the KL divergence of the ablation is measured, at least."""
KL_POOL = 4
"""Negatives that are looked at for each on which a KL divergence is measured, to find some that rarely show it."""


@dataclass(frozen=True)
class WideRequest:
    """Null draws on the prompts of one class, or the arms of the direction on both."""

    side: Label | None = None
    """None: baseline, ablation and addition of the direction, and the KL divergence of the ablation."""
    nulls: tuple[int, ...] = ()
    """Indices of the null directions, in the order of nulls.json."""
    damage: bool = False
    """The KL divergence of their ablations on negatives, instead of the metric."""


def measure_wide_nulls(run: SeedRun, jobs: SeedJobs) -> WideNulls:
    """The metric under the null draws, under the direction's arms and at baseline."""
    plan, rule = run.protocol.nulls, run.protocol.rule
    if plan.wide == 0:
        return WideNulls({}, ())
    interim = plan.interim if rule.max_p is not None else 0
    (own,) = jobs.request(WIDE_JOB, [WideRequest()])
    early = [i for i, null in enumerate(run.nulls) if not interim or null.draw < interim]
    nulls, suppressing = run.artefacts.read(NullDirections).nulls, _suppressing(run)
    first = _with_damage(own.with_rows(_rows(jobs, dict.fromkeys(LABELS, early))), nulls, rule, jobs, suppressing)
    planned = {family: plan.total(family) for family in plan.families}
    stopped = families_below_bound(first, nulls, rule, planned) if interim else ()
    others: dict[Label, list[int]] = {
        effect.label: [
            i
            for i, null in enumerate(run.nulls)
            if i not in set(early) and not any((s.effect, s.family) == (effect.name, null.family) for s in stopped)
        ]
        for effect in EFFECTS
    }
    whole = _with_damage(first.with_rows(_rows(jobs, others)), nulls, rule, jobs, suppressing)
    for s in stopped:
        log.info("%s: %s stops after %d draws, because its rank cannot meet the rule", s.effect, s.family, s.draws)
    order = {label: i for i, label in enumerate(LABELS)}
    rows = sorted(whole.rows, key=lambda row: order[row.side])
    return WideNulls(whole.prompts, tuple(rows), whole.kl, tuple(stopped))


def _rows(jobs: SeedJobs, nulls: Mapping[Label, Sequence[int]]) -> list[WideRow]:
    """The rows of null draws, by class."""
    requests = [
        WideRequest(label, tuple(indices[span.first : span.end]))
        for label, indices in nulls.items()
        for span in spans(len(indices), NULLS_PER_JOB)
    ]
    return [row for part in jobs.request(WIDE_JOB, requests) for row in part.rows] if requests else []


def _suppressing(run: SeedRun) -> set[NullDraw]:
    """The null draws that suppress in completions as much as the margin of a gap: they can decide the gap."""
    outcomes, rule = measured_outcomes(run.directory.read_rows(Outcome, run.seed)), run.protocol.rule
    levels = levels_of(run.directory, run.seed, outcomes, rule)
    least = rule.min_gap
    return suppressing_draws(outcomes, least) if levels is None else levels.suppressing_draws(least)


def _with_damage(
    wide: WideNulls,
    nulls: Sequence[NullDirection],
    rule: Rule,
    jobs: SeedJobs,
    suppressing: Collection[NullDraw] = (),
) -> WideNulls:
    """The same with the KL divergence of every null draw that suppresses: in completions, or as much as the direction.

    Its row of the metric holds the divergence, so a draw without one has none.
    """
    suppression = EFFECTS[0]
    changes = metric_changes(wide, nulls, suppression)
    if rule.max_kl is None or changes is None:
        return wide
    change = float((changes.base - changes.own).mean())
    reaching = {
        draw.null.null_draw for draws in changes.families.values() for draw in draws if not draw.change < change
    }
    measured = {row.arm.null_draw for row in wide.rows if suppression.has_null(row.arm)}
    known = {row.arm.null_draw for row in wide.rows if row.kl is not UNSET}
    wanted = [i for i, null in enumerate(nulls) if null.null_draw in (reaching | measured & {*suppressing}) - known]
    requests = [
        WideRequest(suppression.label, tuple(wanted[span.first : span.end]), damage=True)
        for span in spans(len(wanted), NULLS_PER_JOB)
    ]
    found = {row.arm: row for part in jobs.request(WIDE_JOB, requests) for row in part.rows} if requests else {}
    rows = (structs.replace(row, kl=found[row.arm].kl, kl_low=found[row.arm].kl_low) if row.arm in found else row
            for row in wide.rows)  # fmt: skip
    return replace(wide, rows=tuple(rows))


# -- one job ----------------------------------------------------------------------------------------------------------


def _prepare(run: SeedRun) -> Callable[[WideRequest], WideNulls]:
    return partial(_measure, run, samples(run, run.protocol.nulls.prompts))


def _measure(run: SeedRun, prompts: ByLabel[Sample], request: WideRequest) -> WideNulls:
    """The metric of the arms of one request."""
    if request.side is None:
        rows = [row for label in LABELS for row in _of_arms(run, label, prompts[label], run.arms.wide(label))]
        (kl,) = _kl(run, [ABLATION])
        return WideNulls({label: tuple(prompts[label].ids) for label in LABELS}, tuple(rows), kl)
    nulls = [run.nulls[i] for i in request.nulls]
    kind = next(effect.arm.kind for effect in EFFECTS if effect.label == request.side)
    arms = [ArmId.null(null.family, null.draw, kind) for null in nulls]
    if request.damage:
        return WideNulls(
            {}, tuple(_damage(arm, request.side, kl) for arm, kl in zip(arms, _kl(run, arms), strict=True))
        )
    return WideNulls({}, tuple(_of_arms(run, request.side, prompts[request.side], arms)))


def _of_arms(run: SeedRun, label: Label, prompts: Sample, ids: Iterable[ArmId]) -> list[WideRow]:
    arms = run.arms.arms(ids)
    metric = run.scorer("wide nulls").read(prompts.sequences, list(arms.values())).metric
    return [WideRow(arm=arm, side=label, metric=six_digits(values)) for arm, values in zip(arms, metric, strict=True)]


def kl_prompts(protocol: Protocol) -> int:
    """Negatives on which the KL divergence of an ablation is measured, at most."""
    return max(KL_PROMPTS, protocol.nulls.prompts)


def _kl(run: SeedRun, ids: Sequence[ArmId]) -> list[tuple[float | NotFinite, ...]]:
    """KL divergence of every ablation on negatives that rarely show the behaviour at baseline.

    Where it is shown, its loss is an effect, not damage. The negatives are sought a part at a time, because the first
    part usually contains enough. All arms have the same ones.
    """
    scorer, n = run.scorer("wide nulls"), kl_prompts(run.protocol)
    metric = scorer.metric if isinstance(scorer.metric, TokenMetric) else None
    pool = sample(run, "negative", n if metric is None else KL_POOL * n).sequences
    sequences, logits = [], []
    for start in range(0, len(pool), n):
        part = pool[start : start + n]
        baseline = scorer.baseline(part)
        # The divergence from a baseline that is not finite says nothing about the arm.
        kept = baseline.logsumexp(-1).isfinite()
        if metric is not None:
            # The tokens are improbable, and the metric predicts a completion without the behaviour.
            kept &= (metric(baseline) <= min(RARELY_SHOWN - metric.threshold, 0.0)).to(kept.device)
        rows = kept.nonzero()[: n - len(sequences), 0].tolist()
        sequences += [part[i] for i in rows]
        logits.append(baseline[rows])
        if len(sequences) == n:
            break
    baseline = torch.cat(logits) if logits else torch.zeros(0, 1)
    divergences = scorer.kl(sequences, [run.arms.arm(i) for i in ids], baseline)
    return [tuple(v if math.isfinite(v) else NOT_FINITE for v in six_digits(values)) for values in divergences]


def _damage(arm: ArmId, side: Label, values: Sequence[float | NotFinite]) -> WideRow:
    """The row of a null draw with the mean of its KL divergences and the lower end of the interval, six digits.

    Both are not finite if one value is, and None without values (the lower end: with too few).
    """
    shift = shift_of(values)
    if shift.not_finite:
        return WideRow(arm=arm, side=side, metric=(), kl=NOT_FINITE, kl_low=NOT_FINITE)
    kl, low = (None if x is None else float(f"{x:.6g}") for x in (shift.kl, shift.low))
    return WideRow(arm=arm, side=side, metric=(), kl=kl, kl_low=low)


WIDE_JOB = JobKind("wide", WideRequest, WideNulls, _prepare)
