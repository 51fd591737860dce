"""Messages of a task of lm-evaluation-harness in, the text of a chat out, rendered with the chat of a run.

Independent of the harness, of tasks and of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rhumbline.errors import InputError, TemplateError
from rhumbline.models.chat import Chat
from rhumbline.models.templates import Message, check_system, messages_of, render_messages

_PROBE = "Answer the question."
_LONGEST = 40


@dataclass(frozen=True)
class TaskChat:
    """Renders the messages of a task: template, system prompt, date and variables are those of the run."""

    chat: Chat
    """The chat of the run."""

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes system prompts; that of Gemma 2, for example, refuses them."""
        try:
            check_system(self.chat.tokenizer, self.chat.options, _PROBE)
        except TemplateError:
            return False
        return True

    def render(self, messages: Sequence[Message], *, is_continued: bool) -> str:
        """A chat as text, with the header of the completion.

        If `is_continued`, the last message is the beginning of the completion. A system message is the description of a
        task: it follows the system prompt of the run, or begins the first user message if the template takes no system
        prompt. InputError if a message spells control tokens.
        """
        self._check(messages)
        start = messages[-1]["content"] if is_continued else ""
        turns = self._described(list(messages[:-1] if is_continued else messages))
        return render_messages(self.chat.tokenizer, self.chat.options, turns) + start

    def _described(self, turns: list[Message]) -> list[Message]:
        """The turns with the system prompt of the run and the description of the task."""
        system, description = self.chat.options.system, None
        if turns[0]["role"] == "system":
            description, turns = turns[0]["content"], turns[1:]
        if description is not None and not self._takes_system:
            first, *others = turns
            return [{**first, "content": f"{description}\n\n{first['content']}"}, *others]
        parts = [text for text in (system, description) if text]
        return [*messages_of("\n\n".join(parts) if parts else system), *turns]

    def _check(self, messages: Sequence[Message]) -> None:
        for text in (message["content"] for message in messages):
            # The harness encodes a chat as one text, so that chat.control_tokens = "plain" has no effect here.
            if spelled := self.chat.controls.spelled(text):
                raise InputError(
                    f"--chat: a text of the task, {text[:_LONGEST]!r}, is tokenized into control tokens "
                    f"({' '.join(spelled)}), which would change its chat. Remove them from the task, or omit --chat."
                )
