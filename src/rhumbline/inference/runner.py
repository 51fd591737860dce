"""Run every arm on every prompt in batches that fit into memory: logits, residuals and greedy completions.

The result of a row depends on its batch by rounding only. When memory runs out, a batch is divided into halves and run
again. Independent of what arms are for and of what is done with the results.
"""

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.arguments import check_fields, checked
from rhumbline.axes import Logits, TokenIds
from rhumbline.errors import ModelError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import (
    CPU_ROWS,
    CPU_TOKENS,
    LEAST_TOKENS,
    MOST_CPU_ROWS,
    MOST_TOKENS,
    Batch,
    DecodingBatch,
    Divisible,
    RowIndex,
    is_out_of_memory,
    numbered,
    packed_batches,
    packs,
    padded_batches,
    rectangles,
)
from rhumbline.inference.decoding import IsDecided, PackedDecoder, PaddedDecoder, decode, most_probable
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.memory import allocated_memory, free_memory, is_processor, peak_memory, reset_peak_memory
from rhumbline.inference.passes import (
    LayerReadings,
    ReadLogits,
    Side,
    last_logits,
    n_generated,
    n_private,
    padded,
    response_lengths,
    resumed_readings,
)
from rhumbline.inference.residual_passes import (
    ResidualRead,
    check_positions,
    prompt_residuals,
    response_batches,
    response_residuals,
    with_responses,
)
from rhumbline.inference.token_sampling import TokenSampling
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.chat_model import ChatModel, new_cache
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.packing import Pack, pack, shared_length
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.records.positions import Position

log = logging.getLogger("rhumbline")

CACHE_SHARE, SPARE_SHARE = 0.5, 1 / 16
"""Share of free memory for the cache while decoding, and share used for extra rows on a processor."""

T = TypeVar("T")
B = TypeVar("B", bound=Divisible)


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
class Runner:
    """Runs a model over arms and prompts in batches of at most `tokens_per_forward` tokens."""

    model: ChatModel
    tokens_per_forward: int = CPU_TOKENS
    """Halved permanently when the device runs out of memory."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows that have finished."""

    def __post_init__(self):
        check_fields(self)

    # -- batches --

    def batches(self, sequences: Sequence[TokenIds], n_arms: int, n_private: int = 1) -> Iterator[Batch]:
        """All arms on all prompts, longest prompts first, in batches within the budget.

        In a pack, each prompt has at least its last `n_private` tokens for itself. If padding changes the logits of the
        model, a batch has prompts of one length.
        """
        lengths, proof = [len(s) for s in sequences], self.model.proof
        if proof.packing_is_exact and lengths:
            n_shared = max(0, min(shared_length(sequences), min(lengths) - n_private))
            limits = {"longest": proof.longest_proved, "longest_pack": proof.longest_pack}
            return packs(lengths, n_shared, n_arms, self.tokens_per_forward, **limits)
        same_length, longest = proof.padding_changes_logits, proof.longest_proved
        return rectangles(lengths, n_arms, self.tokens_per_forward, same_length=same_length, longest=longest)

    def within_memory(self, batch: B, run: Callable[[B], T], *, gradients: bool = False) -> Iterator[tuple[B, T]]:
        """`run` of the batch, or of its parts if memory runs out, each with its result.

        With `gradients`, `run` can differentiate.
        """
        queue = [batch]
        while queue:
            part = queue.pop()
            try:
                with torch.enable_grad() if gradients else torch.inference_mode():
                    result = run(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                queue += reversed(self._halves(part, error))
            else:
                yield part, result
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _halves(self, batch: B, error: BaseException) -> Sequence[B]:
        """The halves of a batch for which memory did not suffice; the budget is halved too. Raises ModelError."""
        if ranks.world_size() > 1:
            raise ModelError(
                f"{self.model.name}: rank {ranks.rank()} ran out of memory. Ranks cannot make their batches smaller "
                "independently. Use more ranks or a smaller dtype; finished stages are kept."
            ) from error
        halves = batch.halves()
        if not halves:
            raise ModelError(
                f"{self.model.name}: out of memory with a single prompt on {self.model.device}. Use a smaller dtype, "
                "--device auto, or fewer --max-new-tokens."
            ) from error
        self.tokens_per_forward = max(1, self.tokens_per_forward // 2)
        log.warning("out of memory: batches now have at most %d tokens", self.tokens_per_forward)
        return halves

    def _arms(self, batch: Batch) -> Int[Tensor, " arm"]:
        return torch.tensor(batch.arms, device=self.model.device)

    def check(self, sequences: Sequence[TokenIds], new_tokens: int = 0) -> None:
        """Raise InputError for sequences beyond the positions of the model, ModelError for ids beyond its embedding."""
        check_sequences(self.model, {f"number {i}": ids for i, ids in enumerate(sequences)}, new_tokens, "sequences")

    # -- last-position logits --

    @checked
    def last_logits(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
    ) -> Iterator[tuple[RowIndex, Logits]]:
        """Next-token logits after each prompt under each arm, batch by batch, in the model's dtype."""
        self.check(sequences)
        edits = BatchEdits.of(arms, self.model)

        def run(batch: Batch) -> Logits:
            return last_logits(self.model, _of(sequences, batch), edits, self._arms(batch))

        for batch in self.batches(sequences, len(arms), max(1, n_generated(sequences))):
            for done, logits in self.within_memory(batch, run):
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
            for part in resumed_readings(self.model, _of(sequences, batch), arms_at, read, self.tokens_per_forward):
                self.tick(part.values.numel())
                parts.append(part)
            return parts

        for batch in self.batches(sequences, 1, max(1, n_generated(sequences))):
            for done, parts in self.within_memory(batch, run):
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
            return prompt_residuals(self.model, _of(sequences, batch), what)

        for batch in self.batches(sequences, 1):
            for done, (h, readings) in self.within_memory(batch, run):
                self.tick(len(done.prompts))
                yield Residuals(torch.tensor(done.prompts), h, readings)

    def _response_residuals(self, sequences: Sequence[TokenIds], what: ResidualRead) -> Iterator[Residuals]:
        texts, proof = with_responses(sequences), self.model.proof
        limits = {"same_length": proof.padding_changes_logits, "longest": proof.longest_proved}

        def run(batch: Batch) -> Tensor:
            return response_residuals(self.model, [texts[i] for i in batch.prompts], what)

        for batch in response_batches(texts, self.tokens_per_forward, **limits):
            for done, h in self.within_memory(batch, run):
                self.tick(len(done.prompts))
                yield Residuals(torch.tensor(done.prompts), h, None)

    # -- completions --

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

        for batch in batches:
            for done, (texts, first) in self.within_memory(batch, run):
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

    def kept(self, kind: str, inputs: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns: a JSON value that depends on `inputs`. A subclass can keep it."""
        return compute()

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

        ((_, per_token),) = self.within_memory(DecodingBatch([Batch([0], [longest])]), measure)
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
        self, sequences: Sequence[TokenIds], batch: DecodingBatch, edits: BatchEdits, max_new_tokens: int, n_slots: int
    ) -> PackedDecoder | PaddedDecoder:
        lengths = [len(sequences[i]) for part in batch.parts for i in part.prompts]
        at = at_lengths(self.model, [n + max_new_tokens for n in lengths])
        if at.proof.packing_is_exact:
            return PackedDecoder(self.model, edits, sequences, batch, n_slots, max_new_tokens, self._packs)
        # Padded batches have one part.
        (part,) = batch.parts
        texts, arms = _of(sequences, part), self._arms(part)
        ids, mask = padded(self.model, texts, len(arms))
        rows, cache = arms.repeat_interleave(len(texts)), new_cache(at)
        return PaddedDecoder(self.model, edits, rows, ids, mask, cache, response_lengths(texts))

    def _packs(self, texts: Sequence[TokenIds], n_arms: int) -> Iterator[tuple[Pack, Batch]]:
        own = n_private(texts)
        for batch in self.batches(texts, n_arms, own):
            yield pack(_of(texts, batch), own, self.model.device), batch


def _of(sequences: Sequence[TokenIds], batch: Batch) -> list[TokenIds]:
    return [sequences[i] for i in batch.prompts]
