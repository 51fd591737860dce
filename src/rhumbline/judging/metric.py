"""The token metric and the KL divergence: next-token logits -> one number for each row, in float64.

Independent of arms and of the meaning of the tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.errors import ProtocolError
from rhumbline.judging.paired_log_odds import PairedLogOdds


def refusal_metric(logits: Logits, tokens: Sequence[int]) -> Float[Tensor, " row"]:
    """log(P + 1e-8) - log(1 - P + 1e-8), where P is the probability that the next token is one of `tokens`.

    Float64 for every dtype of the logits; within about +-18.42. It is positive if the refusal is the more probable
    first token. Arditi et al. 2024, section 2.3 (arXiv 2406.11717). A repeated token counts once; a NaN stays a NaN.
    """
    vocab = logits.shape[-1]
    ids = sorted(set(tokens))
    if not ids or ids[0] < 0 or ids[-1] >= vocab:
        raise ProtocolError(
            f"Refusal tokens {list(tokens)} do not fit a vocabulary of {vocab}: expected ids in 0..{vocab - 1}. Pass "
            "at least one."
        )
    p = _by_rows(lambda some: some.double().softmax(-1)[:, ids].sum(-1), logits)
    return (p + 1e-8).log() - (1 - p + 1e-8).log()


def kl_divergence(
    baseline_logits: Logits, edited_logits: Logits, excluded: Sequence[int] = ()
) -> Float[Tensor, " row"]:
    """KL divergence from the baseline to the edited next-token distribution, in nats, float64.

        sum over the vocabulary of p_a [log(p_a + 1e-6) - log(p_b + 1e-6)], a baseline, b edited

    The epsilons are those of the authors' code: they bound the contribution of a token that becomes impossible. The
    tokens of `excluded` are removed from both distributions, which are then normalised again. By the chain rule the
    result does not count a change of their total probability.
    """
    removed = torch.tensor(list(excluded), dtype=torch.long)

    def divergence(before: Logits, after: Logits) -> Float[Tensor, " row"]:
        kept = (logits.double().index_fill(-1, removed.to(logits.device), float("-inf")) for logits in (before, after))
        a, b = (logits.softmax(-1) for logits in kept)
        return (a * ((a + 1e-6).log() - (b + 1e-6).log())).sum(-1)

    return _by_rows(divergence, baseline_logits, edited_logits)


LOGITS_AT_ONCE, LOGITS_IN_CACHE = 2**24, 2**18
"""Logits that are copied to float64 at once: on an accelerator, and on a processor, where the copies fit its cache.
With all at once, KL took 3.5 times as long at a vocabulary of 152,000."""


def _by_rows(read: Callable[..., Float[Tensor, " row"]], *logits: Logits) -> Float[Tensor, " row"]:
    """Apply `read` to a few rows at a time; for all rows its copies would be the largest tensors of a pass."""
    rows, vocab = logits[0].shape
    at_once = max(1, (LOGITS_IN_CACHE if logits[0].device.type == "cpu" else LOGITS_AT_ONCE) // vocab)
    parts = zip(*(some.split(at_once) for some in logits), strict=True)
    return torch.cat([read(*part) for part in parts]) if rows else logits[0].new_zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class TokenMetric:
    """The log-odds that the next token is one of these (`refusal_metric`), minus a threshold."""

    tokens: tuple[int, ...]
    threshold: float = 0.0
    """Log-odds above which completions show the behaviour."""

    def __call__(self, logits: Logits) -> Float[Tensor, " row"]:
        """The metric of every row, log-odds."""
        return refusal_metric(logits, self.tokens) - self.threshold


Metric = Callable[[Logits], Float[Tensor, " row"]] | PairedLogOdds
"""The metric: a function of next-token logits, or the paired log-odds of two responses to each prompt."""


def own_tokens(metric: Metric) -> Sequence[int]:
    """The first tokens of the behaviour: those of the metric, or those of positive responses."""
    match metric:
        case TokenMetric():
            return metric.tokens
        case PairedLogOdds():
            return metric.own
    return ()
