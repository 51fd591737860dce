"""Stage *conditions*: the test prompts again under other system prompts (condition-NN.jsonl).

The direction is that of the run's own chat options; it is not fitted or selected again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rhumbline.errors import ProtocolError, TemplateError
from rhumbline.judging.score import score_of
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import LABELS, Label, Prompt
from rhumbline.records.outcome_rows import ConditionOutcome
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
        name: Chat.of(tokenizer, replace(options, system=text), prompts)
        if text
        else _without_system(tokenizer, options, prompts)
        for name, text in conditions.items()
    }


def _without_system(tokenizer: Any, options: ChatOptions, prompts: Sequence[Prompt]) -> Chat:
    """The chat without a system prompt. Some templates write one of their own where none is given: then with an empty
    one, whose chat is shorter.
    """
    none = Chat.of(tokenizer, replace(options, system=None), prompts)
    try:
        empty = Chat.of(tokenizer, replace(options, system=""), prompts)
    except TemplateError:
        return none  # the template takes no system prompt
    return min(none, empty, key=lambda chat: len(chat.encode(prompts[0])))


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
    prompts, chat, judge = run.splits.get("test", label), run.chats[name], run.protocol.class_judge()
    groups = by_draws(run, len(prompts)) if run.direction is not None else {(): list(range(len(prompts)))}
    of_group = [([prompts[i] for i in places], run.arms.conditions(label, draws)) for draws, places in groups.items()]
    completed = run.runner(stage).generate_groups(
        [([chat.encode(p) for p in some], list(arms.values())) for some, arms in of_group],
        max_new_tokens=run.protocol.max_new_tokens,
        stop=stop_ids(run.model, chat),
    )
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
        for (some, arms), (tokens, _) in zip(of_group, completed, strict=True)
        for arm, of_arm in zip(arms, tokens, strict=True)
        for prompt, ids in zip(some, of_arm, strict=True)
        for score in [score_of(judge, run.answer(ids, chat))]
    ]
