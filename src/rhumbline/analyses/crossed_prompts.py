"""Prompts crossed by content and fact, and differences that compare the levels of one factor within those of the other.

content   harmful or harmless, as the battery states
fact      refused or complied, as the judge of the run classifies the completion at baseline
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.analyses.judged import answer_classes
from rhumbline.analyses.subject import Subject
from rhumbline.evidence.class_rates import SHOWN
from rhumbline.inference.interventions import BASELINE
from rhumbline.models.templates import messages_of
from rhumbline.prompts.batteries import CONTENTS, BatteryPrompt
from rhumbline.records.analysis_files import Mean
from rhumbline.records.meaning_file import LEAST_CELL, Content, Fact

Flags = Bool[np.ndarray, " prompt"]
FACTS: tuple[Fact, ...] = get_args(Fact)
COMPLIED = frozenset({"complied", "absent"})
"""Classes of completions that do not show the behaviour."""
DRAWS = 1000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class CrossedPrompts:
    """Prompts with their content, and with what the model does with them."""

    rows: Sequence[BatteryPrompt]
    sequences: list[list[int]]
    is_refused: Flags
    is_complied: Flags

    @classmethod
    def of(cls, subject: Subject, rows: Sequence[BatteryPrompt], length: int) -> "CrossedPrompts":
        """Encode the prompts and judge their completions of at most `length` tokens."""
        sequences = [encoded(subject, row) for row in rows]
        (classes,) = answer_classes(subject, sequences, [BASELINE], length)
        refused, complied = ([cls in some for cls in classes] for some in (SHOWN, COMPLIED))
        return cls(rows, sequences, np.array(refused), np.array(complied))

    @cached_property
    def is_harmful(self) -> Flags:
        """Whether the content is harmful."""
        return np.array([row.content == "harmful" for row in self.rows])

    @property
    def unclear(self) -> int:
        """Prompts that are neither refused nor complied."""
        return int((~self.is_refused & ~self.is_complied).sum())

    @property
    def is_crossed(self) -> bool:
        """Whether every content and fact has enough prompts."""
        sides = (self.is_harmful, ~self.is_harmful)
        return all(int((c & f).sum()) >= LEAST_CELL for c in sides for f in (self.is_refused, self.is_complied))

    def cells(self) -> Iterator[tuple[Content, Fact, str, Flags]]:
        """Every content, fact and group that has prompts, and which these are."""
        groups = np.array([row.group for row in self.rows])
        for group in dict.fromkeys(groups.tolist()):
            for content in CONTENTS:
                for fact, has_fact in zip(FACTS, (self.is_refused, self.is_complied), strict=True):
                    chosen = (groups == group) & (self.is_harmful == (content == "harmful")) & has_fact
                    if chosen.any():
                        yield content, fact, group, chosen


def encoded(subject: Subject, row: BatteryPrompt, form: str = "{}") -> list[int]:
    """Token ids of the chat of a prompt, whose text is put into `form`; checks that it ends as those of the run."""
    chat, text = subject.chat, form.format(row.prompt.text)
    system = chat.options.system if row.prompt.system is None else row.prompt.system
    ids = chat.encode_messages(messages_of(system, *row.earlier, text), row.prompt.id)
    chat.spans(ids)
    return ids


def content_difference(
    h: Float[Tensor, "prompt layer d_model"], is_harmful: Flags, is_refused: Flags, crossed: bool
) -> Float[Tensor, "layer d_model"]:
    """mean(harmful) - mean(harmless); if `crossed`, the mean of it within refused and within other prompts."""
    x = h.double()

    def difference(some: Flags) -> Tensor:
        harmful, harmless = (torch.from_numpy(some & side) for side in (is_harmful, ~is_harmful))
        return x[harmful].mean(0) - x[harmless].mean(0)

    if not crossed:
        return difference(np.ones_like(is_harmful))
    return (difference(is_refused) + difference(~is_refused)) / 2


def two_sample_mean(upper: Float[np.ndarray, " a"], lower: Float[np.ndarray, " b"]) -> Mean:
    """mean(upper) - mean(lower) with its bootstrap interval; n counts both. None without a value on either side."""
    n = len(upper) + len(lower)
    if not (len(upper) and len(lower)):
        return Mean(None, None, None, n)
    rng = np.random.default_rng(0)
    first, second = (x[rng.integers(len(x), size=(DRAWS, len(x)))].mean(1) for x in (upper, lower))
    low, high = np.quantile(first - second, [0.025, 0.975])
    return Mean(float(upper.mean() - lower.mean()), float(low), float(high), n)


def shares(
    values: Float[np.ndarray, " prompt"], is_harmful: Flags, is_refused: Flags, is_complied: Flags
) -> tuple[Mean, Mean]:
    """The effects of content and of fact as shares of both together, which add up to 1.

    With the means m of the cells: content is (m[harmful, refused] - m[harmless, refused] + m[harmful, complied] -
    m[harmless, complied]) / 2, fact likewise, and both together m[harmful, refused] - m[harmless, complied].
    """
    cells = [values[c & f] for c in (is_harmful, ~is_harmful) for f in (is_refused, is_complied)]
    rng = np.random.default_rng(0)
    drawn = [x[rng.integers(len(x), size=(DRAWS, len(x)))].mean(1) for x in cells]
    observed = _share_of_content(*(np.array([x.mean()]) for x in cells))
    content = _share_of_content(*drawn)
    n = sum(map(len, cells))
    found = []
    for value, draws in ((observed, content), (1 - observed, 1 - content)):
        low, high = np.quantile(draws, [0.025, 0.975])
        found.append(Mean(float(value[0]), float(low), float(high), n))
    return found[0], found[1]


def _share_of_content(
    harmful_refused: np.ndarray,
    harmful_complied: np.ndarray,
    harmless_refused: np.ndarray,
    harmless_complied: np.ndarray,
) -> np.ndarray:
    content = (harmful_refused - harmless_refused + harmful_complied - harmless_complied) / 2
    return content / (harmful_refused - harmless_complied)
