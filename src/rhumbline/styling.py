"""What a continuous behaviour adds to the stages of one seed: its judge, made from training texts, and its content.

Promises: markers and classifier see training texts only. Knows prompts, completions and the judge. Does not know
directions; the arms are those of stages.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rhumbline.chat import Chat
from rhumbline.classifying import Classifier, ClassifierJudge, fit
from rhumbline.contrasts import Label, Prompt, Splits
from rhumbline.errors import ProtocolError
from rhumbline.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.judging import TextJudge
from rhumbline.protocol import Protocol
from rhumbline.running import Runner
from rhumbline.selection import ScoredCandidate, SelectionRule, choose
from rhumbline.style import MarkerJudge, content_kept, estimate_markers, form, overlap_by_chance

LABELS: tuple[Label, Label] = ("positive", "negative")


@dataclass(frozen=True)
class Styling:
    """The judges of one seed, and what two unrelated texts share."""

    markers: MarkerJudge
    classifier: Classifier | None
    chance: float
    """Mean content overlap of training texts on different prompts."""
    main: str
    """Which of the two gives the score: `markers` or `classifier`."""

    def judge(self, topic: str | None) -> TextJudge:
        """The judge of a completion about this topic."""
        if self.main == "classifier":
            assert self.classifier is not None
            return ClassifierJudge(self.classifier, topic)
        return self.markers

    def readouts(self, text: str, baseline: str, prompt: Prompt) -> dict[str, Any]:
        """What stands beside the score of a completion: its content, its form, and the other judge's value."""
        found: dict[str, Any] = {
            "correct": content_kept(self.markers, text, baseline, prompt.answer, self.chance),
            "form": form(self.markers, text)._asdict(),
            "marker_share": self.markers(text).value,
        }
        if self.classifier is not None:
            found["classifier"] = ClassifierJudge(self.classifier, prompt.category)(text).value
        return found


def complete(
    runner: Runner, chat: Chat, prompts: Sequence[Prompt], arms: Sequence[Arm], length: int
) -> list[list[str]]:
    """The greedy completions of every arm as text."""
    ids, _ = runner.generate([chat.encode(p) for p in prompts], arms, max_new_tokens=length)
    return [[chat.tokenizer.decode(i, skip_special_tokens=True) for i in arm] for arm in ids]


def make_styling(
    runner: Runner, chat: Chat, splits: Splits, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Markers, classifier and chance overlap from training texts: the record and the tensors of `read_styling`.

    The texts are the responses that the training prompts carry, or else the model's own baseline completions of them.
    """
    plan = protocol.text_score
    prompts = {label: splits.get("train", label) for label in LABELS}
    carried = all(p.response is not None for side in prompts.values() for p in side)
    if carried:
        texts = {label: [p.response or "" for p in side] for label, side in prompts.items()}
    else:
        length = protocol.max_new_tokens
        texts = {label: complete(runner, chat, side, [BASELINE], length)[0] for label, side in prompts.items()}
    topics = {label: [p.category for p in side] for label, side in prompts.items()}
    record: dict[str, Any] = {
        "texts": "responses" if carried else "completions",
        "n": {label: len(side) for label, side in prompts.items()},
        "how": "given" if plan.markers else "estimated",
        "classifier": None,
    }
    if plan.markers:
        record["markers"] = [{"phrase": phrase} for phrase in plan.markers]
    else:
        found = estimate_markers(texts["positive"], texts["negative"], topics["positive"])
        record["markers"] = [m._asdict() for m in found]
    judge = MarkerJudge(tuple(m["phrase"] for m in record["markers"]))
    record["chance"] = overlap_by_chance([judge.content(t) for side in texts.values() for t in side])
    record["train"] = {
        label: sum(judge(t).value or 0.0 for t in side) / max(1, len(side)) for label, side in texts.items()
    }
    tensors = {}
    if plan.classifier:
        classifier, record["classifier"] = fit(
            texts["positive"], texts["negative"], (topics["positive"], topics["negative"])
        )
        tensors = {
            "weights": torch.tensor(classifier.weights),
            "intercepts": torch.tensor(classifier.intercepts),
        }
    return record, tensors


def read_styling(record: Mapping[str, Any], tensors: Mapping[str, Tensor], main: str) -> Styling:
    """The judges as they lie on disk."""
    judge = MarkerJudge(tuple(m["phrase"] for m in record["markers"]))
    classifier = None
    if tensors:
        classifier = Classifier(tensors["weights"].numpy(), tensors["intercepts"].numpy())
    return Styling(judge, classifier, record["chance"], main)


def text_scores(styling: Styling, splits: Splits) -> dict[str, list[float]]:
    """Scores of the contrast's own test texts by label: what a level is counted in, where the classes are texts."""
    return {
        label: [styling.judge(p.category)(p.response or "").value or 0.0 for p in splits.get("test", label)]
        for label in LABELS
    }


def with_content(
    runner: Runner,
    chat: Chat,
    styling: Styling,
    prompts: Mapping[Label, Sequence[Prompt]],
    table: Sequence[ScoredCandidate],
    direction_at: Callable[[ScoredCandidate], Direction],
    rule: SelectionRule,
    protocol: Protocol,
    coefficient_of: Callable[[Direction], float],
) -> list[ScoredCandidate]:
    """The table with the content of whoever would be chosen, until one keeps enough of it.

    Content is the smaller of two shares of the baseline's: under ablation on positives, and under addition on negatives
    with the coefficient and the positions that it would be tested with.
    """
    rows = {(row.position, row.layer): row for row in table}
    if rule.min_content is None:
        return list(rows.values())
    baseline: dict[Label, list[str]] = {}
    n = protocol.text_score.content_prompts
    some: dict[Label, Sequence[Prompt]] = {label: side[:n] for label, side in prompts.items()}
    while True:
        best = choose(list(rows.values()), runner.model.n_layers, rule).selected
        if best is None or best.content is not None:
            return list(rows.values())
        direction = direction_at(best)
        kept = []
        arms: dict[Label, Arm] = {
            "positive": Arm("ablation", (Ablate(direction),)),
            "negative": Arm("addition", (Add(direction, coefficient_of(direction), protocol.addition.positions),)),
        }
        for label, arm in arms.items():
            if label not in baseline:
                baseline[label] = complete(runner, chat, some[label], [BASELINE], protocol.max_new_tokens)[0]
            after = complete(runner, chat, some[label], [arm], protocol.max_new_tokens)[0]
            before = baseline[label]
            kept.append(
                _content(styling, after, before, some[label])
                / max(1e-9, _content(styling, before, before, some[label]))
            )
        rows[best.position, best.layer] = replace(best, content=min(kept))


def _content(styling: Styling, texts: Sequence[str], baseline: Sequence[str], prompts: Sequence[Prompt]) -> float:
    values = [
        content_kept(styling.markers, text, before, p.answer, styling.chance)
        for text, before, p in zip(texts, baseline, prompts, strict=True)
    ]
    return sum(values) / max(1, len(values))


def check_texts(protocol: Protocol, splits: Splits) -> None:
    """Raise ProtocolError where activations are to be read in responses that some training or test row lacks."""
    if protocol.extraction.response_token is None:
        return
    lacking = [
        f"{split} {label}s"
        for split in ("train", "test")
        for label in LABELS
        if any(p.response is None for p in splits.get(split, label))
    ]
    if lacking:
        raise ProtocolError(
            f"extraction.positions is {protocol.extraction.positions}, which reads responses, and the contrast has "
            f"none for {', '.join(lacking)}: give every row a `response`, or use post-instruction."
        )
