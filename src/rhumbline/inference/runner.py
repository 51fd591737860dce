"""Run every arm on every prompt in batches that fit into memory: logits, residuals and greedy completions.

The result of a row depends on its batch by rounding only. Independent of what arms are for and of what is done with the
results.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.axes import Logits, TokenIds
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import CPU_TOKENS, LEAST_TOKENS, MOST_TOKENS, Batch, RowIndex
from rhumbline.inference.generation import GenerationRunner
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.memory import allocated_memory, free_memory, is_processor, peak_memory, reset_peak_memory
from rhumbline.inference.passes import LayerReadings, ReadLogits, Side, last_logits, n_generated, resumed_readings
from rhumbline.inference.residual_passes import (
    ResidualRead,
    check_positions,
    prompt_residuals,
    response_batches,
    response_residuals,
    with_responses,
)
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.records.positions import Position


def measured_tokens(model: ChatModel, sequence: TokenIds) -> int:
    """Tokens of a forward pass that half of an accelerator's free memory permits, measured with one pass.

    The budget of a processor is fixed, because its memory does not limit a pass.
    """
    if is_processor(model.device):
        return CPU_TOKENS
    reset_peak_memory(model.device)
    before = allocated_memory(model.device)
    probe = Runner(model, LEAST_TOKENS)
    copies = max(1, LEAST_TOKENS // len(sequence))
    # Rotated copies share no prefix, which would be computed once.
    rotated = [[*sequence[i % len(sequence) :], *sequence[: i % len(sequence)]] for i in range(copies)]
    for _ in probe.last_logits(rotated):
        pass
    per_token = max(1, peak_memory(model.device) - before) / (copies * len(sequence))
    return ranks.minimum(int(min(MOST_TOKENS, max(LEAST_TOKENS, free_memory(model.device) / 2 / per_token))))


class Residuals(NamedTuple):
    """Block inputs of some prompts at every position and layer that was requested."""

    prompt: Int[Tensor, " row"]
    """Index of each prompt."""
    h: Float[Tensor, "row position layer d_model"]
    """In the model's dtype on its device; float32 if a sequence has a response."""
    readings: Float[Tensor, " row"] | None
    """What `read` returned for the last logits; None without `read`."""


@dataclass
class Runner(GenerationRunner):
    """Runs a model over arms and prompts in batches of at most `tokens_per_forward` tokens."""

    # -- last-position logits --

    @checked
    def last_logits(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
    ) -> Iterator[tuple[RowIndex, Logits]]:
        """Next-token logits after each prompt under each arm, batch by batch, in the model's dtype."""
        self.check(sequences)
        edits = BatchEdits.of(arms, self.model)

        def run(batch: Batch) -> Logits:
            return last_logits(
                self.model, batch.texts(sequences), edits, torch.tensor(batch.arms, device=self.model.device)
            )

        batches = self.batches(sequences, len(arms), max(1, n_generated(sequences)))
        for done, logits in self.within_memory(batches, run):
            self.tick(done.n_rows)
            yield done.rows(), logits

    def resumed_readings(
        self, sequences: Sequence[TokenIds], arms_at: Mapping[int, Sequence[Arm]], read: ReadLogits
    ) -> dict[int, Float[Tensor, "arm prompt"]]:
        """`read` of the last logits, by layer, under arms that change nothing before the input of their layer.

        Each pass resumes at its layer from the unedited stream, which is kept for one layer at a time.
        """
        self.check(sequences)
        readings = {
            layer: torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)
            for layer, arms in arms_at.items()
        }
        if not at_lengths(self.model, map(len, sequences)).proof.packing_is_exact:
            for layer, arms in arms_at.items():
                for rows, logits in self.last_logits(sequences, arms):
                    readings[layer][rows.arm, rows.prompt] = read(logits).double().cpu()
            return readings

        def run(batch: Batch) -> list[LayerReadings]:
            parts = []
            for part in resumed_readings(self.model, batch.texts(sequences), arms_at, read, self.tokens_per_forward):
                self.tick(part.values.numel())
                parts.append(part)
            return parts

        for done, parts in self.within_memory(self.batches(sequences, 1, max(1, n_generated(sequences))), run):
            for layer, first, values in parts:
                readings[layer][first : first + len(values), done.prompts] = values
        return readings

    # -- residuals --

    @checked
    def residuals(
        self,
        sequences: Sequence[TokenIds],
        positions: Sequence[Position | int],
        arm: Arm = BASELINE,
        *,
        layers: Sequence[int] | None = None,
        read: ReadLogits | None = None,
        padding: Side | None = None,
    ) -> Iterator[Residuals]:
        """Inputs of the blocks `layers` (all by default) at positions of each prompt, batch by batch.

        Positions in the response need sequences of `ChatWithResponse`. InputError if a sequence lacks a position.
        `read` is applied to the last logits of the same pass; without it the pass ends at the last of `layers`.
        `padding` pads prompts on that side instead of packing them.
        """
        self.check(sequences)
        places = [Position.of(p) for p in positions]
        check_positions(sequences, places)
        chosen = range(self.model.n_layers) if layers is None else layers
        what = ResidualRead(places, chosen, BatchEdits.of([arm], self.model), read, padding)
        if any(isinstance(s, ChatWithResponse) for s in sequences):
            yield from self._response_residuals(sequences, what)
            return

        def run(batch: Batch) -> tuple[Tensor, Tensor | None]:
            return prompt_residuals(self.model, batch.texts(sequences), what)

        for done, (h, readings) in self.within_memory(self.batches(sequences, 1), run):
            self.tick(len(done.prompts))
            yield Residuals(torch.tensor(done.prompts), h, readings)

    def _response_residuals(self, sequences: Sequence[TokenIds], what: ResidualRead) -> Iterator[Residuals]:
        texts, proof = with_responses(sequences), self.model.proof
        limits = {"same_length": proof.padding_changes_logits, "longest": proof.longest_proved}

        def run(batch: Batch) -> Tensor:
            return response_residuals(self.model, [texts[i] for i in batch.prompts], what)

        for done, h in self.within_memory(response_batches(texts, self.tokens_per_forward, **limits), run):
            self.tick(len(done.prompts))
            yield Residuals(torch.tensor(done.prompts), h, None)

    def kept(self, kind: str, inputs: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns: a JSON value that depends on `inputs`. A subclass can keep it."""
        return compute()
