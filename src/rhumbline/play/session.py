"""A session: a prompt and settings in, baseline and edited completions out, as events while they are decoded.

One stream runs at a time, because hooks act on the whole model. A newer stream ends an older one. Independent of where
the events are shown.
"""

import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from msgspec import Struct

from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction, Intervention
from rhumbline.inference.runner import Runner
from rhumbline.inference.streaming import Ended, NewToken, PromptRead, stream
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.play.directions import Choices

COLUMNS = ("baseline", "edited")
MOST_STRENGTH, MOST_COEFFICIENT, MOST_TOKENS, MOST_CHARACTERS = 2.0, 20.0, 4096, 50_000
"""Limits of the settings and of a prompt."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to the model in the column `edited`."""

    direction: str
    layer: int
    strength: float = 1.0
    """Of the ablation; 0: none."""
    coefficient: float = 0.0
    """Of the addition; 0: none."""
    max_new_tokens: int = 128

    def check(self) -> None:
        """Raise InputError with every setting that is out of range."""
        faults = []
        if not 0 <= self.strength <= MOST_STRENGTH:
            faults.append(f"strength is {self.strength}, expected 0 to {MOST_STRENGTH:g}")
        if not (math.isfinite(self.coefficient) and abs(self.coefficient) <= MOST_COEFFICIENT):
            faults.append(f"coefficient is {self.coefficient}, expected -{MOST_COEFFICIENT:g} to {MOST_COEFFICIENT:g}")
        if not 1 <= self.max_new_tokens <= MOST_TOKENS:
            faults.append(f"max_new_tokens is {self.max_new_tokens}, expected 1 to {MOST_TOKENS}")
        if faults:
            raise InputError(f"settings: {'; '.join(faults)}.")


class Tokens(Struct, frozen=True, tag="prompt", tag_field="event"):
    """The prompt, token by token."""

    texts: tuple[str, ...]
    projections: tuple[tuple[float, ...], ...]
    """By column and token, in units of the norm of the direction."""


class Probabilities(Struct, frozen=True, tag="probability", tag_field="event"):
    """Probability that the completion begins with a token of the metric, by column; None: no tokens are known."""

    values: tuple[float, ...] | None


class Piece(Struct, frozen=True, tag="piece", tag_field="event"):
    """Further text of a column."""

    column: int
    text: str
    projection: float
    """Of its last token, in units of the norm of the direction."""


class End(Struct, frozen=True, tag="end", tag_field="event"):
    """The end of a column."""

    column: int
    reason: str
    """`stop token`, `length`, or `replaced` by a newer stream."""


Event = Tokens | Probabilities | Piece | End


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@dataclass
class Session:
    """A loaded model with the directions that can be chosen."""

    model: ChatModel
    chat: Chat
    choices: Choices
    spared: int = 0
    """Tokens at the start of a text that ablations spare, as in the run."""
    call: Callable[..., Any] = _call
    """Calls a function with arguments; that of a server calls it in the main thread."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _numbering: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _newest: int = 0

    def settings(self, **changes: Any) -> Settings:
        """Settings with the passed direction at its layer, unless changed."""
        return Settings(**{"direction": self.choices.names[0], "layer": self.choices.layer, **changes})

    def arms(self, settings: Settings) -> tuple[Direction, list[Arm]]:
        """The direction, and the arms of the columns. Raises InputError."""
        settings.check()
        direction = self.choices.direction(settings.direction, settings.layer)
        edits: list[Intervention] = []
        if settings.strength:
            edits.append(Ablate(direction, settings.strength, self.spared))
        if settings.coefficient:
            edits.append(Add(direction, settings.coefficient))
        return direction, [BASELINE, Arm("edited", tuple(edits))]

    def probabilities(self, prompt: str, settings: Settings) -> Probabilities:
        """Probability of the tokens of the metric in every column, one forward pass. Raises InputError."""
        _, arms = self.arms(settings)
        ids = self._encode(prompt, settings)
        with self._lock:
            return self._probabilities(ids, arms)

    def _probabilities(self, ids: Sequence[int], arms: Sequence[Arm]) -> Probabilities:
        if not self.choices.tokens:
            return Probabilities(None)
        scorer = Scorer(Runner(self.model), TokenMetric(self.choices.tokens), start=self.choices.start, resumes=False)
        return Probabilities(tuple(torch.sigmoid(scorer.read([ids], arms).metric[:, 0]).tolist()))

    def stream(self, prompt: str, settings: Settings) -> Iterator[Event]:
        """Both completions of a prompt, as events. Faulty input raises InputError before the first event."""
        direction, arms = self.arms(settings)
        ids = self._encode(prompt, settings)
        with self._numbering:
            self._newest += 1
            number = self._newest
        return self._until_replaced(number, self._events(ids, arms, direction, settings.max_new_tokens), len(arms))

    def _until_replaced(self, number: int, events: Generator[Event, None, None], n_columns: int) -> Iterator[Event]:
        """The events of a stream while no newer one exists; then the end of every column that has not ended."""
        running = set(range(n_columns))
        with self._lock, closing(events):
            while number == self._newest:
                if (event := next(events, None)) is None:
                    return
                if isinstance(event, End):
                    running.discard(event.column)
                yield event
            yield from (End(column, "replaced") for column in sorted(running))

    def _events(
        self, ids: list[int], arms: Sequence[Arm], direction: Direction, max_new_tokens: int
    ) -> Generator[Event, None, None]:
        texts = [TextsOfTokens(self.chat.text) for _ in arms]
        yield self._probabilities(ids, arms)
        stop = stop_ids(self.model, self.chat)
        for step in stream(self.model, ids, arms, direction, max_new_tokens=max_new_tokens, stop=stop):
            match step:
                case PromptRead(projections):
                    relative = tuple(tuple(p / direction.norm for p in row) for row in projections)
                    yield Tokens(self._token_texts(ids), relative)
                case NewToken(arm, token, projection):
                    if text := texts[arm].after(token):
                        yield Piece(arm, text, projection / direction.norm)
                case Ended(arm, at_stop):
                    if text := texts[arm].rest():
                        yield Piece(arm, text, 0.0)
                    yield End(arm, "stop token" if at_stop else "length")

    def _encode(self, prompt: str, settings: Settings) -> list[int]:
        if len(prompt) > MOST_CHARACTERS:
            raise InputError(f"the prompt has {len(prompt):,} characters; at most {MOST_CHARACTERS:,} are read.")
        ids = self.call(self.chat.encode, prompt)
        check_sequences(self.model, {"this prompt": ids}, settings.max_new_tokens, "prompts")
        return ids

    def _token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.model.tokenizer.decode([token], skip_special_tokens=False) for token in ids)


class TextsOfTokens:
    """The text that each new token adds to a completion. A part of a character is kept until it is whole."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode, self.ids, self.shown = decode, [], ""

    def after(self, token: int) -> str:
        """The text that one more token adds; empty while a character is not whole."""
        self.ids.append(token)
        text = self.decode(self.ids)
        return "" if text.endswith("\ufffd") else self._added(text)

    def rest(self) -> str:
        """The text that was kept."""
        return self._added(self.decode(self.ids))

    def _added(self, text: str) -> str:
        added, self.shown = text[len(self.shown) :], text
        return added
