"""Whole texts in, what a model predicts of each of their tokens out; nothing is generated.

Promises what running.py promises of its blocks. Knows documents and arms; does not know what is read of the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.errors import InputError
from rhumbline.inference.batching import Block
from rhumbline.inference.interventions import BASELINE, Arm, BatchEdits
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import forward
from rhumbline.models.hooks import FinalStates, final_states, hooked
from rhumbline.models.packing import attention_of, pack, packed_states

LOGITS_AT_ONCE = 2**24
"""Logits that are unembedded together while whole texts are read."""


class Document(NamedTuple):
    """A text that is read and not generated."""

    ids: TokenIds
    start: int
    """The tokens from here on are predicted, each from all before it; what stands before is only context. 1 or more."""


class TokenReadings(NamedTuple):
    """What was read of the predictions of one document's tokens."""

    document: int
    arms: list[int]
    values: Float[Tensor, "arm token reading"]
    """Float64, on the CPU."""


def token_readings(
    runner: Runner,
    documents: Sequence[Document],
    arms: Sequence[Arm],
    read: Callable[[Float[Tensor, "arm token vocab"], Int[Tensor, " token"]], Float[Tensor, "arm token reading"]],
) -> Iterator[TokenReadings]:
    """`read(logits, tokens)` of the predictions of every document's tokens, under each arm, document by document.

    `logits[:, t]` predict `tokens[t]`; the model's dtype, in pieces of at most `LOGITS_AT_ONCE`. Row 0 of a piece
    is always the first arm, so that the others can be compared with it. Additions to prompts alone leave the
    tokens from `start` on.
    """
    if faulty := [i for i, d in enumerate(documents) if not 0 < d.start < len(d.ids)]:
        raise InputError(f"documents {faulty[:5]} have no token to predict: a start lies in 1 .. length - 1.")
    edits = BatchEdits.of(arms, runner.model)

    def run(block: Block) -> list[Tensor]:
        # The first arm comes along where memory made two blocks of the arms.
        block = block if block.arms[0] == 0 else Block([0, *block.arms], block.prompts)
        chosen = [documents[i] for i in block.prompts]
        end, places = _final(runner, chosen, block, edits)
        flat = torch.tensor([p for some in places for p in some], device=end.states.device)
        tokens = torch.tensor([t for d in chosen for t in d.ids[d.start :]], device=end.states.device)
        pieces = []
        at_once = 1
        first = 0
        while first < len(flat):
            logits = end.logits(end.states[:, flat[first : first + at_once]])
            pieces.append(read(logits, tokens[first : first + at_once].to(logits.device)).double().cpu())
            first += at_once
            at_once = max(1, LOGITS_AT_ONCE // (logits.shape[0] * logits.shape[2]))
        return list(torch.cat(pieces, 1).split([len(some) for some in places], 1))

    sequences = [d.ids for d in documents]
    # What is predicted is nobody else's context, so it counts as a document's own.
    n_private = min(map(len, sequences), default=1) - min((d.start for d in documents), default=0)
    for block in runner.blocks(sequences, len(arms), n_private):
        for done, readings in runner.within_memory(block, run):
            runner.tick(len(done.arms) * len(done.prompts))
            for document, values in zip(done.prompts, readings, strict=True):
                yield TokenReadings(document, done.arms, values[-len(done.arms) :])


def _final(
    runner: Runner, documents: Sequence[Document], block: Block, edits: BatchEdits
) -> tuple[FinalStates, list[list[int]]]:
    """The final states [arm, token, d_model] of the documents of a block, and where their predictions stand."""
    sequences, device = [d.ids for d in documents], runner.model.device
    arms = torch.tensor(block.arms, device=device)
    if runner.model.proof.packing_is_exact:
        # Nothing that one document predicts is another one's context.
        n_private = min(map(len, sequences)) - min(d.start for d in documents)
        chosen = pack(sequences, n_private, device)
        starts = chosen.starts.tolist()
        given = torch.ones(1, len(chosen.ids), dtype=torch.bool, device=device)
        places = []
        for start, document in zip(starts, documents, strict=True):
            own = [p if p < chosen.n_shared else start + p - chosen.n_shared for p in range(len(document.ids))]
            given[0, own[document.start :]] = False
            places.append(own[document.start - 1 : -1])
        with hooked(runner.model, edits.on(arms, given)):
            return packed_states(runner.model, chosen, len(arms), attention_of(runner.model, chosen)), places
    everyone = Block(block.arms, list(range(len(sequences))))
    ids, mask = runner.padded(sequences, everyone)
    width = ids.shape[1]
    skipped = torch.tensor([width - len(d.ids) + d.start for d in documents], device=device)
    given = (torch.arange(width, device=device) < skipped[:, None]).repeat(len(arms), 1)
    with hooked(runner.model, edits.on(runner.arm_of_row(everyone), given)):
        end = final_states(runner.model, lambda: forward(runner.model, ids, mask, keep=0))
    states = end.states.unflatten(0, (len(arms), -1)).flatten(1, 2)
    ends = [(row + 1) * width for row in range(len(documents))]
    places = [list(range(end - len(d.ids) + d.start - 1, end - 1)) for end, d in zip(ends, documents, strict=True)]
    return end._replace(states=states), places


def log_likelihoods(
    runner: Runner, sequences: Sequence[TokenIds], answers: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
) -> Float[Tensor, "arm prompt"]:
    """Mean log-probability per token of each prompt's answer under each arm, teacher-forced; float64, nats."""
    documents = [Document([*ids, *answer], len(ids)) for ids, answer in zip(sequences, answers, strict=True)]
    found = torch.full((len(arms), len(documents)), float("nan"), dtype=torch.float64)
    for document, here, values in token_readings(runner, documents, arms, _log_probability):
        found[here, document] = values[..., 0].mean(-1)
    return found


def _log_probability(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 1"]:
    """Of each token, in float64."""
    return logits.double().log_softmax(-1).gather(-1, tokens.expand(len(logits), -1)[..., None])
