"""Stage *wide nulls*: the metric of some test prompts under every null draw (wide.json).

No completion is generated.
"""

import math
from collections.abc import Callable

from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.arms import ABLATION
from rhumbline.records.seed_files import WideNulls, WideRow
from rhumbline.records.shared import ByLabel
from rhumbline.stages.arms import SeedArms
from rhumbline.stages.metric_samples import Sample, samples, six_digits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import NULLS_PER_JOB, JobKind, SeedJobs, Span, spans

RARELY_SHOWN = -2.2
"""Metric at baseline (a probability of the behaviour of 0.1) up to which a negative rarely shows the behaviour.

The paired log-odds is not a probability, so it has no such bound.
"""


def measure_wide_nulls(run: SeedRun, jobs: SeedJobs) -> WideNulls:
    """The metric under every null draw, under the direction's arms and at baseline."""
    if run.protocol.nulls.wide == 0:
        return WideNulls({}, ())
    first, *others = jobs.request(WIDE_JOB, spans(len(run.nulls), NULLS_PER_JOB) or [Span(0, 0)])
    # Every job evaluates the baseline and the direction; the first one's values are kept.
    nulls = [row for part in others for row in part.rows if row.arm.is_null]
    rows = tuple(row for label in LABELS for row in (*first.rows, *nulls) if row.side == label)
    return WideNulls(first.prompts, rows, first.kl)


def wide_nulls(scorer: Scorer, prompts: ByLabel[Sample], seed_arms: SeedArms) -> WideNulls:
    """Ablation on positives and addition on negatives, of the direction and of every null of `seed_arms`."""
    rows, kl = [], ()
    for label in LABELS:
        arms, sequences = seed_arms.wide(label), prompts[label].sequences
        metric = scorer.read(sequences, list(arms.values())).metric
        rows += [
            WideRow(arm=arm, side=label, metric=six_digits(values)) for arm, values in zip(arms, metric, strict=True)
        ]
        if label == "negative":
            (divergence,) = scorer.kl(sequences, [arms[ABLATION]], scorer.baseline(sequences))
            # A negative that shows the behaviour at baseline is excluded: its loss is an effect, not damage.
            bound = math.inf if isinstance(scorer.metric, PairedLogOdds) else RARELY_SHOWN
            before = metric[0].tolist()
            kl = tuple(k if b <= bound else None for k, b in zip(six_digits(divergence), before, strict=True))
    return WideNulls({label: tuple(prompts[label].ids) for label in LABELS}, tuple(rows), kl)


def _prepare(run: SeedRun) -> Callable[[Span], WideNulls]:
    prompts = samples(run, run.protocol.nulls.prompts)

    def compute(span: Span) -> WideNulls:
        arms = SeedArms(run.direction, run.nulls[span.first : span.end], run.arms.addition)
        return wide_nulls(run.scorer("wide nulls"), prompts, arms)

    return compute


WIDE_JOB = JobKind("wide", Span, WideNulls, _prepare)
