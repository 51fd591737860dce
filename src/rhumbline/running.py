"""Prompts and arms in, last-position logits and completions out: every arm on every prompt, rows of one batch.

Promises: a row's result does not depend on what else is in its batch beyond rounding; running out of memory halves the
batch and goes on; nothing here knows what an arm is for.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.chat import token_batch
from rhumbline.errors import ModelError
from rhumbline.interventions import BASELINE, Arm, BatchEdits
from rhumbline.models import ChatModel, can_drop_rows, forward, hooked, new_cache

log = logging.getLogger("rhumbline")

TokenIds = Sequence[int]
T = TypeVar("T")

CACHED_TOKENS_PER_TOKEN = 16
"""While generating, a batch may hold this many cached tokens for each token that a forward pass may hold."""


class Rows(NamedTuple):
    """A batch of rows: which arm and which prompt each one is."""

    arm: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device (or the host) ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@dataclass
class Runner:
    """Runs a model over rows in batches of at most `tokens_per_forward` padded tokens."""

    model: ChatModel
    tokens_per_forward: int = 4096
    """Halved, for good, when the device runs out of memory."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows that were finished."""

    def batches(self, sequences: Sequence[TokenIds], n_arms: int, extra: int = 0) -> Iterator[Rows]:
        """All (arm, prompt) rows, longest prompts first, in batches within the budget.

        `extra` tokens per row are reserved for what will be generated. Where the model's proof found that padding
        changes a row, a batch holds prompts of one length only.
        """
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        rows = [(arm, prompt) for prompt in order for arm in range(n_arms)]
        start = 0
        while start < len(rows):
            longest = len(sequences[rows[start][1]])
            # Decoding has one token of each row in flight: what bounds it is the cache, not the width of a forward.
            budget = self.tokens_per_forward * (CACHED_TOKENS_PER_TOKEN if extra else 1)
            stop = start + max(1, budget // (longest + extra))
            chunk = rows[start:stop]
            if self.model.proof.unpadded:
                chunk = [row for row in chunk if len(sequences[row[1]]) == longest]
            start += len(chunk)
            yield Rows(torch.tensor([a for a, _ in chunk]), torch.tensor([p for _, p in chunk]))

    def last_logits(
        self, sequences: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
    ) -> Iterator[tuple[Rows, Logits]]:
        """Next-token logits after each prompt under each arm, batch by batch, in the model's dtype."""
        edits = BatchEdits.of(arms, self.model)

        def run(rows: Rows) -> Logits:
            ids, mask = self._padded(sequences, rows)
            with torch.inference_mode(), hooked(self.model, edits.on(rows.arm.to(self.model.device))):
                return forward(self.model, ids, mask)

        for rows in self.batches(sequences, len(arms)):
            yield from self._within_memory(rows, run)

    def residuals(
        self,
        sequences: Sequence[TokenIds],
        positions: Sequence[int],
        arm: Arm = BASELINE,
        *,
        padding: Literal["left", "right"] = "left",
    ) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row position layer d_model"], Logits]]:
        """Block inputs at the given (negative) positions of each prompt, with the logits of the same pass.

        Yields (prompt indices, residuals, last-position logits) batch by batch; nothing is kept.
        """
        edits = BatchEdits.of([arm], self.model)
        depth, device = self.model.n_layers, self.model.device

        def run(rows: Rows) -> tuple[Tensor, Logits]:
            ids, mask = self._padded(sequences, rows, padding)
            end = mask.shape[1] if padding == "left" else mask.sum(1, keepdim=True)
            index = (end + torch.tensor(list(positions), device=device)).expand(len(ids), -1)
            row = torch.arange(len(ids), device=device)[:, None]
            seen: dict[int, Tensor] = {}

            def watch(layer: int, h: Tensor) -> None:
                if layer < depth:
                    seen[layer] = h[row.to(h.device), index.to(h.device)].to(device)

            with torch.inference_mode(), hooked(self.model, edits.on(rows.arm.to(device)), watch):
                logits = forward(self.model, ids, mask, keep=1 if padding == "left" else 0)
            if padding == "right":
                logits = logits[row[:, 0], mask.sum(1) - 1]
            return torch.stack([seen[layer] for layer in range(depth)], dim=2), logits

        for batch in self.batches(sequences, 1):
            for rows, (h, logits) in self._within_memory(batch, run):
                yield rows.prompt, h, logits

    def generate(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm] = (BASELINE,),
        *,
        max_new_tokens: int,
        read: Callable[[Logits], Float[Tensor, " row"]] | None = None,
    ) -> tuple[list[list[list[int]]], Float[Tensor, "arm prompt"]]:
        """Greedy completions [arm][prompt] (token ids, the stop token left out) and `read` of their first logits."""
        edits = BatchEdits.of(arms, self.model)
        completions: list[list[list[int]]] = [[[] for _ in sequences] for _ in arms]
        readings = torch.full((len(arms), len(sequences)), float("nan"), dtype=torch.float64)

        def run(rows: Rows) -> tuple[list[list[int]], Tensor | None]:
            with torch.inference_mode():
                return self._decode(sequences, rows, edits, max_new_tokens, read)

        for batch in self.batches(sequences, len(arms), extra=max_new_tokens):
            for rows, (texts, first) in self._within_memory(batch, run):
                for arm, prompt, text in zip(rows.arm.tolist(), rows.prompt.tolist(), texts, strict=True):
                    completions[arm][prompt] = text
                if first is not None:
                    readings[rows.arm, rows.prompt] = first.double().cpu()
        return completions, readings

    def _decode(
        self,
        sequences: Sequence[TokenIds],
        rows: Rows,
        edits: BatchEdits,
        max_new_tokens: int,
        read: Callable[[Logits], Tensor] | None,
    ) -> tuple[list[list[int]], Tensor | None]:
        device = self.model.device
        ids, mask = self._padded(sequences, rows)
        n_prompt = ids.shape[1]
        stop = torch.tensor(sorted(self.model.stop_tokens()), device=device, dtype=torch.long)
        # One line of the batch is one row until it is done; `row` says which, since finished lines leave.
        row, arm = torch.arange(len(ids), device=device), rows.arm.to(device)
        done = torch.zeros(len(ids), dtype=torch.bool, device=device)
        written = torch.full((len(ids), max_new_tokens), -1, dtype=torch.long, device=device)
        cache = new_cache(self.model)
        with hooked(self.model, edits.on(arm)):
            logits = forward(self.model, ids, mask, cache)
        first = read(logits) if read is not None else None
        for step in range(max_new_tokens):
            token = logits.argmax(-1)
            done = done | torch.isin(token, stop)
            written[row[~done], step] = token[~done]
            if step + 1 == max_new_tokens or bool(done.all()):
                break
            ids = torch.cat([ids, token[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if int(done.sum()) >= max(1, len(done) // 4) and (cache is None or can_drop_rows(cache)):
                # Not at every finished line: each time the whole cache is copied.
                left = (~done).nonzero()[:, 0]
                row, arm, done, ids, mask = row[left], arm[left], done[left], ids[left], mask[left]
                if cache is not None:
                    cache.batch_select_indices(left)
            with hooked(self.model, edits.on(arm, n_prompt=n_prompt if cache is None else 0)):
                logits = forward(self.model, ids if cache is None else ids[:, -1:], mask, cache)
        return [[t for t in line if t >= 0] for line in written.tolist()], first

    def _padded(
        self, sequences: Sequence[TokenIds], rows: Rows, side: Literal["left", "right"] = "left"
    ) -> tuple[Tensor, Tensor]:
        batch = token_batch([sequences[i] for i in rows.prompt.tolist()], self.model.pad_token, side)
        return batch.input_ids.to(self.model.device), batch.attention_mask.to(self.model.device)

    def _within_memory(self, rows: Rows, run: Callable[[Rows], T]) -> Iterator[tuple[Rows, T]]:
        """`run` the rows, in halves of halves where memory does not suffice."""
        waiting = [rows]
        while waiting:
            now = waiting.pop()
            try:
                result = run(now)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                half = len(now.arm) // 2
                if half == 0:
                    raise ModelError(
                        f"{self.model.name}: out of memory with a single prompt on {self.model.device}. Use a smaller "
                        "dtype, --device auto, or fewer --max-new-tokens."
                    ) from error
                self.tokens_per_forward = max(1, self.tokens_per_forward // 2)
                log.warning("out of memory: batches now hold at most %d tokens", self.tokens_per_forward)
                waiting += [Rows(now.arm[half:], now.prompt[half:]), Rows(now.arm[:half], now.prompt[:half])]
            else:
                self.tick(len(now.arm))
                yield now, result
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
