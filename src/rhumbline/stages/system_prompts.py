"""Conditions: the same direction and the same test prompts under other system prompts. Chats and arms in, rows out.

The direction is the one that the run found with its own chat options; nothing is fitted or chosen again. Knows no rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rhumbline.errors import ProtocolError
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.keyword_judges import Judge
from rhumbline.models.chat import Chat
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Label, Prompt


def chats_of(
    tokenizer: Any, options: ChatOptions, conditions: Mapping[str, str], prompts: Sequence[Prompt]
) -> dict[str, Chat]:
    """The chat of every condition, checked; an empty system prompt is none. Raises before any forward pass."""
    if conditions and (own := [p.id for p in prompts if p.system is not None]):
        raise ProtocolError(
            f"{len(own)} prompts (the first: {own[0]}) have a system prompt of their own, which no condition would "
            "replace. Leave out --systems, or the `system` column."
        )
    return {
        name: Chat.of(tokenizer, replace(options, system=text or None), prompts) for name, text in conditions.items()
    }


def condition_arms(label: Label, direction: Direction | None, how: Mapping[str, Any]) -> list[Arm]:
    """Baseline and ablation, and on negatives the addition too; without a direction the baseline alone."""
    if direction is None:
        return [BASELINE]
    addition = [Arm("addition", (Add(direction, **how),))] if label == "negative" else []
    return [BASELINE, Arm("ablation", (Ablate(direction),)), *addition]


def condition_rows(
    runner: Runner,
    chat: Chat,
    condition: str,
    label: Label,
    prompts: Sequence[Prompt],
    arms: Sequence[Arm],
    judge: Judge,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """One row for each arm and prompt under a condition: {"condition", "arm", "set", "prompt_id", "class", ...}."""
    written, _ = runner.generate([chat.encode(p) for p in prompts], arms, max_new_tokens=max_new_tokens)
    return [
        {
            "condition": condition,
            "arm": arm.name,
            "set": label,
            "prompt_id": prompt.id,
            "class": judge(chat.tokenizer.decode(ids, skip_special_tokens=True)).cls,
            "new_tokens": len(ids),
            "category": prompt.category,
        }
        for arm, completions in zip(arms, written, strict=True)
        for prompt, ids in zip(prompts, completions, strict=True)
    ]
