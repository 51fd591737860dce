"""The paired log-odds: how much likelier the model finds the positive response to a prompt than the negative one.

Knows prompts, their two responses and a runner. Does not know directions or what the responses are about.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import LABELS, Prompt

SMALLEST_SHARE = 0.05
"""Share of prompts by which a token must open positive responses more often to be the behaviour's own."""


@dataclass(frozen=True)
class PairedLogOdds:
    """The fast metric of prompts that have a response of either class.

    mean log p(positive response | prompt) - mean log p(negative response | prompt), each per token and teacher-forced,
    so that the longer response is not the unlikelier one for its length. Nats per token.
    """

    pairs: Mapping[tuple[int, ...], tuple[TokenIds, TokenIds]]
    """Token ids of a prompt -> those of its positive and of its negative response."""
    own: tuple[int, ...] = ()
    """Tokens that open positive responses more often than negative ones."""

    @classmethod
    def of(cls, chat: Chat, prompts: Sequence[Prompt], train: Sequence[Prompt] = ()) -> "PairedLogOdds | None":
        """The metric of a contrast of texts, or None where some prompt lacks a response of either class.

        `own` is read off the responses of `train`, which are among the prompts.
        """
        found: dict[tuple[int, ...], dict[str, TokenIds]] = {}
        for prompt in prompts:
            if prompt.response is None:
                return None
            both = found.setdefault(tuple(chat.encode(prompt)), {})
            both.setdefault(prompt.label, chat.answer(prompt, prompt.response))
            if prompt.other_response is not None:
                other = LABELS[1 - LABELS.index(prompt.label)]
                both.setdefault(other, chat.answer(prompt, prompt.other_response))
        if any(len(both) < 2 for both in found.values()):
            return None
        pairs = {ids: (both["positive"], both["negative"]) for ids, both in found.items()}
        asked = {tuple(chat.encode(p)) for p in train}
        first, second = (Counter(pairs[ids][k][0] for ids in asked) for k in (0, 1))
        return cls(pairs, tuple(sorted(t for t, n in first.items() if n - second[t] >= SMALLEST_SHARE * len(asked))))

    def read(self, runner: Runner, sequences: Sequence[TokenIds], arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """The metric of every prompt under every arm."""
        pairs = [self.pairs[tuple(ids)] for ids in sequences]
        positive, negative = (log_likelihoods(runner, sequences, [pair[k] for pair in pairs], arms) for k in (0, 1))
        return positive - negative
