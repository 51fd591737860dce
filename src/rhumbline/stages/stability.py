"""Stage *stability*: fit and select the direction again on resampled prompts (stability.json).

Training and validation prompts only. One refit is computed in refits.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rhumbline.records.seed_files import BootstrapRefit, Stability
from rhumbline.records.shared import Site
from rhumbline.stages.refits import best_sites, bootstrap_refits, resample
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import refit_selection
from rhumbline.stages.stage_jobs import REFITS_PER_JOB, JobKind, SeedJobs, Span, spans


@dataclass(frozen=True)
class BootstrapRefits:
    """Some of the refits."""

    refits: tuple[BootstrapRefit, ...]
    between: float | None
    """Mean cosine between two of all refits at the site of the direction; None for fewer than two."""


def begin_stability(run: SeedRun, jobs: SeedJobs) -> Callable[[], Stability]:
    """Bootstrap refits of extraction and selection. Workers compute them whenever they have no other job."""
    results = jobs.begin(REFIT_JOB, spans(run.protocol.stability.refits, REFITS_PER_JOB), when_idle=True)

    def finish() -> Stability:
        parts = results()
        refits = tuple(refit for part in parts for refit in part.refits)
        return Stability(tuple(_sites(run)), refits, parts[0].between if parts else None)

    return finish


def _sites(run: SeedRun) -> list[Site]:
    return best_sites(run.selection.candidates, run.rule.metric_only(), run.protocol.stability.sites)


def _prepare(run: SeedRun) -> Callable[[Span], BootstrapRefits]:
    """One pass over the training prompts gives the means of all refits."""
    assert run.direction is not None
    direction, plan, scorer = run.direction, run.protocol.stability, run.scorer("stability")
    sets = (run.kept_sequences("train"), run.kept_sequences("val"))
    resampled = resample(scorer, *sets, run.positions, refits=plan.refits, prompts=plan.prompts, seed=run.seed)

    def compute(span: Span) -> BootstrapRefits:
        selection = refit_selection(run, "stability")
        refits, between = bootstrap_refits(
            selection, _sites(run), run.positions, resampled, direction, refits=span.range
        )
        return BootstrapRefits(tuple(refits), between)

    return compute


REFIT_JOB = JobKind("refits", Span, BootstrapRefits, _prepare)
