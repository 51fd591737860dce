"""Robustness: how much of a behaviour remains as more of the residual stream is ablated, for several models.

For each model, candidates are fitted on training prompts. Validation prompts order them by the rate that remains under
their ablation. On test prompts the module measures the rate under ablation of subspaces of rank 1 to k, under partial
ablation of the first direction, under ablation of matched random subspaces, and with one of some random suffixes. The
suffix stands for an attacker who can only write prompts; it is selected on validation prompts, not optimised. Rates are
read from whole completions, so that late refusals count. Broken text is no removal, and an arm whose completions are
mostly unscored is not measured. Higher ranks add the next candidates by Gram-Schmidt. The random subspaces are
orthogonal to the ablated one, and their energy is as near to its energy as the axes of the negatives allow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.completed_prompts import CompletedPrompts, Indicators, mean_rate
from rhumbline.analyses.least_damage import least_damage
from rhumbline.analyses.spans import Basis, energy, random_span
from rhumbline.analyses.stored_parts import resumable_runner
from rhumbline.errors import InputError
from rhumbline.evidence.relative_changes import relative_change
from rhumbline.evidence.statistics import finite_or_none, paired_difference, wilson
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
        raise InputError(f"{model.name}, {contrast.name}: {prompts.why_no_basis}")
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
        f"{m.model}: rate {_text(m.baseline.rate)} at baseline, {_text(m.ranks[0].rate)} at rank 1 "
        f"(energy {m.ranks[0].energy:.2f}), {_text(m.ranks[-1].rate)} at rank {m.ranks[-1].rank}; "
        f"least access that removes half of it: {m.access}; damage at half: "
        + ", ".join(f"{one.access} {one.text}" for one in m.least)
        for m in models
    ]
    return RobustnessRecord(plan=plan, models=tuple(models), sentence="; ".join(sentences) + ".")


def _text(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:.2f}"


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
        rate, harmless = (mean_rate(self.prompts.shown("test", c, [BASELINE])) for c in LABELS)
        _, low, high = _rate(self.baseline)
        degenerate = self.prompts.degenerate("test", "positive", BASELINE)
        return RobustnessBaseline(rate, low, high, harmless, degenerate)

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
        """The candidates in the order of the rate that their ablation leaves on validation positives.

        Those for which it is not measured are left out.
        """
        pool, rates = self._pool
        # Of candidates with equal rates the one with the larger norm is estimated with the smaller relative error.
        return sorted(np.flatnonzero(np.isfinite(rates)).tolist(), key=lambda i: (rates[i], -pool[i].norm))

    @property
    def why_no_basis(self) -> str:
        """Why no candidate has a place in the order, and what to do."""
        pool, _ = self._pool
        if pool:
            return (
                "under ablation of every candidate most completions have no answer that the judge can read, so no "
                "direction can be selected. Raise --max-new-tokens, or pass another --judge."
            )
        return (
            "the classes have equal mean activations everywhere, so there is no direction to ablate. Use another "
            "contrast."
        )

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

    def _activations(self, at: Direction) -> ByLabel[Float[Tensor, "prompt d_model"]]:
        """Activations of the training prompts at the site of a direction."""
        prompts = self.prompts
        return ByLabel(*(at_site(prompts.runner, prompts.encoded("train", c), at.position, at.layer) for c in LABELS))

    # Their ablation

    def by_rank(self, basis: Sequence[Direction]) -> list[RobustnessRank]:
        """The behaviour under ablation of subspaces of growing rank, and of random subspaces of the same rank."""
        h = self._activations(basis[0])
        return [self._rank(basis[:rank], h) for rank in range(1, len(basis) + 1)]

    def _rank(self, basis: Sequence[Direction], by_class: ByLabel[Float[Tensor, "prompt d_model"]]) -> RobustnessRank:
        own, h = _ablation("own", basis), torch.cat([by_class.positive, by_class.negative])
        (shown,) = self.prompts.shown("test", "positive", [own])
        (harmless,) = self.prompts.shown("test", "negative", [own])
        rate, low, high = _rate(shown)
        return RobustnessRank(
            rank=len(basis),
            rate=rate,
            low=low,
            high=high,
            drop=_drop(self.baseline, shown),
            energy=energy(h, _matrix(basis)),
            null=self._null(basis, by_class.negative, h),
            harmless=finite_or_none(mean_rate(harmless)),
            degenerate=self.prompts.degenerate("test", "positive", own),
        )

    def _null(
        self,
        basis: Sequence[Direction],
        negative: Float[Tensor, "negative d_model"],
        h: Float[Tensor, "prompt d_model"],
    ) -> RandomSubspaces:
        """The behaviour under ablation of random subspaces that are matched to a basis."""
        seeds = ([self.plan.seed, k, len(basis)] for k in range(self.plan.nulls))
        draws = [_random_basis(basis, negative, h, np.random.default_rng(seed)) for seed in seeds]
        arms = [_ablation(f"null {k}", draw) for k, draw in enumerate(draws)]
        rates = [mean_rate(row) for row in self.prompts.shown("test", "positive", arms)]
        measured = [k for k, rate in enumerate(rates) if draws[k] and np.isfinite(rate)]
        if not measured:
            return RandomSubspaces(None, None, None, 0)
        broken = [self.prompts.degenerate("test", "positive", arms[k]) or 0.0 for k in measured]
        return RandomSubspaces(
            mean=float(np.mean([rates[k] for k in measured])),
            low=min(rates[k] for k in measured),
            energy=float(np.mean([energy(h, _matrix(draws[k])) for k in measured])),
            draws=len(measured),
            degenerate=float(np.mean(broken)),
        )

    def by_strength(self, direction: Direction, energy: float) -> list[RobustnessStrength]:
        """The behaviour under partial ablation; strength a leaves the share (1 - a)^2 of the direction's energy."""
        arms = [Arm(f"{a}", (Ablate(direction, a),)) for a in self.plan.strengths]
        shown = self.prompts.shown("test", "positive", arms)
        return [
            RobustnessStrength(
                a,
                *_rate(row),
                _drop(self.baseline, row),
                energy * (1 - (1 - a) ** 2),
                self.prompts.degenerate("test", "positive", arm),
            )
            for a, arm, row in zip(self.plan.strengths, arms, shown, strict=True)
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
        prompts, plan = self.prompts, self.plan
        (after,) = prompts.shown("test", "positive", [BASELINE], prompts.best_suffix)
        degenerate = prompts.degenerate("test", "positive", BASELINE, prompts.best_suffix)
        drop = _drop(self.baseline, after)
        return PromptAttack(*_rate(after), drop, len(prompts.suffixes), plan.suffix_words, degenerate)


def _orthogonal(v: Float[Tensor, " d_model"], basis: Sequence[Direction]) -> Float[Tensor, " d_model"]:
    """The component of `v` that is orthogonal to the basis, by modified Gram-Schmidt."""
    for direction in basis:
        r = direction.vector.double()
        v = v - (v @ r) * r
    return v


def _ablation(name: str, basis: Sequence[Direction]) -> Arm:
    """The ablation of every direction of an orthonormal basis, and so of its span."""
    return Arm(name, tuple(map(Ablate, basis)))


def _random_basis(
    basis: Sequence[Direction],
    negative: Float[Tensor, "negative d_model"],
    h: Float[Tensor, "prompt d_model"],
    rng: np.random.Generator,
) -> list[Direction]:
    """Random directions along the principal axes of the negatives, orthonormal and orthogonal to the basis.

    Each is drawn with the share of the energy of `h` that one direction of the basis has. The axes of both classes
    together are not used, because the first of them is often the difference of the classes. Fewer directions are
    returned if fewer are orthogonal to the basis.
    """
    span = _matrix(basis)
    for r in _matrix(basis):
        match = energy(h, span) + energy(h, r[None])
        span = random_span(span, len(span) + 1, negative, rng, match, h)
    first = basis[0]
    return [Direction.from_vector(v, first.position, first.layer) for v in span[len(basis) :]]


def _matrix(basis: Sequence[Direction]) -> Basis:
    return torch.stack([direction.vector for direction in basis])


def _scored(*shown: Indicators) -> tuple[Float[np.ndarray, " scored"], ...]:
    """The prompts whose completions have an answer under every arm."""
    scored = np.isfinite(shown).all(0)
    return tuple(values[scored] for values in shown)


def _rate(shown: Indicators) -> tuple[float | None, float, float]:
    """Rate with Wilson's interval; None in [0, 1] if it is not measured."""
    (scored,) = _scored(shown)
    low, high = wilson(int(scored.sum()), len(scored))
    return finite_or_none(mean_rate(shown)), low, high


def _drop(before: Indicators, after: Indicators) -> MeanInterval:
    """Decrease of the rate on the same prompts; None in [-1, 1] if no prompt is scored in both."""
    before, after = _scored(before, after)
    d = paired_difference(before > 0, after > 0)
    return MeanInterval(finite_or_none(d.mean), d.low, d.high)
