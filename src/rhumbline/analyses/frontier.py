"""Interventions at equal damage: what remains of the behaviour when each has the same trajectory KL.

Interventions are fitted on training prompts. The strength for every dose is found on the answers to validation
negatives. Behaviour, KL and accuracy are measured on test prompts; the rule is fixed before.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from rhumbline.analyses.dosed_interventions import DosedIntervention, Setting, find_doses, settings
from rhumbline.analyses.frontier_fits import Fits
from rhumbline.analyses.frontier_results import FrontierResults, Measured, as_name
from rhumbline.analyses.judged import Classes, classes_of
from rhumbline.analyses.subject import Subject, protocol_with_classes
from rhumbline.analyses.trajectory_kl import Divergence, Trajectories, right_answers, takes_system, with_system
from rhumbline.evidence.class_rates import SHOWN, SHOWN_OR_DEGENERATE, degenerate_share, indicators
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.prompts.contrasts import LABELS, Label, Prompt, Split
from rhumbline.protocol import Protocol
from rhumbline.records.frontier_file import (
    LARGEST_DOSE,
    LEAST_DOSE,
    REFERENCE,
    FrontierParameters,
    FrontierPlan,
    FrontierRecord,
    FrontierRule,
    InterventionName,
)


def analyse(subject: Subject, plan: FrontierPlan | None = None, rule: FrontierRule | None = None) -> FrontierRecord:
    """Dose and measure every intervention, and write analyses/frontier.json."""
    parameters = FrontierParameters(plan or FrontierPlan(), rule or FrontierRule())
    frontier = Frontier(subject, parameters.plan, Fits(subject, parameters.plan))
    _ = frontier.protocol  # a run without classes is refused before anything is measured
    dosed = frontier.fits.dosed()
    searches = find_doses(frontier.val, dosed, frontier.targets, frontier.plan.tolerance)
    chosen = [setting for name in dosed for setting in settings(name, searches[name])]
    measured = frontier.measure(chosen, dosed)
    fits = frontier.fits
    system, unfitted = frontier.measure_system(), fits.unfitted
    results = FrontierResults(parameters, subject.seed, searches, measured, system, unfitted)
    return subject.save(results.record(subject.selected_site(), frontier.protocol.judge, fits.spared, subject.spared))


@dataclass(frozen=True)
class Frontier:
    """The prompts of a run, and what is measured on them."""

    subject: Subject
    plan: FrontierPlan
    fits: Fits

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol of the run. ProtocolError if its score is continuous."""
        return protocol_with_classes(self.subject.directory)

    def _trajectories(self, split: Split) -> Trajectories:
        prompts = self.subject.prompts(split, "negative")[: self.plan.kl_prompts]
        return Trajectories.of(self.subject.runner, self.subject.chat, prompts, self.plan.answer_tokens)

    @cached_property
    def val(self) -> Trajectories:
        """The answers on which strengths are found."""
        return self._trajectories("val")

    @cached_property
    def test(self) -> Trajectories:
        """The answers on which damage is measured."""
        return self._trajectories("test")

    @cached_property
    def has_system(self) -> bool:
        """Whether the system prompt is measured: the plan names it, and the chat template takes one."""
        return "system-prompt" in self.plan.names and takes_system(self.subject.chat, self.plan.system)

    @cached_property
    def system_kl(self) -> float | None:
        """KL of the system prompt on validation negatives; None without one."""
        return float(self.val.under_system(self.plan.system).means[0]) if self.has_system else None

    def targets(self, name: InterventionName) -> list[float]:
        """The doses of an intervention; the reference is dosed to the cost of the system prompt, too."""
        extra = self.system_kl if name == REFERENCE else None
        return sorted({*self.plan.doses, *([extra] if extra and LEAST_DOSE <= extra <= LARGEST_DOSE else [])})

    # Test prompts

    def measure(
        self, chosen: Sequence[Setting], dosed: Mapping[InterventionName, DosedIntervention]
    ) -> dict[Setting | None, Measured]:
        """Completions, KL and accuracy of the baseline (None) and of every setting."""
        arms = [BASELINE]
        places: dict[Setting | None, list[int]] = {None: [0]}
        for setting in chosen:
            places[setting] = list(range(len(arms), len(arms) + len(setting.strengths)))
            arms += [dosed[as_name(setting.name)].arm(draw, s.strength) for draw, s in enumerate(setting.strengths)]
        positive, negative = (self._classes(self._prompts(label), arms) for label in LABELS)
        divergence = self.test.divergence(arms)
        right = right_answers(self.subject.runner, self.subject.chat, arms)
        return {
            setting: _measured(
                [positive[i] for i in own],
                [negative[i] for i in own],
                divergence.of(own),
                right[own],
                SHOWN if setting is None else SHOWN_OR_DEGENERATE,
            )
            for setting, own in places.items()
        }

    def measure_system(self) -> tuple[float, Measured] | None:
        """The same under the system prompt, with its cost; None without one. Plain text has none: no accuracy."""
        if self.system_kl is None:
            return None
        chat, system = self.subject.chat, self.plan.system
        prompts = ([with_system(p, system, chat) for p in self._prompts(label)] for label in LABELS)
        positive, negative = (self._classes(some, [BASELINE]) for some in prompts)
        return self.system_kl, _measured(positive, negative, self.test.under_system(system), None, SHOWN_OR_DEGENERATE)

    def _prompts(self, label: Label) -> list[Prompt]:
        return self.subject.prompts("test", label)[: self.plan.prompts]

    def _classes(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> list[Classes]:
        """The class of the completion of every prompt under every arm."""
        return classes_of(self.subject, prompts, arms, self.plan.max_new_tokens)


def _measured(
    positive: Sequence[Classes],
    negative: Sequence[Classes],
    divergence: Divergence,
    right: Bool[np.ndarray, "draw question"] | None,
    remaining: Collection[str],
) -> Measured:
    """From the classes of every draw on both sets; those in `remaining` count as the behaviour on positives."""
    broken = degenerate_share([cls for of_draw in (*positive, *negative) for cls in of_draw])
    left = np.stack([indicators(classes, remaining) for classes in positive])
    over = np.stack([indicators(classes, SHOWN) for classes in negative])
    return Measured(left, over, broken, divergence, right)
