"""Stage *arms*: every arm completes every test prompt, and a judge scores the completions (outcomes.jsonl).

Test prompts are first read here, after selection.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from msgspec import structs

from rhumbline.errors import ProtocolError
from rhumbline.evidence.class_rates import arm_rates, measured_outcomes
from rhumbline.judging.judge_names import CLASS_JUDGES
from rhumbline.judging.normal_text import folded
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.score import score_of
from rhumbline.judging.text_style import holds
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.contrasts import LABELS, Label, Prompt
from rhumbline.records.arms import ArmId
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Class
from rhumbline.settings import ROWS_PER_JOB
from rhumbline.stages.arms import Arms
from rhumbline.stages.quick_rows import baseline_rows
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import JobKind, SeedJobs, shares

log = logging.getLogger("rhumbline")

STAGE = "arms"
LENGTHS_READ = (16, 32, 64)
"""Numbers of new tokens after which a completion is judged too, besides the whole completion."""


@dataclass(frozen=True)
class OutcomeGroup:
    """Test prompts of one class with the same arms."""

    label: Label
    prompts: tuple[int, ...]
    """Indices of the prompts in their class."""
    draws: tuple[int, ...]
    """Numbers of the null draws that complete them."""
    baseline: bool = True
    """Whether the baseline is run; its rows of a quick run are reused."""


@dataclass(frozen=True)
class OutcomeRequest:
    """Groups of test prompts that are completed together."""

    groups: tuple[OutcomeGroup, ...]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of some test prompts under some arms."""

    rows: tuple[Outcome, ...]


def write_outcomes(run: SeedRun, jobs: SeedJobs) -> None:
    """Complete and judge every test prompt under every arm, job by job."""
    path = run.directory.file_of(Outcome, run.seed)
    if path.is_file():
        return
    with run.timings.stage(STAGE, run.seed):
        known: dict[Label, dict[str, Outcome]] = {c: baseline_rows(run, c, _lengths(run)) for c in LABELS}
        for label, some in known.items():
            if some:
                log.info("%d baseline rows of %ss are those of the quick run", len(some), label)
        requests = _requests(run, known)
        found = [row for part in jobs.request(OUTCOME_JOB, requests) for row in part.rows]
        rows = [row for label, some in known.items() for row in (*some.values(), *found) if row.side == label]
    run.directory.write_rows_as(rows, path)


def draws_by_prompt(n: int, draws: int, completed: int, seed: int) -> list[tuple[int, ...]]:
    """The null draws that complete each of n test prompts: `completed` prompts for each draw, or all (0).

    Draws have different prompts as far as possible, so that their mean is over many prompts.
    """
    if not completed or completed >= n:
        return [tuple(range(draws))] * n
    order = np.random.default_rng([seed, n, completed]).permutation(n)
    of_draw = [{int(order[(draw * completed + i) % n]) for i in range(completed)} for draw in range(draws)]
    return [tuple(draw for draw in range(draws) if prompt in of_draw[draw]) for prompt in range(n)]


def by_draws(run: SeedRun, n: int) -> dict[tuple[int, ...], list[int]]:
    """The places of n test prompts, by the null draws that complete them."""
    together: dict[tuple[int, ...], list[int]] = {}
    for place, draws in enumerate(draws_by_prompt(n, run.protocol.nulls.draws, run.protocol.completed, run.seed)):
        together.setdefault(draws, []).append(place)
    return together


def _requests(run: SeedRun, known: Mapping[Label, Collection[str]]) -> list[OutcomeRequest]:
    """The jobs of both classes, of nearly equal size. `known`: prompts whose baseline row exists."""
    items = [
        (group, i, n_arms)
        for label in LABELS
        for group, some in _together(run, label, known[label]).items()
        if (n_arms := len(_arms(run, group)))
        for i in some
    ]
    return [
        OutcomeRequest(_groups(items[i][:2] for i in some))
        for some in shares([n_arms for *_, n_arms in items], ROWS_PER_JOB)
    ]


def _together(run: SeedRun, label: Label, known: Collection[str]) -> dict[OutcomeGroup, list[int]]:
    """The prompts of one class that have the same arms, by a group without prompts."""
    prompts = run.splits.get("test", label)
    together: dict[OutcomeGroup, list[int]] = {}
    # Without null arms (nothing was selected) all prompts have the same arms.
    parts = {(): range(len(prompts))} if run.arms.direction is None else by_draws(run, len(prompts))
    for draws, places in parts.items():
        for i in places:
            together.setdefault(OutcomeGroup(label, (), draws, prompts[i].id not in known), []).append(i)
    return together


def _groups(items: Iterable[tuple[OutcomeGroup, int]]) -> tuple[OutcomeGroup, ...]:
    """The groups of some prompts, each given with a group without prompts."""
    together: dict[OutcomeGroup, list[int]] = {}
    for group, prompt in items:
        together.setdefault(group, []).append(prompt)
    return tuple(replace(group, prompts=tuple(some)) for group, some in together.items())


def _arms(run: SeedRun, group: OutcomeGroup) -> Arms:
    arms = run.arms.outcomes(group.label, group.draws)
    return arms if group.baseline else {id_: arm for id_, arm in arms.items() if not id_.is_baseline}


def _prepare(run: SeedRun) -> Callable[[OutcomeRequest], Outcomes]:
    return partial(_complete, run)


OUTCOME_JOB = JobKind("outcomes", OutcomeRequest, Outcomes, _prepare)


def _complete(run: SeedRun, request: OutcomeRequest) -> Outcomes:
    """The outcomes of some test prompts under every arm."""
    of_group = [_arms(run, group) for group in request.groups]
    tests = [run.splits.get("test", group.label) for group in request.groups]
    prompts = [[test[i] for i in group.prompts] for test, group in zip(tests, request.groups, strict=True)]
    inputs = [
        ([run.chat.encode(p) for p in some], list(arms.values())) for some, arms in zip(prompts, of_group, strict=True)
    ]
    ids = [id_ for arms in of_group for id_ in arms]
    # The first logits of a completion are those of the metric, unless it reads responses or later tokens.
    read = None if isinstance(run.metric, PairedLogOdds) or run.start_tokens else run.metric

    def is_decided(arm: int, tokens: Sequence[int]) -> bool:
        text = run.answer(tokens)
        return text is not None and not ids[arm].is_own and run.protocol.class_judge().is_decided_by(text)

    completed = run.runner(STAGE).generate_groups(
        inputs,
        max_new_tokens=run.protocol.max_new_tokens,
        stop=stop_ids(run.model, run.chat),
        read=read,
        decided=is_decided if run.protocol.early_stop else None,
    )
    rows: list[Outcome] = []
    for some, arms, (sequences, edits), (tokens, metric) in zip(prompts, of_group, inputs, completed, strict=True):
        if run.metric is not None and read is None:
            metric = run.scorer(STAGE).read(sequences, edits).metric
        baseline = [run.answer(of_prompt) for of_prompt in tokens[0]]
        rows += [
            _outcome(run, arm, prompt, tokens[a][p], float(metric[a, p]), baseline[p])
            for a, arm in enumerate(arms)
            for p, prompt in enumerate(some)
        ]
    return Outcomes(tuple(rows))


def _outcome(
    run: SeedRun, arm: ArmId, prompt: Prompt, ids: Sequence[int], metric: float, baseline: str | None
) -> Outcome:
    """The row of one completion."""
    text = run.answer(ids)
    score = run.score(prompt, ids)
    row = Outcome(
        arm=arm,
        side=prompt.label,
        prompt_id=prompt.id,
        cls=score.cls,
        score=score.value,
        evidence=score.evidence,
        repeats=score.repeats,
        uncovered=score.uncovered,
        metric=metric,
        new_tokens=len(ids),
        category=prompt.category,
    )
    if run.protocol.is_continuous and text is not None:
        readout = run.style.readout(text, baseline, prompt)
        row = structs.replace(
            row,
            correct=readout.content,
            form=readout.form,
            marker_share=readout.marker_share,
            classifier=readout.classifier,
        )
    elif not run.protocol.is_continuous and arm.is_own:
        judges = {name: _class_by(run, name, text) for name in CLASS_JUDGES}
        row = structs.replace(
            row, judges=judges, by_length=_by_length(run, ids, text), correct=_has_answer(prompt, text)
        )
    if not run.protocol.save_completions:
        return row
    whole = run.chat.tokenizer.decode(ids, skip_special_tokens=True)
    return structs.replace(row, prompt=prompt.text, completion=whole if text is None else text)


def _class_by(run: SeedRun, judge: str, text: str | None) -> Class:
    """The class by another judge; unscored also where the literal one classifies a language that it does not cover."""
    score = score_of(run.protocol.class_judge(judge), text)
    return "unscored" if score.uncovered else score.cls


def _lengths(run: SeedRun) -> tuple[int, ...]:
    return tuple(n for n in LENGTHS_READ if n < run.protocol.max_new_tokens)


def _by_length(run: SeedRun, ids: Sequence[int], text: str | None) -> dict[str, Class]:
    """The class of the beginnings of a completion, and of the whole."""
    texts = {str(n): run.answer(ids[:n]) for n in _lengths(run)} | {"full": text}
    judge_of_run = run.protocol.class_judge()
    return {n: score_of(judge_of_run, beginning).cls for n, beginning in texts.items()}


def _has_answer(prompt: Prompt, text: str | None) -> bool | None:
    """Whether the text of a negative contains the known answer; None if no answer is known, or without a text."""
    if prompt.label != "negative" or text is None:
        return None
    if prompt.answer is not None:
        return holds(prompt.answer, text)
    if not prompt.response:
        return None
    return folded(prompt.response) in folded(text)


def check_filter(run: SeedRun) -> None:
    """Raise ProtocolError if the sign of the metric keeps no prompt of a class, though the judge finds the class in the
    completions at baseline. A model that shows the behaviour on both classes, or on none, is not tested instead.
    """
    n, bound = {"train": run.extraction.n.train, "val": run.extraction.n.val}, run.protocol.rule.min_baseline
    rows = measured_outcomes(run.directory.read_rows(Outcome, run.seed))
    rates = {row.side: row.rate for row in arm_rates(rows) if row.arm.is_baseline and row.rate is not None}
    if rates.get("positive", 0.0) < bound:
        return
    found = {"positive": True, "negative": rates.get("negative", 1.0) < bound}
    empty = [f"{split} {c}s" for split, counts in n.items() for c in LABELS if counts[c] == 0 and found[c]]
    if empty:
        raise ProtocolError(
            f"seed {run.seed}: the completions show the behaviour on positives (rate {rates['positive']:.2f}), but the "
            f"sign of the metric keeps none of the {' and '.join(empty)}. The metric reads the wrong tokens. "
            "Pass others with --refusal-tokens, or set extraction.filter = false in an experiment file. "
            f"Everything computed so far stays in {run.directory.path}."
        )
