"""Read what a model predicts for every token of whole texts, under each arm; nothing is generated.

Batches are those of runner.py. Independent of what is read from the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.errors import InputError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import Batch
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.passes import padded, places, places_in
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel, forward
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.hooks import FinalStates, final_states, hooked
from rhumbline.models.packing import Pack, attention_of, pack, packed_states

LOGITS_AT_ONCE = 2**24
"""Logits that are computed from final states together."""


class Document(NamedTuple):
    """A text whose tokens are predicted."""

    ids: TokenIds
    start: int
    """Tokens from this index on are predicted, each from all tokens before it. At least 1."""


class TokenReadings(NamedTuple):
    """What was read from the predictions of one document's tokens."""

    document: int
    """Index of the document."""
    arms: list[int]
    """Index of each arm."""
    values: Float[Tensor, "arm token reading"]
    """Float64, on the CPU."""


class _Predictions(NamedTuple):
    """The end of a forward pass over the documents of a batch."""

    end: FinalStates
    """States [arm, token, d_model]."""
    tokens: list[list[int]]
    """For each document, the indices of the states that predict its tokens."""


def token_readings(
    runner: Runner,
    documents: Sequence[Document],
    arms: Sequence[Arm],
    read: Callable[[Float[Tensor, "arm token vocab"], Int[Tensor, " token"]], Float[Tensor, "arm token reading"]],
) -> Iterator[TokenReadings]:
    """`read(logits, tokens)` for every token of every document that is predicted, under each arm, by document.

    `logits[:, t]` predict `tokens[t]`, in the model's dtype and in pieces of at most `LOGITS_AT_ONCE`. Row 0 of a piece
    is always the first arm, so that other arms can be compared with it. Additions at prompt tokens do not act from
    `start` on.
    """
    if faulty := [i for i, d in enumerate(documents) if not 0 < d.start < len(d.ids)]:
        raise InputError(
            f"documents {faulty[:5]} have no token to predict: `start` must be from 1 to the number of tokens - 1."
        )
    sequences = [d.ids for d in documents]
    runner.check(sequences)
    edits = BatchEdits.of(arms, runner.model)

    def run(batch: Batch) -> list[Tensor]:
        # The first arm is added if the arms of a batch were divided.
        own = batch.arms if batch.arms[0] == 0 else [0, *batch.arms]
        texts = [documents[i] for i in batch.prompts]
        predictions = _predictions(runner.model, texts, torch.tensor(own, device=runner.model.device), edits)
        return _read(predictions, texts, read)

    # Predicted tokens of one document are not context of another, so they are not in the shared prefix.
    n_private = min(map(len, sequences), default=1) - min((d.start for d in documents), default=0)
    for done, readings in runner.within_memory(runner.batches(sequences, len(arms), n_private), run):
        runner.tick(done.n_rows)
        for document, values in zip(done.prompts, readings, strict=True):
            yield TokenReadings(document, done.arms, values[-len(done.arms) :])


def _read(predictions: _Predictions, documents: Sequence[Document], read: Callable) -> list[Tensor]:
    """The readings of each document [arm, token, reading]."""
    states, device = predictions.end.states, predictions.end.states.device
    indices = torch.tensor([i for own in predictions.tokens for i in own], device=device)
    targets = torch.tensor([t for d in documents for t in d.ids[d.start :]], device=device)
    pieces = []
    # The size of the vocabulary is known after the first piece, of one token.
    first, size = 0, 1
    while first < len(indices):
        logits = predictions.end.logits(states[:, indices[first : first + size]])
        pieces.append(read(logits, targets[first : first + size].to(logits.device)).double().cpu())
        first += size
        size = max(1, LOGITS_AT_ONCE // (logits.shape[0] * logits.shape[2]))
    return list(torch.cat(pieces, 1).split([len(own) for own in predictions.tokens], 1))


def _predictions(
    model: ChatModel, documents: Sequence[Document], arms: Int[Tensor, " arm"], edits: BatchEdits
) -> _Predictions:
    """The final states of some documents under some arms."""
    sequences, n_predicted = [d.ids for d in documents], [len(d.ids) - d.start for d in documents]
    if at_lengths(model, map(len, sequences)).proof.packing_is_exact:
        packed = pack(sequences, min(map(len, sequences)) - min(d.start for d in documents), model.device)
        tokens, is_prompt = _in_pack(packed, documents)
        with hooked(model, edits.on(arms, is_prompt, places_in(packed, n_predicted))):
            return _Predictions(packed_states(model, packed, len(arms), attention_of(model, packed)), tokens)
    batch = padded(model, sequences, len(arms))
    width = batch.ids.shape[1]
    start = torch.tensor([width - len(d.ids) + d.start for d in documents], device=model.device)
    is_prompt = (torch.arange(width, device=model.device) < start[:, None]).repeat(len(arms), 1)
    with hooked(model, edits.on(arms.repeat_interleave(len(documents)), is_prompt, places(batch, n_predicted))):
        end = final_states(model, lambda: forward(model, *batch, keep=0))
    states = end.states.unflatten(0, (len(arms), -1)).flatten(1, 2)
    ends = [(row + 1) * width for row in range(len(documents))]
    tokens = [list(range(end - len(d.ids) + d.start - 1, end - 1)) for end, d in zip(ends, documents, strict=True)]
    return _Predictions(end._replace(states=states), tokens)


def _in_pack(packed: Pack, documents: Sequence[Document]) -> tuple[list[list[int]], Bool[Tensor, "1 token"]]:
    """For each document, the indices in the pack of the states that predict its tokens; which tokens are prompt."""
    is_prompt = torch.ones(1, len(packed.ids), dtype=torch.bool, device=packed.ids.device)
    tokens = []
    for start, document in zip(packed.starts.tolist(), documents, strict=True):
        own = [i if i < packed.n_shared else start + i - packed.n_shared for i in range(len(document.ids))]
        is_prompt[0, own[document.start :]] = False
        tokens.append(own[document.start - 1 : -1])
    return tokens, is_prompt


def log_likelihoods(
    runner: Runner, sequences: Sequence[TokenIds], responses: Sequence[TokenIds], arms: Sequence[Arm] = (BASELINE,)
) -> Float[Tensor, "arm prompt"]:
    """Mean log-probability per token of each prompt's response under each arm, teacher-forced; float64, nats."""
    documents = [Document([*ids, *response], len(ids)) for ids, response in zip(sequences, responses, strict=True)]
    means = torch.full((len(arms), len(documents)), float("nan"), dtype=torch.float64)
    for document, own, values in token_readings(runner, documents, arms, _log_probability):
        means[own, document] = values[..., 0].mean(-1)
    return means


def _log_probability(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 1"]:
    """Log-probability of each token, float64."""
    return logits.double().log_softmax(-1).gather(-1, tokens.expand(len(logits), -1)[..., None])
