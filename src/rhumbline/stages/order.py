"""The stages of one seed, in order. Each reads the files of earlier stages and writes its own.

    splits -> style -> refusal tokens -> extraction -> selection -> nulls -> outcomes
           -> levels -> wide nulls -> dose -> stability -> second direction -> separation -> losses -> conditions

A stage whose file exists is skipped, so a stopped run resumes at the first missing file. Test prompts are read after
selection, from *outcomes* on. If no candidate was selected, the stages that need a direction are skipped.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rhumbline.engines.engine import Pool
from rhumbline.records.outcome_rows import LevelTexts
from rhumbline.records.seed_files import (
    Doses,
    Extracted,
    MetricTokens,
    NullDirections,
    SecondDirection,
    Selection,
    Separation,
    SplitIds,
    Stability,
    StyleJudges,
    WideNulls,
)
from rhumbline.records.shared import ByLabel, BySplit
from rhumbline.stages.doses import DOSE_JOB, begin_doses
from rhumbline.stages.extraction import extract_candidates
from rhumbline.stages.level_texts import measure_levels
from rhumbline.stages.losses import LOSS_JOB, begin_losses
from rhumbline.stages.null_directions import SHUFFLED_JOB, draw_null_directions
from rhumbline.stages.outcomes import OUTCOME_JOB, check_filter, write_outcomes
from rhumbline.stages.refusal_tokens import find_tokens
from rhumbline.stages.second_direction import GRADIENT_JOB, REMAINDER_JOB, STAGE, measure_second_direction
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import CANDIDATE_JOB, select
from rhumbline.stages.separation import separate
from rhumbline.stages.stability import REFIT_JOB, begin_stability
from rhumbline.stages.stage_jobs import JobKind, SeedJobs
from rhumbline.stages.style_judges import check_responses, fit_judges
from rhumbline.stages.system_prompts import write_conditions
from rhumbline.stages.wide_nulls import WIDE_JOB, measure_wide_nulls

JOB_KINDS: Mapping[str, JobKind[Any, Any]] = {
    kind.name: kind
    for kind in (
        CANDIDATE_JOB,
        SHUFFLED_JOB,
        OUTCOME_JOB,
        WIDE_JOB,
        DOSE_JOB,
        REFIT_JOB,
        REMAINDER_JOB,
        GRADIENT_JOB,
        LOSS_JOB,
    )
}
"""Every kind of job, by name."""


def run_stages(run: SeedRun, pool: Pool | None = None) -> None:
    """Run all stages. Their jobs run on the workers of `pool`, or in this process."""
    jobs = SeedJobs(run, pool)

    def stage(name: str, kind: type, compute: Callable[[], Any]) -> None:
        """Write the record that a stage computes, unless its file exists."""
        if run.directory.has(kind, run.seed):
            run.directory.read_record(kind, run.seed)
            return
        with run.timings.stage(name, run.seed):
            run.directory.write_record(compute(), run.seed)

    def begin(kind: type, begin_stage: Callable[[SeedRun, SeedJobs], Callable[[], Any]]) -> Callable[[], Any]:
        return _nothing if run.directory.has(kind, run.seed) else begin_stage(run, jobs)

    _write_splits(run)
    check_responses(run.protocol, run.splits)
    if run.protocol.is_continuous:
        stage("style", StyleJudges, lambda: fit_judges(run))
    stage("refusal tokens", MetricTokens, lambda: find_tokens(run))
    stage("extraction", Extracted, lambda: extract_candidates(run))
    stage("selection", Selection, lambda: select(run, jobs))
    if run.direction is not None:
        stage("nulls", NullDirections, lambda: draw_null_directions(run, jobs))
        # These read no outcomes: workers compute their jobs whenever they have no other.
        doses, stability = begin(Doses, begin_doses), begin(Stability, begin_stability)
        losses = begin_losses(run, jobs)
    else:
        doses = stability = losses = _nothing
    write_outcomes(run, jobs)
    check_filter(run)
    if run.protocol.is_continuous:
        stage("levels", LevelTexts, lambda: measure_levels(run))  # the wide nulls read them
    if run.direction is not None:
        stage("wide nulls", WideNulls, lambda: measure_wide_nulls(run, jobs))
        stage("dose", Doses, doses)
        stage("stability", Stability, stability)
        if run.protocol.second.screen:
            stage(STAGE, SecondDirection, lambda: measure_second_direction(run, jobs))
    stage("separation", Separation, lambda: separate(run))
    losses()
    write_conditions(run)
    jobs.clear()


def _nothing() -> None:
    """The end of a stage that is not run."""


def _write_splits(run: SeedRun) -> None:
    """Write the ids of the prompts, unless the file exists."""
    if run.directory.has(SplitIds, run.seed):
        run.directory.read_record(SplitIds, run.seed)
        return
    ids = run.splits.ids()
    by_split = BySplit(*(ByLabel(**{c: tuple(some) for c, some in ids[s].items()}) for s in ("train", "val", "test")))
    run.directory.write_record(SplitIds(run.seed, by_split), run.seed)
