"""Greedy completions as text."""

from collections.abc import Sequence

from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import Prompt


def complete(
    runner: Runner, chat: Chat, prompts: Sequence[Prompt], arms: Sequence[Arm], length: int
) -> list[list[str]]:
    """The greedy completions of every prompt under every arm, by arm; at most `length` tokens each."""
    ids, _ = runner.generate([chat.encode(p) for p in prompts], arms, max_new_tokens=length)
    return [[chat.tokenizer.decode(i, skip_special_tokens=True) for i in arm] for arm in ids]
