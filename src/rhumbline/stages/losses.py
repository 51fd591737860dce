"""Side effects: what the interventions do to the prediction of whole texts. Texts and arms in, rows out.

The paper's three texts (Arditi et al. 2024, section 4.3, and `evaluate_loss` of its code), each scored by the
cross-entropy of the next token in float32, the mean weighted by tokens:

    text          plain documents (there the Pile), the first tokens of each
    responses     answers to harmless prompts (there Alpaca): the answer's tokens, given the chat-formatted prompt
    completions   the model's own baseline completions of negative test prompts, with the KL of every step beside

Promises: every arm reads the same documents, in the same batch. Does not know what a change means (costs.py does).
What differs from the paper's code, and why, is in docs/guide/side-effects.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import kl_divergence
from rhumbline.judging.score import TextJudge
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import Prompt
from rhumbline.prompts.loss_texts import LossTexts
from rhumbline.stages.nulls import Null


class Source(NamedTuple):
    """A document and where it came from."""

    id: str
    document: Document
    cls: str | None = None
    """How the judge read it, where it is a completion."""


def cost_arms(
    direction: Direction, nulls: Sequence[Null], controls: Sequence[str], how: Mapping[str, Any]
) -> list[Arm]:
    """Baseline, ablation, addition, subtraction (the paper's bypass by addition), and the first draw of each control.

    `how` is what the run's additions take: coefficient and positions.
    """
    away = {**how, "coefficient": -how["coefficient"]}
    arms = [
        BASELINE,
        Arm("ablation", (Ablate(direction),)),
        Arm("addition", (Add(direction, **how),)),
        Arm("subtraction", (Add(direction, **away),)),
    ]
    for null in nulls:
        if null.draw == 0 and null.family in controls:
            arms.append(Arm(f"null:{null.family}:0:ablation", (Ablate(null.direction),)))
            arms.append(Arm(f"null:{null.family}:0:addition", (Add(null.direction, **how),)))
    return arms


# -- what is read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """The documents of a run, at most `limit` of each text."""

    chat: Chat
    limit: int
    max_tokens: int
    """Longest beginning of a plain document or of an answer that is read."""

    def text(self, texts: LossTexts) -> list[Source]:
        """Plain documents; the tokenizer adds its own special tokens, and the first token is context only."""
        found = []
        for i, text in enumerate(texts.documents[: self.limit]):
            ids = list(self.chat.tokenizer(text)["input_ids"])[: self.max_tokens]
            found.append(Source(f"{i:05d}", Document(ids, 1)))
        return _predictable(found)

    def responses(self, texts: LossTexts, negatives: Iterable[Prompt]) -> list[Source]:
        """Exchanges of the texts; where there is none, negatives of the contrast that carry a response."""
        asked = [(Prompt(e.prompt, "negative", id=f"{i:05d}"), e.response) for i, e in enumerate(texts.exchanges)]
        asked = asked or [(p, p.response) for p in negatives if p.response]
        found = []
        for prompt, response in asked[: self.limit]:
            ids = self.chat.encode_answer(prompt, response)
            found.append(Source(prompt.id, Document(ids[: ids.start + self.max_tokens], ids.start)))
        return _predictable(found)

    def completions(
        self, runner: Runner, negatives: Sequence[Prompt], judge: Callable[[Prompt], TextJudge], max_new_tokens: int
    ) -> list[Source]:
        """What the model writes at baseline, as it wrote it: the same ids, without the stop token."""
        prompts = list(negatives[: self.limit])
        sequences = [self.chat.encode(p) for p in prompts]
        written = runner.generate(sequences, max_new_tokens=max_new_tokens)[0][0]
        found = []
        for prompt, before, after in zip(prompts, sequences, written, strict=True):
            text = self.chat.tokenizer.decode(after, skip_special_tokens=True)
            found.append(Source(prompt.id, Document([*before, *after], len(before)), judge(prompt)(text).cls))
        return _predictable(found)


def _predictable(sources: Iterable[Source]) -> list[Source]:
    """Those that have a token to predict."""
    return [s for s in sources if s.document.start < len(s.document.ids)]


# -- what is found ----------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 1"]:
    """-log p(token) under each arm, in nats; the logits are made float32 first, as 16-bit sums lose the difference."""
    index = tokens.expand(len(logits), -1)[..., None]
    return -logits.float().log_softmax(-1).gather(-1, index)


def cross_entropy_and_kl(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 2"]:
    """The same, and beside it KL(first arm || arm) of the prediction, by the paper's formula in float64."""
    kl = torch.stack([kl_divergence(logits[0], arm) for arm in logits])
    return torch.cat([cross_entropy(logits, tokens).double(), kl[..., None]], -1)


def loss_rows(runner: Runner, text: str, sources: Sequence[Source], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One row for each document and arm: {"text", "document", "arm", "tokens", "nats", "class", "kl"}.

    `nats` is the sum over the document's predicted tokens; `kl` lists the divergence at each of them (completions
    only), from the baseline to the arm.
    """
    with_kl = text == "completions"
    read = cross_entropy_and_kl if with_kl else cross_entropy
    rows = {}
    for index, here, values in token_readings(runner, [s.document for s in sources], arms, read):
        for arm, found in zip(here, values, strict=True):
            row = {
                "text": text,
                "document": sources[index].id,
                "arm": arms[arm].name,
                "tokens": len(found),
                "nats": float(found[:, 0].sum()),
            }
            if with_kl:
                row |= {"class": sources[index].cls, "kl": [float(f"{k:.4g}") for k in found[:, 1].tolist()]}
            rows[index, arm] = row
    return [rows[key] for key in sorted(rows)]
