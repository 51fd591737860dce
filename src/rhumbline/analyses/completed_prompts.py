"""The prompts of one model, and whether their completions show the behaviour: by arm, suffix and system prompt.

A prompt is completed once under the same interventions, whatever the name of the arm. Completions count as in the
claims of a run: broken text is no removal, and an arm is measured if most of its completions are scored.
"""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from rhumbline.analyses.judged import Classes
from rhumbline.analyses.suffix_texts import with_suffix
from rhumbline.analyses.trajectory_kl import Trajectories, takes_system, with_system
from rhumbline.errors import InputError
from rhumbline.evidence.class_rates import SHOWN, SHOWN_OR_DEGENERATE, degenerate_share, indicators, is_measured
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits
from rhumbline.records.sheet_files import RobustnessPlan
from rhumbline.stages.completions import complete

Indicators = Float[np.ndarray, " prompt"]
"""For each prompt, 1 if the completion shows the behaviour, otherwise 0; NaN if it is unscored."""


def mean_rate(shown: Float[np.ndarray, "*draw prompt"]) -> float:
    """The share of the scored completions that shows the behaviour; NaN without any."""
    scored = shown[np.isfinite(shown)]
    return float(scored.mean()) if len(scored) else float("nan")


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
        """1 if the completion shows the behaviour, otherwise 0; NaN if it is unscored, and for an arm not measured.

        `suffix` follows every prompt, and `system` the system prompt of every chat. On positives a degenerate
        completion under a change of the activations or of the prompt counts as still showing the behaviour. Raises
        InputError if the baseline is not measured.
        """
        rows = []
        for arm, classes in zip(arms, self.classes(split, label, arms, suffix, system), strict=True):
            is_baseline = (arm.key, suffix, system) == (BASELINE.key, None, None)
            if is_baseline and not is_measured(classes):
                raise InputError(
                    f"{self.runner.model.name}: most completions of {split} {label}s at baseline have no answer within "
                    f"{self.plan.max_new_tokens} tokens, in a language that {self.plan.judge} covers. "
                    "Raise --max-new-tokens, or pass another --judge."
                )
            rows.append(indicators(classes, SHOWN if is_baseline or label == "negative" else SHOWN_OR_DEGENERATE))
        return np.stack(rows)

    def classes(
        self, split: Split, label: Label, arms: Sequence[Arm], suffix: str | None = None, system: str | None = None
    ) -> list[Classes]:
        """The class of the completion of every prompt, by arm."""
        prompts = with_suffix(self.splits.get(split, label), suffix)
        prompts = prompts if system is None else [with_system(p, system, self.chat) for p in prompts]
        keys = [(split, label, suffix, system, arm.key) for arm in arms]
        new = {key: arm for key, arm in zip(keys, arms, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._completed(prompts, list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def degenerate(self, split: Split, label: Label, arm: Arm, suffix: str | None = None) -> float | None:
        """The share of the scored completions that is degenerate; None without any."""
        return degenerate_share(self.classes(split, label, [arm], suffix)[0])

    def _completed(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> list[Classes]:
        texts = complete(self.runner, self.chat, prompts, arms, self.plan.max_new_tokens)
        return [[score_of(self.judge, text).cls for text in of_arm] for of_arm in texts]

    @cached_property
    def _known(self) -> dict[Hashable, Classes]:
        """What is already completed."""
        return {}

    def rate(self, split: Split, arms: Sequence[Arm], suffix: str | None = None) -> Float[np.ndarray, " arm"]:
        """Share of the scored completions of positives that shows the behaviour; NaN for an arm not measured."""
        return np.array([mean_rate(row) for row in self.shown(split, "positive", arms, suffix)])

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
        """The random suffix with the lowest rate on validation positives, of those that are measured there."""
        rates = [float(self.rate("val", [BASELINE], suffix)[0]) for suffix in self.suffixes]
        return self.suffixes[int(np.argmin(np.nan_to_num(rates, nan=np.inf)))]

    @cached_property
    def suffixes(self) -> list[str]:
        """Random words of the training negatives."""
        rng = random.Random(self.plan.seed)
        words = sorted({w for p in self.splits.get("train", "negative") for w in p.text.split()})
        return [" ".join(rng.choices(words, k=self.plan.suffix_words)) for _ in range(self.plan.suffixes)]
