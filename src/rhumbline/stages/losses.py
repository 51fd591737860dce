"""Stage *losses*: the cross-entropy of whole texts under every arm, one file for each text (losses-TEXT.jsonl).

The paper's three texts (Arditi et al. 2024, section 4.3, and `evaluate_loss` of its code). Cross-entropy of the next
token in float32, the mean weighted by tokens:

    text          plain documents (there the Pile), the first tokens of each
    responses     responses to harmless prompts (there Alpaca): tokens of the response, given the chat-formatted prompt
    completions   the model's own baseline completions of negative test prompts, with the KL divergence of every step

Every arm reads the same documents in the same batch. Differences from the paper's code are in
docs/guide/side-effects.md. Independent of how a change of the loss is judged (evidence/side_effects.py).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import kl_divergence
from rhumbline.judging.score import Class, Score
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.contrasts import Prompt
from rhumbline.prompts.loss_texts import LossTexts
from rhumbline.records.outcome_rows import DocumentLoss, Text
from rhumbline.stages.arms import Arms
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import DOCUMENTS_PER_JOB, JobKind, SeedJobs, spans


def begin_losses(run: SeedRun, jobs: SeedJobs) -> Callable[[], None]:
    """The losses of every arm, one file for each text; the returned function writes the files.

    Workers read texts and responses whenever they have no other job; completions are generated first.
    """
    texts: Sequence[Text] = get_args(Text) if run.protocol.side_effects.documents else ()
    paths = {text: path for text in texts if not (path := run.folder / f"losses-{text}.jsonl").is_file()}
    begun = {text: _begin(run, jobs, text, when_idle=True) for text in paths if text != "completions"}

    def finish() -> None:
        for text, path in paths.items():
            with run.timings.stage(_stage(text), run.seed):
                results = begun[text] if text in begun else _begin(run, jobs, text)
                run.directory.write_rows_as([row for part in results() for row in part.rows], path)

    return finish


def _stage(text: Text) -> str:
    return f"losses on {text}"


def _begin(run: SeedRun, jobs: SeedJobs, text: Text, *, when_idle: bool = False) -> Callable[[], list["Losses"]]:
    """Start the jobs of one text."""
    sources = _sources(run, text, run.runner(_stage(text)))
    parts = [tuple(sources[i] for i in span.range) for span in spans(len(sources), DOCUMENTS_PER_JOB)]
    return jobs.begin(LOSS_JOB, [LossRequest(text, part) for part in parts], when_idle=when_idle)


# -- documents --------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """A document and its origin."""

    id: str
    """Number of the document, or id of the prompt."""
    document: Document
    cls: Class | None = None
    """The class of a completion; None for other texts."""


def _sources(run: SeedRun, text: Text, runner: Runner) -> list[Source]:
    """The documents of one text."""
    plan, negatives = run.protocol.side_effects, run.splits.get("test", "negative")
    reading = Reading(run.chat, plan.documents, plan.max_tokens)
    match text:
        case "text":
            return reading.text(run.texts)
        case "responses":
            return reading.responses(run.texts, negatives)
        case "completions":
            return reading.completions(runner, negatives, run.score, run.protocol.max_new_tokens)


@dataclass(frozen=True)
class Reading:
    """The documents of a run, at most `limit` of each text."""

    chat: Chat
    limit: int
    max_tokens: int
    """Tokens of a plain document or of a response that are read, from its beginning."""

    def text(self, texts: LossTexts) -> list[Source]:
        """Plain documents, after the tokenizer's own special tokens; the first token is context only."""
        sources = []
        for i, text in enumerate(texts.documents[: self.limit]):
            ids = self.chat.encode_text_alone(text)[: self.max_tokens]
            sources.append(Source(f"{i:05d}", Document(ids, 1)))
        return _predictable(sources)

    def responses(self, texts: LossTexts, negatives: Iterable[Prompt]) -> list[Source]:
        """Exchanges of the texts; without any, negatives of the contrast that have a response."""
        pairs = [(Prompt(e.prompt, "negative", id=f"{i:05d}"), e.response) for i, e in enumerate(texts.exchanges)]
        pairs = pairs or [(p, p.response) for p in negatives if p.response]
        sources = []
        for prompt, response in pairs[: self.limit]:
            ids = self.chat.encode_with_response(prompt, response)
            sources.append(Source(prompt.id, Document(ids[: ids.n_prompt + self.max_tokens], ids.n_prompt)))
        return _predictable(sources)

    def completions(
        self,
        runner: Runner,
        negatives: Sequence[Prompt],
        score: Callable[[Prompt, Sequence[int]], Score],
        max_new_tokens: int,
    ) -> list[Source]:
        """The model's completions at baseline: the same ids, without the stop token."""
        prompts = list(negatives[: self.limit])
        sequences = [self.chat.encode(p) for p in prompts]
        stop = stop_ids(runner.model, self.chat)
        completions = runner.generate(sequences, max_new_tokens=max_new_tokens, stop=stop)[0][0]
        sources = []
        for prompt, before, after in zip(prompts, sequences, completions, strict=True):
            sources.append(Source(prompt.id, Document([*before, *after], len(before)), score(prompt, after).cls))
        return _predictable(sources)


def _predictable(sources: Iterable[Source]) -> list[Source]:
    """The documents with at least one token to predict."""
    return [s for s in sources if s.document.start < len(s.document.ids)]


# -- losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 1"]:
    """-log p(token) under each arm, nats. Logits are cast to float32 first: 16-bit sums lose the difference."""
    index = tokens.expand(len(logits), -1)[..., None]
    return -logits.float().log_softmax(-1).gather(-1, index)


def cross_entropy_and_kl(
    logits: Float[Tensor, "arm token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "arm token 2"]:
    """The cross-entropy, and KL(first arm || arm) of the prediction by the paper's formula in float64."""
    kl = torch.stack([kl_divergence(logits[0], arm) for arm in logits])
    return torch.cat([cross_entropy(logits, tokens).double(), kl[..., None]], -1)


def loss_rows(runner: Runner, text: Text, sources: Sequence[Source], arms: Arms) -> list[DocumentLoss]:
    """One row for each document and arm, in this order; the first arm is the baseline of the KL divergences."""
    with_kl = text == "completions"
    read = cross_entropy_and_kl if with_kl else cross_entropy
    ids = list(arms)
    rows = {}
    for index, here, values in token_readings(runner, [s.document for s in sources], list(arms.values()), read):
        for arm, readings in zip(here, values, strict=True):
            rows[index, arm] = DocumentLoss(
                text=text,
                document=sources[index].id,
                arm=ids[arm],
                tokens=len(readings),
                nats=float(readings[:, 0].sum()),
                cls=sources[index].cls if with_kl else None,
                kl=tuple(float(f"{k:.4g}") for k in readings[:, 1].tolist()) if with_kl else None,
            )
    return [rows[key] for key in sorted(rows)]


# -- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossRequest:
    """Some documents of a text."""

    text: Text
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Losses:
    """The losses of every arm on them."""

    rows: tuple[DocumentLoss, ...]


def _prepare(run: SeedRun) -> Callable[[LossRequest], Losses]:
    arms = run.arms.losses(run.protocol.side_effects.controls)

    def compute(request: LossRequest) -> Losses:
        runner = run.runner(_stage(request.text))
        return Losses(tuple(loss_rows(runner, request.text, request.sources, arms)))

    return compute


LOSS_JOB = JobKind("losses", LossRequest, Losses, _prepare)
