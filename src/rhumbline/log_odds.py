"""The paired log-odds: how much likelier the model finds the positive response to a prompt than the negative one.

Knows prompts, their two responses and a runner. Does not know directions or what the responses are about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rhumbline.batching import TokenIds
from rhumbline.chat import Chat
from rhumbline.contrasts import Prompt
from rhumbline.documents import log_likelihoods
from rhumbline.interventions import Arm
from rhumbline.running import Runner


@dataclass(frozen=True)
class PairedLogOdds:
    """The fast metric of prompts that have a response of either class.

    mean log p(positive response | prompt) - mean log p(negative response | prompt), each per token and teacher-forced,
    so that the longer response is not the unlikelier one for its length. Nats per token.
    """

    pairs: Mapping[tuple[int, ...], tuple[TokenIds, TokenIds]]
    """Token ids of a prompt -> those of its positive and of its negative response."""

    @classmethod
    def of(cls, chat: Chat, prompts: Sequence[Prompt]) -> "PairedLogOdds | None":
        """The metric of a contrast of texts, or None where some prompt lacks a response of either class."""
        found: dict[tuple[int, ...], dict[str, TokenIds]] = {}
        for prompt in prompts:
            if prompt.response is None:
                return None
            both = found.setdefault(tuple(chat.encode(prompt)), {})
            both.setdefault(prompt.label, chat.answer(prompt, prompt.response))
        if any(len(both) < 2 for both in found.values()):
            return None
        return cls({ids: (both["positive"], both["negative"]) for ids, both in found.items()})

    def read(self, runner: Runner, sequences: Sequence[TokenIds], arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """The metric of every prompt under every arm."""
        pairs = [self.pairs[tuple(ids)] for ids in sequences]
        positive, negative = (log_likelihoods(runner, sequences, [pair[k] for pair in pairs], arms) for k in (0, 1))
        return positive - negative
