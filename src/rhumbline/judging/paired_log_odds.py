"""The paired log-odds: prompts with a response of either class -> how much more probable the positive response is.

Independent of directions and of the content of the responses.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import LABELS, Prompt

SMALLEST_SHARE = 0.05
"""A token belongs to the behaviour if it starts positive responses more often by this share of the prompts."""


@dataclass(frozen=True)
class PairedLogOdds:
    """The metric of prompts that have a response of either class, in nats per token.

        mean log p(positive response | prompt) - mean log p(negative response | prompt)

    Each mean is over the tokens of the response (teacher-forced), so the length of a response has no effect.
    """

    pairs: Mapping[tuple[int, ...], tuple[TokenIds, TokenIds]]
    """Token ids of the positive and of the negative response, by the token ids of the prompt."""
    own: tuple[int, ...] = ()
    """Tokens that start positive responses more often than negative ones."""

    @classmethod
    def of(cls, chat: Chat, prompts: Sequence[Prompt], train: Sequence[Prompt] = ()) -> "PairedLogOdds | None":
        """The metric of a contrast of texts, or None if some prompt lacks a response of a class.

        `own` is computed from the responses of `train`, which are among the prompts.
        """
        responses: dict[tuple[int, ...], dict[str, TokenIds]] = {}
        for prompt in prompts:
            if prompt.response is None:
                return None
            both = responses.setdefault(tuple(chat.encode(prompt)), {})
            both.setdefault(prompt.label, chat.response_tokens(prompt, prompt.response))
            if prompt.other_response is not None:
                other = LABELS[1 - LABELS.index(prompt.label)]
                both.setdefault(other, chat.response_tokens(prompt, prompt.other_response))
        if any(len(both) < 2 for both in responses.values()):
            return None
        pairs = {ids: (both["positive"], both["negative"]) for ids, both in responses.items()}
        read = {tuple(chat.encode(p)) for p in train}
        first, second = (Counter(pairs[ids][k][0] for ids in read) for k in (0, 1))
        return cls(pairs, tuple(sorted(t for t, n in first.items() if n - second[t] >= SMALLEST_SHARE * len(read))))

    def after(self, start: TokenIds) -> "PairedLogOdds":
        """The metric of the same prompts followed by some generated tokens."""
        return replace(self, pairs={(*ids, *start): responses for ids, responses in self.pairs.items()})

    def read(self, runner: Runner, sequences: Sequence[TokenIds], arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """The metric of every prompt under every arm."""
        pairs = [self.pairs[tuple(ids)] for ids in sequences]
        positive, negative = (log_likelihoods(runner, sequences, [pair[k] for pair in pairs], arms) for k in (0, 1))
        return positive - negative
