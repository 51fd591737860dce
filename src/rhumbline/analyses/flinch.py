"""Flinch: does a chat model avoid words that its base model uses? Two models and a list of terms in, a record out.

The log-probability of a term is computed in every context with both models, on the same tokens (teacher forcing). The
gap of a term is log p(chat) - log p(base), per token. Its flinch is the gap minus the mean gap of its controls: control
terms that are about equally probable in the base model. A single direction is tested as the cause: the mean difference
of the two models' residuals before the term. Its layer is selected on some contexts. On the others it is subtracted
from the chat model and compared with random directions of the same norm. The test needs `LEAST_RESAMPLED` contexts that
show a flinch. Independent of the meaning of the terms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from rhumbline.errors import InputError, ModelError
from rhumbline.evidence.statistics import LEAST_RESAMPLED, holm, rank_p
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.control_tokens import ControlTokens, check_control_tokens, shared_leading, unused_character
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.models.templates import own_template
from rhumbline.records.protocol_file import ControlText
from rhumbline.records.sheet_files import (
    FlinchCounts,
    FlinchDirection,
    FlinchFinding,
    FlinchModels,
    FlinchRecord,
    MeanFlinch,
    TermFlinch,
)
from rhumbline.records.user_files import control_character, is_unicode, read_json

MATCHED = 3
"""Controls of each term."""
DRAWS = 2000
"""Bootstrap draws of an interval."""
GROUPS = 999
"""Random groups of terms and controls."""
NULLS = 19
"""Random directions."""
SLOT = "{term}"
"""Place of the term in a context."""
ALPHA = 0.05
"""Level of the tests."""

Gaps = Float[np.ndarray, "term context"]
"""Log-probabilities, or differences of them, in nats per token."""


@dataclass(frozen=True)
class Terms:
    """Terms to test, control terms, and texts to put them into."""

    terms: tuple[str, ...]
    controls: tuple[str, ...]
    contexts: tuple[str, ...]
    """Texts that contain {term}. The text before it is the context; the text after it is not read."""

    def __post_init__(self):
        faults = [f"{name} is empty" for name in ("terms", "contexts") if not getattr(self, name)]
        if len(self.controls) < MATCHED + 1:
            faults.append(f"controls has {len(self.controls)} words, expected {MATCHED + 1} or more")
        if len(self.contexts) == 1:
            faults.append("contexts has 1 text, expected 2 or more: the layer is selected on some and tested on others")
        faults += [f"context {c!r} has no {SLOT}, or no text before it" for c in self.contexts if c.find(SLOT) < 1]
        if both := sorted(set(self.terms) & set(self.controls)):
            faults.append(f"{', '.join(both)}: both term and control")
        if faults:
            raise InputError(f"terms: {'; '.join(faults)}.")

    @classmethod
    def read(cls, path: str | Path) -> "Terms":
        """Read a JSON file {"terms": [...], "controls": [...], "contexts": ["The harbor sells {term}", ...]}."""
        form = f'a JSON object {{"terms": [...], "controls": [...], "contexts": ["... {SLOT}"]}} of texts'
        value = read_json(path, InputError, form)
        names = ("terms", "controls", "contexts")
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise InputError(f"{path}: expected {form}.")
        lists = [value[name] for name in names]
        if not all(isinstance(x, list) and all(isinstance(t, str) and t.strip() for t in x) for x in lists):
            raise InputError(f"{path}: expected {form}.")
        if faulty := [t for texts in lists for t in texts if control_character(t) or not is_unicode(t)]:
            raise InputError(f"{path}: {ascii(faulty[0])[:40]} contains a control character. Remove it.")
        return cls(*(tuple(dict.fromkeys(texts)) for texts in lists))


def flinch(
    chat: ChatModel,
    base: ChatModel,
    terms: Terms,
    seed: int = 0,
    tick: Callable[[int], None] = lambda rows: None,
    *,
    control_tokens: ControlText = "error",
) -> FlinchRecord:
    """Measure the flinch of every term, and the effect of subtracting one direction.

    Raises InputError if the two models tokenise a text differently or if a text spells control tokens, unless
    `control_tokens` requests that these are encoded as plain text; ModelError if a log-probability is not finite.
    """
    tokenizers = _Tokenizers.of(chat, base, control_tokens)
    spelled, n = tokenizers.spelled(terms), len(terms.terms)
    texts = _Texts.of(tokenizers, terms)
    runners = Runner(chat, tick=tick), Runner(base, tick=tick)
    in_chat, in_base = (texts.log_probabilities(r, [BASELINE])[0] for r in runners)
    for model, values in ((chat, in_chat), (base, in_base)):
        if not np.isfinite(values).all():
            raise ModelError(
                f"{model.name}: the log-probability of a term is not finite, so no flinch can be measured. Use "
                "--dtype float32."
            )
    matching = _Matching.of(in_base, n)
    rng = np.random.default_rng(seed)
    rows = _term_rows((*terms.terms, *terms.controls), in_chat, matching, rng)
    flinches = matching.flinches(in_chat)
    by_context = flinches[:n].mean(0)
    low, high = _interval(by_context, rng)
    p = _group_p(flinches[:n].mean(1), flinches[n:].mean(1), rng)
    mean = MeanFlinch(float(by_context.mean()), low, high, p)
    direction = _DirectionTest(runners, texts, matching, seed).run() if high < 0 else None
    finding, sentence = _finding(mean, direction, n)
    return FlinchRecord(
        models=FlinchModels(chat.name, base.name),
        n=FlinchCounts(n, len(terms.controls), len(terms.contexts)),
        terms=rows,
        mean=mean,
        direction=direction,
        finding=finding,
        sentence=sentence,
        control_tokens=control_tokens,
        encoded_as_text=spelled,
    )


# -- log-probabilities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokenizers:
    """The tokenizers of the two models, which must give the same tokens."""

    models: tuple[ChatModel, ChatModel]
    """Chat model, base model."""
    controls: tuple[ControlTokens, ControlTokens]
    control_text: ControlText

    @classmethod
    def of(cls, chat: ChatModel, base: ChatModel, control_text: ControlText) -> "_Tokenizers":
        """The tokenizers of a chat model, whose template names control tokens, and of its base model."""
        controls = ControlTokens(chat.tokenizer, own_template(chat.tokenizer) or ""), ControlTokens(base.tokenizer, "")
        return cls((chat, base), controls, control_text)

    def spelled(self, terms: Terms) -> tuple[str, ...]:
        """Terms and contexts that spell control tokens of either model; InputError unless these are plain text."""
        named = [(f"context {i}", _start(context)) for i, context in enumerate(terms.contexts)]
        named += [(repr(word), word) for word in (*terms.terms, *terms.controls)]
        if self.control_text == "error":
            for controls in self.controls:
                check_control_tokens(controls, named, "texts", "Remove it, or pass --control-tokens plain.")
        return tuple(name for name, text in named if any(controls.spelled(text) for controls in self.controls))

    def encoded(self, start: str, word: str) -> tuple[list[int], list[int]]:
        """Ids of the context and of the word after it; InputError if the models do not agree on them."""
        # In most vocabularies a space before the word belongs to its first token.
        left, whole = self._ids(start.rstrip(" ")), self._ids(start + word)
        chat, base = (model.name for model in self.models)
        if left[0] != left[1] or whole[0] != whole[1]:
            raise InputError(
                f"{chat} and {base} tokenise {start + word!r} differently, so their probabilities cannot be compared. "
                f"Pass the base model that {chat} was trained from."
            )
        n = len(left[0])
        if whole[0][:n] != left[0] or len(whole[0]) == n:
            raise InputError(f"{word!r} has no tokens of its own after {start!r}. End the context with a space.")
        return left[0], whole[0][n:]

    def _ids(self, text: str) -> list[list[int]]:
        """Token ids of a text by each tokenizer. Plain text is cut at the control tokens of both."""
        mark = unused_character(text)
        if self.control_text == "plain":
            for controls in self.controls:
                text = controls.cut(text, mark)
        return [controls.encode_cut(text, mark) for controls in self.controls]


def _start(context: str) -> str:
    """The text before the term."""
    return context[: context.index(SLOT)]


@dataclass(frozen=True)
class _Texts:
    """Token ids of every word in every context, word by word."""

    before: list[list[int]]
    """The context before the word."""
    words: list[list[int]]
    """The word itself."""
    shape: tuple[int, int]
    """Number of words and of contexts."""

    @classmethod
    def of(cls, tokenizers: _Tokenizers, terms: Terms) -> "_Texts":
        """Tokenise every word in every context, after the tokenizer's own special tokens, such as BOS.

        Raises InputError if the two models do not agree, or if a text does not fit their positions.
        """
        words, starts = (*terms.terms, *terms.controls), [_start(context) for context in terms.contexts]
        leading = shared_leading(*tokenizers.controls)
        pairs = [tokenizers.encoded(start, word) for word, start in product(words, starts)]
        texts = cls([[*leading, *before] for before, _ in pairs], [w for _, w in pairs], (len(words), len(starts)))
        names = [f"{word!r} in context {i}" for word in words for i in range(len(starts))]
        whole = [[*before, *word] for before, word in zip(texts.before, texts.words, strict=True)]
        for model in tokenizers.models:
            check_sequences(model, dict(zip(names, whole, strict=True)), what="texts")
        return texts

    def log_probabilities(self, runner: Runner, arms: Sequence[Arm]) -> Float[np.ndarray, "arm term context"]:
        """Log-probability of every word in every context, nats per token."""
        return log_likelihoods(runner, self.before, self.words, arms).numpy().reshape(len(arms), *self.shape)

    def on(self, contexts: Sequence[int]) -> "_Texts":
        """Every word in some of the contexts."""
        n_words, n_contexts = self.shape
        kept = [w * n_contexts + c for w in range(n_words) for c in contexts]
        return _Texts([self.before[k] for k in kept], [self.words[k] for k in kept], (n_words, len(contexts)))


@dataclass(frozen=True)
class _Matching:
    """Log-probabilities in the base model, and the controls that they match to each word."""

    in_base: Gaps
    n_terms: int
    """The first words are terms, the others controls."""
    controls: list[list[int]]
    """For each word, the controls nearest in mean log-probability in the base model, without the word itself."""

    @classmethod
    def of(cls, in_base: Gaps, n_terms: int) -> "_Matching":
        """Match controls to every word."""
        means, controls = in_base.mean(1), []
        for i in range(len(means)):
            others = [j for j in range(n_terms, len(means)) if j != i]
            controls.append(sorted(others, key=lambda j: abs(means[j] - means[i]))[:MATCHED])
        return cls(in_base, n_terms, controls)

    def flinches(self, in_chat: Gaps) -> Gaps:
        """Gap of every word minus the mean gap of its controls, in every context."""
        gaps = in_chat - self.in_base
        return np.stack([gaps[i] - gaps[matched].mean(0) for i, matched in enumerate(self.controls)])

    def on(self, contexts: Sequence[int]) -> "_Matching":
        """The same controls in some of the contexts."""
        return _Matching(self.in_base[:, list(contexts)], self.n_terms, self.controls)


def _term_rows(
    words: Sequence[str], in_chat: Gaps, matching: _Matching, rng: np.random.Generator
) -> tuple[TermFlinch, ...]:
    """One row for each term."""
    n, in_base, gaps = matching.n_terms, matching.in_base, in_chat - matching.in_base
    flinches = matching.flinches(in_chat)
    of_controls = (-flinches[n:].mean(1)).tolist()
    p = {word: rank_p(-float(flinches[i].mean()), of_controls) for i, word in enumerate(words[:n])}
    adjusted = holm(p)
    rows = []
    for i, word in enumerate(words[:n]):
        low, high = _interval(flinches[i], rng)
        row = TermFlinch(
            term=word,
            base=float(in_base[i].mean()),
            chat=float(in_chat[i].mean()),
            gap=float(gaps[i].mean()),
            control_gap=float(gaps[matching.controls[i]].mean()),
            flinch=float(flinches[i].mean()),
            low=low,
            high=high,
            p=p[word],
            controls=tuple(words[j] for j in matching.controls[i]),
            p_holm=adjusted[word],
        )
        rows.append(row)
    return tuple(rows)


def _interval(values: Float[np.ndarray, " context"], rng: np.random.Generator) -> tuple[float, float]:
    """Bootstrap interval of the mean."""
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _group_p(
    terms: Float[np.ndarray, " term"], controls: Float[np.ndarray, " control"], rng: np.random.Generator
) -> float:
    """Rank of the terms' mean flinch among random groups of the same size, drawn from terms and controls."""
    words = np.concatenate([terms, controls])
    draws = [float(rng.permutation(words)[: len(terms)].mean()) for _ in range(GROUPS)]
    return rank_p(-float(terms.mean()), [-d for d in draws])


# -- one direction ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DirectionTest:
    """Subtracts the mean difference of the two models' residuals from the chat model."""

    runners: tuple[Runner, Runner]
    """Chat model, base model."""
    texts: _Texts
    matching: _Matching
    seed: int

    def run(self) -> FlinchDirection | None:
        """Select the layer on even contexts and test on odd ones; None if the residuals do not differ."""
        select_on, test_on = (range(start, self.texts.shape[1], 2) for start in (0, 1))
        directions = self._directions(select_on)
        if not directions:
            return None
        arms = [Arm(f"layer {d.layer}", (Add(d, -1.0),)) for d in directions]
        direction = directions[int(self._flinch(arms, select_on).mean(1).argmax())]
        rng = np.random.default_rng(self.seed)
        nulls = [Arm(f"null {k}", (Add(_random_like(direction, rng), -1.0),)) for k in range(NULLS)]
        by_arm = self._flinch([BASELINE, Arm("own", (Add(direction, -1.0),)), *nulls], test_on)
        change = by_arm[1] - by_arm[0]
        low, high = _interval(change, rng)
        of_nulls = (by_arm[2:] - by_arm[0]).mean(1).tolist()
        return FlinchDirection(
            layer=direction.layer,
            norm=direction.norm,
            before=float(by_arm[0].mean()),
            after=float(by_arm[1].mean()),
            moved=float(change.mean()),
            low=low,
            high=high,
            p=rank_p(float(change.mean()), of_nulls),
            nulls=tuple(of_nulls),
            contexts=len(test_on),
        )

    def _directions(self, contexts: Sequence[int]) -> list[Direction]:
        """Mean difference of the residuals at the end of the contexts, for every layer where it is not zero."""
        starts = [self.texts.before[c] for c in contexts]
        means = []
        for runner in self.runners:
            total = torch.zeros(runner.model.n_layers, runner.model.d_model, dtype=torch.float64)
            for _, h, _ in runner.residuals(starts, [-1]):
                total += h[:, 0].double().sum(0).cpu()
            means.append(total / len(starts))
        difference = means[0] - means[1]
        # Rounding alone gives differences of about this size.
        least = 1e-5 * float(means[0].norm(dim=-1).mean())
        return [
            Direction.from_vector(vector.float(), -1, layer)
            for layer, vector in enumerate(difference)
            if float(vector.norm()) > least
        ]

    def _flinch(self, arms: Sequence[Arm], contexts: Sequence[int]) -> Float[np.ndarray, "arm context"]:
        """Mean flinch of the terms under each arm, in every context."""
        in_chat = self.texts.on(contexts).log_probabilities(self.runners[0], arms)
        matching = self.matching.on(contexts)
        return np.stack([matching.flinches(values)[: matching.n_terms].mean(0) for values in in_chat])


def _random_like(direction: Direction, rng: np.random.Generator) -> Direction:
    """An isotropic direction with the norm and the site of another."""
    vector = torch.tensor(rng.standard_normal(len(direction.vector))).float()
    return Direction.from_vector(vector / vector.norm() * direction.norm, direction.position, direction.layer)


def _finding(mean: MeanFlinch, direction: FlinchDirection | None, n: int) -> tuple[FlinchFinding, str]:
    """The finding, and a sentence with its numbers."""
    value = f"mean flinch {mean.flinch:.2f} nats per token [{mean.low:.2f}, {mean.high:.2f}], p = {mean.p:.3f}"
    over = f"{n} terms" if n > 1 else "1 term"
    if mean.high is None or mean.high >= 0 or mean.p > ALPHA:
        return "NO-FLINCH", f"NO-FLINCH: no flinch was detected over {over}: {value}."
    if direction is None:
        why = "the residuals of the two models do not differ before the term, so no direction explains it"
        return "FLINCH", f"FLINCH: the chat model avoids the words, over {over}: {value}; {why}."
    effect = (
        f"subtracting one direction at layer {direction.layer} changed it from {direction.before:.2f} to "
        f"{direction.after:.2f} on other contexts (change {direction.moved:.2f} [{direction.low:.2f}, "
        f"{direction.high:.2f}], p = {direction.p:.2f} among random directions)"
    )
    untested = _untested(direction)
    explains_half = untested is None and direction.low >= -direction.before / 2 and direction.p <= ALPHA
    name: FlinchFinding = "FLINCH-ONE-DIRECTION" if explains_half else "FLINCH"
    why = f"; not tested whether one direction explains it: {untested}" if untested else ""
    return name, f"{name}: the chat model avoids the words, over {over}: {value}; {effect}{why}."


def _untested(direction: FlinchDirection) -> str | None:
    """Why the contexts do not test whether the direction explains half of the flinch; None if they do."""
    if direction.contexts < LEAST_RESAMPLED:
        return (
            f"the interval needs {LEAST_RESAMPLED} contexts that did not select the layer, not {direction.contexts}; "
            f"give {2 * LEAST_RESAMPLED} contexts or more"
        )
    if direction.before >= 0:
        return "the contexts that did not select the layer show no flinch"
    return None
