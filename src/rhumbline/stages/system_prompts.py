"""Stage *conditions*: the test prompts again under other system prompts (condition-NN.jsonl).

The direction is that of the run's own chat options; it is not fitted or selected again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rhumbline.errors import ProtocolError
from rhumbline.judging.score import score_of
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import LABELS, Label, Prompt
from rhumbline.records.outcome_rows import ConditionOutcome
from rhumbline.stages.arms import Arms
from rhumbline.stages.outcomes import by_draws
from rhumbline.stages.seed_run import SeedRun


def chats_of(
    tokenizer: Any, options: ChatOptions, conditions: Mapping[str, str], prompts: Sequence[Prompt]
) -> dict[str, Chat]:
    """The checked chat of every condition; an empty system prompt means none. Raises before any forward pass."""
    if conditions and (own := [p.id for p in prompts if p.system is not None]):
        raise ProtocolError(
            f"{len(own)} prompts (the first: {own[0]}) have a system prompt of their own, which a condition does not "
            "replace. Leave out --systems, or remove the column `system`."
        )
    return {
        name: Chat.of(tokenizer, replace(options, system=text or None), prompts) for name, text in conditions.items()
    }


def write_conditions(run: SeedRun) -> None:
    """The outcomes under each system prompt, one file for each."""
    for number, name in enumerate(run.chats):
        path, stage = run.folder / f"condition-{number:02d}.jsonl", f"condition {name}"
        if not path.is_file():
            with run.timings.stage(stage, run.seed):
                rows = [row for label in LABELS for row in _outcomes(run, name, label, stage)]
                run.directory.write_rows_as(rows, path)


def _outcomes(run: SeedRun, name: str, label: Label, stage: str) -> list[ConditionOutcome]:
    """One row for each arm and test prompt of a class; a null draw completes the same prompts as in the run."""
    prompts = run.splits.get("test", label)
    groups = by_draws(run, len(prompts)) if run.direction is not None else {(): list(range(len(prompts)))}
    return [
        row
        for draws, places in groups.items()
        for row in _completed(run, name, [prompts[i] for i in places], run.arms.conditions(label, draws), stage)
    ]


def _completed(run: SeedRun, name: str, prompts: Sequence[Prompt], arms: Arms, stage: str) -> list[ConditionOutcome]:
    """One row for each of these arms and prompts."""
    chat, judge = run.chats[name], run.protocol.class_judge()
    sequences = [chat.encode(p) for p in prompts]
    length, stop = run.protocol.max_new_tokens, stop_ids(run.model, chat)
    completions, _ = run.runner(stage).generate(sequences, list(arms.values()), max_new_tokens=length, stop=stop)
    scores = [[score_of(judge, run.answer(ids, chat)) for ids in some] for some in completions]
    return [
        ConditionOutcome(
            condition=name,
            arm=arm,
            side=prompt.label,
            prompt_id=prompt.id,
            cls=score.cls,
            new_tokens=len(ids),
            category=prompt.category,
            uncovered=score.uncovered,
        )
        for arm, some, of_arm in zip(arms, completions, scores, strict=True)
        for prompt, ids, score in zip(prompts, some, of_arm, strict=True)
    ]
