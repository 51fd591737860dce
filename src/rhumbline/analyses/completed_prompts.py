"""The prompts of one model, and whether their completions show the behaviour: by arm, suffix and system prompt.

A prompt is completed once under the same interventions, whatever the name of the arm.
"""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from rhumbline.analyses.suffix_texts import with_suffix
from rhumbline.analyses.trajectory_kl import Trajectories, takes_system, with_system
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits
from rhumbline.records.sheet_files import RobustnessPlan
from rhumbline.stages.completions import complete

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
        self, split: Split, label: Label, arms: Sequence[Arm], suffix: str | None = None, system: str | None = None
    ) -> Float[np.ndarray, "arm prompt"]:
        """1 if the answer shows the behaviour, otherwise 0; NaN without an answer.

        `suffix` follows every prompt, and `system` the system prompt of every chat.
        """
        prompts = with_suffix(self.splits.get(split, label), suffix)
        prompts = prompts if system is None else [with_system(p, system, self.chat) for p in prompts]
        keys = [(split, label, suffix, system, arm.key) for arm in arms]
        new = {key: arm for key, arm in zip(keys, arms, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._completed(prompts, list(new.values())), strict=True))
        shown = np.stack([self._known[key] for key in keys])
        if np.isnan(shown).all(1).any():
            raise InputError(
                f"{self.runner.model.name}: no completion of {split} {label}s has an answer within "
                f"{self.plan.max_new_tokens} tokens, in a language that {self.plan.judge} covers, under some arm. "
                "Raise --max-new-tokens, or pass another --judge."
            )
        return shown

    def _completed(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> Float[np.ndarray, "arm prompt"]:
        texts = complete(self.runner, self.chat, prompts, arms, self.plan.max_new_tokens)
        return np.array([[score_of(self.judge, text).value for text in of_arm] for of_arm in texts], float)

    @cached_property
    def _known(self) -> dict[Hashable, Indicators]:
        """What is already completed."""
        return {}

    def rate(self, split: Split, arms: Sequence[Arm], suffix: str | None = None) -> Float[np.ndarray, " arm"]:
        """Share of the answers to positives that shows the behaviour."""
        return np.nanmean(self.shown(split, "positive", arms, suffix), 1)

    def trajectories(self, split: Split) -> Trajectories:
        """The baseline's answers to the negatives."""
        if split not in self._trajectories:
            negatives = self.splits.get(split, "negative")
            self._trajectories[split] = Trajectories.of(self.runner, self.chat, negatives, self.plan.answer_tokens)
        return self._trajectories[split]

    @cached_property
    def _trajectories(self) -> dict[Split, Trajectories]:
        return {}

    def encoded(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts."""
        return [self.chat.encode(p) for p in self.splits.get(split, label)]

    @cached_property
    def best_suffix(self) -> str:
        """The random suffix with the lowest rate on validation positives."""
        return min(self.suffixes, key=lambda suffix: float(self.rate("val", [BASELINE], suffix)[0]))

    @cached_property
    def suffixes(self) -> list[str]:
        """Random words of the training negatives."""
        rng = random.Random(self.plan.seed)
        words = sorted({w for p in self.splits.get("train", "negative") for w in p.text.split()})
        return [" ".join(rng.choices(words, k=self.plan.suffix_words)) for _ in range(self.plan.suffixes)]
