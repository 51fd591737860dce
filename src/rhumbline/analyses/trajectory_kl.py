"""Damage of interventions on ordinary text: the trajectory KL, and the accuracy on cloze questions.

The trajectory KL is the mean over tokens of KL(baseline || edited) of the next-token distributions along the baseline's
own greedy answers, in nats per token. Nothing is generated under an intervention, so all are read on the same text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rhumbline.errors import InputError, TemplateError
from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.templates import check_system
from rhumbline.prompts.contrasts import Prompt
from rhumbline.prompts.questions import questions

ARMS_AT_ONCE = 24
"""Arms of one pass, whose logits are in memory together."""


@dataclass(frozen=True)
class Divergence:
    """KL and agreement of some arms along the same answers, summed over the tokens of each answer."""

    kl: Float[np.ndarray, "arm answer"]
    """Sum over tokens, nats."""
    agreed: Float[np.ndarray, "arm answer"]
    """Tokens that the arm predicts, too."""
    tokens: Float[np.ndarray, " answer"]

    @property
    def means(self) -> Float[np.ndarray, " arm"]:
        """Trajectory KL of every arm, nats per token."""
        return self.kl.sum(1) / self.tokens.sum()

    def of(self, arms: Sequence[int]) -> "Divergence":
        """Some of the arms."""
        return replace(self, kl=self.kl[list(arms)], agreed=self.agreed[list(arms)])


@dataclass(frozen=True)
class Trajectories:
    """The baseline's greedy answers to some prompts."""

    runner: Runner
    chat: Chat
    prompts: Sequence[Prompt]
    """Those whose answer has a token."""
    documents: Sequence[Document]

    @classmethod
    def of(cls, runner: Runner, chat: Chat, prompts: Sequence[Prompt], length: int) -> "Trajectories":
        """Generate the answers, of at most `length` tokens, the stop token not counted. InputError if there is none."""
        before = [chat.encode(prompt) for prompt in prompts]
        (answers,) = runner.completions(before, max_new_tokens=length, stop=stop_ids(runner.model, chat))
        kept = [(p, Document([*ids, *a], len(ids))) for p, ids, a in zip(prompts, before, answers, strict=True) if a]
        if not kept:
            raise InputError(
                f"{runner.model.name}: none of {len(prompts)} negatives has an answer at baseline, along which a KL "
                "could be measured. Use more negatives, or others."
            )
        return cls(runner, chat, [p for p, _ in kept], [document for _, document in kept])

    def first(self, n: int) -> "Trajectories":
        """The first answers."""
        return replace(self, prompts=self.prompts[:n], documents=self.documents[:n])

    @property
    def tokens(self) -> Float[np.ndarray, " answer"]:
        """Tokens of every answer."""
        return np.array([len(d.ids) - d.start for d in self.documents], float)

    def divergence(self, arms: Sequence[Arm]) -> Divergence:
        """KL and agreement of every arm."""
        sums = np.zeros((len(arms), len(self.documents), 2))
        texts = tuple((tuple(d.ids), d.start) for d in self.documents)
        for first in range(0, len(arms), ARMS_AT_ONCE):
            some = arms[first : first + ARMS_AT_ONCE]
            inputs = (texts, tuple(arm.key for arm in some))
            # As bytes, because a sum need not be finite.
            of_some = self.runner.kept("divergence", inputs, lambda some=some: self._sums(some).tobytes().hex())
            sums[first : first + len(some)] = np.frombuffer(bytes.fromhex(of_some)).reshape(len(some), -1, 2)
        return Divergence(sums[..., 0], sums[..., 1], self.tokens)

    def _sums(self, arms: Sequence[Arm]) -> Float[np.ndarray, "arm answer 2"]:
        """KL and agreement of every arm, summed over the tokens of each answer."""
        sums = np.zeros((len(arms), len(self.documents), 2))
        for document, own, values in token_readings(self.runner, self.documents, [BASELINE, *arms], _divergence):
            for arm, of_arm in zip(own, values.sum(1).numpy(), strict=True):
                if arm > 0:
                    sums[arm - 1, document] = of_arm
        return sums

    def under_system(self, system: str) -> Divergence:
        """KL and agreement of the model with a system prompt, which follows that of a prompt that has its own."""
        return self.under(lambda prompt: with_system(prompt, system, self.chat))

    def under(self, change: Callable[[Prompt], Prompt]) -> Divergence:
        """KL and agreement of the model with changed prompts, along the same answers."""
        sums = np.zeros((1, len(self.documents), 2))
        for index, (prompt, document) in enumerate(zip(self.prompts, self.documents, strict=True)):
            answer = document.ids[document.start :]
            ids = self.chat.encode(change(prompt))
            # One document at a time: the distributions of all tokens of all answers would not fit into memory.
            logits = [
                values[0]
                for other in (document, Document([*ids, *answer], len(ids)))
                for _, _, values in token_readings(self.runner, [other], [BASELINE], _logits)
            ]
            targets = torch.tensor(list(answer))
            sums[0, index] = _divergence(torch.stack(logits), targets)[1].sum(0).numpy()
        return Divergence(sums[..., 0], sums[..., 1], self.tokens)


def takes_system(chat: Chat, system: str) -> bool:
    """Whether the chat template takes this system prompt."""
    try:
        check_system(chat.tokenizer, chat.options, system)
    except TemplateError:
        return False
    return True


def with_system(prompt: Prompt, system: str, chat: Chat) -> Prompt:
    """A prompt with one more system prompt, after its own or that of the chat."""
    own = chat.options.system if prompt.system is None else prompt.system
    return replace(prompt, system=system if own is None else f"{own}\n{system}")


def _divergence(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 2"]:
    """KL(first arm || arm), and whether the arm predicts the token."""
    log_p = logits.float().log_softmax(-1)
    kl = (log_p[0].exp() * (log_p[0] - log_p)).sum(-1).clamp_min(0)
    return torch.stack([kl.double(), (logits.argmax(-1) == tokens).double()], -1)


def _logits(logits: Float[Tensor, "arm token vocab"], tokens: Tensor) -> Float[Tensor, "arm token vocab"]:
    return logits


# -- accuracy ---------------------------------------------------------------------------------------------------------


def right_answers(runner: Runner, chat: Chat, arms: Sequence[Arm]) -> Bool[np.ndarray, "arm question"]:
    """Whether the first token of the right continuation is more probable than those of the wrong ones, in plain text.

    Questions whose words the tokenizer does not have, or whose continuations begin alike, are left out.
    """
    asked: list[list[int]] = []
    choices: list[list[int]] = []
    unknown = getattr(chat.tokenizer, "unk_token_id", None)
    for text, right, wrong in questions():
        ids = chat.encode_text_alone(text)
        longer = [chat.encode_text_alone(f"{text} {word}") for word in (right, *wrong)]
        firsts = [more[len(ids)] for more in longer if more[: len(ids)] == ids and len(more) > len(ids)]
        if len(firsts) == len(longer) == len(set(firsts)) and unknown not in (*ids, *firsts):
            asked.append(ids)
            choices.append(firsts)
    is_right = np.zeros((len(arms), len(asked)), dtype=bool)
    if not asked:
        return is_right
    for rows, logits in runner.last_logits(asked, arms):
        own = torch.tensor([choices[i] for i in rows.prompt.tolist()], device=logits.device)
        is_right[rows.arm, rows.prompt] = (logits.float().gather(1, own).argmax(1) == 0).cpu().numpy()
    return is_right
