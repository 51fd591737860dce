"""What a continuous behaviour adds to the stages of one seed: its judge, made from training texts, and its content.

Promises: markers and classifier see training texts only. Knows prompts, completions and the judge. Does not know
directions; the arms are those of testing.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rhumbline.errors import ProtocolError
from rhumbline.evidence.selection_rules import SelectionRule, choose
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.markers import estimate_markers
from rhumbline.judging.score import TextJudge
from rhumbline.judging.style_classifier import Classifier, ClassifierJudge, fit
from rhumbline.judging.text_style import MarkerJudge, content_kept, form, overlap_by_chance
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import Label, Prompt, Splits
from rhumbline.protocol import Protocol
from rhumbline.records.selection_files import Candidate

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
    prompts = {label: splits.texts("train", label) for label in LABELS}
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
        label: [styling.judge(p.category)(p.response or "").value or 0.0 for p in splits.texts("test", label)]
        for label in LABELS
    }


def has_room(
    runner: Runner, chat: Chat, styling: Styling, prompts: Mapping[Label, Sequence[Prompt]], protocol: Protocol
) -> bool:
    """Whether validation negatives score low enough at baseline that a rise could show (`rule.max_negative`).

    Where prompts make the classes, the negatives are the zero of the level. Of texts, the level is that of the model's
    own completions between the responses of either class.
    """
    most = protocol.rule.max_negative
    if most is None or protocol.extraction.response_position is None:
        return True
    asked = {label: prompts[label][: protocol.text_score.content_prompts] for label in LABELS}
    judges = {label: [styling.judge(p.category) for p in some] for label, some in asked.items()}
    high, low = (_mean_score(judges[c], [p.response or "" for p in asked[c]]) for c in LABELS)
    (said,) = complete(runner, chat, asked["negative"], [BASELINE], protocol.max_new_tokens)
    return _mean_score(judges["negative"], said) - low <= most * (high - low)


def with_completions(
    runner: Runner,
    chat: Chat,
    styling: Styling,
    prompts: Mapping[Label, Sequence[Prompt]],
    table: Sequence[Candidate],
    direction_at: Callable[[Candidate], Direction],
    rule: SelectionRule,
    protocol: Protocol,
    coefficient_of: Callable[[Direction], float],
    room: bool = True,
) -> list[Candidate]:
    """The table with `content` and `moved` of everybody whom the fast criteria leave in question.

    Content is the smaller of two shares of the baseline's: under ablation on positives, and under addition on negatives
    with the coefficient and the positions that it would be tested with; `moved` the smaller of the two changes of the
    score, over the gap between the classes at baseline. Of a contrast of texts the gap is that of the responses.
    Without `room` (`has_room`) both are those of ablation alone.
    """
    if rule.min_content is None and rule.criterion != "most-moved":
        return list(table)
    asked = [
        row for row in choose(table, runner.model.n_layers, rule.metric_only()).candidates if row.discarded is None
    ]
    if not asked:
        return list(table)
    n = protocol.text_score.content_prompts
    directions = [direction_at(row) for row in asked]
    arms: dict[Label, list[Arm]] = {
        "positive": [Arm("ablation", (Ablate(d),)) for d in directions],
        "negative": [Arm("addition", (Add(d, coefficient_of(d), protocol.addition.positions),)) for d in directions],
    }
    content, score, start = {}, {}, {}
    for label, some in arms.items():
        asking = prompts[label][:n]
        said = complete(runner, chat, asking, [BASELINE, *some], protocol.max_new_tokens)
        judges = [styling.judge(p.category) for p in asking]
        content[label] = [_content(styling, texts, said[0], asking) for texts in said]
        score[label] = [_mean_score(judges, texts) for texts in said]
        carried = [p.response or "" for p in asking]
        of_texts = protocol.extraction.response_position is not None
        start[label] = _mean_score(judges, carried) if of_texts else score[label][0]
    gap = start["positive"] - start["negative"]
    found = {(row.position, row.layer): row for row in table}
    for i, row in enumerate(asked, start=1):
        kept = min(content[c][i] / max(1e-9, content[c][0]) for c in (LABELS if room else LABELS[:1]))
        changes = (score["positive"][0] - score["positive"][i], score["negative"][i] - score["negative"][0])
        moved = min(changes if room else changes[:1]) / gap if gap > 0 else 0.0
        found[row.position, row.layer] = replace(found[row.position, row.layer], content=kept, moved=moved)
    return list(found.values())


def _mean_score(judges: Sequence[TextJudge], texts: Sequence[str]) -> float:
    return sum(judge(text).value or 0.0 for judge, text in zip(judges, texts, strict=True)) / max(1, len(judges))


def _content(styling: Styling, texts: Sequence[str], baseline: Sequence[str], prompts: Sequence[Prompt]) -> float:
    values = [
        content_kept(styling.markers, text, before, p.answer, styling.chance)
        for text, before, p in zip(texts, baseline, prompts, strict=True)
    ]
    return sum(values) / max(1, len(values))


def check_texts(protocol: Protocol, splits: Splits) -> None:
    """Raise ProtocolError where activations are to be read in responses that some training or test row lacks."""
    if protocol.extraction.response_position is None:
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
