"""The answer of a completion: the text after a think block or in the final channel. Token ids in, text out.

Forms of blocks are data (answer_forms.py). A block counts if the completion begins with it, if the template opens it in
the prompt, or if its delimiters belong to the tokenizer or the template. Independent of judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rhumbline.models.answer_forms import ANSWER_TAGS, FORMS, AnswerForm


class Answer(NamedTuple):
    """The answer of a completion."""

    text: str | None
    """The text that judges read; None if the completion has no answer: a block is not closed, or nothing follows it."""
    start: int
    """Index of the first token after the block; 0 without a block."""


def _end_of_block(raw: str, at: int, block: AnswerForm, *, is_opened: bool) -> int:
    """Where a block that begins at `at` is over; -1 if it is not closed. `is_opened`: the template opened it.

    A block can contain blocks of its form. It ends with the last of them if each is closed.
    """
    close = raw.find(block.closes, at)
    if close < 0:
        return -1
    end = close + len(block.closes)
    if block.goes_on:
        return end
    for _ in range(raw.count(block.opens, at, close) - (not is_opened)):
        close, opens = raw.find(block.closes, end), raw.find(block.opens, end)
        if close < 0 or 0 <= opens < close:
            break
        end = close + len(block.closes)
    return end


def _opens_late(raw: str, block: AnswerForm) -> bool:
    """Whether a completion opens a block after other text. A header can precede a channel."""
    return not block.goes_on and block.opens in raw.partition(block.closes)[0]


class _Span(NamedTuple):
    """A part of a text, by character."""

    start: int
    end: int


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers in the completions of one chat template."""

    tokenizer: Any
    """A transformers tokenizer."""
    own: tuple[AnswerForm, ...]
    """The forms whose delimiters belong to the tokenizer or the template."""
    opened: AnswerForm | None
    """The form of the block that the template opens at the end of the prompt; None if it opens none."""
    begun: AnswerForm | None
    """The form whose answer the template begins at the end of the prompt; None if it begins none."""

    @classmethod
    def of(cls, tokenizer: Any, template: str, header: str) -> "AnswerReader":
        """The reader of a template that puts `header` between an instruction and its completion."""
        words = getattr(tokenizer, "get_vocab", dict)()

        def is_known(delimiter: str) -> bool:
            return delimiter in template or delimiter in words

        own = tuple(form for form in FORMS if is_known(form.opens) and is_known(form.known_close))
        opened = [form for form in FORMS if header.rfind(form.opens) > header.rfind(form.closes)]
        begun = [form for form in FORMS if form.goes_on and header.rfind(form.closes) >= 0 and form not in opened]
        last = max(opened, key=lambda form: header.rfind(form.opens), default=None)
        return cls(tokenizer, own, last, begun[0] if begun else None)

    def read(self, ids: Sequence[int]) -> Answer:
        """The answer of a completion."""
        raw = self._raw(ids)
        spans = self._answer_spans(raw)
        if spans is None:
            return Answer(self._clean(ids), 0)
        text = "".join(self._text(ids, raw, span) for span in spans)
        for tag in ANSWER_TAGS:
            text = text.lstrip().removeprefix(tag) if text.lstrip().startswith(tag) else text
        start = self._token_at(ids, raw[: spans[0].start]) if spans else len(ids)
        return Answer(text if text.strip() else None, start)

    def _answer_spans(self, raw: str) -> list[_Span] | None:
        """The parts of a decoded completion outside of its blocks; None if it has no block.

        A block that is not closed reaches to the end.
        """
        block, at = self.opened or self._first_block(raw), 0
        if block is None and self.begun is None and not any(form.opens in raw for form in self.own):
            return None
        spans, last, is_opened = [], self.begun, self.opened is not None
        while True:
            if block is not None:
                close = _end_of_block(raw, at, block, is_opened=is_opened)
                if close < 0:
                    return spans
                at, last, is_opened = close, block, False
            end, block = self._end_of_answer(raw, at, last)
            if end > at:
                spans.append(_Span(at, end))
            if block is None:
                return spans
            at = end

    def _first_block(self, raw: str) -> AnswerForm | None:
        """The form that a completion begins with, or else an own form whose block it closes without opening it."""
        begins = (form for form in FORMS if raw.lstrip().startswith(form.opens))
        later = (form for form in self.own if form.closes in raw and not _opens_late(raw, form))
        return next(begins, None) or next(later, None)

    def _end_of_answer(self, raw: str, at: int, last: AnswerForm | None) -> tuple[int, AnswerForm | None]:
        """Where the answer that begins at `at` ends, and the form of the block that follows it, if any."""
        if last is not None and last.goes_on:
            end = raw.find(last.goes_on, at)
            return len(raw) if end < 0 else end, None
        rest = raw[at:].lstrip()
        if last is not None and (again := next((form for form in FORMS if rest.startswith(form.opens)), None)):
            return len(raw) - len(rest), again
        found = [(place, i) for i, form in enumerate(self.own) if (place := raw.find(form.opens, at)) >= 0]
        if not found:
            return len(raw), None
        place, i = min(found)
        return place, self.own[i]

    # -- text of tokens --

    def _raw(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _clean(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _token_at(self, ids: Sequence[int], text: str) -> int:
        """Number of tokens after which the decoded completion begins with `text`.

        Compared by text, because a token can end inside of a character.
        """
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._raw(ids[:middle]).startswith(text) else (middle + 1, high)
        return low

    def _text(self, ids: Sequence[int], raw: str, span: _Span) -> str:
        """The text of a part of the completion, without special tokens."""
        first, last = self._token_at(ids, raw[: span.start]), self._token_at(ids, raw[: span.end])
        # A token can contain the end of a delimiter and the beginning of the answer.
        rest = self._raw(ids[:first])[span.start :]
        beyond = len(self._raw(ids[:last])) - span.end
        text = rest + self._clean(ids[first:last])
        return text[: len(text) - beyond] if beyond > 0 else text
