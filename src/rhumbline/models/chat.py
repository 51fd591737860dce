"""Prompts in, token ids out, and the positions that every prompt shares.

The suffix is the post-instruction tokens. It is found by rendering the model's own chat template around probes, never
by encoding a piece of the template apart. Knows the template and its tokenizer; does not know the model.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.errors import TemplateError
from rhumbline.prompts.chat_options import DEFAULT_OPTIONS, ChatOptions
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.positions import Position

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
"""Instructions whose first and last characters all differ: what their renderings share is the template's."""

_SHOWN = 20


class Spans(NamedTuple):
    """Where the parts of one encoded prompt end; the instruction lies between the two."""

    prefix_end: int
    """Leading tokens that it shares with `Chat.prefix`: fewer than all of them where a prompt has its own system."""
    instruction_end: int
    """Where the post-instruction tokens begin."""


class Answered(tuple[int, ...]):
    """Token ids of a chat with its answer: a tuple of them, of which the last `n_answer` are the answer's."""

    n_answer: int

    def __new__(cls, prompt: Sequence[int], answer: Sequence[int]) -> "Answered":
        """The ids of the prompt, then those of the answer."""
        made = super().__new__(cls, (*prompt, *answer))
        made.n_answer = len(answer)
        return made

    @property
    def start(self) -> int:
        """Where the answer's own tokens begin."""
        return len(self) - self.n_answer


@dataclass(frozen=True)
class Chat:
    """The template of one model with one set of options. Built by `Chat.of`."""

    tokenizer: Any
    """A transformers tokenizer."""
    options: ChatOptions
    prefix: tuple[int, ...]
    """Token ids that every chat without a system prompt of its own begins with."""
    suffix: tuple[int, ...]
    """The post-instruction tokens: ids that every chat ends with, after the last token that the instruction touches."""

    @classmethod
    def of(cls, tokenizer: Any, options: ChatOptions = DEFAULT_OPTIONS, prompts: Iterable[Prompt] = ()) -> "Chat":
        """Check the template and find its prefix and suffix, common to the probes and to `prompts`.

        Give the prompts of the run: a token that merges the end of one of them with the template is then no position.
        """
        prompts = tuple(prompts)
        _check_template(tokenizer, options)
        chat = cls(tokenizer, options, prefix=(), suffix=())
        chat._check_systems(prompts)
        probes = tuple(Prompt(text, "negative", id=f"probe {text!r}") for text in PROBES)
        sequences = {prompt: chat.encode(prompt) for prompt in (*probes, *prompts)}
        # An unknown token hides which text it stands for, so that it may belong to the instruction.
        unknown = getattr(tokenizer, "unk_token_id", None)
        prefix = _common_start([ids for prompt, ids in sequences.items() if prompt.system is None], unknown)
        suffix = _common_start([ids[::-1] for ids in sequences.values()], unknown)[::-1]
        if not suffix:
            rendered = _render(tokenizer, options, PROBES[0], options.system)
            raise TemplateError(
                f"The chat template leaves no post-instruction token: {PROBES[0]!r} is rendered as {rendered!r}, and "
                "no token at the end is the same for every instruction. Use a template that writes something after "
                "the instruction, such as the header of the answer (--chat-template FILE)."
            )
        chat = replace(chat, prefix=prefix, suffix=suffix)
        chat._check_tokens((*probes, *prompts))
        return chat

    @property
    def positions(self) -> tuple[Position, ...]:
        """The post-instruction positions, -n .. -1."""
        return tuple(Position.post_instruction(i) for i in range(-len(self.suffix), 0))

    @property
    def instruction_position(self) -> Position:
        """The token before them: the last of the instruction, or one that merges its end with the template."""
        return Position.post_instruction(-len(self.suffix) - 1)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the chat that asks this prompt, up to where the answer begins."""
        return self._encode(prompt, "")

    def _encode(self, prompt: Prompt, answer: str) -> list[int]:
        system = self.options.system if prompt.system is None else prompt.system
        text = _render(self.tokenizer, self.options, prompt.text, system)
        # The template writes the special tokens itself: adding them again would double the first one.
        return list(self.tokenizer(text + answer, add_special_tokens=False)["input_ids"])

    def encode_answer(self, prompt: Prompt, answer: str) -> Answered:
        """Token ids of the chat in which this prompt was answered so.

        Encoded as one text, as a completion of it would be. A token that merges the end of the template with the answer
        counts as the answer's.
        """
        ids = self._encode(prompt, answer)
        start = len(_common_start([self.encode(prompt), ids]))
        return Answered(ids[:start], ids[start:])

    def answer(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of an answer to this prompt, encoded where it stands; TemplateError where it has none."""
        found = self.encode_answer(prompt, text)
        if not text.strip() or found.start < len(self.encode(prompt)):
            raise TemplateError(
                f"The response of prompt {prompt.id!r} is empty or merges with the chat template, so it has no "
                "tokens of its own. Give it a response that begins with a word."
            )
        return list(found[found.start :])

    def encode_answered(self, prompt: Prompt) -> Answered:
        """Token ids of the chat with the response that the prompt carries."""
        return Answered(self.encode(prompt), self.answer(prompt, prompt.response or ""))

    def first_token(self, answer: str) -> int:
        """Id of the first token of an answer that begins with this text, encoded where an answer stands."""
        text = _render(self.tokenizer, self.options, PROBES[0], self.options.system)
        before = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        after = self.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        shared = len(_common_start([before, after]))
        if not answer or shared < len(before):
            raise TemplateError(
                f"{answer!r} cannot open an answer: its beginning merges with the chat template. Give the text of a "
                "whole first token, as a completion would begin."
            )
        return int(after[shared])

    def spans(self, ids: Sequence[int]) -> Spans:
        """The spans of one encoded prompt."""
        if tuple(ids[len(ids) - len(self.suffix) :]) != self.suffix:
            raise TemplateError("These ids do not end with the post-instruction tokens; encode them with Chat.encode.")
        return Spans(len(_common_start([self.prefix, ids])), len(ids) - len(self.suffix))

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise a TemplateError that names the prompts for which prefix, suffix or system prompt do not hold."""
        prompts = tuple(prompts)
        self._check_systems(prompts)
        self._check_tokens(prompts)

    def record(self) -> dict[str, Any]:
        """What the protocol keeps of the chat, as JSON values."""
        return {
            "template_sha256": template_sha256(_template_of(self.tokenizer, self.options)),
            "system": self.options.system,
            "enable_thinking": self.options.enable_thinking,
            "date": self.options.date,
            "template_kwargs": dict(self.options.template_kwargs),
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "suffix_tokens": [self._shown(token) for token in self.suffix],
            "positions": [int(p) for p in self.positions],
        }

    def _shown(self, token: int) -> str:
        """The text of one token; where decoding drops it, its name in the vocabulary."""
        return self.tokenizer.decode([token]) or self.tokenizer.convert_ids_to_tokens(token)

    def _check_systems(self, prompts: Sequence[Prompt]) -> None:
        for system in dict.fromkeys(prompt.system for prompt in prompts):
            if system is not None:
                _check_system(self.tokenizer, self.options, system)

    def _check_tokens(self, prompts: Sequence[Prompt]) -> None:
        n_prefix, n_suffix = len(self.prefix), len(self.suffix)
        faults: dict[str, list[str]] = {}
        for prompt in prompts:
            ids = tuple(self.encode(prompt))
            starts = prompt.system is not None or ids[:n_prefix] == self.prefix
            if not starts:
                faults.setdefault("without the shared prefix", []).append(prompt.id)
            if ids[-n_suffix:] != self.suffix:
                faults.setdefault("without the post-instruction tokens at the end", []).append(prompt.id)
            elif starts and len(ids) <= n_suffix + (n_prefix if prompt.system is None else 0):
                faults.setdefault("without a token of their own", []).append(prompt.id)
        if faults:
            told = "; ".join(f"{fault} ({len(ids)}): {_listed(ids)}" for fault, ids in faults.items())
            raise TemplateError(
                f"The positions of this chat do not hold for every prompt: {told}. Their text merges with the template "
                "or holds its control tokens: give all prompts of the run to Chat.of, or change these."
            )


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded to one length."""

    input_ids: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    """1 at a token, 0 at padding."""


def token_batch(sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "left") -> TokenBatch:
    """Pad the sequences to the longest. On the left, position -1 is the last token of every row."""
    if not sequences or not all(sequences):
        raise ValueError(
            f"token_batch needs sequences of at least one token each; got lengths {[*map(len, sequences)]}."
        )
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        span = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        input_ids[row, span] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[row, span] = 1
    return TokenBatch(input_ids, attention_mask)


def _common_start(sequences: Sequence[Sequence[int]], stop: int | None = None) -> tuple[int, ...]:
    """The longest common beginning of the sequences, and none of it from `stop` on."""
    common = []
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1 or column[0] == stop:
            break
        common.append(column[0])
    return tuple(common)


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


# -- rendering


def template_sha256(template: str) -> str:
    """The hash by which the protocol names a chat template."""
    return hashlib.sha256(template.encode()).hexdigest()


def own_template(tokenizer: Any) -> str | None:
    """Text of the tokenizer's chat template; None where it has none, or several."""
    try:
        return tokenizer.get_chat_template()
    except (ValueError, AttributeError):
        return None


def _template_of(tokenizer: Any, options: ChatOptions) -> str:
    if options.template is not None:
        return options.template
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        several = isinstance(tokenizer.chat_template, dict)
        found = f"has several chat templates ({error})" if several else "has no chat template"
        raise TemplateError(
            f"{type(tokenizer).__name__} {found}. Use an instruct model, or give one template as Jinja text "
            "(--chat-template FILE, or set tokenizer.chat_template)."
        ) from None


def _render(tokenizer: Any, options: ChatOptions, text: str, system: str | None, now: datetime | None = None) -> str:
    """The chat as text, with the header of the answer. `now` stands in for the clock, and `options.date` does too."""
    if now is None and options.date is not None:
        now = datetime.fromisoformat(options.date)
    template = _template_of(tokenizer, options)
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    variables = dict(options.template_kwargs)
    if options.enable_thinking is not None:
        variables["enable_thinking"] = options.enable_thinking
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template if now is None else _at(now) + template,
            tokenize=False,
            add_generation_prompt=True,
            **variables,
        )
    except Exception as error:  # a template is a program of a stranger, and may raise anything
        raise TemplateError(f"The chat template cannot render a chat: {type(error).__name__}: {error}") from error


def _at(now: datetime) -> str:
    """Jinja text that, put before a template, makes its `strftime_now` tell this time.

    A macro, because transformers turns a callable given as a template variable into a string.
    """
    values = {f"%{letter}": now.strftime(f"%{letter}") for letter in "aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ"}
    values |= {f"%-{letter}": re.sub("^0+(?=.)", "", values[f"%{letter}"]) for letter in "dmHIMSjy"}
    # A doubled percent sign waits as NUL, so that "%%d" stays the text "%d".
    steps = ["replace('%%', '\\0')", *(f"replace('{k}', '{v}')" for k, v in values.items()), "replace('\\0', '%')"]
    # The line break is the one that trim_blocks removes: the template itself begins a line, as it was written.
    return "{% macro strftime_now(format) %}{{ format | " + " | ".join(steps) + " }}{% endmacro %}\n"


# -- what a template must do


def _check_template(tokenizer: Any, options: ChatOptions) -> None:
    """Refuse a template that loses the instruction, is not a function of the chat, or ignores an option."""
    if options.system is not None:
        _check_system(tokenizer, options, options.system)
    for text in PROBES:
        chat = _render(tokenizer, options, text, options.system)
        if text not in chat:
            raise TemplateError(
                f"The chat template drops or changes the instruction {text!r}: it is rendered as {chat!r}. "
                "Use a template that writes the user's message as it is (--chat-template FILE)."
            )

    def rendered(now: datetime, options: ChatOptions = options) -> str:
        return _render(tokenizer, options, PROBES[0], options.system, now)

    day, other_day = datetime(2001, 2, 3, 4, 5, 6), datetime(2019, 11, 28, 17, 48, 59)
    # A coin thrown in the template would land on one side ten times in a row once in 512 runs.
    if len({rendered(day) for _ in range(10)}) > 1:
        raise TemplateError(
            "The chat template renders one chat in different ways (it draws at random), so no position is fixed. "
            "Use a template that does not (--chat-template FILE)."
        )
    if options.date is None and rendered(day) != rendered(other_day):
        raise TemplateError(
            "The chat template writes today's date, so that the same run differs tomorrow. "
            "Fix the day with --date YYYY-MM-DD (ChatOptions.date)."
        )
    for name, others in _alternatives(options).items():
        if all(_renders_alike(tokenizer, options, other) for other in others):
            raise TemplateError(
                f"The chat template ignores {name}: every value renders the same chat. Leave it out, or use the "
                "template that knows it (--chat-template FILE)."
            )


def _check_system(tokenizer: Any, options: ChatOptions, system: str) -> None:
    try:
        with_system = _render(tokenizer, options, PROBES[0], system)
    except TemplateError as error:
        # Raises by itself where the system prompt is not what the template stumbles over.
        _render(tokenizer, options, PROBES[0], None)
        raise TemplateError(
            f"The chat template refuses a system prompt ({error}). Leave it out, or put its text into the instructions."
        ) from error
    # Compared with another system prompt, not with none: the given one may be the template's own default.
    if with_system == _render(tokenizer, options, PROBES[0], f"{system} Be brief."):
        raise TemplateError(
            "The chat template drops the system prompt silently: another one renders the same chat. Leave it out, or "
            "put its text into the instructions."
        )


def _alternatives(options: ChatOptions) -> dict[str, list[ChatOptions]]:
    """For each template variable that is given, the options with it left out and with another value."""
    found = {}
    if options.enable_thinking is not None:
        found["enable_thinking"] = [
            replace(options, enable_thinking=other) for other in (None, not options.enable_thinking)
        ]
    for name, value in options.template_kwargs.items():
        rest = {key: kept for key, kept in options.template_kwargs.items() if key != name}
        found[name] = [replace(options, template_kwargs=rest)]
        match value:
            case bool():
                found[name].append(replace(options, template_kwargs={**rest, name: not value}))
            case int() | float():
                found[name].append(replace(options, template_kwargs={**rest, name: value + 1}))
            case str():
                found[name].append(replace(options, template_kwargs={**rest, name: f"{value}x"}))
    return found


def _renders_alike(tokenizer: Any, options: ChatOptions, other: ChatOptions) -> bool:
    expected = _render(tokenizer, options, PROBES[0], options.system)
    try:
        return _render(tokenizer, other, PROBES[0], other.system) == expected
    except TemplateError:  # it refuses the other value, so it reads the variable
        return False
