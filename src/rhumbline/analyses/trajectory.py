"""Trajectory: at which tokens of prompt and completion a direction acts, from arms that are limited to windows.

The direction is ablated on test positives and added on test negatives, at all tokens or at those of one window, and so
are null directions. Completions are judged as in the run. With a think block, the effect of an ablation with the block
of the baseline is measured beside that of a block which was generated under ablation (think_blocks.py). Descriptive.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rhumbline.analyses.judged import (
    Classes,
    beyond,
    change_of,
    classes_of,
    null_change,
    null_directions,
    rate_of,
)
from rhumbline.analyses.subject import Subject, direction_or_best, protocol_with_classes
from rhumbline.analyses.think_blocks import closing_token, through_block
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction, Intervention
from rhumbline.inference.windows import EVERYWHERE, Window
from rhumbline.records.analysis_files import Rate
from rhumbline.records.shared import Site
from rhumbline.records.trajectory_file import (
    TrajectoryPlan,
    TrajectoryRecord,
    WindowChange,
    WindowedEffect,
    WindowKind,
)


class NamedWindow(NamedTuple):
    """A window, and what a record calls it."""

    kind: WindowKind
    tokens: int | None
    window: Window


def analyse(subject: Subject, plan: TrajectoryPlan | None = None) -> TrajectoryRecord:
    """Complete the test prompts under every window of the direction and its nulls; writes analyses/trajectory.json.

    If no candidate was selected, the direction is the candidate with the lowest bypass score.
    """
    plan, protocol = plan or TrajectoryPlan(), protocol_with_classes(subject.directory)
    direction, is_selected = direction_or_best(subject)
    nulls = null_directions(subject, direction, plan.draws)
    token = closing_token(subject.chat)
    windows = named_windows(plan, token if isinstance(token, int) else None)
    baseline: dict[WindowedEffect, Rate | None] = {}
    rows: list[WindowChange] = []
    for effect in ("suppression", "induction"):
        before, changes = _effect(subject, plan, effect, direction, nulls, windows)
        baseline[effect] = rate_of(before)
        rows += changes
    block, through = None, ()
    if isinstance(token, int):
        block, through = through_block(subject, plan, direction, nulls["isotropic"], token)
    record = TrajectoryRecord(
        seed=subject.seed,
        site=Site(direction.position, direction.layer),
        is_selected=is_selected,
        parameters=plan,
        judge=protocol.judge,
        baseline=baseline,
        windows=tuple(rows),
        block=block,
        no_block=None if isinstance(token, int) else token,
        through=through,
    )
    return subject.save(record)


def named_windows(plan: TrajectoryPlan, token: int | None) -> list[NamedWindow]:
    """Every window: all tokens first. With the closing token of a think block, the block and what follows it."""
    windows = [
        NamedWindow("all", None, EVERYWHERE),
        NamedWindow("prompt", None, Window(stop=0)),
        NamedWindow("completion", None, Window(prompt=False)),
    ]
    for k in plan.tokens:
        windows += [NamedWindow("first", k, Window(False, 0, k)), NamedWindow("after", k, Window(False, k))]
    if token is not None:
        windows.append(NamedWindow("block", None, Window(False, until=token)))
        windows.append(NamedWindow("after block", None, Window(False, after=token)))
    return windows


def _effect(
    subject: Subject,
    plan: TrajectoryPlan,
    effect: WindowedEffect,
    direction: Direction,
    nulls: dict[str, list[Direction]],
    windows: Sequence[NamedWindow],
) -> tuple[Classes, Iterator[WindowChange]]:
    """The classes of the baseline, and the effect of the direction and of the nulls in every window."""
    rises = effect == "induction"
    prompts = subject.prompts("test", "negative" if rises else "positive")[: plan.prompts]

    def intervention(d: Direction) -> Intervention:
        return Add(d, subject.coefficient) if rises else Ablate(d, spared=subject.spared)

    drawn = [(family, d) for family, some in nulls.items() for d in some]
    vectors = [direction, *(d for _, d in drawn)]
    arms = [Arm(f"{i} {j}", (intervention(d),), w) for i, (*_, w) in enumerate(windows) for j, d in enumerate(vectors)]
    before, *after = classes_of(subject, prompts, [BASELINE, *arms], plan.max_new_tokens)

    def changes() -> Iterator[WindowChange]:
        whole = None
        for i, (kind, tokens, _) in enumerate(windows):
            classes, *of_draws = after[i * len(vectors) :][: len(vectors)]
            own = change_of(before, classes, rises=rises)
            of_family = {f: [some for (g, _), some in zip(drawn, of_draws, strict=True) if g == f] for f in nulls}
            value = None if own.change is None else own.change.mean
            whole = value if kind == "all" else whole
            yield WindowChange(
                effect=effect,
                window=kind,
                tokens=tokens,
                own=own,
                share=value / whole if whole and value is not None else None,
                nulls={
                    family: null_change([change_of(before, one, rises=rises) for one in some])
                    for family, some in of_family.items()
                },
                beyond=beyond(classes, of_family, rises=rises),
            )

    return before, changes()
