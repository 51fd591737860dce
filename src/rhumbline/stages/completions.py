"""The answers of greedy completions, as text."""

from collections.abc import Sequence

from rhumbline.axes import TokenIds
from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.contrasts import Prompt


def complete(
    runner: Runner, chat: Chat, prompts: Sequence[Prompt], arms: Sequence[Arm], length: int, header: str = ""
) -> list[list[str | None]]:
    """The answers of the greedy completions of every prompt under every arm, by arm; at most `length` tokens each.

    None: the completion has no answer. `header` is removed from the beginning of an answer (`header_text`).
    """
    return answers(runner, chat, [chat.encode(p) for p in prompts], arms, length, header)


def answers(
    runner: Runner, chat: Chat, sequences: Sequence[TokenIds], arms: Sequence[Arm], length: int, header: str = ""
) -> list[list[str | None]]:
    """The same for token ids of any chats."""
    ids = runner.completions(sequences, arms, max_new_tokens=length, stop=stop_ids(runner.model, chat))
    texts = [[chat.answer(i).text for i in arm] for arm in ids]
    return [[text and text.removeprefix(header) for text in arm] for arm in texts]
