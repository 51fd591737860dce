"""Robustness: how much of a behaviour remains as more of the residual stream is ablated, for several models.

For each model, candidates are fitted on training prompts. Validation prompts order them by the rate that remains under
their ablation. On test prompts the module measures the rate under ablation of subspaces of rank 1 to k, under partial
ablation of the first direction, under ablation of matched random subspaces, and with one of some random suffixes. The
suffix stands for an attacker who can only write prompts; it is selected on validation prompts, not optimised. Rates are
read from whole completions, so that late refusals count. Higher ranks add the next candidates by Gram-Schmidt.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.spans import Basis, energy
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import paired_difference, wilson
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.residuals import at_site, extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import (
    LABELS,
    SPLITS,
    ContrastSet,
    Label,
    Prompt,
    Sizes,
    Split,
    Splits,
    split_contrast,
)
from rhumbline.records.analysis_files import TrainTest
from rhumbline.records.effect_results import MeanInterval
from rhumbline.records.shared import ByLabel
from rhumbline.records.sheet_files import (
    FirstDirection,
    ModelRobustness,
    PromptAttack,
    RandomSubspaces,
    RobustnessBaseline,
    RobustnessFragility,
    RobustnessPlan,
    RobustnessRank,
    RobustnessRecord,
    RobustnessStrength,
)
from rhumbline.stages.directions import difference_in_means

TOP = 10
"""Principal axes of the activations whose span contains the random subspaces: they remove a large share of energy."""
DRAWS = 1000
"""Bootstrap draws of the fragility."""
DEPTH = 0.8
"""Share of the layers whose candidates are considered, from the first."""
Indicators = Float[np.ndarray, " prompt"]
"""For each prompt, 1 if the completion shows the behaviour, otherwise 0; NaN if it has no answer."""


def measure(
    model: ChatModel, contrast: ContrastSet, plan: RobustnessPlan, tick: Callable[[int], None] = lambda rows: None
) -> ModelRobustness:
    """Measure one model on a contrast.

    Raises InputError if the classes do not differ, if prompts spell control tokens, or if they are too long.
    """
    sizes = Sizes(plan.sizes.train, plan.sizes.val, plan.sizes.test)
    splits = split_contrast(contrast, sizes, plan.seed)
    chat = Chat.of(model.tokenizer, ChatOptions(control_tokens=plan.control_tokens), contrast.prompts)
    prompts = _ModelPrompts(Runner(model, tick=tick), chat, splits, plan, class_judge(plan.judge))
    prompts.check()
    baseline = prompts.baseline_rates()
    basis = prompts.basis()
    if not basis:
        raise InputError(
            f"{model.name}: the classes of {contrast.name} have equal mean activations everywhere, so there is no "
            "direction to ablate. Use another contrast."
        )
    first = basis[0]
    ranks = prompts.by_rank(basis)
    attack = prompts.by_prompt()
    return ModelRobustness(
        model=model.name,
        n=TrainTest(*(ByLabel(*(len(splits.get(s, c)) for c in LABELS)) for s in ("train", "test"))),
        baseline=baseline,
        selected=FirstDirection(first.position, first.layer, first.norm),
        ranks=tuple(ranks),
        strengths=tuple(prompts.by_strength(first, ranks[0].energy)),
        fragility=prompts.fragility(first, ranks[0].energy),
        prompts=attack,
        access=_least_access(baseline.rate, ranks, attack),
        encoded_as_text=chat.encoded_as_text,
    )


def compare(models: Sequence[ModelRobustness], plan: RobustnessPlan) -> RobustnessRecord:
    """The record of several models."""
    sentences = [
        f"{m.model}: rate {m.baseline.rate:.2f} at baseline, {m.ranks[0].rate:.2f} at rank 1 "
        f"(energy {m.ranks[0].energy:.2f}), {m.ranks[-1].rate:.2f} at rank {m.ranks[-1].rank}; "
        f"least access that removes half of it: {m.access}"
        for m in models
    ]
    return RobustnessRecord(plan=plan, models=tuple(models), sentence="; ".join(sentences) + ".")


def _least_access(baseline: float, ranks: Sequence[RobustnessRank], attack: PromptAttack) -> str:
    """The least access with which half of the behaviour was removed: the interval of the drop reaches half."""
    half = baseline / 2

    def is_removed(drop: MeanInterval) -> bool:
        return drop.low is not None and drop.low >= half

    if half == 0:
        return "nothing to take"
    if is_removed(attack.drop):
        return "prompts"
    rank = next((row.rank for row in ranks if is_removed(row.drop)), None)
    return "none of those tried" if rank is None else f"weights or activations, rank {rank}"


@dataclass(frozen=True)
class _ModelPrompts:
    """One model with the prompts of its splits."""

    runner: Runner
    chat: Chat
    splits: Splits
    plan: RobustnessPlan
    judge: TextJudge

    def check(self) -> None:
        """Raise an error with the prompts that need more positions than the model has, before the first pass.

        Suffixes follow the validation and test positives.
        """
        every = [p for split in SPLITS for c in LABELS for p in self.splits.get(split, c)]
        attacked = [p for split in ("val", "test") for p in self.splits.get(split, "positive")]
        for suffix in ("", *self.suffixes):
            prompts = _with_suffix(attacked, suffix) if suffix else every
            sequences = {p.id: self.chat.encode(p) for p in prompts}
            what = "prompts with a random suffix" if suffix else "prompts"
            check_sequences(self.runner.model, sequences, self.plan.max_new_tokens, what)

    def shown(
        self, split: Split, label: Label, arms: Sequence[Arm], suffix: str = ""
    ) -> Float[np.ndarray, "arm prompt"]:
        """1 if the answer shows the behaviour, otherwise 0; NaN without an answer. `suffix` follows every prompt."""
        prompts = _with_suffix(self.splits.get(split, label), suffix)
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
    def baseline(self) -> Indicators:
        """Test positives at baseline."""
        (shown,) = self.shown("test", "positive", [BASELINE])
        return shown

    def baseline_rates(self) -> RobustnessBaseline:
        """Rates of both classes at baseline."""
        rate, low, high = _rate(self.baseline)
        return RobustnessBaseline(rate, low, high, float(np.nanmean(self.shown("test", "negative", [BASELINE]))))

    # The directions

    def basis(self) -> list[Direction]:
        """Orthonormal directions: the candidate with the lowest validation rate, then Gram-Schmidt of the next ones."""
        pool = self._candidates()
        if not pool:
            return []
        arms = [Arm(f"{i}", (Ablate(d),)) for i, d in enumerate(pool)]
        rates = np.nanmean(self.shown("val", "positive", arms), 1)
        # Of candidates with equal rates the one with the larger norm is estimated with the smaller relative error.
        order = sorted(range(len(pool)), key=lambda i: (rates[i], -pool[i].norm))
        basis: list[Direction] = []
        for i in order:
            rest = _orthogonal(pool[i].vector.double(), basis)
            # A candidate is skipped if less than a hundredth of its energy lies outside the span of the others.
            if float(rest.norm()) > 0.1 and len(basis) < self.plan.ranks:
                rest = _orthogonal(rest / rest.norm(), basis)
                basis.append(Direction.from_vector(rest.float() * pool[i].norm, pool[i].position, pool[i].layer))
        return basis

    def _candidates(self) -> list[Direction]:
        """Differences in means of the training prompts in the first layers, without those of length zero."""
        positions = self.chat.positions
        means = [extract(self.runner, self.encoded("train", c), positions).stats.mean() for c in LABELS]
        candidates = difference_in_means(*means)
        norms = candidates.norm(dim=-1)
        return [
            Direction.from_vector(candidates[p, layer], positions[p], layer)
            for p in range(len(positions))
            for layer in range(int(DEPTH * self.runner.model.n_layers))
            if norms[p, layer] > 1e-6 * float(norms.max())
        ]

    def _activations(self, at: Direction) -> Float[Tensor, "prompt d_model"]:
        """Activations of the training prompts of both classes at the site of a direction."""
        sequences = [ids for c in LABELS for ids in self.encoded("train", c)]
        return at_site(self.runner, sequences, at.position, at.layer)

    # Their ablation

    def by_rank(self, basis: Sequence[Direction]) -> list[RobustnessRank]:
        """The behaviour under ablation of subspaces of growing rank, and of random subspaces of the same rank."""
        h = self._activations(basis[0])
        return [self._rank(basis[:rank], h) for rank in range(1, len(basis) + 1)]

    def _rank(self, basis: Sequence[Direction], h: Float[Tensor, "prompt d_model"]) -> RobustnessRank:
        rank, plan = len(basis), self.plan
        own = Arm("own", tuple(map(Ablate, basis)))
        draws = [_random_basis(h, rank, basis[0], plan.seed, k) for k in range(plan.nulls)]
        arms = [own, *(Arm(f"null {k}", tuple(map(Ablate, draw))) for k, draw in enumerate(draws))]
        shown = self.shown("test", "positive", arms)
        rate, low, high = _rate(shown[0])
        null_rates = np.nanmean(shown[1:], 1)
        null_energy = float(np.mean([energy(h, _matrix(draw)) for draw in draws]))
        return RobustnessRank(
            rank=rank,
            rate=rate,
            low=low,
            high=high,
            drop=_drop(self.baseline, shown[0]),
            energy=energy(h, _matrix(basis)),
            null=RandomSubspaces(float(null_rates.mean()), float(null_rates.min()), null_energy, len(draws)),
            harmless=float(np.nanmean(self.shown("test", "negative", [own]))),
        )

    def by_strength(self, direction: Direction, energy: float) -> list[RobustnessStrength]:
        """The behaviour under partial ablation; strength a leaves the share (1 - a)^2 of the direction's energy."""
        arms = [Arm(f"{a}", (Ablate(direction, a),)) for a in self.plan.strengths]
        shown = self.shown("test", "positive", arms)
        return [
            RobustnessStrength(a, *_rate(row), _drop(self.baseline, row), energy * (1 - (1 - a) ** 2))
            for a, row in zip(self.plan.strengths, shown, strict=True)
        ]

    def fragility(self, direction: Direction, energy: float) -> RobustnessFragility:
        """Share of the behaviour removed at rank 1, divided by the energy, with a bootstrap interval over prompts."""
        start, after = _scored(self.baseline, self.shown("test", "positive", [Arm("own", (Ablate(direction),))])[0])
        rng = np.random.default_rng(self.plan.seed)
        rows = rng.integers(len(after), size=(DRAWS, len(after)))
        before, remaining = start[rows].mean(1), after[rows].mean(1)
        removed_share = np.where(before > 0, (before - remaining) / np.where(before > 0, before, 1), np.nan)
        if not start.mean() > 0 or energy <= 0:
            return RobustnessFragility(None, None, None, None)
        low, high = np.nanquantile(removed_share, [0.025, 0.975])
        share = float((start.mean() - after.mean()) / start.mean())
        return RobustnessFragility(share / energy, float(low) / energy, float(high) / energy, share)

    # A suffix

    @cached_property
    def suffixes(self) -> list[str]:
        """Random words of the training negatives."""
        rng = random.Random(self.plan.seed)
        words = sorted({w for p in self.splits.get("train", "negative") for w in p.text.split()})
        return [" " + " ".join(rng.choices(words, k=self.plan.suffix_words)) for _ in range(self.plan.suffixes)]

    def by_prompt(self) -> PromptAttack:
        """The behaviour with one random suffix: the one with the lowest rate on validation positives."""
        rates = [float(np.nanmean(self.shown("val", "positive", [BASELINE], s))) for s in self.suffixes]
        best = self.suffixes[rates.index(min(rates))]
        (after,) = self.shown("test", "positive", [BASELINE], best)
        return PromptAttack(*_rate(after), _drop(self.baseline, after), len(self.suffixes), self.plan.suffix_words)


def _with_suffix(prompts: Sequence[Prompt], suffix: str) -> list[Prompt]:
    return [replace(p, text=p.text + suffix) for p in prompts]


def _orthogonal(v: Float[Tensor, " d_model"], basis: Sequence[Direction]) -> Float[Tensor, " d_model"]:
    """The component of `v` that is orthogonal to the basis, by modified Gram-Schmidt."""
    for direction in basis:
        r = direction.vector.double()
        v = v - (v @ r) * r
    return v


def _random_basis(
    h: Float[Tensor, "prompt d_model"], rank: int, like: Direction, seed: int, draw: int
) -> list[Direction]:
    """An orthonormal basis of a random subspace in the span of the principal axes of the activations."""
    centred = (h - h.mean(0)).double()
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[: max(TOP, rank)]
    random_numbers = torch.tensor(np.random.default_rng([seed, draw, rank]).standard_normal((len(axes), rank)))
    basis = torch.linalg.qr(axes.T @ random_numbers).Q.T
    return [Direction.from_vector(v.float(), like.position, like.layer) for v in basis]


def _matrix(basis: Sequence[Direction]) -> Basis:
    return torch.stack([direction.vector for direction in basis])


def _scored(*shown: Indicators) -> tuple[Indicators, ...]:
    """The prompts whose completions have an answer under every arm."""
    scored = np.isfinite(shown).all(0)
    return tuple(values[scored] for values in shown)


def _rate(shown: Indicators) -> tuple[float, float, float]:
    """Rate with Wilson's interval."""
    (scored,) = _scored(shown)
    low, high = wilson(int(scored.sum()), len(scored))
    return float(scored.mean()), low, high


def _drop(before: Indicators, after: Indicators) -> MeanInterval:
    """Decrease of the rate on the same prompts."""
    before, after = _scored(before, after)
    d = paired_difference(before > 0, after > 0)
    return MeanInterval(d.mean, d.low, d.high)
