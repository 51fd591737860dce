"""Stage *dose*: the metric of some test prompts over strengths of ablation and coefficients of addition (dose.json).

No completion is generated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.records.seed_files import DoseRow, Doses
from rhumbline.records.shared import ByLabel, DoseKind
from rhumbline.stages.metric_samples import samples, six_digits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import JobKind, SeedJobs


@dataclass(frozen=True)
class DoseRequest:
    """The curves of one class: ablation and subtraction on positives, addition on negatives."""

    label: Label


def begin_doses(run: SeedRun, jobs: SeedJobs) -> Callable[[], Doses]:
    """The curves of the direction and of some null draws. Workers compute them whenever they have no other job."""
    results = jobs.begin(DOSE_JOB, [DoseRequest(label) for label in LABELS], when_idle=True)

    def finish() -> Doses:
        parts = results()
        return Doses(parts[0].prompts, tuple(row for part in parts for row in part.rows))

    return finish


def _prepare(run: SeedRun) -> Callable[[DoseRequest], Doses]:
    plan = run.protocol.dose
    prompts = samples(run, plan.prompts)
    ids = ByLabel(*(tuple(prompts[label].ids) for label in LABELS))

    def compute(request: DoseRequest) -> Doses:
        label = request.label
        curves: dict[DoseKind, Sequence[float]] = (
            {"ablation": plan.strengths, "subtraction": plan.subtractions}
            if label == "positive"
            else {"addition": plan.additions}
        )
        arms = [arm for kind, doses in curves.items() for arm in run.arms.doses(kind, doses, plan.draws)]
        if not arms:
            return Doses(ids, ())
        # At dose 0 every curve is the baseline, which is evaluated once.
        doses = [(a.id, a.kind, a.dose) if a.dose != 0 else None for a in arms]
        once = {dose: a.arm for dose, a in zip(doses, arms, strict=True)}
        values = run.scorer("dose").read(prompts[label].sequences, list(once.values())).metric
        by_dose = dict(zip(once, values, strict=True))
        metric = [by_dose[dose] for dose in doses]
        rows = (
            DoseRow(kind=a.kind, arm=a.id, dose=a.dose, side=label, metric=six_digits(values))
            for a, values in zip(arms, metric, strict=True)
        )
        return Doses(ids, tuple(rows))

    return compute


DOSE_JOB = JobKind("dose", DoseRequest, Doses, _prepare)
