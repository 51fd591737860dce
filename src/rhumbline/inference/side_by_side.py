"""The completions of some prompts at baseline and under a direction, beside each other, as text and as HTML.

Independent of how a direction was fitted. Writes no file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.records.printable import printable

_CELL = "border:1px solid #8886;padding:.4em .6em;text-align:left;vertical-align:top;white-space:pre-wrap"


@dataclass(frozen=True)
class Comparison:
    """Completions of every arm on every prompt. Printed as text, and shown as a table in a notebook."""

    model: str
    prompts: tuple[str, ...]
    completions: dict[str, tuple[str, ...]]
    """By the name of the arm, in the order of the prompts."""

    def __str__(self) -> str:
        """The prompts, each with its completions; control characters as escape sequences."""
        width = max(map(len, self.completions))
        lines = []
        for i, prompt in enumerate(self.prompts):
            lines.append(f"> {prompt}")
            lines += [f"  {arm:<{width}}  {texts[i]}" for arm, texts in self.completions.items()]
        return printable("\n".join(lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table with one row for each prompt. All texts are escaped."""
        head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in ("prompt", *self.completions))
        rows = zip(self.prompts, *self.completions.values(), strict=True)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        return f"<table><caption>{escape(self.model)}</caption><tr>{head}</tr>{body}</table>"


def _cell(text: str) -> str:
    return f'<td style="{_CELL}"><bdi>{escape(printable(text))}</bdi></td>'


@checked
def compare(
    model: ChatModel,
    direction: Direction | Tensor,
    prompts: Iterable[str],
    *,
    strength: float = 1.0,
    coefficient: float | None = None,
    max_new_tokens: int = 128,
    chat: Chat | None = None,
) -> Comparison:
    """Complete every prompt at baseline, with the direction ablated, and with the direction added.

    `coefficient` is that of the addition (default: 1), in units of the norm of the direction. A bare vector has no
    layer and no norm, so it is ablated only. Raises InputError.
    """
    prompts = tuple(prompts)
    if not prompts or max_new_tokens < 1:
        raise InputError(
            f"compare: {len(prompts)} prompts and max_new_tokens {max_new_tokens}; expected at least one of each."
        )
    arms = [BASELINE, Arm("ablated", (Ablate(direction, strength),))]
    if isinstance(direction, Direction):
        arms.append(Arm("added", (Add(direction, 1.0 if coefficient is None else coefficient),)))
    elif coefficient is not None:
        raise InputError(f"compare: coefficient is {coefficient}, and a bare vector is not added. Pass a Direction.")
    chat = chat or model.own_chat
    ids, _ = Runner(model).generate(
        [chat.encode(prompt) for prompt in prompts], arms, max_new_tokens=max_new_tokens, stop=stop_ids(model, chat)
    )
    texts = {arm.name: tuple(map(chat.text, rows)) for arm, rows in zip(arms, ids, strict=True)}
    return Comparison(model.name, prompts, texts)
