"""Render prompts with a chat template, and check that the template is a function of the chat.

A chat is always rendered as a whole, with the model's own template. Independent of token ids.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from rhumbline.errors import TemplateError
from rhumbline.models.resource_limits import limited
from rhumbline.prompts.chat_options import ChatOptions

PROBES = (
    "Explain photosynthesis",
    "7 days make a week; how many hours are 2",
    "Describe the sea.",
    "Why is the sky blue?",
    "Tell me a joke!",
    '(French, please) How do I say "good morning"',
    "List two birds (of any size)",
    "Écris un mot avec un é",
    "`print(1)` or `print(2)`",
    "用三个词介绍茶",
    "¿Three rivers of Spain:",
    "- first item, then 'second'",
    "Solve 1 + 1 =",
    "Cheer me up 🙂",
)
"""Instructions whose first and last characters all differ, so that their renderings share the template only."""


def template_sha256(template: str) -> str:
    """The hash by which the protocol names a chat template."""
    return hashlib.sha256(template.encode()).hexdigest()


def own_template(tokenizer: Any) -> str | None:
    """Text of the tokenizer's chat template; None where it has none, or several."""
    try:
        return tokenizer.get_chat_template()
    except (ValueError, AttributeError):
        return None


def template_of(tokenizer: Any, options: ChatOptions) -> str:
    """The Jinja text of the chat template."""
    if options.template is not None:
        return options.template
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        several = isinstance(tokenizer.chat_template, dict)
        templates = f"has several chat templates ({error})" if several else "has no chat template"
        raise TemplateError(
            f"{type(tokenizer).__name__} {templates}. Use an instruct model, or pass one template as Jinja text "
            "(--chat-template FILE, or set tokenizer.chat_template)."
        ) from None


Message = Mapping[str, str]
"""A turn of a chat: `role` and `content`."""


def render(tokenizer: Any, options: ChatOptions, text: str, system: str | None, now: datetime | None = None) -> str:
    """The chat as text, with the header of the completion. `now`, or `options.date`, replaces the clock."""
    return render_messages(tokenizer, options, messages_of(system, text), now)


def messages_of(system: str | None, *texts: str) -> list[Message]:
    """The messages of a chat: the texts are those of user and assistant, alternately."""
    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))]


def render_messages(
    tokenizer: Any,
    options: ChatOptions,
    messages: Sequence[Message],
    now: datetime | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Any chat as text, with the header of a further completion unless `add_generation_prompt` is false."""
    if now is None and options.date is not None:
        now = datetime.fromisoformat(options.date)
    template = template_of(tokenizer, options)
    variables = dict(options.template_kwargs)
    if options.enable_thinking is not None:
        variables["enable_thinking"] = options.enable_thinking
    try:
        with limited():
            return tokenizer.apply_chat_template(
                list(map(dict, messages)),
                chat_template=template if now is None else _at(now) + template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
    except Exception as error:  # A template is a program, which can raise any error.
        raise TemplateError(
            f"The chat template cannot render a chat: {type(error).__name__}: {error}. Use another template "
            "(--chat-template FILE)."
        ) from error


def _at(now: datetime) -> str:
    """Jinja text that defines `strftime_now` with this time; it is put before a template.

    A macro, because transformers converts a callable among the template variables to a string.
    """
    values = {f"%{letter}": now.strftime(f"%{letter}") for letter in "aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ"}
    values |= {f"%-{letter}": re.sub("^0+(?=.)", "", values[f"%{letter}"]) for letter in "dmHIMSjy"}
    # A doubled percent sign is NUL in between, so that "%%d" becomes the text "%d".
    steps = ["replace('%%', '\\0')", *(f"replace('{k}', '{v}')" for k, v in values.items()), "replace('\\0', '%')"]
    # trim_blocks removes this line break, so the template itself begins at the start of a line.
    return "{% macro strftime_now(format) %}{{ format | " + " | ".join(steps) + " }}{% endmacro %}\n"


# -- properties that a template must have


def check_template(tokenizer: Any, options: ChatOptions) -> None:
    """Raise TemplateError if a template changes the instruction, is not a function of the chat or ignores an option."""
    if options.system is not None:
        check_system(tokenizer, options, options.system)
    for text in PROBES:
        chat = render(tokenizer, options, text, options.system)
        if text not in chat:
            raise TemplateError(
                f"The chat template drops or changes the instruction {text!r}: it is rendered as {chat!r}. "
                "Use a template that writes the user's message unchanged (--chat-template FILE)."
            )

    def rendered(now: datetime, options: ChatOptions = options) -> str:
        return render(tokenizer, options, PROBES[0], options.system, now)

    day, other_day = datetime(2001, 2, 3, 4, 5, 6), datetime(2019, 11, 28, 17, 48, 59)
    # A fair coin in the template gives ten equal results in a row once in 512 runs.
    if len({rendered(day) for _ in range(10)}) > 1:
        raise TemplateError(
            "The chat template is random: it renders one chat in different ways, so no position is fixed. Use a "
            "deterministic template (--chat-template FILE)."
        )
    if options.date is None and rendered(day) != rendered(other_day):
        raise TemplateError(
            "The chat template contains today's date, so the run would differ tomorrow. Fix the date with --date "
            "YYYY-MM-DD (ChatOptions.date)."
        )
    for name, changed in _alternatives(options).items():
        if all(_renders_the_same(tokenizer, options, other) for other in changed):
            raise TemplateError(
                f"The chat template ignores {name}: every value renders the same chat. Remove the option, or use a "
                "template that reads it (--chat-template FILE)."
            )


def check_system(tokenizer: Any, options: ChatOptions, system: str) -> None:
    """Raise TemplateError if the template refuses or drops a system prompt."""
    try:
        with_system = render(tokenizer, options, PROBES[0], system)
    except TemplateError as error:
        # Raises its own error if the system prompt is not the cause.
        render(tokenizer, options, PROBES[0], None)
        raise TemplateError(
            f"The chat template refuses a system prompt ({error}). Remove it, or put its text into the instructions."
        ) from error
    # Compared with another system prompt, not with none: this one can be the default of the template.
    if with_system == render(tokenizer, options, PROBES[0], f"{system} Be brief."):
        raise TemplateError(
            "The chat template drops the system prompt: another system prompt renders the same chat. Remove it, or put "
            "its text into the instructions."
        )


def _alternatives(options: ChatOptions) -> dict[str, list[ChatOptions]]:
    """For each template variable that is set, the options without it and with another value."""
    others: dict[str, list[ChatOptions]] = {}
    if options.enable_thinking is not None:
        others["enable_thinking"] = [
            replace(options, enable_thinking=other) for other in (None, not options.enable_thinking)
        ]
    for name, value in options.template_kwargs.items():
        rest = {key: kept for key, kept in options.template_kwargs.items() if key != name}
        others[name] = [replace(options, template_kwargs=rest)]
        match value:
            case bool():
                others[name].append(replace(options, template_kwargs={**rest, name: not value}))
            case int() | float():
                others[name].append(replace(options, template_kwargs={**rest, name: value + 1}))
            case str():
                others[name].append(replace(options, template_kwargs={**rest, name: f"{value}x"}))
    return others


def _renders_the_same(tokenizer: Any, options: ChatOptions, other: ChatOptions) -> bool:
    expected = render(tokenizer, options, PROBES[0], options.system)
    try:
        return render(tokenizer, other, PROBES[0], other.system) == expected
    except TemplateError:  # An error for the other value shows that the template reads the variable.
        return False
