"""Encode prompts as token ids with the chat template, and determine the positions that all prompts share.

The suffix, the post-instruction tokens, is found by rendering the whole chat around probe instructions. Depends on the
template and its tokenizer; independent of the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.errors import TemplateError
from rhumbline.models.answers import Answer, AnswerReader
from rhumbline.models.control_tokens import ControlTokens, check_control_tokens, unused_character
from rhumbline.models.templates import (
    PROBES,
    Message,
    check_system,
    check_template,
    messages_of,
    render,
    render_messages,
    template_of,
    template_sha256,
)
from rhumbline.models.turn_end import turn_ends
from rhumbline.prompts.chat_options import DEFAULT_OPTIONS, ChatOptions
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ChatFacts

_MOST_LISTED, _LONGEST_NAME = 20, 40
_ADVICE = (
    'Remove the text, or encode it as plain text: --control-tokens plain, in a protocol chat.control_tokens = "plain".'
)


@runtime_checkable
class _HasTemplate(Protocol):
    def get_chat_template(self, chat_template: str | None = None) -> str: ...


Tokenizer = Annotated[Any, _HasTemplate, "a transformers tokenizer"]


class Spans(NamedTuple):
    """The ends of the parts of one encoded prompt; the instruction is between the two."""

    prefix_end: int
    """Number of leading tokens shared with `Chat.prefix`; fewer than all if the prompt has its own system prompt."""
    instruction_end: int
    """Index of the first post-instruction token."""


class ChatWithResponse(tuple[int, ...]):
    """Token ids of a chat with its response; the last `n_response` ids are those of the response."""

    n_response: int

    def __new__(cls, prompt: Sequence[int], response: Sequence[int]) -> "ChatWithResponse":
        """The ids of the prompt, then those of the response."""
        ids = super().__new__(cls, (*prompt, *response))
        ids.n_response = len(response)
        return ids

    @property
    def n_prompt(self) -> int:
        """Number of ids before the response."""
        return len(self) - self.n_response


@dataclass(frozen=True)
class Chat:
    """The chat template of a model with one set of options. Built by `Chat.of`."""

    tokenizer: Any
    """A transformers tokenizer."""
    options: ChatOptions
    controls: ControlTokens
    """The control tokens of the tokenizer and the template."""
    turn_ends: tuple[int, ...]
    """Ids of the control tokens that close an assistant turn, at the end of a chat and before another turn."""
    prefix: tuple[int, ...]
    """Token ids at the start of every chat without its own system prompt."""
    suffix: tuple[int, ...]
    """The post-instruction tokens: ids at the end of every chat, after the last token with text of the instruction."""
    answers: AnswerReader
    """Reads the answer of a completion."""
    encoded_as_text: tuple[str, ...] = ()
    """Ids of the prompts of `Chat.of` whose text spells control tokens, which `options` request as plain text."""
    encoded: dict[Prompt, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Token ids of the prompts of `Chat.of`: every stage encodes the same ones."""

    @classmethod
    @checked
    def of(cls, tokenizer: Tokenizer, options: ChatOptions = DEFAULT_OPTIONS, prompts: Iterable[Prompt] = ()) -> "Chat":
        """Check the template and determine the prefix and the suffix that the probes and `prompts` share.

        Pass the prompts of the run: a token that merges the end of one of them with the template is then not a
        position. Raises TemplateError, and InputError if text of a prompt is tokenized into control tokens.
        """
        prompts = tuple(prompts)
        check_template(tokenizer, options)
        controls = ControlTokens(tokenizer, template_of(tokenizer, options))
        header = render(tokenizer, options, PROBES[0], options.system).rpartition(PROBES[0])[2]
        answers = AnswerReader.of(tokenizer, controls.template, header)
        chat = cls(tokenizer, options, controls, turn_ends(controls, options), (), (), answers)
        chat.check_texts(_texts(prompts, options.system))
        chat._check_systems(prompts)
        probes = tuple(Prompt(text, "negative", id=f"probe {text!r}") for text in PROBES)
        sequences = {prompt: chat.encode(prompt) for prompt in (*probes, *prompts)}
        # The text of an unknown token is not known, so it can be text of the instruction.
        unknown = getattr(tokenizer, "unk_token_id", None)
        prefix = _common_start([ids for prompt, ids in sequences.items() if prompt.system is None], unknown)
        suffix = _common_start([ids[::-1] for ids in sequences.values()], unknown)[::-1]
        if not suffix:
            rendered = render(tokenizer, options, PROBES[0], options.system)
            raise TemplateError(
                f"The chat template has no post-instruction token: {PROBES[0]!r} is rendered as {rendered!r}, and no "
                "token at the end is the same for every instruction. Use a template with text after the instruction, "
                "such as the header of the completion (--chat-template FILE)."
            )
        chat = replace(chat, prefix=prefix, suffix=suffix, encoded_as_text=chat._encoded_as_text(prompts))
        chat.encoded.update((prompt, tuple(ids)) for prompt, ids in sequences.items())
        chat._check_tokens((*probes, *prompts))
        return chat

    @property
    def positions(self) -> tuple[Position, ...]:
        """The post-instruction positions, -n .. -1."""
        return tuple(Position.post_instruction(i) for i in range(-len(self.suffix), 0))

    @property
    def instruction_position(self) -> Position:
        """The token before the suffix: the last of the instruction, or one that merges its end with the template."""
        return Position.post_instruction(-len(self.suffix) - 1)

    @property
    def turn_end(self) -> int | None:
        """Id of the control token that closes an assistant turn; None: the template has no such token."""
        return next(iter(self.turn_ends), None)

    # -- token ids --

    @checked
    def encode(self, prompt: Prompt | str) -> list[int]:
        """Token ids of the chat up to where the completion begins."""
        if isinstance(prompt, str):
            prompt = Prompt(prompt, "negative", id=repr(prompt[:_LONGEST_NAME]))
        return list(self.encoded.get(prompt) or self._encode(prompt, ""))

    def _encode(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a chat with the beginning of its response. InputError if its text spells control tokens."""
        system = self.options.system if prompt.system is None else prompt.system
        return self.encode_messages(messages_of(system, prompt.text), prompt.id, response)

    @checked
    def encode_messages(self, messages: Sequence[Message], name: str, response: str = "") -> list[int]:
        """Token ids of any chat, with the beginning of its next response. InputError as above, with the name."""
        texts = [*(message["content"] for message in messages), response]
        if self.options.control_tokens == "error":
            self.check_texts((name, text) for text in texts)
        elif any(map(self.controls.spelled, texts)):
            mark = unused_character(*texts)
            cut = [{**message, "content": self.controls.cut(message["content"], mark)} for message in messages]
            rendered = render_messages(self.tokenizer, self.options, cut)
            return self.controls.encode_cut(rendered + self.controls.cut(response, mark), mark)
        # The template contains the special tokens; the tokenizer would add the first one again.
        return self.controls.ids_of(render_messages(self.tokenizer, self.options, messages) + response)

    def encode_with_response(self, prompt: Prompt, response: str) -> ChatWithResponse:
        """Token ids of the chat with this response, encoded as one text.

        A token that merges the end of the template with the response counts as a token of the response.
        """
        ids = self._encode(prompt, response)
        n_prompt = len(_common_start([self.encode(prompt), ids]))
        return ChatWithResponse(ids[:n_prompt], ids[n_prompt:])

    def encode_text(self, prompt: Prompt) -> ChatWithResponse:
        """Token ids of the chat with the response of a contrast of texts. Raises TemplateError."""
        return ChatWithResponse(self.encode(prompt), self.response_tokens(prompt, prompt.response or ""))

    def response_tokens(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a response to this prompt. TemplateError if it has no tokens of its own."""
        ids = self.encode_with_response(prompt, response)
        if not response.strip() or ids.n_prompt < len(self.encode(prompt)):
            raise TemplateError(
                f"The response of prompt {prompt.id!r} is empty or merges with the chat template, so it has no tokens "
                "of its own. Use a response that begins with a word."
            )
        return list(ids[ids.n_prompt :])

    def encode_text_alone(self, text: str) -> list[int]:
        """Token ids of a text outside of a chat, after the tokenizer's own special tokens, such as BOS."""
        is_plain = self.options.control_tokens == "plain"
        if not is_plain:
            self.check_texts([(repr(text[:_LONGEST_NAME]), text)], "texts")
        return [*self.controls.leading, *self.controls.encode_text(text, plain=is_plain)]

    def first_token(self, response: str, start: Sequence[int] = ()) -> int:
        """Id of the first token of a response that begins with this text, after the tokens `start` of the response."""
        text = render(self.tokenizer, self.options, PROBES[0], self.options.system)
        before = [*self.controls.ids_of(text), *start]
        after = self.controls.ids_of(text + self.tokenizer.decode(start, skip_special_tokens=False) + response)
        shared = len(_common_start([before, after]))
        if not response or shared < len(before):
            raise TemplateError(
                f"{response!r} has no first token of its own: its beginning merges with the chat template. Use the "
                "text of a whole first token, as at the start of a completion."
            )
        return int(after[shared])

    def spans(self, ids: Sequence[int]) -> Spans:
        """The spans of one encoded prompt."""
        if tuple(ids[len(ids) - len(self.suffix) :]) != self.suffix:
            raise TemplateError("These ids do not end with the post-instruction tokens; encode them with Chat.encode.")
        return Spans(len(_common_start([self.prefix, ids])), len(ids) - len(self.suffix))

    @checked
    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, think blocks included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def answer(self, ids: Sequence[int]) -> Answer:
        """The answer of a completion: its text after a think block or in the final channel, if it has one."""
        return self.answers.read(ids)

    # -- record and checks --

    def _encoded_as_text(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """Ids of the prompts whose text spells control tokens."""
        texts = _texts(prompts, self.options.system)
        return tuple(dict.fromkeys(name for name, text in texts if self.controls.spelled(text)))

    def record(self) -> ChatFacts:
        """The chat as protocol.json describes it."""
        return ChatFacts(
            template_sha256=template_sha256(template_of(self.tokenizer, self.options)),
            system=self.options.system,
            enable_thinking=self.options.enable_thinking,
            date=self.options.date,
            template_kwargs=dict(self.options.template_kwargs),
            prefix=self.prefix,
            suffix=self.suffix,
            suffix_tokens=tuple(self._token_text(token) for token in self.suffix),
            positions=self.positions,
            control_tokens=self.options.control_tokens,
            encoded_as_text=self.encoded_as_text,
        )

    def _token_text(self, token: int) -> str:
        """The text of one token, or its name in the vocabulary if it is decoded as empty text."""
        return self.tokenizer.decode([token]) or self.tokenizer.convert_ids_to_tokens(token)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise an error with the prompts that spell control tokens, lack the prefix or the suffix, or lose a system
        prompt: InputError for the first kind, TemplateError for the others.
        """
        prompts = tuple(prompts)
        self.check_texts(_texts(prompts, None))
        self._check_systems(prompts)
        self._check_tokens(prompts)

    def check_texts(self, texts: Iterable[tuple[str, str]], what: str = "prompts") -> None:
        """Raise InputError if any of the (name, text) pairs spells control tokens, unless these are encoded as text."""
        if self.options.control_tokens == "error":
            check_control_tokens(self.controls, texts, what, _ADVICE)

    def _check_systems(self, prompts: Sequence[Prompt]) -> None:
        for system in dict.fromkeys(prompt.system for prompt in prompts):
            if system is not None:
                check_system(self.tokenizer, self.options, system)

    def _check_tokens(self, prompts: Sequence[Prompt]) -> None:
        n_prefix, n_suffix = len(self.prefix), len(self.suffix)
        faults: dict[str, list[str]] = {}
        for prompt in prompts:
            ids = tuple(self.encode(prompt))
            has_prefix = prompt.system is not None or ids[:n_prefix] == self.prefix
            if not has_prefix:
                faults.setdefault("without the shared prefix", []).append(prompt.id)
            if ids[-n_suffix:] != self.suffix:
                faults.setdefault("without the post-instruction tokens at the end", []).append(prompt.id)
            elif has_prefix and len(ids) <= n_suffix + (n_prefix if prompt.system is None else 0):
                faults.setdefault("without a token of their own", []).append(prompt.id)
        if faults:
            listed = "; ".join(f"{fault} ({len(ids)}): {_listed(ids)}" for fault, ids in faults.items())
            raise TemplateError(
                f"Some prompts lack positions of this chat: {listed}. Their text merges with the template or contains "
                "its control tokens. Pass all prompts of the run to Chat.of, or change these prompts."
            )


def _texts(prompts: Iterable[Prompt], system: str | None) -> Iterator[tuple[str, str]]:
    """The texts of the prompts, and their system prompts, each with the id of its prompt."""
    yield "system prompt", system or ""
    for prompt in prompts:
        yield prompt.id, prompt.text
        yield prompt.id, prompt.system or ""


def _common_start(sequences: Sequence[Sequence[int]], stop: int | None = None) -> tuple[int, ...]:
    """The longest common beginning of the sequences, up to the first `stop`."""
    common = []
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1 or column[0] == stop:
            break
        common.append(column[0])
    return tuple(common)


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_LISTED} more" if len(ids) > _MOST_LISTED else ""
    return ", ".join(ids[:_MOST_LISTED]) + more


@dataclass(frozen=True)
class TokenBatch:
    """Sequences that are padded to one length."""

    input_ids: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    """1 at a token, 0 at padding."""


def token_batch(sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "left") -> TokenBatch:
    """Pad the sequences to the longest. With padding on the left, position -1 is the last token of every row."""
    if not sequences or not all(sequences):
        raise ValueError(
            f"token_batch needs sequences of at least one token each; their lengths are {[*map(len, sequences)]}."
        )
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        span = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        input_ids[row, span] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[row, span] = 1
    return TokenBatch(input_ids, attention_mask)
