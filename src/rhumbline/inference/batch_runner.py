"""Batches of a model that fit into its budget of tokens and into memory.

When memory runs out, a batch is divided into halves and run again. Independent of what is run on a batch.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from rhumbline.arguments import check_fields
from rhumbline.axes import TokenIds
from rhumbline.errors import ModelError
from rhumbline.inference.batching import CPU_TOKENS, Batch, Divisible, is_out_of_memory, packs, rectangles
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.packing import shared_length
from rhumbline.models.sequence_limits import check_sequences

log = logging.getLogger("rhumbline")

T = TypeVar("T")
B = TypeVar("B", bound=Divisible)


@dataclass
class BatchRunner:
    """Runs batches of at most `tokens_per_forward` tokens within memory."""

    model: ChatModel
    tokens_per_forward: int = CPU_TOKENS
    """Made smaller permanently when the device runs out of memory."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Called with the number of rows that have finished."""

    def __post_init__(self):
        check_fields(self)

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

    def within_memory(
        self, batches: Iterable[B], run: Callable[[B], T], *, gradients: bool = False
    ) -> Iterator[tuple[B, T]]:
        """`run` of every batch, or of its parts if memory runs out, each with its result.

        The batches are those of one plan, made with the present budget. Once memory has run out, further ones are
        divided before they run. With `gradients`, `run` can differentiate.
        """
        planned = self.tokens_per_forward
        for batch in batches:
            queue = [(batch, planned)]
            while queue:
                part, budget = queue.pop()
                if budget > self.tokens_per_forward and (halves := part.halves()):
                    queue += [(half, budget // 2) for half in reversed(halves)]
                    continue
                try:
                    with torch.enable_grad() if gradients else torch.inference_mode():
                        result = run(part)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    halves = self._halves(part, error)
                    self.tokens_per_forward = max(1, min(self.tokens_per_forward, budget // 2))
                    log.warning("out of memory: batches now have at most %d tokens", self.tokens_per_forward)
                    queue += [(half, budget // 2) for half in reversed(halves)]
                else:
                    yield part, result
                    continue
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _halves(self, batch: B, error: BaseException) -> Sequence[B]:
        """The halves of a batch for which memory did not suffice. Raises ModelError."""
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
        return halves

    def check(self, sequences: Sequence[TokenIds], new_tokens: int = 0) -> None:
        """Raise InputError for sequences beyond the positions of the model, ModelError for ids beyond its embedding."""
        check_sequences(self.model, {f"number {i}": ids for i, ids in enumerate(sequences)}, new_tokens, "sequences")
