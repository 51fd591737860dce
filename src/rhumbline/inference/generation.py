"""Completions of every prompt under every arm: how many rows are decoded together, and in which batches.

Independent of the decoding of one batch (decoding.py) and of what arms mean.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.axes import TokenIds
from rhumbline.errors import InputError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batch_runner import BatchRunner
from rhumbline.inference.batching import (
    CPU_ROWS,
    MOST_CPU_ROWS,
    Batch,
    DecodingBatch,
    numbered,
    packed_batches,
    padded_batches,
)
from rhumbline.inference.decoding import IsDecided, PackedDecoder, PaddedDecoder, decode, most_probable
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.memory import free_memory, is_processor
from rhumbline.inference.passes import ReadLogits, n_private, padded, response_lengths
from rhumbline.inference.token_sampling import TokenSampling
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat_model import new_cache
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.packing import Pack, pack

CACHE_SHARE, SPARE_SHARE = 0.5, 1 / 16
"""Share of free memory for the cache while decoding, and share used for extra rows on a processor."""


class Completed(NamedTuple):
    """Completions of some prompts under some arms."""

    tokens: list[list[list[int]]]
    """By arm and prompt: token ids, without the stop token."""
    readings: Float[Tensor, "arm prompt"]
    """What `read` returned for their first logits; NaN without `read`."""


class _DecodingPlan(NamedTuple):
    """How many rows are decoded together, and in which batches."""

    n_slots: int
    batches: Iterator[DecodingBatch]


@dataclass
class GenerationRunner(BatchRunner):
    """Completes every prompt under every arm, in batches of decoding that fit into memory."""

    @checked
    def generate(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm] = (BASELINE,),
        *,
        max_new_tokens: int,
        stop: Collection[int] | None = None,
        read: ReadLogits | None = None,
        decided: IsDecided | None = None,
        sampling: TokenSampling | None = None,
    ) -> Completed:
        """Completions by arm and prompt, and `read` of their first logits.

        Decoding is greedy without `sampling`, which has one seed for each sequence.
        `stop` are the ids that end a completion (of a chat: `stop_ids`); None: those of a text without a chat. A row
        ends early if `decided(arm, tokens)` is true, since its tokens determine everything that is read from it.
        """
        (completed,) = self.generate_groups(
            [(sequences, arms)],
            max_new_tokens=max_new_tokens,
            stop=stop,
            read=read,
            decided=decided,
            sampling=sampling,
        )
        return completed

    @checked
    def generate_groups(
        self,
        groups: Sequence[tuple[Sequence[TokenIds], Sequence[Arm]]],
        *,
        max_new_tokens: int,
        stop: Collection[int] | None = None,
        read: ReadLogits | None = None,
        decided: IsDecided | None = None,
        sampling: TokenSampling | None = None,
    ) -> list[Completed]:
        """`generate` of several groups of prompts, each with its own arms: their rows are decoded together.

        A step of decoding takes about as long for few rows as for many, so this is faster than one group after another.
        `decided` and `sampling` number the arms and the sequences of all groups consecutively. Windows of all groups
        divide completions at one token.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
        sequences = [ids for some, _ in groups for ids in some]
        arms = [arm for _, some in groups for arm in some]
        self.check(sequences, max_new_tokens)
        edits = BatchEdits.of(arms, self.model)
        parts = numbered([(len(some), len(ids)) for ids, some in groups])
        written: dict[tuple[int, int], list[int]] = {}
        readings = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)
        n_slots, batches = self._decoding_plan(sequences, parts, edits, max_new_tokens)
        budget, ends = self.tokens_per_forward, self.model.stop_tokens() if stop is None else stop

        def run(batch: DecodingBatch) -> tuple[list[list[int]], Tensor | None]:
            # Fewer slots after memory has run out.
            n = max(batch.most_arms, n_slots * self.tokens_per_forward // budget)
            decoder = self._decoder(sequences, batch, edits, max_new_tokens, n)
            ended: list[int] = []

            def tick(n: int) -> None:
                ended.append(n)
                self.tick(n)

            try:
                pick = most_probable if sampling is None else sampling.picker(batch.rows().prompt)
                return decode(decoder, max_new_tokens, ends, read, decided, tick, pick)
            except BaseException:
                self.tick(-sum(ended))  # These rows are decoded again.
                raise

        for done, (texts, first) in self.within_memory(batches, run):
            rows = done.rows()
            written |= zip(zip(rows.arm.tolist(), rows.prompt.tolist(), strict=True), texts, strict=True)
            if first is not None:
                readings[rows.arm, rows.prompt] = first.double().cpu()
        return [
            Completed(
                [[written[arm, prompt] for prompt in part.prompts] for arm in part.arms],
                readings[part.arms][:, part.prompts],
            )
            for part in parts
        ]

    def completions(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm] = (BASELINE,),
        *,
        max_new_tokens: int,
        stop: Collection[int] | None = None,
    ) -> list[list[list[int]]]:
        """Greedy completions by arm and prompt; the arguments are those of `generate`."""
        return self.generate(sequences, arms, max_new_tokens=max_new_tokens, stop=stop)[0]

    def _decoding_plan(
        self, sequences: Sequence[TokenIds], parts: Sequence[Batch], edits: BatchEdits, max_new_tokens: int
    ) -> _DecodingPlan:
        """As many rows together as a share of the free memory can cache, measured by prefilling one prompt.

        Without a cache every step is a forward pass over all tokens, and its budget applies. A packed batch has the
        prompts of all groups: queued rows fill the slots of finished ones.
        """
        parts = [part for part in parts if part.n_rows]
        if not parts:
            return _DecodingPlan(0, iter(()))
        device, proof, lengths = self.model.device, self.model.proof, [len(s) for s in sequences]
        limit = proof.longest_proved
        beyond = {i for i, n in enumerate(lengths) if limit is not None and n + max_new_tokens > limit}
        longest = max(range(len(lengths)), key=lambda i: (i not in beyond, lengths[i]))

        def measure(batch: DecodingBatch) -> float:
            probe = self._decoder(sequences, batch, edits, max_new_tokens, 1)
            probe.prefill()
            return probe.bytes_per_token

        ((_, per_token),) = self.within_memory([DecodingBatch([Batch([0], [longest])])], measure)
        fitting = free_memory(device) / per_token if per_token else self.tokens_per_forward / CACHE_SHARE
        capacity = ranks.minimum(int(fitting))
        tokens, width = int(capacity * CACHE_SHARE), lengths[longest] + max_new_tokens
        rows = sum(part.n_rows for part in parts)
        if is_processor(device):
            rows = min(MOST_CPU_ROWS, max(CPU_ROWS, int(capacity * SPARE_SHARE) // width))
        elif not proof.packing_is_exact:
            # Padded prompts are prefilled at once.
            rows = max(1, self.tokens_per_forward // lengths[longest])
        if not proof.packing_is_exact:
            batches = padded_batches(
                parts,
                lengths,
                tokens,
                extra=max_new_tokens,
                rows=rows,
                same_length=proof.padding_changes_logits,
                longest=limit,
            )
            return _DecodingPlan(rows, batches)
        n_slots = max(1, min(rows, tokens // width))
        widths = {i: lengths[i] + max_new_tokens for i in beyond}
        return _DecodingPlan(n_slots, packed_batches(parts, n_slots, widths, self.tokens_per_forward))

    def _decoder(
        self,
        sequences: Sequence[TokenIds],
        batch: DecodingBatch,
        edits: BatchEdits,
        max_new_tokens: int,
        n_slots: int,
    ) -> PackedDecoder | PaddedDecoder:
        lengths = [len(sequences[i]) for part in batch.parts for i in part.prompts]
        at = at_lengths(self.model, [n + max_new_tokens for n in lengths])
        if at.proof.packing_is_exact:
            return PackedDecoder(self.model, edits, sequences, batch, n_slots, max_new_tokens, self._packs)
        # Padded batches have one part.
        (part,) = batch.parts
        texts, arms = part.texts(sequences), torch.tensor(part.arms, device=self.model.device)
        ids, mask = padded(self.model, texts, len(arms))
        rows, cache = arms.repeat_interleave(len(texts)), new_cache(at)
        return PaddedDecoder(self.model, edits, rows, ids, mask, cache, response_lengths(texts))

    def _packs(self, texts: Sequence[TokenIds], n_arms: int) -> Iterator[tuple[Pack, Batch]]:
        own = n_private(texts)
        for batch in self.batches(texts, n_arms, own):
            yield pack(batch.texts(texts), own, self.model.device), batch
