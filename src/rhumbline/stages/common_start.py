"""The common start of completions: the tokens with which all baseline completions of a seed begin.

A header or an empty think block is such a start. The metric and the KL divergence are read after it. Training and
validation prompts only; independent of directions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rhumbline.axes import TokenIds
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.packing import shared_length
from rhumbline.records.seed_files import CommonStart

FIRST_PROMPTS = 8
"""Prompts of which one new token is read first. In most runs it shows that there is no common start."""
LENGTHS = (8, 64)
"""New tokens of all prompts that are read next, the larger number if all completions begin with the smaller one."""
_HEADER = re.compile(r".*[\n:>\]#*|▷][\s*_]*", re.DOTALL)
"""End of a header or block, after which the answer begins: a line break, a colon, a bracket, or markdown."""


@dataclass(frozen=True)
class Baseline:
    """Baseline completions of some chats."""

    runner: Runner
    chat: Chat
    sequences: Sequence[TokenIds]
    """The prompts, in an order whose beginning has both classes."""

    def common_start(self, judge: TextJudge | None) -> CommonStart | None:
        """The common start; None if there is none, or if the judge sees the behaviour in it.

        `judge` gives classes; None for a behaviour with a continuous score.
        """
        completions = self._completions(self.sequences[:FIRST_PROMPTS], 1)
        for length in LENGTHS:
            if _shared(completions) == 0:
                return None
            completions = self._completions(self.sequences, length)
            if _shared(completions) < length:
                break
        n = _shared(completions)
        # Nothing follows a completion that is the same for every prompt.
        if n == 0 or len(set(map(tuple, completions))) == 1:
            return None
        tokens = tuple(completions[0][:n])
        text = self.chat.tokenizer.decode(tokens, skip_special_tokens=False)
        if judge is not None and score_of(judge, self.chat.answer(tokens).text).value:
            return None
        return CommonStart(tokens, text, _HEADER.fullmatch(text) is not None, len(completions))

    def _completions(self, sequences: Sequence[TokenIds], length: int) -> list[list[int]]:
        stop = stop_ids(self.runner.model, self.chat)
        return self.runner.generate(sequences, max_new_tokens=length, stop=stop)[0][0]


def _shared(completions: Sequence[Sequence[int]]) -> int:
    return shared_length(completions) if completions else 0


def header_text(chat: Chat, start: CommonStart | None) -> str:
    """The part of a common start that is neither a block nor a part of the answer; empty without one."""
    return chat.answer(start.tokens).text or "" if start is not None and start.is_header else ""
