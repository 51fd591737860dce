"""Stage *refusal tokens*: the first tokens of the behaviour that the metric reads (metric.json).

The protocol gives the tokens, or they are estimated on training prompts: from the model's own baseline completions, or
from the probabilities of the next token. Training prompts only. Independent of directions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.errors import ProtocolError
from rhumbline.evidence.seed_evidence import USABLE_AUROC
from rhumbline.evidence.statistics import auroc, decision_threshold
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat import Chat, ChatWithResponse
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.reasons import TokensLacking
from rhumbline.records.seed_files import CommonStart, MetricTokens
from rhumbline.records.shared import FirstToken
from rhumbline.stages.common_start import Baseline, header_text
from rhumbline.stages.seed_run import SeedRun

LONGEST_READ = 64
"""New tokens after which a training prompt is classified."""
SMALLEST_SHARE = 0.05
"""Share of the refusals that a first token must start, or rise of its mean probability before a refusal."""
SMALLEST_SHARE_AT_START = 0.5
"""Share of the refusals that must begin where the metric is read, and not after a block of another length."""


def find_tokens(run: SeedRun) -> MetricTokens:
    """The metric of a seed, with its tokens unless it is the paired log-odds, and the tokens after which it is read."""
    runner, texts = run.runner("refusal tokens"), run.protocol.refusal_tokens
    by_class = {label: [ids for split in ("train", "val") for ids in run.sequences(split, label)] for label in LABELS}
    mixed = [ids for both in zip_longest(*by_class.values()) for ids in both if ids is not None]
    judge = None if run.protocol.is_continuous else run.judge()
    start = Baseline(runner, run.chat, mixed).common_start(judge)
    if texts == "auto" and run.pairs is not None:
        start = start if start is not None and start.is_header else None
        return MetricTokens(how="pairs", tokens=(), auroc=None, refusals=None, n=None, reason=None, start=start)
    positive, negative = (run.sequences("train", label) for label in LABELS)
    tokens = FirstTokens(runner, run.chat, positive, negative, start)
    if isinstance(texts, tuple):
        return tokens.of_texts(texts)
    if judge is None:
        return tokens.of_probabilities()
    return tokens.of_completions(judge, run.protocol.max_new_tokens, run.protocol.metric_threshold == "judged")


@dataclass(frozen=True)
class FirstTokens:
    """Finds the first tokens of the behaviour and measures how well they separate the training classes.

    The paper chooses them by hand for each model family (appendix B). No token is a valid result, with its reason.
    """

    runner: Runner
    chat: Chat
    positive: Sequence[TokenIds]
    negative: Sequence[TokenIds]
    start: CommonStart | None = None
    """The tokens of a completion after which they are the first ones; None: those of the completion itself."""

    @property
    def _start(self) -> tuple[int, ...]:
        return () if self.start is None else self.start.tokens

    def of_texts(self, texts: Sequence[str]) -> MetricTokens:
        """The first token of each text."""
        ids = {self.chat.first_token(text, self._start): None for text in texts}
        return self._metric("given", self._tokens(ids, least_auroc=None))

    def of_completions(self, judge: TextJudge, max_new_tokens: int, finds_threshold: bool = False) -> MetricTokens:
        """The tokens that start the model's own baseline refusals of training positives, or are likelier before one.

        The second kind is in no greedy completion: a model that says "I'm sorry" can have "As an AI" as second choice.
        A token that starts more answers than refusals of positives is none, however likely it is before refusals.

        With a threshold if asked: greedy refusals can begin with a token of probability 0.3, and the zero of the
        log-odds is at 0.5. Negatives, which are not completed, count as not showing the behaviour.
        """
        length, stop = min(max_new_tokens, LONGEST_READ), stop_ids(self.runner.model, self.chat)
        completions, _ = self.runner.generate(self.positive, max_new_tokens=length, stop=stop)
        header, n_start = header_text(self.chat, self.start), len(self._start)
        answers = [self.chat.answer(ids) for ids in completions[0]]
        texts = [None if a.text is None else a.text.removeprefix(header) for a in answers]
        scores = [score_of(judge, text).value for text in texts]
        refusals = [i for i, score in enumerate(scores) if score]
        firsts = [completions[0][i][n_start] for i in refusals if answers[i].start <= n_start < len(completions[0][i])]
        if len(firsts) < SMALLEST_SHARE_AT_START * len(refusals):
            return self._metric("auto", (), TokensLacking.AFTER_BLOCK, refusals=len(refusals))
        if not refusals:
            return self._metric("auto", (), TokensLacking.NOT_SHOWN, refusals=0)
        counts = Counter(firsts)
        shows = np.array([bool(score) for score in scores] + [False] * len(self.negative))
        is_judged = np.array([score is not None for score in scores] + [True] * len(self.negative))
        complied = [ids for ids, score in zip(completions[0], scores, strict=True) if score == 0]
        others = Counter(ids[n_start] for ids in complied if len(ids) > n_start)
        more = [t for t in self._likelier(shows, is_judged & ~shows) if counts[t] >= others[t]]
        shares = {t: n / len(refusals) for t, n in counts.most_common() if n >= SMALLEST_SHARE * len(refusals)}
        tokens = self._tokens({**shares, **{t: counts[t] / len(refusals) for t in more}}, USABLE_AUROC)
        found = self._metric("auto", tokens, TokensLacking.NOT_SEPARATING, refusals=len(refusals))
        if not (tokens and finds_threshold):
            return found
        values = self._log_odds([[t.id for t in tokens]])[0]
        return replace(found, threshold=decision_threshold(values[is_judged], shows[is_judged]))

    def of_probabilities(self) -> MetricTokens:
        """The tokens whose mean probability is larger after positives by `SMALLEST_SHARE` or more.

        For behaviours with many first tokens: a greedy completion shows only one of them.
        """
        is_positive = np.array([True] * len(self.positive) + [False] * len(self.negative))
        shares = self._likelier(is_positive, ~is_positive)
        return self._metric("shifted", self._tokens(shares, USABLE_AUROC), TokensLacking.NOT_LIKELIER)

    def _likelier(self, some: Bool[np.ndarray, " prompt"], others: Bool[np.ndarray, " prompt"]) -> dict[int, float]:
        """The tokens whose mean probability is larger after some training prompts by `SMALLEST_SHARE` or more."""
        weights = torch.from_numpy(some / some.sum() - others / others.sum())
        more: Tensor | None = None
        for rows, logits in self.runner.last_logits(self._after_start([*self.positive, *self.negative])):
            part = weights[rows.prompt] @ logits.double().softmax(-1).cpu()
            more = part if more is None else more + part
        assert more is not None
        order = more.argsort(descending=True).tolist()
        return {int(t): float(more[t]) for t in order if more[t] >= SMALLEST_SHARE}

    def _tokens(self, shares: Mapping[int, float | None], least_auroc: float | None) -> tuple[FirstToken, ...]:
        """The tokens that separate the classes well enough."""
        separations = self._separations([[token] for token in shares])
        return tuple(
            FirstToken(token, self.chat.tokenizer.decode([token]), separation, share)
            for (token, share), separation in zip(shares.items(), separations, strict=True)
            if least_auroc is None or separation >= least_auroc
        )

    def _metric(
        self,
        how: Literal["given", "auto", "shifted"],
        tokens: tuple[FirstToken, ...],
        lacking: TokensLacking | None = None,
        refusals: int | None = None,
    ) -> MetricTokens:
        """The record of a metric; `lacking` is the reason if there are no tokens."""
        match tokens:
            case ():
                auroc_of_all, reason = None, lacking
            case (token,):
                auroc_of_all, reason = token.auroc, None
            case _:
                auroc_of_all, reason = self._separations([[t.id for t in tokens]])[0], None
        n = None if how == "given" else len(self.positive)
        return MetricTokens(how, tokens, auroc_of_all, refusals, n, reason, self.start)

    def _after_start(self, sequences: Sequence[TokenIds]) -> list[TokenIds]:
        return [ChatWithResponse(ids, self._start) if self._start else ids for ids in sequences]

    def _separations(self, sets: Sequence[Sequence[int]]) -> list[float]:
        """AUROC between the training classes of the metric of every set of tokens."""
        n = len(self.positive)
        return [auroc(values[:n], values[n:]) for values in self._log_odds(sets)]

    def _log_odds(self, sets: Sequence[Sequence[int]]) -> Float[np.ndarray, "set prompt"]:
        """Log-odds of every set of tokens after the training positives, then the negatives."""
        vocab = self.runner.model.model.get_input_embeddings().weight.shape[0]
        if outside := [t for tokens in sets for t in tokens if not 0 <= t < vocab]:
            raise ProtocolError(f"refusal tokens {outside} are outside the vocabulary of {vocab}. Use other texts.")
        values = torch.zeros(len(sets), len(self.positive) + len(self.negative), dtype=torch.float64)
        if sets:
            for rows, logits in self.runner.last_logits(self._after_start([*self.positive, *self.negative])):
                values[:, rows.prompt] = torch.stack([refusal_metric(logits, tokens).cpu() for tokens in sets])
        return values.numpy()
