"""The least damage at which half of a behaviour is lost, by what an attacker can change.

    prompt        a system prompt that asks for it, and a random suffix
    activations   what weights can, and subtraction and affine concept editing at one layer
    weights       partial ablation of one direction, and of the span of several

Damage is the trajectory KL on negatives. Broken text is no loss of the behaviour. Strengths are found, and the
intervention of an access is selected, on validation prompts; the result is measured on test prompts. None is optimised,
so an attacker can need less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch

from rhumbline.analyses.completed_prompts import CompletedPrompts, mean_rate
from rhumbline.analyses.dosed_interventions import (
    DosedIntervention,
    dosed_addition,
    dosed_erasure,
    find_doses,
    settings,
)
from rhumbline.analyses.suffix_texts import with_suffix
from rhumbline.analyses.trajectory_kl import with_system
from rhumbline.evidence.dosing import cost_at_half
from rhumbline.evidence.frontier_answers import CostedRate, half_damage
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Arm, Direction
from rhumbline.inference.residuals import at_site
from rhumbline.inference.stream_edits import Affine
from rhumbline.prompts.contrasts import Prompt, Split
from rhumbline.records.shared import Site
from rhumbline.records.sheet_files import Access, LeastDamage

TOLERANCE = 0.1
"""Largest difference between the KL on validation negatives and a dose, as a share of the dose."""
ACCESS: Mapping[Access, tuple[str, ...]] = {
    "prompt": ("system prompt", "random suffix"),
    "activations": ("ablation", "span ablation", "subtraction", "affine"),
    "weights": ("ablation", "span ablation"),
}
"""The interventions of every access."""
ONE_DIRECTION = ("ablation", "subtraction", "affine")
"""Those of one direction."""


def least_damage(completed: CompletedPrompts, basis: Sequence[Direction]) -> tuple[LeastDamage, ...]:
    """The least damage of every access, with the first of some orthonormal directions, and with their span."""
    study = _Study(completed, basis)
    return tuple(study.least(access) for access in get_args(Access))


@dataclass(frozen=True)
class _Study:
    """What is tried on one model."""

    completed: CompletedPrompts
    basis: Sequence[Direction]

    def least(self, access: Access) -> LeastDamage:
        """The least damage with one access."""
        curves = {name: self.val[name] for name in ACCESS[access] if name in self.val}
        start = mean_rate(self.baselines["val"])
        best = min(curves, key=lambda name: _criterion(curves[name], start, access), default=None)
        if best is None:
            return LeastDamage(access, (), None, None, 0.0, None)
        points = self._measured("test", best)
        rng = np.random.default_rng(self.completed.plan.seed)
        half = half_damage(points, self.baselines["test"], rng, interpolate=access != "prompt")
        pairs = _costs_and_rates(points)
        largest, lowest = max((cost for cost, _ in pairs), default=0.0), min((r for _, r in pairs), default=None)
        first = self.basis[0]
        site = Site(first.position, first.layer) if best in ONE_DIRECTION else None
        return LeastDamage(access, tuple(curves), best, half, largest, lowest, site)

    @cached_property
    def baselines(self) -> dict[Split, np.ndarray]:
        """Whether each positive shows the behaviour at baseline, as one draw."""
        splits: tuple[Split, ...] = ("val", "test")
        return {split: self.completed.shown(split, "positive", [BASELINE]) for split in splits}

    @cached_property
    def val(self) -> dict[str, list[CostedRate]]:
        """What every intervention does on validation prompts."""
        return {name: self._measured("val", name) for name in [*self.arms, *self._prompts]}

    def _measured(self, split: Split, name: str) -> list[CostedRate]:
        """Cost and behaviour of one intervention, at each of its strengths."""
        answers = self.completed.trajectories(split)
        if name in self._prompts:
            suffix, system = self._prompts[name]
            (shown,) = self.completed.shown(split, "positive", [BASELINE], suffix, system)
            changed = answers.under(lambda prompt: _changed(prompt, suffix, system, self.completed))
            return [CostedRate(changed.kl, changed.tokens, shown[None])]
        arms = self.arms[name]
        divergence, shown = answers.divergence(arms), self.completed.shown(split, "positive", arms)
        return [CostedRate(divergence.kl[[k]], divergence.tokens, shown[[k]]) for k in range(len(arms))]

    @cached_property
    def _prompts(self) -> dict[str, tuple[str | None, str | None]]:
        """Suffix and system prompt of every intervention on prompts."""
        c = self.completed
        suffix: dict[str, tuple[str | None, str | None]] = {"random suffix": (c.best_suffix, None)}
        return suffix if c.system is None else {"system prompt": (None, c.system), **suffix}

    @cached_property
    def arms(self) -> dict[str, list[Arm]]:
        """The arms of every intervention that has a strength, in the order of the strength."""
        dosed, doses = self._dosed(), self.completed.plan.doses
        searches = find_doses(self.completed.trajectories("val"), dosed, lambda name: doses, TOLERANCE)
        chosen = {name: list(settings(name, searches[name])) for name in dosed}
        return {name: [dosed[name].arm(0, s.strengths[0].strength) for s in own] for name, own in chosen.items() if own}

    def _dosed(self) -> dict[str, DosedIntervention]:
        first, r = self.basis[0], self.basis[0].vector[None]
        c = self.completed
        mean = at_site(c.runner, c.encoded("train", "negative"), first.position, first.layer).mean(0)
        found = {
            "ablation": dosed_erasure(Ablate(first)),
            "subtraction": dosed_addition(first, sign=-1),
            "affine": dosed_erasure(Affine(first.layer, r, r, mean, spared=1)),
        }
        if len(self.basis) > 1:
            found["span ablation"] = dosed_erasure(AblateSpan(torch.stack([d.vector for d in self.basis])))
        return found


def _changed(prompt: Prompt, suffix: str | None, system: str | None, completed: CompletedPrompts) -> Prompt:
    (longer,) = with_suffix([prompt], suffix)
    return longer if system is None else with_system(longer, system, completed.chat)


def _criterion(points: Sequence[CostedRate], start: float, access: Access) -> tuple[float, float]:
    """The cost at half on validation prompts, then the rate that is left; the lowest is best."""
    pairs = _costs_and_rates(points)
    half = cost_at_half(pairs, start, interpolate=access != "prompt")
    return math.inf if half is None else half, min((rate for _, rate in pairs), default=math.inf)


def _costs_and_rates(points: Sequence[CostedRate]) -> list[tuple[float, float]]:
    """KL and remaining rate of every strength at which the rate is measured."""
    measured = [p for p in points if np.isfinite(p.shown).any()]
    return [(float(p.kl.sum() / p.tokens.sum()), mean_rate(p.shown)) for p in measured]
