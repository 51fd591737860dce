"""Scores without generation: prompts and arms -> the metric and the KL divergence, one forward pass each.

Independent of the purpose of an arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds, Vector
from rhumbline.inference import first_order
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.inference.passes import ReadLogits
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import Metric, kl_divergence
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.models.chat import ChatWithResponse

ARMS_AT_ONCE = 128
"""Arms whose vectors are in memory at the same time."""


class Readings(NamedTuple):
    """The scores of every arm on every prompt."""

    metric: Float[Tensor, "arm prompt"]
    """Log-odds; nats per token for the paired log-odds."""
    kl: Float[Tensor, "arm prompt"]
    """KL divergence from baseline to arm, nats; NaN without baseline logits, and for additions."""


@dataclass(frozen=True)
class Scorer:
    """Evaluates the metric with a runner."""

    runner: Runner
    metric: Metric
    excluded: tuple[int, ...] = ()
    """Tokens that the KL divergence excludes."""
    start: tuple[int, ...] = ()
    """Generated tokens after which both are read (`CommonStart`)."""
    resumes: bool = True
    """Whether a pass of additions starts at their layer; otherwise every pass is whole, in the shape of ablations."""

    def _after_start(self, sequences: Sequence[TokenIds]) -> Sequence[TokenIds]:
        return [ChatWithResponse(ids, self.start) for ids in sequences] if self.start else sequences

    def estimates(
        self, sequences: Sequence[TokenIds], directions: Sequence[Direction], spared: int = 0
    ) -> first_order.Estimates:
        """First-order estimates of the metric for every direction; ValueError for the paired log-odds of responses."""
        return first_order.first_order(self.runner, self._after_start(sequences), self._of_tokens, directions, spared)

    def tangents(self, sequences: Sequence[TokenIds], spared: int = 0) -> first_order.Form:
        """The estimate of an ablation as a form of its direction."""
        return first_order.tangents(self.runner, self._after_start(sequences), self._of_tokens, spared)

    def projection_tangents(
        self, sequences: Sequence[TokenIds], direction: Vector, spared: int = 0
    ) -> first_order.Form:
        """The same for the projection on a direction, where the metric is read."""
        return first_order.projection_tangents(self.runner, self._after_start(sequences), direction, spared)

    @property
    def _of_tokens(self) -> ReadLogits:
        if isinstance(self.metric, PairedLogOdds):
            raise ValueError("paired log-odds have no first-order estimates; score every candidate.")
        return self.metric

    def baseline(self, sequences: Sequence[TokenIds]) -> Float[Tensor, "prompt vocab"]:
        """Next-token logits without an intervention."""
        table: Tensor | None = None
        for rows, logits in self.runner.last_logits(self._after_start(sequences), [BASELINE]):
            if table is None:
                table = logits.new_zeros(len(sequences), logits.shape[-1])
            table[rows.prompt.to(logits.device)] = logits
        return torch.zeros(0, 1) if table is None else table

    def read(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm],
        baseline: Float[Tensor, "prompt vocab"] | None = None,
    ) -> Readings:
        """The metric of every arm on every prompt, and its KL divergence from the `baseline` logits."""
        metric = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)
        kl, started = metric.clone(), self._after_start(sequences)
        if isinstance(self.metric, PairedLogOdds):
            values = self.metric.read(self.runner, started, arms)
            return Readings(values, kl if baseline is None else self.kl(sequences, arms, baseline))
        starts = [_first_layer(arm) if self.resumes else None for arm in arms]
        whole = [i for i, layer in enumerate(starts) if layer is None]
        for start in range(0, len(whole), ARMS_AT_ONCE):
            now = torch.tensor(whole[start : start + ARMS_AT_ONCE])
            for rows, logits in self.runner.last_logits(started, [arms[i] for i in now.tolist()]):
                metric[now[rows.arm], rows.prompt] = self.metric(logits).double().cpu()
                if baseline is not None:
                    before = baseline[rows.prompt.to(baseline.device)]
                    kl[now[rows.arm], rows.prompt] = kl_divergence(before, logits, self.excluded).cpu()
        later: dict[int, list[int]] = {}
        for i, layer in enumerate(starts):
            if layer is not None:
                later.setdefault(layer, []).append(i)
        at = {layer: [arms[i] for i in members] for layer, members in later.items()}
        for layer, values in self.runner.resumed_readings(started, at, self.metric).items() if at else ():
            metric[later[layer]] = values
        return Readings(metric, kl)

    def kl(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm], baseline: Float[Tensor, "prompt vocab"]
    ) -> Float[Tensor, "arm prompt"]:
        """KL divergence of the next-token distribution from `baseline` to every arm, nats, without the metric."""
        kl = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)
        for rows, logits in self.runner.last_logits(self._after_start(sequences), arms):
            before = baseline[rows.prompt.to(baseline.device)]
            kl[rows.arm, rows.prompt] = kl_divergence(before, logits, self.excluded).cpu()
        return kl


def _first_layer(arm: Arm) -> int | None:
    """The first layer that an arm of additions changes; None for any other arm, which needs a whole pass."""
    layers = [i.direction.layer if isinstance(i, Add) else -1 for i in arm.interventions]
    return min(layers) if layers and min(layers) >= 0 else None
