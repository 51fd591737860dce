"""Stage *dose*: the metric of some test prompts over strengths of ablation and coefficients of addition (dose.json).

No completion is generated.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.records.seed_files import DoseRow, Doses
from rhumbline.records.shared import ByLabel
from rhumbline.stages.metric_samples import samples, six_digits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import JobKind, SeedJobs


@dataclass(frozen=True)
class DoseRequest:
    """The curves of one class: strengths of ablation on positives, coefficients of addition on negatives."""

    label: Label


def measure_doses(run: SeedRun, jobs: SeedJobs) -> Doses:
    """The curves of the direction and of some null draws."""
    parts = jobs.request(DOSE_JOB, [DoseRequest(label) for label in LABELS])
    return Doses(parts[0].prompts, tuple(row for part in parts for row in part.rows))


def _prepare(run: SeedRun) -> Callable[[DoseRequest], Doses]:
    plan = run.protocol.dose
    prompts = samples(run, plan.prompts)
    ids = ByLabel(*(tuple(prompts[label].ids) for label in LABELS))

    def compute(request: DoseRequest) -> Doses:
        label = request.label
        arms = run.arms.doses(label, plan.strengths if label == "positive" else plan.coefficients, plan.draws)
        if not arms:
            return Doses(ids, ())
        # At dose 0 every curve is the baseline, which is evaluated once.
        doses = [(a.id, a.dose) if a.dose != 0 else None for a in arms]
        once = {dose: a.arm for dose, a in zip(doses, arms, strict=True)}
        values = run.scorer("dose").read(prompts[label].sequences, list(once.values())).metric
        by_dose = dict(zip(once, values, strict=True))
        metric = [by_dose[dose] for dose in doses]
        kind = "ablation" if label == "positive" else "addition"
        rows = (
            DoseRow(kind=kind, arm=a.id, dose=a.dose, side=label, metric=six_digits(values))
            for a, values in zip(arms, metric, strict=True)
        )
        return Doses(ids, tuple(rows))

    return compute


DOSE_JOB = JobKind("dose", DoseRequest, Doses, _prepare)
