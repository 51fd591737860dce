"""Flinching: does the chat model avoid words that its base model would use? Two models and a list of terms in, a table
out.

In every context both models are asked, teacher-forced and on the same tokens, how likely a term is. Its gap is
log p(chat) - log p(base), per token; its flinch is that gap less the mean gap of the control terms that the base model
finds about as likely in the same contexts. Then a single direction: the mean difference of the two models' residuals
where the term would begin, chosen by layer on some contexts and subtracted from the chat model on the others, beside
random directions of its length. Knows texts and two models; judges no term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rhumbline.errors import InputError
from rhumbline.evidence.statistics import holm, rank_p
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.files import read_given

MATCHED = 3
"""Controls that each term is compared with."""
DRAWS = 2000
NULLS = 19
"""Random directions beside the one that was found."""
SLOT = "{term}"

Gaps = Float[np.ndarray, "term context"]


@dataclass(frozen=True)
class Terms:
    """What is asked about, where, and beside what."""

    terms: tuple[str, ...]
    controls: tuple[str, ...]
    contexts: tuple[str, ...]
    """Texts with a {term}; what stands before it is the context."""

    def __post_init__(self):
        faults = [f"{name} is empty" for name in ("terms", "contexts") if not getattr(self, name)]
        if len(self.controls) < MATCHED + 1:
            faults.append(f"controls has {len(self.controls)} words, {MATCHED + 1} are the least")
        if len(self.contexts) == 1:
            faults.append("contexts has one text; the layer is chosen on some and tested on others")
        faults += [f"context {c!r} has no {SLOT}, or nothing before it" for c in self.contexts if c.find(SLOT) < 1]
        if both := sorted(set(self.terms) & set(self.controls)):
            faults.append(f"{', '.join(both)}: term and control at once")
        if faults:
            raise InputError(f"terms: {'; '.join(faults)}.")

    @classmethod
    def read(cls, path: str | Path) -> "Terms":
        """A JSON file {"terms": [...], "controls": [...], "contexts": ["The harbor sells {term}", ...]}."""
        form = f'a JSON object {{"terms": [...], "controls": [...], "contexts": ["... {SLOT}"]}} of texts'
        given = read_given(Path(path), InputError, form)
        names = ("terms", "controls", "contexts")
        if not isinstance(given, dict) or sorted(given) != sorted(names):
            raise InputError(f"{path}: give {form}.")
        lists = [given[name] for name in names]
        if any(
            not isinstance(part, list) or any(not isinstance(x, str) or not x.strip() for x in part) for part in lists
        ):
            raise InputError(f"{path}: give {form}.")
        return cls(*(tuple(dict.fromkeys(part)) for part in lists))


@dataclass(frozen=True)
class _Cells:
    """Every term in every context as token ids."""

    before: list[list[int]]
    after: list[list[int]]
    shape: tuple[int, int]


def flinch(
    chat: ChatModel, base: ChatModel, terms: Terms, seed: int = 0, tick: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """The table of terms and what a single direction does to it.

    {"analysis", "n", "terms": [{"term", "base", "chat", "gap", "control_gap", "flinch", "low", "high", "p", "p_holm",
    "controls"}], "mean": {"flinch", "low", "high"}, "direction": {"layer", "norm", "flinch", "moved", "low", "high",
    "p", "nulls"} | None, "finding", "sentence"}: nats per token; `flinch` negative where the chat model avoids the
    term; p the rank among the controls, each compared with its own neighbours, Holm over the terms. InputError where
    the two models do not read the texts as the same tokens.
    """
    words = (*terms.terms, *terms.controls)
    cells = _encode(chat, base, words, terms.contexts)
    runners = Runner(chat, tick=tick), Runner(base, tick=tick)
    said, expected = (_likelihoods(r, cells, [BASELINE])[0] for r in runners)
    matched = _matched(expected, len(terms.terms))
    own = _flinches(said - expected, matched)
    n = len(terms.terms)
    nulls = own[n:].mean(1)
    rng = np.random.default_rng(seed)
    rows = []
    for i, term in enumerate(terms.terms):
        low, high = _interval(own[i], rng)
        rows.append(
            {
                "term": term,
                "base": float(expected[i].mean()),
                "chat": float(said[i].mean()),
                "gap": float((said - expected)[i].mean()),
                "control_gap": float((said - expected)[matched[i]].mean()),
                "flinch": float(own[i].mean()),
                "low": low,
                "high": high,
                "p": rank_p(-float(own[i].mean()), (-nulls).tolist()),
                "controls": [words[j] for j in matched[i]],
            }
        )
    for row, p in zip(rows, holm({r["term"]: r["p"] for r in rows}).values(), strict=True):
        row["p_holm"] = p
    by_context = own[:n].mean(0)
    low, high = _interval(by_context, rng)
    mean = {"flinch": float(by_context.mean()), "low": low, "high": high}
    # The terms together against the controls: each bootstrap draws terms and controls.
    mean["p"] = _group_p(own[:n].mean(1), nulls, rng)
    moved = _by_direction(runners, cells, expected, matched, n, seed) if high < 0 else None
    return {
        "analysis": "flinch",
        "models": {"chat": chat.name, "base": base.name},
        "n": {"terms": n, "controls": len(terms.controls), "contexts": len(terms.contexts)},
        "terms": rows,
        "mean": mean,
        "direction": moved,
        **_finding(mean, moved, n),
    }


def _encode(chat: ChatModel, base: ChatModel, words: Sequence[str], contexts: Sequence[str]) -> _Cells:
    """Ids of every context and of every word where it stands; the same for both models, or an InputError."""
    before, after = [], []
    for word in words:
        for context in contexts:
            start = context[: context.index(SLOT)]
            pairs = []
            for model in (chat, base):
                # A space before the term belongs to its first token in most vocabularies.
                left = model.tokenizer(start.rstrip(" "), add_special_tokens=False)["input_ids"]
                whole = model.tokenizer(start + word, add_special_tokens=False)["input_ids"]
                pairs.append((list(left), list(whole)))
            (left, whole), other = pairs
            if (left, whole) != other:
                raise InputError(
                    f"{chat.name} and {base.name} read {start + word!r} as different tokens, so their probabilities "
                    "are of different events. Give the base model of this chat model."
                )
            if whole[: len(left)] != left or len(whole) == len(left):
                raise InputError(f"{word!r} has no tokens of its own after {start!r}; end the context with a space.")
            before.append(left)
            after.append(whole[len(left) :])
    return _Cells(before, after, (len(words), len(contexts)))


def _likelihoods(runner: Runner, cells: _Cells, arms: Sequence[Arm]) -> Float[np.ndarray, "arm term context"]:
    found = log_likelihoods(runner, cells.before, cells.after, arms).numpy()
    return found.reshape(len(arms), *cells.shape)


def _matched(expected: Gaps, n_terms: int) -> list[list[int]]:
    """For every word the controls that the base model finds most nearly as likely; never the word itself."""
    levels = expected.mean(1)
    found = []
    for i in range(len(levels)):
        others = [j for j in range(n_terms, len(levels)) if j != i]
        found.append(sorted(others, key=lambda j: abs(levels[j] - levels[i]))[:MATCHED])
    return found


def _flinches(gaps: Gaps, matched: Sequence[Sequence[int]]) -> Gaps:
    """Every word's gap less the mean gap of its controls, context by context."""
    return np.stack([gaps[i] - gaps[list(m)].mean(0) for i, m in enumerate(matched)])


def _interval(values: Float[np.ndarray, " context"], rng: np.random.Generator) -> tuple[float, float]:
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _group_p(
    terms: Float[np.ndarray, " term"], controls: Float[np.ndarray, " control"], rng: np.random.Generator
) -> float:
    """Rank of the terms' mean flinch among random groups as large, drawn from terms and controls together."""
    both = np.concatenate([terms, controls])
    draws = [float(rng.permutation(both)[: len(terms)].mean()) for _ in range(999)]
    return rank_p(-float(terms.mean()), [-d for d in draws])


# -- one direction ----------------------------------------------------------------------------------------------------


def _by_direction(
    runners: tuple[Runner, Runner], cells: _Cells, expected: Gaps, matched: Sequence[Sequence[int]], n: int, seed: int
) -> dict[str, Any] | None:
    """Subtract the mean difference of the residuals from the chat model; None where the residuals do not differ."""
    n_words, n_contexts = cells.shape
    chosen_on, tested_on = (np.arange(n_contexts)[k::2] for k in (0, 1))
    starts = [cells.before[c] for c in chosen_on]
    means = []
    for runner in runners:
        total = torch.zeros(runner.model.n_layers, runner.model.d_model, dtype=torch.float64)
        for _, h, _ in runner.residuals(starts, [-1]):
            total += h[:, 0].double().sum(0).cpu()
        means.append(total / len(starts))
    difference = means[0] - means[1]
    floor = 1e-5 * float(means[0].norm(dim=-1).mean())
    layers = [layer for layer in range(len(difference)) if float(difference[layer].norm()) > floor]
    if not layers:
        return None
    directions = {layer: Direction.from_vector(difference[layer].float(), -1, layer) for layer in layers}

    def flinch_under(arms: Sequence[Arm], contexts: np.ndarray) -> Float[np.ndarray, "arm context"]:
        keep = [w * n_contexts + int(c) for w in range(n_words) for c in contexts]
        some = _Cells([cells.before[k] for k in keep], [cells.after[k] for k in keep], (n_words, len(contexts)))
        gaps = _likelihoods(runners[0], some, arms) - expected[:, contexts]
        return np.stack([_flinches(g, matched)[:n].mean(0) for g in gaps])

    arms = [Arm(f"{layer}", (Add(d, -1.0),)) for layer, d in directions.items()]
    best = layers[int(flinch_under(arms, chosen_on).mean(1).argmax())]
    direction = directions[best]
    rng = np.random.default_rng(seed)
    nulls = []
    for k in range(NULLS):
        vector = torch.tensor(rng.standard_normal(len(direction.vector))).float()
        null = Direction.from_vector(vector / vector.norm() * direction.norm, -1, best)
        nulls.append(Arm(f"null {k}", (Add(null, -1.0),)))
    found = flinch_under([BASELINE, Arm("own", (Add(direction, -1.0),)), *nulls], tested_on)
    moved = found[1] - found[0]
    low, high = _interval(moved, rng)
    others = (found[2:] - found[0]).mean(1).tolist()
    return {
        "layer": best,
        "norm": direction.norm,
        "before": float(found[0].mean()),
        "after": float(found[1].mean()),
        "moved": float(moved.mean()),
        "low": low,
        "high": high,
        "p": rank_p(float(moved.mean()), others),
        "nulls": others,
        "contexts": len(tested_on),
    }


def _finding(mean: dict[str, Any], moved: dict[str, Any] | None, n: int) -> dict[str, str]:
    span = f"{mean['flinch']:.2f} nats per token [{mean['low']:.2f}, {mean['high']:.2f}], p = {mean['p']:.3f}"
    if mean["high"] >= 0 or mean["p"] > 0.05:
        name, more = "NO-FLINCH", ""
    elif moved is None:
        name, more = (
            "FLINCH",
            "; the residuals of the two models do not differ before the term, so no direction moves it",
        )
    else:
        half = moved["low"] >= -moved["before"] / 2 and moved["p"] <= 0.05
        name = "FLINCH-ONE-DIRECTION" if half else "FLINCH"
        more = (
            f"; subtracting one direction at layer {moved['layer']} moved it from {moved['before']:.2f} to "
            f"{moved['after']:.2f} on other contexts (moved {moved['moved']:.2f} [{moved['low']:.2f}, "
            f"{moved['high']:.2f}], p = {moved['p']:.2f} among random ones)"
        )
    what = "no flinching was found" if name == "NO-FLINCH" else "they flinch"
    return {"finding": name, "sentence": f"{name}: of {n} terms on average, {what}: {span}{more}."}
