"""The options of a chat that a protocol fixes: system prompt, thinking, date, template and its variables.

Independent of tokenizers and models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, get_args

from rhumbline.arguments import check_fields
from rhumbline.errors import TemplateError
from rhumbline.records.protocol_file import ControlText
from rhumbline.records.user_files import control_character

_RESERVED = {
    *("conversation", "messages", "tools", "documents", "chat_template", "tokenize", "tokenizer_kwargs"),
    *("add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "strftime_now", "enable_thinking"),
}


@dataclass(frozen=True)
class ChatOptions:
    """How prompts are rendered with the chat template."""

    system: str | None = None
    """System prompt of every chat, unless a prompt has its own. None: the default of the template."""
    enable_thinking: bool | None = None
    """Variable of the template of a thinking model. None: the default of the template."""
    date: str | None = None
    """YYYY-MM-DD: the date that the template prints as today's."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template."""
    control_tokens: ControlText = "error"
    """What is done with a prompt whose text is tokenized into control tokens, such as turn markers: `error`, or `plain`
    for encoding it as plain text."""
    template: str | None = None
    """Jinja text that replaces the chat template of the tokenizer."""

    def __post_init__(self):
        check_fields(self)
        if self.date is not None:
            try:
                well_formed = date.fromisoformat(self.date).isoformat() == self.date
            except ValueError:
                well_formed = False
            if not well_formed:
                raise TemplateError(f"date is {self.date!r}; write a day as YYYY-MM-DD, for example 2026-01-31.")
        if self.system is not None and (control := control_character(self.system)) is not None:
            raise TemplateError(f"the system prompt contains the control character {control}. Remove it.")
        if self.control_tokens not in get_args(ControlText):
            raise TemplateError(f"control_tokens is {self.control_tokens!r}; use {' or '.join(get_args(ControlText))}.")
        if clash := sorted(_RESERVED & set(self.template_kwargs)):
            raise TemplateError(
                f"template_kwargs cannot set {', '.join(clash)}: these belong to the tokenizer or are options of "
                "their own. Use system, date, enable_thinking or template."
            )
        try:
            json.dumps(dict(self.template_kwargs), ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(
                f"template_kwargs must be JSON values, because the protocol records them: {error}. Pass text, "
                "numbers, true, false or null."
            ) from None


DEFAULT_OPTIONS = ChatOptions()
