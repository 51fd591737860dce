"""The stages of one seed in their order: each reads what the earlier ones wrote and writes one artefact of its own.

    splits -> style -> refusal tokens -> extraction -> selection     finding.py
           -> nulls                                                  controls.py
           -> outcomes                                               testing.py
           -> wide nulls -> dose -> stability                        controls.py
           -> separation -> side effects -> conditions -> levels     testing.py

A stage whose artefact is there is skipped, so a killed run goes on where it was. Test prompts are read after selection.
What the stages share is in seed_run.py; how their dear parts are cut and where these run, in blocks.py.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rhumbline.engines.jobs import Pool
from rhumbline.records.codec import to_json
from rhumbline.records.selection_files import Selection
from rhumbline.stages.controls import (
    dose_block,
    draw_controls,
    measure_doses,
    measure_stability,
    refit_block,
    shuffled_block,
    wide_block,
    widen,
)
from rhumbline.stages.finding import extract_candidates, find_tokens, make_style, score_block, select
from rhumbline.stages.held_out import (
    check_filter,
    measure_levels,
    outcome_block,
    separate,
    write_conditions,
    write_outcomes,
    write_side_effects,
)
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import Block, Blocks, forget_answers
from rhumbline.stages.style_judge import check_texts

BLOCKS: Mapping[str, Callable[[SeedRun], Block]] = {
    "candidates": score_block,
    "shuffled": shuffled_block,
    "outcomes": outcome_block,
    "wide": wide_block,
    "dose": dose_block,
    "refits": refit_block,
}
"""What a block is called, and what makes it."""


def run_stages(run: SeedRun, pool: Pool | None = None) -> None:
    """All stages, in order. Their blocks run on the workers of `pool`, else here."""
    ask, stage = Blocks(run, BLOCKS, pool).ask, partial(_stage, run)
    run.directory.stage(run.folder / "splits.json", lambda: {"seed": run.seed, "ids": run.splits.ids()})
    check_texts(run.protocol, run.splits)
    if run.protocol.is_continuous:
        stage("style", "style.json", partial(make_style, run))
    stage("refusal tokens", "metric.json", partial(find_tokens, run))
    stage("extraction", "extraction.json", partial(extract_candidates, run))
    stage("selection", "selection.json", partial(select, run, ask))
    if run.direction is not None:
        stage("nulls", "nulls.json", partial(draw_controls, run, ask))
    write_outcomes(run, ask)
    check_filter(run)
    if run.direction is not None:
        stage("wide nulls", "wide.json", partial(widen, run, ask))
        stage("dose", "dose.json", partial(measure_doses, run, ask))
        stage("stability", "stability.json", partial(measure_stability, run, ask))
    stage("separation", "separation.json", partial(separate, run))
    if run.direction is not None:
        write_side_effects(run)
    write_conditions(run)
    if run.protocol.is_continuous:
        stage("levels", "levels.json", partial(measure_levels, run))


def _stage(run: SeedRun, name: str, file: str, compute: Callable[[], Mapping[str, Any] | Selection]) -> None:
    path = run.folder / file
    if path.is_file():
        run.directory.load(path)
        return
    with run.timings.stage(name, run.seed):
        made = compute()
        run.directory.save(path, to_json(made) if isinstance(made, Selection) else made)
    forget_answers(run)
