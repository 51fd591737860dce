"""Robustness: how much of a behaviour remains as more of the residual stream is ablated, for several models.

For each model, candidates are fitted on training prompts. Validation prompts order them by the rate that remains under
their ablation. On test prompts the module measures the rate under ablation of subspaces of rank 1 to k, under partial
ablation of the first direction, under ablation of matched random subspaces, and with one of some random suffixes. The
suffix stands for an attacker who can only write prompts; it is selected on validation prompts, not optimised. Rates are
read from whole completions, so that late refusals count. Higher ranks add the next candidates by Gram-Schmidt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.completed_prompts import CompletedPrompts, Indicators
from rhumbline.analyses.least_damage import least_damage
from rhumbline.analyses.spans import Basis, energy
from rhumbline.analyses.stored_parts import resumable_runner
from rhumbline.errors import InputError
from rhumbline.evidence.relative_changes import relative_change
from rhumbline.evidence.statistics import paired_difference, wilson
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.residuals import at_site, extract
from rhumbline.judging.judge_names import class_judge
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import (
    LABELS,
    ContrastSet,
    Sizes,
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
KL_PROMPTS = 4
"""Validation negatives on which the KL of the candidates is compared."""
DEPTH = 0.8
"""Share of the layers whose candidates are considered, from the first."""


def measure(
    model: ChatModel,
    contrast: ContrastSet,
    plan: RobustnessPlan,
    tick: Callable[[int], None] = lambda rows: None,
    *,
    keep: str | Path | None = None,
) -> ModelRobustness:
    """Measure one model on a contrast. Completions are kept in the directory `keep`, from which a stopped call resumes.

    Raises InputError if the classes do not differ, if prompts spell control tokens, or if they are too long.
    """
    sizes = Sizes(plan.sizes.train, plan.sizes.val, plan.sizes.test)
    splits = split_contrast(contrast, sizes, plan.seed)
    chat = Chat.of(model.tokenizer, ChatOptions(control_tokens=plan.control_tokens), contrast.prompts)
    completed = CompletedPrompts(resumable_runner(model, tick, keep), chat, splits, plan, class_judge(plan.judge))
    completed.check()
    prompts = _Ablations(completed)
    baseline = prompts.baseline_rates()
    basis = prompts.basis(prompts.by_rate)
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
        least=least_damage(completed, prompts.basis(prompts.by_damage)),
        encoded_as_text=chat.encoded_as_text,
    )


def compare(models: Sequence[ModelRobustness], plan: RobustnessPlan) -> RobustnessRecord:
    """The record of several models."""
    sentences = [
        f"{m.model}: rate {m.baseline.rate:.2f} at baseline, {m.ranks[0].rate:.2f} at rank 1 "
        f"(energy {m.ranks[0].energy:.2f}), {m.ranks[-1].rate:.2f} at rank {m.ranks[-1].rank}; "
        f"least access that removes half of it: {m.access}; damage at half: "
        + ", ".join(f"{one.access} {one.text}" for one in m.least)
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
class _Ablations:
    """The directions of one model, and their ablation."""

    prompts: CompletedPrompts

    @property
    def plan(self) -> RobustnessPlan:
        """What is measured."""
        return self.prompts.plan

    @cached_property
    def baseline(self) -> Indicators:
        """Test positives at baseline."""
        (shown,) = self.prompts.shown("test", "positive", [BASELINE])
        return shown

    def baseline_rates(self) -> RobustnessBaseline:
        """Rates of both classes at baseline."""
        rate, low, high = _rate(self.baseline)
        return RobustnessBaseline(
            rate, low, high, float(np.nanmean(self.prompts.shown("test", "negative", [BASELINE])))
        )

    # The directions

    def basis(self, order: Sequence[int]) -> list[Direction]:
        """Orthonormal directions: the candidates in this order, by Gram-Schmidt."""
        pool, _ = self._pool
        basis: list[Direction] = []
        for i in order:
            rest = _orthogonal(pool[i].vector.double(), basis)
            # A candidate is skipped if less than a hundredth of its energy lies outside the span of the others.
            if float(rest.norm()) > 0.1 and len(basis) < self.plan.ranks:
                rest = _orthogonal(rest / rest.norm(), basis)
                basis.append(Direction.from_vector(rest.float() * pool[i].norm, pool[i].position, pool[i].layer))
        return basis

    @cached_property
    def by_rate(self) -> list[int]:
        """The candidates in the order of the rate that their ablation leaves on validation positives."""
        pool, rates = self._pool
        # Of candidates with equal rates the one with the larger norm is estimated with the smaller relative error.
        return sorted(range(len(pool)), key=lambda i: (rates[i], -pool[i].norm))

    @cached_property
    def by_damage(self) -> list[int]:
        """The same order, but of the candidates that remove half the one with the least KL comes first.

        The KL is the trajectory KL of the whole ablation, on some validation negatives. The candidate that removes most
        can be in a late layer, where its ablation costs many times as much.
        """
        pool, rates = self._pool
        start = float(self.prompts.rate("val", [BASELINE])[0])
        removing = [i for i in self.by_rate if rates[i] <= start / 2]
        if not removing or start == 0:
            return self.by_rate
        some = self.prompts.trajectories("val").first(KL_PROMPTS)
        costs = some.divergence([Arm(f"{i}", (Ablate(pool[i]),)) for i in removing]).means
        best = removing[int(np.argmin(np.nan_to_num(costs, nan=np.inf)))]
        return [best, *(i for i in self.by_rate if i != best)]

    @cached_property
    def _pool(self) -> tuple[list[Direction], Float[np.ndarray, " candidate"]]:
        """The candidates, and the rate on validation positives that the ablation of each leaves."""
        pool = self._candidates()
        arms = [Arm(f"{i}", (Ablate(d),)) for i, d in enumerate(pool)]
        return pool, self.prompts.rate("val", arms) if pool else np.zeros(0)

    def _candidates(self) -> list[Direction]:
        """Differences in means of the training prompts in the first layers, without those of length zero."""
        positions = self.prompts.chat.positions
        means = [extract(self.prompts.runner, self.prompts.encoded("train", c), positions).stats.mean() for c in LABELS]
        candidates = difference_in_means(*means)
        norms = candidates.norm(dim=-1)
        return [
            Direction.from_vector(candidates[p, layer], positions[p], layer)
            for p in range(len(positions))
            for layer in range(int(DEPTH * self.prompts.runner.model.n_layers))
            if norms[p, layer] > 1e-6 * float(norms.max())
        ]

    def _activations(self, at: Direction) -> Float[Tensor, "prompt d_model"]:
        """Activations of the training prompts of both classes at the site of a direction."""
        sequences = [ids for c in LABELS for ids in self.prompts.encoded("train", c)]
        return at_site(self.prompts.runner, sequences, at.position, at.layer)

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
        shown = self.prompts.shown("test", "positive", arms)
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
            harmless=float(np.nanmean(self.prompts.shown("test", "negative", [own]))),
        )

    def by_strength(self, direction: Direction, energy: float) -> list[RobustnessStrength]:
        """The behaviour under partial ablation; strength a leaves the share (1 - a)^2 of the direction's energy."""
        arms = [Arm(f"{a}", (Ablate(direction, a),)) for a in self.plan.strengths]
        shown = self.prompts.shown("test", "positive", arms)
        return [
            RobustnessStrength(a, *_rate(row), _drop(self.baseline, row), energy * (1 - (1 - a) ** 2))
            for a, row in zip(self.plan.strengths, shown, strict=True)
        ]

    def fragility(self, direction: Direction, energy: float) -> RobustnessFragility:
        """Share of the behaviour removed at rank 1, divided by the energy, with the interval of a relative change."""
        start, after = _scored(
            self.baseline, self.prompts.shown("test", "positive", [Arm("own", (Ablate(direction),))])[0]
        )
        lost = relative_change(start, after)
        if not start.any() or energy <= 0:
            return RobustnessFragility(None, None, None, None)
        return RobustnessFragility(lost.value / energy, lost.low / energy, lost.high / energy, lost.value)

    # A suffix

    def by_prompt(self) -> PromptAttack:
        """The behaviour with one random suffix: the one with the lowest rate on validation positives."""
        (after,) = self.prompts.shown("test", "positive", [BASELINE], self.prompts.best_suffix)
        return PromptAttack(
            *_rate(after), _drop(self.baseline, after), len(self.prompts.suffixes), self.plan.suffix_words
        )


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
