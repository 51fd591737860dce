"""Prompts of a finished run with their token metric under arms: token ids and arms in, log-odds and KL divergences out.

Independent of where the arms come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.spans import Basis
from rhumbline.analyses.subject import Subject
from rhumbline.errors import InputError
from rhumbline.inference.interventions import AblateSpan, Arm
from rhumbline.judging.scorer import Scorer
from rhumbline.prompts.contrasts import LABELS, SPLITS
from rhumbline.records.shared import ByLabel


@dataclass(frozen=True)
class MeasuredSet:
    """Token ids of the prompts of one split, and their token metric under arms."""

    scorer: Scorer
    positive: list[list[int]]
    negative: list[list[int]]
    baseline: Float[Tensor, "prompt vocab"]
    """Next-token logits of the negatives at baseline."""

    @classmethod
    def of(cls, scorer: Scorer, positive: list[list[int]], negative: list[list[int]]) -> "MeasuredSet":
        """The prompts, with their logits at baseline."""
        return cls(scorer, positive, negative, scorer.baseline(negative))

    def metric(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """Token metric of the positives, log-odds."""
        return self.scorer.read(self.positive, arms).metric

    def induced(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """Token metric of the negatives, log-odds."""
        return self.scorer.read(self.negative, arms).metric

    def kl(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """KL divergence of the next-token distribution of the negatives, baseline to arm, nats."""
        return self.scorer.read(self.negative, arms, self.baseline).kl


@dataclass(frozen=True)
class AnalysisPrompts:
    """The prompts of every split."""

    train: ByLabel[list[list[int]]]
    val: MeasuredSet
    test: MeasuredSet

    @classmethod
    def of(cls, subject: Subject, n_test: int) -> "AnalysisPrompts":
        """The prompts of a run, with at most `n_test` test prompts per class. InputError if a class is empty."""
        train, val, test = ([subject.sequences(split, c) for c in LABELS] for split in SPLITS)
        test = [sequences[:n_test] for sequences in test]
        if not all(len(sequences) for sequences in (*train, *val, *test)):
            raise InputError(
                f"{subject.directory.path}: a class of a split has no prompt left after the metric's filter, and the "
                "analysis needs one of each. Use a run with more prompts."
            )
        scorer = subject.scorer
        return cls(ByLabel(*train), MeasuredSet.of(scorer, *val), MeasuredSet.of(scorer, *test))


def ablating(span: Basis) -> Arm:
    """The arm that ablates a span."""
    return Arm("span", (AblateSpan(span),))
