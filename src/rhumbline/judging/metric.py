"""TODO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.errors import ProtocolError
from rhumbline.judging.paired_log_odds import PairedLogOdds


def refusal_metric(logits: Logits, tokens: Sequence[int]) -> Float[Tensor, " row"]:
    """log(P + 1e-8) - log(1 - P + 1e-8), P the probability that the next token is one of `tokens`.

    Float64 throughout, whatever the dtype of the logits; within about +-18.42. Positive: a refusal is the likelier
    opening. Arditi et al. 2024, section 2.3 (arXiv 2406.11717). A repeated token counts once; a NaN stays a NaN.
    """
    vocab = logits.shape[-1]
    ids = sorted(set(tokens))
    if not ids or ids[0] < 0 or ids[-1] >= vocab:
        raise ProtocolError(
            f"Refusal tokens {list(tokens)} do not fit a vocabulary of {vocab}: give at least one id in 0..{vocab - 1}."
        )
    p = _by_rows(lambda some: some.double().softmax(-1)[:, ids].sum(-1), logits)
    return (p + 1e-8).log() - (1 - p + 1e-8).log()


def kl_divergence(baseline_logits: Logits, edited_logits: Logits, without: Sequence[int] = ()) -> Float[Tensor, " row"]:
    """Sum over the vocabulary of p_a [log(p_a + 1e-6) - log(p_b + 1e-6)]; a baseline, b edited. Nats, float64.

    The epsilons are the reference's: they bound what a token that the edit makes impossible can cost. The tokens of
    `without` are left out of both distributions (the rest sums to 1 again): by the chain rule this is what the edit
    does beside moving the probability of those tokens as a whole.
    """
    gone = torch.tensor(list(without), dtype=torch.long)

    def divergence(before: Logits, after: Logits) -> Float[Tensor, " row"]:
        kept = (logits.double().index_fill(-1, gone.to(logits.device), float("-inf")) for logits in (before, after))
        a, b = (logits.softmax(-1) for logits in kept)
        return (a * ((a + 1e-6).log() - (b + 1e-6).log())).sum(-1)

    return _by_rows(divergence, baseline_logits, edited_logits)


LOGITS_AT_ONCE, LOGITS_IN_CACHE = 2**24, 2**18
"""Logits whose float64 copies are made together: on an accelerator, and on a processor, whose cache should hold them
(with all at once kl took 3.5 times as long at a vocabulary of 152,000)."""


def _by_rows(read: Callable[..., Float[Tensor, " row"]], *logits: Logits) -> Float[Tensor, " row"]:
    """`read` of a few rows at a time: what it makes of all of them would be a pass's largest tensors."""
    rows, vocab = logits[0].shape
    at_once = max(1, (LOGITS_IN_CACHE if logits[0].device.type == "cpu" else LOGITS_AT_ONCE) // vocab)
    parts = zip(*(some.split(at_once) for some in logits), strict=True)
    return torch.cat([read(*part) for part in parts]) if rows else logits[0].new_zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class TokenMetric:
    """The log-odds that the next token is one of these (`judging.refusal_metric`)."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Logits) -> Float[Tensor, " row"]:
        """Of every row."""
        return refusal_metric(logits, self.tokens)


Metric = Callable[[Logits], Float[Tensor, " row"]] | PairedLogOdds
"""What the fast metric reads: the next token's logits, or two responses to the same prompt."""


def own_tokens(metric: Metric) -> Sequence[int]:
    """The tokens of the behaviour itself: those that a metric reads, or those that open positive responses."""
    match metric:
        case TokenMetric():
            return metric.tokens
        case PairedLogOdds():
            return metric.own
    return ()
