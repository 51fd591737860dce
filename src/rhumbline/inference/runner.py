"""Prompts and arms in, last-position logits, residuals and completions out: every arm on every prompt.

A block is a rectangle of arms x prompts that runs as one batch. Where the model's proof allows it, the prompts of a
block are packed behind their shared prefix (packing.py); elsewhere they are padded on the left. Passes that differ from
the clean one only from some layer on begin there.

Promises: a row's result does not depend on its block beyond rounding; running out of memory halves the blocks and loses
nothing; nothing here knows what an arm is for.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import Logits, Residual, TokenIds
from rhumbline.errors import ModelError
from rhumbline.inference.answered_prompts import answered, answered_blocks, answered_residuals, check_positions
from rhumbline.inference.batching import (
    CPU_ROWS,
    CPU_TOKENS,
    LEAST_TOKENS,
    MOST_CPU_ROWS,
    MOST_TOKENS,
    Block,
    Rows,
    evenly,
    is_out_of_memory,
    packs,
    rectangles,
)
from rhumbline.inference.decoding import PackedDecoder, PaddedDecoder, decode
from rhumbline.inference.interventions import BASELINE, Arm, BatchEdits
from rhumbline.inference.memory import allocated_memory, free_memory, is_processor, peak_memory, reset_peak_memory
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat import Answered, token_batch
from rhumbline.models.chat_model import ChatModel, forward, new_cache
from rhumbline.models.hooks import hooked, resumed, run_until
from rhumbline.models.packing import Pack, PackedAttention, attention_of, n_shared, pack, packed_forward
from rhumbline.records.positions import Position

log = logging.getLogger("rhumbline")

CACHE_SHARE, PLENTIFUL = 0.5, 1 / 16
"""Share of the free memory that may hold what is cached while generating, and the one that nobody will miss."""

Side = Literal["left", "right"]
T = TypeVar("T")


def measured_tokens(model: ChatModel, sequence: TokenIds) -> int:
    """Tokens of a forward pass for which half of an accelerator's free memory suffices, found by running one.

    A processor's budget is fixed: its memory is not what bounds a pass.
    """
    if is_processor(model.device):
        return CPU_TOKENS
    reset_peak_memory(model.device)
    before = allocated_memory(model.device)
    probe = Runner(model, LEAST_TOKENS)
    copies = max(1, LEAST_TOKENS // len(sequence))
    # Turned round, so that they share no prefix, which would be read once.
    turned = [[*sequence[i % len(sequence) :], *sequence[: i % len(sequence)]] for i in range(copies)]
    for _ in probe.last_logits(turned):
        pass
    per_token = max(1, peak_memory(model.device) - before) / (copies * len(sequence))
    return ranks.minimum(int(min(MOST_TOKENS, max(LEAST_TOKENS, free_memory(model.device) / 2 / per_token))))


@dataclass
class Runner:
    """Runs a model over arms and prompts in blocks of at most `tokens_per_forward` tokens."""

    model: ChatModel
    tokens_per_forward: int = CPU_TOKENS
    """Halved, for good, when the device runs out of memory."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows that were finished."""

    def blocks(self, sequences: Sequence[TokenIds], n_arms: int, n_private: int = 1) -> Iterator[Block]:
        """All arms on all prompts, longest prompts first, in blocks within the budget.

        Each prompt keeps at least its last `n_private` tokens to itself. Where the model's proof found that padding
        changes a row, a block holds prompts of one length only.
        """
        lengths = [len(s) for s in sequences]
        if self.model.proof.packing_is_exact and lengths:
            shared = max(0, min(n_shared(sequences), min(lengths) - n_private))
            return packs(lengths, shared, n_arms, self.tokens_per_forward)
        return rectangles(lengths, n_arms, self.tokens_per_forward, alike=self.model.proof.padding_changes_logits)

    def last_logits(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
    ) -> Iterator[tuple[Rows, Logits]]:
        """Next-token logits after each prompt under each arm, block by block, in the model's dtype."""
        edits = BatchEdits.of(arms, self.model)

        def run(block: Block) -> Logits:
            if self.model.proof.packing_is_exact:
                chosen = self.pack(sequences, block)
                arms_here = torch.tensor(block.arms, device=self.model.device)
                with hooked(self.model, edits.on(arms_here)):
                    attention = attention_of(self.model, chosen)
                    return packed_forward(self.model, chosen, len(arms_here), attention).flatten(0, 1)
            ids, mask = self.padded(sequences, block)
            with hooked(self.model, edits.on(self.arm_of_row(block))):
                return forward(self.model, ids, mask)

        for block in self.blocks(sequences, len(arms)):
            for done, logits in self.within_memory(block, run):
                self.tick(len(done.arms) * len(done.prompts))
                yield done.rows(), logits

    def readings_from(
        self,
        sequences: Sequence[TokenIds],
        arms_at: Mapping[int, Sequence[Arm]],
        read: Callable[[Logits], Float[Tensor, " row"]],
    ) -> dict[int, Float[Tensor, "arm prompt"]]:
        """`read` of the last logits under arms that change nothing before the input of a layer: layer -> its arms.

        Each pass begins at its layer, from the clean stream, which is carried from one layer to the next and never
        kept for all of them.
        """
        found = {
            layer: torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)
            for layer, arms in arms_at.items()
        }
        if not self.model.proof.packing_is_exact:
            for layer, arms in arms_at.items():
                for rows, logits in self.last_logits(sequences, arms):
                    found[layer][rows.arm, rows.prompt] = read(logits).double().cpu()
            return found

        def run(block: Block) -> list[tuple[int, Rows, Tensor]]:
            return list(self._climb(sequences, block.prompts, arms_at, read))

        for block in self.blocks(sequences, 1):
            for _, readings in self.within_memory(block, run):
                for layer, rows, values in readings:
                    found[layer][rows.arm, rows.prompt] = values
        return found

    def _climb(
        self,
        sequences: Sequence[TokenIds],
        prompts: list[int],
        arms_at: Mapping[int, Sequence[Arm]],
        read: Callable[[Logits], Float[Tensor, " row"]],
    ) -> Iterator[tuple[int, Rows, Tensor]]:
        chosen = self.pack(sequences, Block([0], prompts))
        attention = attention_of(self.model, chosen)
        together = max(1, self.tokens_per_forward // len(chosen.ids))
        stream, at = None, 0
        for layer in sorted(arms_at):
            stream, at = self._advance(chosen, attention, stream, at, layer), layer
            arms = arms_at[layer]
            for first in range(0, len(arms), together):
                some = arms[first : first + together]
                block = Block(list(range(first, first + len(some))), prompts)
                edits = BatchEdits.of(some, self.model).on(torch.arange(len(some), device=self.model.device))
                # The stream is put in place, then edited: hooks of one module run in the order of registration.
                with resumed(self.model, layer, stream.expand(len(some), -1, -1)), hooked(self.model, edits):
                    logits = packed_forward(self.model, chosen, len(some), attention_of(self.model, chosen))
                self.tick(len(some) * len(prompts))
                yield layer, block.rows(), read(logits.flatten(0, 1)).double().cpu()

    def _advance(
        self, chosen: Pack, attention: PackedAttention, stream: Residual | None, at: int, layer: int
    ) -> Residual:
        """The clean stream at the input of `layer`, from where it is known (or from the tokens)."""

        def run() -> Tensor:
            return packed_forward(self.model, chosen, 1, attention)

        if stream is None:
            return run_until(self.model, layer, run)
        if at == layer:
            return stream
        with resumed(self.model, at, stream):
            return run_until(self.model, layer, run)

    def residuals(
        self,
        sequences: Sequence[TokenIds],
        positions: Sequence[Position | int],
        arm: Arm = BASELINE,
        *,
        layers: Sequence[int] | None = None,
        read: Callable[[Logits], Float[Tensor, " row"]] | None = None,
        padding: Side | None = None,
    ) -> Iterator[
        tuple[Int[Tensor, " row"], Float[Tensor, "row position layer d_model"], Float[Tensor, " row"] | None]
    ]:
        """Inputs of the blocks `layers` (all by default) at positions of each prompt, and `read` of the logits.

        Positions in the response need sequences that are `Answered`. InputError if a sequence lacks a position.

        Yields (prompt indices, residuals, readings) batch by batch. Without `read` the pass ends at the input of the
        last of `layers`. `padding` pads on that side instead of packing.
        """
        places = [Position.of(p) for p in positions]
        check_positions(sequences, places)
        chosen = range(self.model.n_layers) if layers is None else layers
        if any(isinstance(ids, Answered) for ids in sequences):
            yield from self._answered(sequences, places, chosen, arm)
            return
        edits = BatchEdits.of([arm], self.model)
        device = self.model.device
        wanted = torch.tensor([int(p) for p in places], device=device)

        def run(block: Block) -> tuple[Tensor, Tensor | None]:
            batch = self._batch(sequences, block, wanted, padding)
            seen: dict[int, Tensor] = {}

            def watch(layer: int, h: Tensor) -> None:
                if layer in chosen:
                    seen[layer] = h[batch.row.to(h.device), batch.place.to(h.device)].to(device)

            with hooked(self.model, edits.on(torch.zeros(batch.n_rows, dtype=torch.long, device=device)), watch):
                logits = run_until(self.model, max(chosen), batch.run) if read is None else batch.run()
            return torch.stack([seen[layer] for layer in chosen], dim=2), None if read is None else read(logits)

        for block in self.blocks(sequences, 1):
            for done, (h, readings) in self.within_memory(block, run):
                self.tick(len(done.prompts))
                yield torch.tensor(done.prompts), h, readings

    def _answered(
        self, sequences: Sequence[TokenIds], positions: Sequence[Position], layers: Sequence[int], arm: Arm
    ) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row position layer d_model"], None]]:
        texts, edits = answered(sequences), BatchEdits.of([arm], self.model)

        def run(block: Block) -> Tensor:
            return answered_residuals(self.model, [texts[i] for i in block.prompts], positions, layers, edits)

        for block in answered_blocks(texts, self.tokens_per_forward, alike=self.model.proof.padding_changes_logits):
            for done, h in self.within_memory(block, run):
                self.tick(len(done.prompts))
                yield torch.tensor(done.prompts), h, None

    def _batch(
        self, sequences: Sequence[TokenIds], block: Block, wanted: Int[Tensor, " position"], padding: Side | None
    ) -> "_Batch":
        """The prompts of a block as one batch without arms, and where their positions stand in it."""
        device = self.model.device
        if padding is None and self.model.proof.packing_is_exact:
            chosen = self.pack(sequences, block, n_private=max(1, -int(wanted.min())))
            row, place = torch.zeros(1, 1, dtype=torch.long, device=device), chosen.last[:, None] + 1 + wanted
            attention = attention_of(self.model, chosen)
            return _Batch(1, row, place, lambda: packed_forward(self.model, chosen, 1, attention)[0])
        ids, mask = self.padded(sequences, block, padding or "left")
        row = torch.arange(len(ids), device=device)[:, None]
        if padding != "right":
            return _Batch(len(ids), row, mask.shape[1] + wanted[None], lambda: forward(self.model, ids, mask))
        length = mask.sum(1, keepdim=True)
        return _Batch(
            len(ids), row, length + wanted, lambda: forward(self.model, ids, mask, keep=0)[row[:, 0], length[:, 0] - 1]
        )

    def generate(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm] = (BASELINE,),
        *,
        max_new_tokens: int,
        read: Callable[[Logits], Float[Tensor, " row"]] | None = None,
        decided: Callable[[int, list[int]], bool] | None = None,
    ) -> tuple[list[list[list[int]]], Float[Tensor, "arm prompt"]]:
        """Greedy completions [arm][prompt] (token ids, the stop token left out) and `read` of their first logits.

        A row ends early once `decided(arm, tokens)` says that its tokens settle everything that is wanted of it.
        """
        edits = BatchEdits.of(arms, self.model)
        completions: list[list[list[int]]] = [[[] for _ in sequences] for _ in arms]
        readings = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)

        n_lines, blocks = self._decoded_together(sequences, len(arms), edits, max_new_tokens)
        whole = self.tokens_per_forward

        def run(block: Block) -> tuple[list[list[int]], Tensor | None]:
            # Where memory ran out, fewer rows are decoded together too.
            here = max(len(block.arms), n_lines * self.tokens_per_forward // whole)
            start = self._decoder(sequences, block, edits, max_new_tokens, here)
            ended: list[int] = []

            def tick(n: int) -> None:
                ended.append(n)
                self.tick(n)

            try:
                return decode(start, self.model, max_new_tokens, read, decided, tick)
            except BaseException:
                self.tick(-sum(ended))  # They will be done again.
                raise

        for block in blocks:
            for done, (texts, first) in self.within_memory(block, run):
                rows = done.rows()
                for arm, prompt, text in zip(rows.arm.tolist(), rows.prompt.tolist(), texts, strict=True):
                    completions[arm][prompt] = text
                if first is not None:
                    readings[rows.arm, rows.prompt] = first.double().cpu()
        return completions, readings

    def _decoded_together(
        self, sequences: Sequence[TokenIds], n_arms: int, edits: BatchEdits, new: int
    ) -> tuple[int, Iterator[Block]]:
        """How many rows are decoded together, as a share of the free memory can cache them, and the blocks.

        How much a token takes is found by reading one prompt. Where nothing is cached, every step is a forward pass
        over all tokens, and its budget counts. A packed block holds all prompts: they come as others finish.
        """
        if not sequences:
            return 0, iter(())
        device, lengths = self.model.device, [len(s) for s in sequences]
        longest = max(range(len(sequences)), key=lambda i: lengths[i])

        def read(block: Block) -> float:
            probe = self._decoder(sequences, block, edits, new, 1)
            probe.read()
            return probe.bytes_per_token

        ((_, each),) = self.within_memory(Block([0], [longest]), read)
        room = ranks.minimum(int(free_memory(device) / each if each else self.tokens_per_forward / CACHE_SHARE))
        tokens, width = int(room * CACHE_SHARE), lengths[longest] + new
        rows = n_arms * len(sequences)
        if is_processor(device):
            rows = min(MOST_CPU_ROWS, max(CPU_ROWS, int(room * PLENTIFUL) // width))
        elif not self.model.proof.packing_is_exact:
            # What is not packed is read at once.
            rows = max(1, self.tokens_per_forward // lengths[longest])
        if not self.model.proof.packing_is_exact:
            return rows, rectangles(
                lengths, n_arms, tokens, extra=new, rows=rows, alike=self.model.proof.padding_changes_logits
            )
        n_lines = max(1, min(rows, tokens // width))
        return n_lines, (Block(arms, list(range(len(sequences)))) for arms in evenly(n_arms, n_lines))

    def _decoder(
        self, sequences: Sequence[TokenIds], block: Block, edits: BatchEdits, new: int, n_lines: int
    ) -> PackedDecoder | PaddedDecoder:
        if not self.model.proof.packing_is_exact:
            ids, mask = self.padded(sequences, block)
            return PaddedDecoder(self.model, edits, self.arm_of_row(block), ids, mask, new_cache(self.model))
        arms = torch.tensor(block.arms, device=self.model.device)
        return PackedDecoder(
            self.model, edits, arms, [sequences[i] for i in block.prompts], n_lines, new, self._packs_of
        )

    def _packs_of(self, texts: Sequence[TokenIds], n_arms: int) -> Iterator[tuple[Pack, Block]]:
        for block in self.blocks(texts, n_arms):
            yield self.pack(texts, block), block

    def pack(self, sequences: Sequence[TokenIds], block: Block, n_private: int = 1) -> Pack:
        """The prompts of a block behind what they share."""
        return pack([sequences[i] for i in block.prompts], n_private, self.model.device)

    def arm_of_row(self, block: Block) -> Int[Tensor, " row"]:
        """The arm of every row of a block, on the model's device."""
        return block.rows().arm.to(self.model.device)

    def padded(
        self, sequences: Sequence[TokenIds], block: Block, side: Side = "left"
    ) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
        """Token ids of every row of a block, and the mask of those that are no padding."""
        batch = token_batch([sequences[i] for i in block.rows().prompt.tolist()], self.model.pad_token, side)
        return batch.input_ids.to(self.model.device), batch.attention_mask.to(self.model.device)

    def within_memory(self, block: Block, run: Callable[[Block], T]) -> Iterator[tuple[Block, T]]:
        """`run` the block, in halves of halves where memory does not suffice."""
        waiting = [block]
        while waiting:
            now = waiting.pop()
            try:
                with torch.inference_mode():
                    result = run(now)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if ranks.world_size() > 1:
                    raise ModelError(
                        f"{self.model.name}: rank {ranks.rank()} ran out of memory. Ranks cannot make their blocks "
                        "smaller apart from each other: use more of them, or a smaller dtype. What was done is kept."
                    ) from error
                halves = now.halves()
                if not halves:
                    raise ModelError(
                        f"{self.model.name}: out of memory with a single prompt on {self.model.device}. Use a smaller "
                        "dtype, --device auto, or fewer --max-new-tokens."
                    ) from error
                self.tokens_per_forward = max(1, self.tokens_per_forward // 2)
                log.warning("out of memory: blocks now hold at most %d tokens", self.tokens_per_forward)
                waiting += halves[::-1]
            else:
                yield now, result
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Batch(NamedTuple):
    """A forward pass over prompts, and where it holds their positions."""

    n_rows: int
    row: Int[Tensor, "prompt one"]
    place: Int[Tensor, "prompt position"]
    run: Callable[[], Logits]
