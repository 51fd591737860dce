"""The prompts of one model, and whether their completions show the behaviour: by arm, suffix and system prompt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from rhumbline.analyses.trajectory_kl import takes_system, with_system
from rhumbline.errors import InputError
from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits
from rhumbline.records.sheet_files import RobustnessPlan

Indicators = Float[np.ndarray, " prompt"]
"""For each prompt, 1 if the completion shows the behaviour, otherwise 0; NaN if it has no answer."""


@dataclass(frozen=True)
class CompletedPrompts:
    """One model with the prompts of its splits."""

    runner: Runner
    chat: Chat
    splits: Splits
    plan: RobustnessPlan
    judge: TextJudge

    @cached_property
    def system(self) -> str | None:
        """The system prompt of the plan; None if the chat template takes none."""
        return self.plan.system if takes_system(self.chat, self.plan.system) else None

    def check(self) -> None:
        """Raise an error with the prompts that need more positions than the model has, before the first pass.

        Suffixes follow the validation and test positives.
        """
        every = [p for split in SPLITS for c in LABELS for p in self.splits.get(split, c)]
        attacked = [p for split in ("val", "test") for p in self.splits.get(split, "positive")]
        kinds = [
            ("prompts", every),
            *(("prompts with a random suffix", with_suffix(attacked, s)) for s in self.suffixes),
        ]
        if self.system is not None:
            kinds.append(("prompts with a system prompt", [with_system(p, self.system, self.chat) for p in every]))
        for what, prompts in kinds:
            sequences = {p.id: self.chat.encode(p) for p in prompts}
            check_sequences(self.runner.model, sequences, self.plan.max_new_tokens, what)

    def shown(
        self, split: Split, label: Label, arms: Sequence[Arm], suffix: str = "", system: str | None = None
    ) -> Float[np.ndarray, "arm prompt"]:
        """1 if the answer shows the behaviour, otherwise 0; NaN without an answer.

        `suffix` follows every prompt, and `system` the system prompt of every chat.
        """
        prompts = with_suffix(self.splits.get(split, label), suffix)
        prompts = prompts if system is None else [with_system(p, system, self.chat) for p in prompts]
        sequences, stop = [self.chat.encode(p) for p in prompts], stop_ids(self.runner.model, self.chat)
        ids, _ = self.runner.generate(sequences, arms, max_new_tokens=self.plan.max_new_tokens, stop=stop)
        scores = [[score_of(self.judge, self.chat.answer(i).text).value for i in arm] for arm in ids]
        shown = np.array(scores, dtype=float)
        if np.isnan(shown).all(1).any():
            raise InputError(
                f"{self.runner.model.name}: no completion of {split} {label}s has an answer within "
                f"{self.plan.max_new_tokens} tokens, in a language that {self.plan.judge} covers, under some arm. "
                "Raise --max-new-tokens, or pass another --judge."
            )
        return shown

    def encoded(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts."""
        return [self.chat.encode(p) for p in self.splits.get(split, label)]

    @cached_property
    def suffixes(self) -> list[str]:
        """Random words of the training negatives."""
        rng = random.Random(self.plan.seed)
        words = sorted({w for p in self.splits.get("train", "negative") for w in p.text.split()})
        return [" " + " ".join(rng.choices(words, k=self.plan.suffix_words)) for _ in range(self.plan.suffixes)]


def with_suffix(prompts: Sequence[Prompt], suffix: str) -> list[Prompt]:
    """The prompts, each followed by a suffix."""
    return [replace(p, text=p.text + suffix) for p in prompts]
