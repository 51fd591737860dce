"""Sources of damage: where the ablation of a direction changes the next token of negatives, by position and by layer.

The same ablation acts on all positions, on all but some, or on one layer only. Every prompt passes alone and without a
cache, so a position is an index of its tokens. Test negatives; descriptive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.analyses.subject import Subject, direction_or_best, layer_means, mean_interval
from rhumbline.axes import Residual, Vector
from rhumbline.errors import ProtocolError
from rhumbline.inference.batch_edits import ablate
from rhumbline.judging.metric import kl_divergence
from rhumbline.models.chat_model import Edit, HookPoint, forward
from rhumbline.models.hooks import hooked
from rhumbline.records.damage_file import AblatedPositions, DamageRecord, PositionDamage
from rhumbline.records.shared import Site

PLACES: tuple[AblatedPositions, ...] = get_args(AblatedPositions)


def analyse(subject: Subject, *, prompts: int = 16) -> DamageRecord:
    """Measure the KL divergence of the ablation by position and by layer, and write analyses/damage.json.

    If no candidate was selected, the direction is the candidate with the lowest bypass score among those with a KL
    score. `prompts` is the number of test negatives.
    """
    direction, is_selected = direction_or_best(subject)
    sequences = [[*ids, *subject.start] for ids in subject.sequences("test", "negative")[:prompts]]
    if not sequences:
        raise ProtocolError(f"{subject.directory.path} has no test negative to measure. Use a run with test prompts.")
    measured = _Ablation(subject, direction.vector, sequences)
    points = subject.model.ablation_points
    by_position = tuple(
        PositionDamage(place, _tokens(masks), mean_interval(measured.kl(masks, points)))
        for place in PLACES
        for masks in [[_mask(subject, ids, place) for ids in sequences]]
    )
    everywhere = [torch.ones(len(ids), dtype=torch.bool) for ids in sequences]
    layers = range(subject.model.n_layers)
    record = DamageRecord(
        seed=subject.seed,
        site=Site(direction.position, direction.layer),
        is_selected=is_selected,
        bound=subject.directory.protocol["selection"].get("max_kl"),
        spared=subject.spared,
        by_position=by_position,
        by_layer=layer_means(measured.kl(everywhere, [p for p in points if p.layer == k]) for k in layers),
        first_norm=mean_interval(measured.norms[:, 0]),
        other_norm=mean_interval(measured.norms[:, 1]),
    )
    return subject.save(record)


def _mask(subject: Subject, ids: Sequence[int], place: AblatedPositions) -> Bool[Tensor, " position"]:
    """The positions of a prompt on which the ablation acts."""
    spans = subject.chat.spans(ids[: len(ids) - len(subject.start)])
    before, after = spans.prefix_end, spans.instruction_end
    index = torch.arange(len(ids))
    match place:
        case "all":
            return index >= 0
        case "all but the first token":
            return index > 0
        case "all but the template before the instruction":
            return index >= before
        case "the first token":
            return index == 0
        case "the template before the instruction":
            return index < before
        case "the instruction":
            return (index >= before) & (index < after)
        case "the template after the instruction":
            return index >= after


def _tokens(masks: Sequence[Bool[Tensor, " _"]]) -> float:
    """Mean number of positions per prompt."""
    return sum(int(mask.sum()) for mask in masks) / len(masks)


@dataclass(frozen=True)
class _Ablation:
    """The ablation of one direction on some prompts."""

    subject: Subject
    r: Vector
    sequences: Sequence[Sequence[int]]

    @property
    def norms(self) -> Float[Tensor, "prompt place"]:
        """Norm of the residual stream at the middle layer: of the first token, and the median of the others."""
        model, found = self.subject.model, []

        def read(h: Residual) -> Residual:
            length = h[0].float().norm(dim=-1).cpu()
            found.append(torch.stack([length[0], length[1:].median() if len(length) > 1 else length[0]]))
            return h

        for ids in self.sequences:
            self._logits(ids, {HookPoint("resid_pre", model.n_layers // 2): read})
        return torch.stack(found)

    @cached_property
    def baseline(self) -> list[Float[Tensor, "1 vocab"]]:
        """Logits of every prompt without intervention."""
        return [self._logits(ids, {}) for ids in self.sequences]

    def kl(self, masks: Sequence[Bool[Tensor, " _"]], points: Sequence[HookPoint]) -> Float[Tensor, " prompt"]:
        """KL divergence of every prompt, baseline to the ablation at these positions and hook points, nats."""
        values = []
        for ids, mask, before in zip(self.sequences, masks, self.baseline, strict=True):
            after = self._logits(ids, dict.fromkeys(points, self._edit(mask)))
            values.append(kl_divergence(before, after)[0])
        return torch.stack(values)

    def _edit(self, mask: Bool[Tensor, " position"]) -> Edit:
        def edit(h: Residual) -> Residual:
            return torch.where(mask[:, None].to(h.device), ablate(h, self.r.to(h.device)), h)

        return edit

    @torch.no_grad()
    def _logits(self, ids: Sequence[int], edits: dict[HookPoint, Edit]) -> Float[Tensor, "1 vocab"]:
        model = self.subject.model
        tokens = torch.tensor([list(ids)], device=model.device)
        with hooked(model, edits):
            return forward(model, tokens, torch.ones_like(tokens)).float().cpu()
