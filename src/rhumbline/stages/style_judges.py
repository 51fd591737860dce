"""Stage *style*: fit the judges of a continuous score on training texts (style.json, classifier.safetensors).

Only training texts are read. Independent of directions and arms.
"""

from collections.abc import Mapping, Sequence

import torch

from rhumbline.errors import ProtocolError
from rhumbline.inference.interventions import BASELINE
from rhumbline.judging.markers import estimate_markers, length_matched
from rhumbline.judging.style_classifier import fit
from rhumbline.judging.text_style import MarkerJudge, overlap_by_chance, words
from rhumbline.prompts.contrasts import LABELS, Prompt, Splits
from rhumbline.protocol import Protocol
from rhumbline.records.seed_files import StyleJudges
from rhumbline.records.shared import ByLabel, ClassifierFit, Marker
from rhumbline.stages.completions import complete
from rhumbline.stages.seed_run import SeedRun


def fit_judges(run: SeedRun) -> StyleJudges:
    """Markers, classifier and the content overlap of unrelated texts.

    The texts are the responses of the training prompts, or else the baseline completions of the model.
    """
    plan = run.protocol.text_score
    # A response that stands in two rows of a prompt, under two system prompts, is one text.
    prompts = {label: _distinct(run.splits.texts("train", label)) for label in LABELS}
    have_responses = all(p.response is not None for some in prompts.values() for p in some)
    texts = {label: [p.response or "" for p in some] for label, some in prompts.items()}
    if not have_responses:
        answered = {label: _answered(run, some) for label, some in prompts.items()}
        prompts = {label: [p for p, _ in some] for label, some in answered.items()}
        texts = {label: [text for _, text in some] for label, some in answered.items()}
    topics = {label: [p.category for p in some] for label, some in prompts.items()}
    pairs = None if plan.markers else length_matched(texts["positive"], texts["negative"])
    if plan.markers:
        markers = tuple(Marker(phrase=phrase) for phrase in plan.markers)
    else:
        some, others, of_some = texts["positive"], texts["negative"], topics["positive"]
        if pairs is not None:
            some, of_some = [some[i] for i, _ in pairs], [of_some[i] for i, _ in pairs]
            others = [others[j] for _, j in pairs]
        markers = tuple(estimate_markers(some, others, of_some))
    judge = MarkerJudge(tuple(m.phrase for m in markers))
    return StyleJudges(
        texts="responses" if have_responses else "completions",
        n=ByLabel(*(len(prompts[label]) for label in LABELS)),
        how="given" if plan.markers else "estimated",
        markers=markers,
        classifier=_fit_classifier(run, texts, topics) if plan.classifier else None,
        chance=overlap_by_chance([judge.content(text) for some in texts.values() for text in some]),
        train=ByLabel(*(_mean_share(judge, texts[label]) for label in LABELS)),
        words=ByLabel(*(sum(len(words(t)) for t in texts[c]) / max(1, len(texts[c])) for c in LABELS)),
        matched=None if pairs is None else len(pairs),
    )


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without those that repeat text and response of another; prompts without a response are all kept."""
    first = {(p.text, p.response): p for p in reversed(prompts)}
    return [p for p in prompts if p.response is None or first[p.text, p.response] is p]


def _answered(run: SeedRun, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
    """The prompts whose baseline completion has an answer, with the answer. Raises ProtocolError if none has."""
    length = run.protocol.max_new_tokens
    (texts,) = complete(run.runner("style"), run.chat, prompts, [BASELINE], length)
    answered = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text is not None]
    if prompts and not answered:
        raise ProtocolError(
            f"none of {len(prompts)} completions of training {prompts[0].label}s has an answer within {length} tokens: "
            "the block before the answer is not closed. Raise max_new_tokens, or turn off thinking (--thinking off)."
        )
    return answered


def _fit_classifier(
    run: SeedRun, texts: Mapping[str, list[str]], topics: Mapping[str, list[str | None]]
) -> ClassifierFit:
    """Fit the classifier and write its weights."""
    classifier, record = fit(texts["positive"], texts["negative"], ByLabel(topics["positive"], topics["negative"]))
    tensors = {"weights": torch.tensor(classifier.weights), "intercepts": torch.tensor(classifier.intercepts)}
    run.directory.save_tensors(run.folder / "classifier.safetensors", tensors, {"form": "logistic regression"})
    return record


def _mean_share(judge: MarkerJudge, texts: list[str]) -> float:
    """Mean share of the words inside markers."""
    return sum(judge(text).value or 0.0 for text in texts) / max(1, len(texts))


def check_responses(protocol: Protocol, splits: Splits) -> None:
    """Raise ProtocolError if activations are read in responses that some training or test row lacks."""
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
