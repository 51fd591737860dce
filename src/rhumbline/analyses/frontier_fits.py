"""The interventions of the frontier, each as a function of its strength, fitted on training prompts.

Input: a subject and a plan. Output: `DosedIntervention` by name. Independent of doses and of what is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.dosed_interventions import DosedIntervention, dosed_addition, dosed_erasure
from rhumbline.analyses.erasure import leace
from rhumbline.analyses.gradient_search import GradientSearch
from rhumbline.analyses.spans import energy, prototypes, random_span, span_of
from rhumbline.analyses.subject import Subject
from rhumbline.axes import Residual, Vector
from rhumbline.inference.interventions import Ablate, AblateSpan, Direction
from rhumbline.inference.residuals import at_site
from rhumbline.inference.stream_edits import AblateByLayer, Affine, Rotate, window
from rhumbline.models.chat_model import ChatModel, HookPoint, forward
from rhumbline.models.hooks import hooked
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.frontier_file import FrontierPlan, InterventionName, Unavailable
from rhumbline.records.shared import ByLabel

DRAW_SEED = 23
"""Last entry of the seed of the random vectors."""
MASSIVE = 10.0
"""A token is massive if its norm is this many times the median of all tokens."""
HERETIC_WIDTH, HERETIC_LARGEST = 0.6, 1.5
"""Largest width of a window, as a share of the layers, and largest strength, in heretic's search."""


@dataclass(frozen=True)
class Fits:
    """What the interventions are fitted on: the direction of a run, and its training prompts."""

    subject: Subject
    plan: FrontierPlan

    @property
    def direction(self) -> Direction:
        """The selected direction."""
        return self.subject.selected()

    @cached_property
    def train(self) -> ByLabel[list[list[int]]]:
        """Token ids of the training prompts."""
        return ByLabel(*(self.subject.sequences("train", c) for c in LABELS))

    @cached_property
    def activations(self) -> ByLabel[Float[Tensor, "prompt d_model"]]:
        """Activations of the training prompts at the site of the direction."""
        d = self.direction
        return ByLabel(*(at_site(self.subject.runner, self.train[c], d.position, d.layer) for c in LABELS))

    @cached_property
    def spared(self) -> int:
        """Tokens up to the last massive activation in the prefix that all prompts share, at least one."""
        n = len(self.subject.chat.prefix)
        return max(1, *(massive_tokens(self.subject.model, ids, n) for ids in self.train.negative[:4]))

    def dosed(self) -> dict[InterventionName, DosedIntervention]:
        """Every intervention of the plan that has a strength and can be fitted."""
        return {
            name: self._dosed(name) for name in self.plan.names if name not in self.unfitted and name != "system-prompt"
        }

    @property
    def unfitted(self) -> dict[InterventionName, Unavailable]:
        """The interventions that are not fitted, and why."""
        reasons: dict[InterventionName, Unavailable] = {}
        if not self.subject.tokens:
            reasons["cone"] = "no token metric"
        if self.subject.spared == 0:
            reasons["everywhere-ablation"] = "equal to the ablation of the run"
        return reasons

    def _dosed(self, name: InterventionName) -> DosedIntervention:
        d, r, spared = self.direction, self.direction.vector, self.subject.spared
        match name:
            case "ablation":
                return dosed_erasure(self.subject.ablation(d))
            case "everywhere-ablation":
                return dosed_erasure(Ablate(d))
            case "spared-ablation":
                return dosed_erasure(Ablate(d, spared=self.spared))
            case "subtraction":
                return dosed_addition(d, sign=-1)
            case "addition":
                return dosed_addition(d)
            case "affine":
                return dosed_erasure(
                    Affine(d.layer, r[None], r[None], self.activations.negative.mean(0), spared=self.spared)
                )
            case "leace":
                h = self.activations
                return dosed_erasure(leace(h.positive, h.negative, d.layer, spared=self.spared))
            case "rotation":
                plane = self._plane()
                return DosedIntervention([lambda angle: Rotate(plane, angle)], math.pi / 8, math.pi)
            case "window":
                n, width = self.subject.model.n_layers, HERETIC_WIDTH * (self.subject.model.n_layers - 1)
                by_layer = [lambda a: AblateByLayer(r, window(n, d.layer, width, a))]
                return DosedIntervention(by_layer, 0.25, HERETIC_LARGEST)
            case "cone" | "som":
                return dosed_erasure(AblateSpan(span_of(torch.cat([r[None], self._further(name)])), spared=spared))
            case "isotropic-ablation" | "matched-ablation":
                return dosed_erasure(*(Ablate(v, spared=spared) for v in self._random(name.startswith("matched"))))
            case "isotropic-addition" | "matched-addition":
                random = (v * d.norm for v in self._random(name.startswith("matched")))
                return dosed_addition(*(Direction.from_vector(v, d.position, d.layer) for v in random))
            case "system-prompt":
                raise ValueError("a system prompt has no strength")

    def _further(self, name: InterventionName) -> Float[Tensor, "member d_model"]:
        """Further directions: prototypes of the positives, or a cone that is fitted by gradient."""
        h, plan, subject = self.activations, self.plan, self.subject
        if name == "som":
            return prototypes(h.positive, h.negative, "som", plan.members, subject.seed)
        started = subject.after_start(self.train)
        search = GradientSearch(
            subject.runner, *started, subject.metric, self.direction, plan.steps, subject.spared, subject.coefficient
        )
        return search.fit(self.direction.vector[None][:0], n=max(1, plan.members - 1), seed=0)

    def _plane(self) -> Float[Tensor, "2 d_model"]:
        """The direction, and the first principal component of all candidates outside of it (Angular Steering)."""
        r = self.direction.vector.double()
        rows = self.subject.candidates.flatten(0, 1).double()
        rows = torch.nn.functional.normalize(rows[rows.norm(dim=1) > 0], dim=1)
        rest = rows - (rows @ r)[:, None] * r
        axis = torch.linalg.svd(rest, full_matrices=False).Vh[0]
        axis = axis - (axis @ r) * r
        return torch.stack([r, axis / axis.norm()]).float()

    def _random(self, matched: bool) -> list[Vector]:
        """Random unit vectors: isotropic, or along the axes of the negatives with the energy of the direction.

        They are orthogonal to the direction: a large coefficient would turn any component along it into its effect. So
        a span of the direction and one vector contains twice the energy of the direction.
        """
        h, r = torch.cat([self.activations.positive, self.activations.negative]), self.direction.vector[None]
        rng = np.random.default_rng([self.subject.seed, int(matched), DRAW_SEED])
        match = 2 * energy(h, r) if matched else None
        return [random_span(r, 2, self.activations.negative, rng, match, h)[1] for _ in range(self.plan.draws)]


@torch.no_grad()
def massive_tokens(model: ChatModel, ids: Sequence[int], within: int) -> int:
    """Tokens up to the last of the first `within` ones that has a massive activation at the middle layer."""
    lengths: list[Tensor] = []

    def read(h: Residual) -> Residual:
        lengths.append(h[0].float().norm(dim=-1).cpu())
        return h

    tokens = torch.tensor([list(ids)], device=model.device)
    with hooked(model, {HookPoint("resid_pre", model.n_layers // 2): read}):
        forward(model, tokens, torch.ones_like(tokens))
    massive = (lengths[0][:within] > MASSIVE * lengths[0].median()).nonzero()
    return int(massive.max()) + 1 if len(massive) else 0
