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
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline import ranks
from rhumbline.axes import Logits, Residual
from rhumbline.chat import token_batch
from rhumbline.errors import ModelError
from rhumbline.interventions import BASELINE, Arm, BatchEdits
from rhumbline.measuring import allocated_memory, free_memory, peak_memory, reset_peak_memory
from rhumbline.models import ChatModel, can_drop_rows, forward, hooked, new_cache, resumed, run_until
from rhumbline.packing import Pack, PackedAttention, attention_of, pack, packed, packed_forward

log = logging.getLogger("rhumbline")

TokenIds = Sequence[int]
Side = Literal["left", "right"]
T = TypeVar("T")

CPU_TOKENS = 4096
"""Tokens of a forward pass on a processor: its speed is flat from some hundred tokens on (docs/benchmarks.md)."""
LEAST_TOKENS, MOST_TOKENS = 1024, 65536
"""Bounds of a measured budget."""
CACHED_TOKENS_PER_TOKEN = 16
"""While generating, a block may hold this many cached tokens for each token that a forward pass may hold."""
DECIDED_EVERY = 8
"""Steps between two looks at whether a row's class is decided."""


class Block(NamedTuple):
    """Some arms on some prompts: one batch with rows in the order (arm, prompt)."""

    arms: list[int]
    prompts: list[int]

    def rows(self) -> "Rows":
        """Arm and prompt of every row."""
        arms, prompts = torch.tensor(self.arms), torch.tensor(self.prompts)
        return Rows(arms.repeat_interleave(len(prompts)), prompts.repeat(len(arms)))

    def halves(self) -> "list[Block]":
        """Two smaller blocks, by prompts while there are several; empty when there is one row."""
        if len(self.prompts) > 1:
            half = len(self.prompts) // 2
            return [Block(self.arms, self.prompts[:half]), Block(self.arms, self.prompts[half:])]
        half = len(self.arms) // 2
        return [Block(self.arms[:half], self.prompts), Block(self.arms[half:], self.prompts)] if half else []


class Rows(NamedTuple):
    """Which arm and which prompt each row is."""

    arm: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device (or the host) ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def measured_tokens(model: ChatModel, sequence: TokenIds) -> int:
    """Tokens of a forward pass for which half of an accelerator's free memory suffices, found by running one.

    A processor's budget is fixed: its memory is not what bounds a pass.
    """
    if model.device.type == "cpu":
        return CPU_TOKENS
    reset_peak_memory(model.device)
    before = allocated_memory(model.device)
    probe = Runner(model, LEAST_TOKENS)
    copies = max(1, LEAST_TOKENS // len(sequence))
    for _ in probe.last_logits([sequence] * copies):
        pass
    per_token = max(1, peak_memory(model.device) - before) / (copies * len(sequence))
    return ranks.least(int(min(MOST_TOKENS, max(LEAST_TOKENS, free_memory(model.device) / 2 / per_token))))


@dataclass
class Runner:
    """Runs a model over arms and prompts in blocks of at most `tokens_per_forward` tokens."""

    model: ChatModel
    tokens_per_forward: int = CPU_TOKENS
    """Halved, for good, when the device runs out of memory."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows that were finished."""

    def blocks(self, sequences: Sequence[TokenIds], n_arms: int, extra: int = 0) -> Iterator[Block]:
        """All arms on all prompts, longest prompts first, in blocks within the budget.

        `extra` tokens per row are reserved for what will be generated. Where the model's proof found that padding
        changes a row, a block holds prompts of one length only.
        """
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        start = 0
        while start < len(order):
            longest = len(sequences[order[start]]) + extra
            # Decoding has one token of each row in flight: what bounds it is the cache, not the width of a forward.
            budget = self.tokens_per_forward * (CACHED_TOKENS_PER_TOKEN if extra else 1)
            rows = max(1, budget // longest)
            together = min(n_arms, rows)
            prompts = order[start : start + rows // together]
            if self.model.proof.unpadded:
                prompts = [p for p in prompts if len(sequences[p]) + extra == longest]
            start += len(prompts)
            for first in range(0, n_arms, together):
                yield Block(list(range(first, min(first + together, n_arms))), prompts)

    def last_logits(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
    ) -> Iterator[tuple[Rows, Logits]]:
        """Next-token logits after each prompt under each arm, block by block, in the model's dtype."""
        edits = BatchEdits.of(arms, self.model)

        def run(block: Block) -> Logits:
            if self.model.proof.packed:
                chosen = self._pack(sequences, block)
                arms_here = torch.tensor(block.arms, device=self.model.device)
                with hooked(self.model, edits.on(arms_here)):
                    attention = attention_of(self.model, chosen)
                    return packed_forward(self.model, chosen, len(arms_here), attention).flatten(0, 1)
            ids, mask = self._padded(sequences, block)
            with hooked(self.model, edits.on(self._arm_of_row(block))):
                return forward(self.model, ids, mask)

        for block in self.blocks(sequences, len(arms)):
            for done, logits in self._within_memory(block, run):
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
        if not self.model.proof.packed:
            for layer, arms in arms_at.items():
                for rows, logits in self.last_logits(sequences, arms):
                    found[layer][rows.arm, rows.prompt] = read(logits).double().cpu()
            return found

        def run(block: Block) -> list[tuple[int, Rows, Tensor]]:
            return list(self._climb(sequences, block.prompts, arms_at, read))

        for block in self.blocks(sequences, 1):
            for _, readings in self._within_memory(block, run):
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
        chosen = self._pack(sequences, Block([0], prompts))
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
        positions: Sequence[int],
        arm: Arm = BASELINE,
        *,
        read: Callable[[Logits], Float[Tensor, " row"]] | None = None,
        padding: Side | None = None,
    ) -> Iterator[
        tuple[Int[Tensor, " row"], Float[Tensor, "row position layer d_model"], Float[Tensor, " row"] | None]
    ]:
        """Block inputs at the given (negative) positions of each prompt, and `read` of the logits of the same pass.

        Yields (prompt indices, residuals, readings) block by block; nothing is kept. Without `read` the pass ends
        where the last block begins. `padding` pads on that side instead of packing.
        """
        edits = BatchEdits.of([arm], self.model)
        depth, device = self.model.n_layers, self.model.device
        wanted = torch.tensor(list(positions), device=device)

        def run(block: Block) -> tuple[Tensor, Tensor | None]:
            batch = self._batch(sequences, block, wanted, padding)
            seen: dict[int, Tensor] = {}

            def watch(layer: int, h: Tensor) -> None:
                if layer < depth:
                    seen[layer] = h[batch.row.to(h.device), batch.place.to(h.device)].to(device)

            with hooked(self.model, edits.on(torch.zeros(batch.n_rows, dtype=torch.long, device=device)), watch):
                logits = run_until(self.model, depth - 1, batch.run) if read is None else batch.run()
            return torch.stack([seen[layer] for layer in range(depth)], dim=2), None if read is None else read(logits)

        for block in self.blocks(sequences, 1):
            for done, (h, readings) in self._within_memory(block, run):
                yield torch.tensor(done.prompts), h, readings

    def _batch(
        self, sequences: Sequence[TokenIds], block: Block, wanted: Int[Tensor, " position"], padding: Side | None
    ) -> "_Batch":
        """The prompts of a block as one batch without arms, and where their positions stand in it."""
        device = self.model.device
        if padding is None and self.model.proof.packed:
            chosen = self._pack(sequences, block, n_private=max(1, -int(wanted.min())))
            row, place = torch.zeros(1, 1, dtype=torch.long, device=device), chosen.last[:, None] + 1 + wanted
            attention = attention_of(self.model, chosen)
            return _Batch(1, row, place, lambda: packed_forward(self.model, chosen, 1, attention)[0])
        ids, mask = self._padded(sequences, block, padding or "left")
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
        decided: Callable[[list[int]], bool] | None = None,
    ) -> tuple[list[list[list[int]]], Float[Tensor, "arm prompt"]]:
        """Greedy completions [arm][prompt] (token ids, the stop token left out) and `read` of their first logits.

        A row ends early once `decided` says that what it has written settles everything that is wanted of it.
        """
        edits = BatchEdits.of(arms, self.model)
        completions: list[list[list[int]]] = [[[] for _ in sequences] for _ in arms]
        readings = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)

        def run(block: Block) -> tuple[list[list[int]], Tensor | None]:
            start = self._decoder(sequences, block, edits, max_new_tokens)
            return _decode(start, self.model, max_new_tokens, read, decided)

        for block in self.blocks(sequences, len(arms), extra=max_new_tokens):
            for done, (texts, first) in self._within_memory(block, run):
                rows = done.rows()
                for arm, prompt, text in zip(rows.arm.tolist(), rows.prompt.tolist(), texts, strict=True):
                    completions[arm][prompt] = text
                if first is not None:
                    readings[rows.arm, rows.prompt] = first.double().cpu()
        return completions, readings

    def _decoder(
        self, sequences: Sequence[TokenIds], block: Block, edits: BatchEdits, max_new_tokens: int
    ) -> "_PackedDecoder | _PaddedDecoder":
        arm = self._arm_of_row(block)
        if self.model.proof.packed:
            chosen = self._pack(sequences, block)
            attention = attention_of(self.model, chosen, room=max_new_tokens)
            return _PackedDecoder(self.model, edits, block, arm, chosen, attention)
        return _PaddedDecoder(self.model, edits, arm, *self._padded(sequences, block), new_cache(self.model))

    def _pack(self, sequences: Sequence[TokenIds], block: Block, n_private: int = 1) -> Pack:
        return pack([sequences[i] for i in block.prompts], n_private, self.model.device)

    def _arm_of_row(self, block: Block) -> Int[Tensor, " row"]:
        return block.rows().arm.to(self.model.device)

    def _padded(self, sequences: Sequence[TokenIds], block: Block, side: Side = "left") -> tuple[Tensor, Tensor]:
        batch = token_batch([sequences[i] for i in block.rows().prompt.tolist()], self.model.pad_token, side)
        return batch.input_ids.to(self.model.device), batch.attention_mask.to(self.model.device)

    def _within_memory(self, block: Block, run: Callable[[Block], T]) -> Iterator[tuple[Block, T]]:
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
                if ranks.world() > 1:
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
                self.tick(len(now.arms) * len(now.prompts))
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


@dataclass
class _PackedDecoder:
    """Reads a pack once, then takes one token per row; keys and values stay in buffers of the full length."""

    model: ChatModel
    edits: BatchEdits
    block: Block
    arm: Int[Tensor, " row"]
    pack: Pack
    attention: PackedAttention

    def read(self) -> Logits:
        """Logits after the prompts."""
        arms = torch.tensor(self.block.arms, device=self.arm.device)
        with hooked(self.model, self.edits.on(arms)):
            logits = packed_forward(self.model, self.pack, len(arms), self.attention).flatten(0, 1)
        self.attention.begin_decoding(len(arms))
        self.length = (self.pack.n_shared + torch.tensor(self.pack.lengths, device=self.arm.device)).repeat(len(arms))
        self.hooks = self.edits.on(self.arm, n_prompt=0)
        return logits

    def next(self, token: Int[Tensor, " row"]) -> Logits:
        """Logits after one more token of each row."""
        self.attention.next_token()
        with hooked(self.model, self.hooks), packed(self.model, self.attention):
            logits = self.model.model(
                input_ids=token[:, None], position_ids=self.length[:, None], use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        self.length = self.length + 1
        return logits

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows alone."""
        self.attention.keep_rows(rows)
        self.arm, self.length = self.arm[rows], self.length[rows]
        self.hooks = self.edits.on(self.arm, n_prompt=0)

    can_drop = True


@dataclass
class _PaddedDecoder:
    """Reads padded prompts, then takes one token per row with transformers' own cache, or without one."""

    model: ChatModel
    edits: BatchEdits
    arm: Int[Tensor, " row"]
    ids: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position"]
    cache: Any

    def read(self) -> Logits:
        """Logits after the prompts."""
        self.n_prompt = self.ids.shape[1]
        with hooked(self.model, self.edits.on(self.arm)):
            return forward(self.model, self.ids, self.mask, self.cache)

    def next(self, token: Int[Tensor, " row"]) -> Logits:
        """Logits after one more token of each row."""
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        new = self.ids if self.cache is None else self.ids[:, -1:]
        with hooked(self.model, self.edits.on(self.arm, n_prompt=self.n_prompt if self.cache is None else 0)):
            return forward(self.model, new, self.mask, self.cache)

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows alone."""
        self.arm, self.ids, self.mask = self.arm[rows], self.ids[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    @property
    def can_drop(self) -> bool:
        """Whether rows can leave."""
        return self.cache is None or can_drop_rows(self.cache)


def _decode(
    decoder: _PackedDecoder | _PaddedDecoder,
    model: ChatModel,
    max_new_tokens: int,
    read: Callable[[Logits], Tensor] | None,
    decided: Callable[[list[int]], bool] | None,
) -> tuple[list[list[int]], Tensor | None]:
    """Greedy decoding; finished rows leave the batch."""
    logits = decoder.read()
    first = read(logits) if read is not None else None
    device = logits.device
    stop = torch.tensor(sorted(model.stop_tokens()), device=device, dtype=torch.long)
    # One line of the batch is one row until it is done; `row` says which, since finished lines leave.
    row = torch.arange(len(logits), device=device)
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    written = torch.full((len(logits), max_new_tokens), -1, dtype=torch.long, device=device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        done = done | torch.isin(token, stop)
        written[row[~done], step] = token[~done]
        if decided is not None and step % DECIDED_EVERY == DECIDED_EVERY - 1:
            texts = written[row, : step + 1].tolist()
            settled = [bool(d) or decided(text) for d, text in zip(done.tolist(), texts, strict=True)]
            done = torch.tensor(settled, device=device)
        n_done = int(done.sum())
        if step + 1 == max_new_tokens or n_done == len(done):
            break
        if n_done >= max(1, len(done) // 4) and decoder.can_drop:
            # Not at every finished line: each time all that is cached is copied.
            left = (~done).nonzero()[:, 0]
            row, done, token = row[left], done[left], token[left]
            decoder.keep(left)
        logits = decoder.next(token)
    return [[t for t in line if t >= 0] for line in written.tolist()], first
