"""Was the direction there before the chat training? The chat model's directions, read in its base model.

The template question is made explicit. Condition `template`: the very token ids of the chat, template included, are fed
to both models. Condition `plain`: the instruction alone, without any template, at its last token, to both. Directions
are those of the chat model's training prompts, and the base model's own fitted in the same way; everything is measured
on test prompts. No choice is made here, so the selected layer is the one headline; the others are descriptive.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.subject import Subject, residuals_at
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import auroc, auroc_interval, rank_p
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Split
from rhumbline.stages.nulls import covariance, generator, isotropic, shuffled_site

NAME = "base"
FAMILIES = ("isotropic", "covariance", "shuffled-site")
Sets = Mapping[tuple[str, Label], Float[Tensor, "prompt layer d_model"]]
"""(split, label) -> block inputs at one position."""


def analyse(subject: Subject, base: ChatModel, *, draws: int = 99, retokenise: bool = False) -> dict[str, Any]:
    """Compare the run's directions with what its base model does on the same prompts, and write it.

    With `retokenise` the text is tokenised anew for a base model whose tokenizer differs; without it such a model is
    refused. Raises InputError also for a base model of another depth or width.
    """
    chat = subject.model
    if (base.n_layers, base.d_model) != (chat.n_layers, chat.d_model):
        raise InputError(
            f"{base.name} has {base.n_layers} layers of width {base.d_model}, {chat.name} has {chat.n_layers} of width "
            f"{chat.d_model}: directions cannot be carried from one to the other. Give the model it was trained from."
        )
    position = -1 if subject.direction is None else subject.direction.position
    tokens = _tokens(subject, base, retokenise)
    if tokens["retokenised"]:
        # Other tokens, other positions: only the last one is the same place in both.
        position = -1
    conditions = {}
    for name in ("template", "plain"):
        at = position if name == "template" else -1
        in_chat = {k: residuals_at(subject.runner, s, at) for k, s in tokens[name]["chat"].items()}
        in_base = {k: residuals_at(Runner(base), s, at) for k, s in tokens[name]["base"].items()}
        as_run = name == "template" and at in subject.positions
        own = None if not as_run else subject.candidates[subject.positions.index(at)].double()
        conditions[name] = {"position": at, **_compare(subject, in_chat, in_base, own, draws)}
    record = {
        "base": base.record(),
        "tokens": {k: tokens[k] for k in ("same", "retokenised", "untrained")},
        "n": {s: {c: len(tokens["template"]["chat"][s, c]) for c in LABELS} for s in ("train", "test")},
        "conditions": conditions,
        "finding": _finding(conditions["template"], subject),
    }
    return subject.save(NAME, {"base": base.name, "draws": draws, "retokenise": retokenise}, record)


def _tokens(subject: Subject, base: ChatModel, retokenise: bool) -> dict[str, Any]:
    """Token ids of every prompt for both models, with the template and without, and whether they are the same."""
    cells: list[tuple[Split, Label]] = [(s, c) for s in SPLITS for c in LABELS if s != "val"]
    chat_tokenizer, base_tokenizer = subject.model.tokenizer, base.tokenizer
    with_template = {cell: subject.sequences(*cell) for cell in cells}
    texts = {cell: [chat_tokenizer.decode(ids) for ids in with_template[cell]] for cell in cells}
    kept = {cell: set(subject.ids(*cell)) for cell in cells}
    plain = {cell: [p.text for p in subject.splits.get(*cell) if p.id in kept[cell]] for cell in cells}

    def ids(tokenizer: Any, of: Mapping[Any, list[str]]) -> dict[Any, list[list[int]]]:
        return {cell: [list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in of[cell]] for cell in cells}

    again = {"template": ids(base_tokenizer, texts), "plain": ids(base_tokenizer, plain)}
    here = {"template": with_template, "plain": ids(chat_tokenizer, plain)}
    same = again == here
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    largest = max(t for cell in cells for s in with_template[cell] for t in s)
    if (not same or largest >= vocabulary) and not retokenise:
        raise InputError(
            f"{base.name} does not tokenise the chats as {subject.model.name} does"
            + (
                f" (its vocabulary has {vocabulary} entries, the chats use id {largest})"
                if largest >= vocabulary
                else ""
            )
            + ", so the same ids cannot be fed to both. --retokenise feeds the same text instead, in the base model's "
            "own tokens, and reads the last token only."
        )
    embedding = base.model.get_input_embeddings().weight.detach().float().norm(dim=1)
    special = sorted({t for t in subject.chat.suffix + subject.chat.prefix if t < vocabulary})
    # A template's control tokens may never have been trained in a base model; their rows are then of unusual length.
    low, high = (float(embedding.quantile(q)) for q in (0.005, 0.995))
    odd = [subject.model.tokenizer.decode([t]) for t in special if not low <= float(embedding[t]) <= high]
    used = {name: {"chat": here[name], "base": here[name] if same else again[name]} for name in again}
    return {**used, "same": same, "retokenised": not same, "untrained": odd}


def _compare(subject: Subject, chat: Sets, base: Sets, own: Tensor | None, draws: int) -> dict[str, Any]:
    """Cosine and AUROC per layer; the chat's directions are the run's own where they were read at this position."""
    fitted = _differences(chat) if own is None else own
    in_base = _differences(base)
    rows = []
    for layer in range(fitted.shape[0]):
        test, chat_test = (_at(sets, layer) for sets in (base, chat))
        r, b = (torch.nn.functional.normalize(v[layer], dim=0) for v in (fitted, in_base))
        cosine, areas = float(r @ b), {"chat_in_base": _area(test, r), "base_in_base": _area(test, b)}
        train = [chat["train", c][:, layer] for c in LABELS]
        nulls = {
            f: _null(f, train, test, b, draws, subject.seed, areas["chat_in_base"]["value"], cosine) for f in FAMILIES
        }
        rows.append({"layer": layer, "cosine": cosine, **areas, "chat_in_chat": _area(chat_test, r), "nulls": nulls})
    return {"layers": rows}


def _at(sets: Sets, layer: int) -> dict[Label, Tensor]:
    return {c: sets["test", c][:, layer].double() for c in LABELS}


def _differences(sets: Sets) -> Float[Tensor, "layer d_model"]:
    return sets["train", "positive"].double().mean(0) - sets["train", "negative"].double().mean(0)


def _area(h: Mapping[Label, Tensor], r: Tensor) -> dict[str, Any]:
    positive, negative = ((h[c] @ r).numpy() for c in LABELS)
    value = auroc(positive, negative)
    low, high = auroc_interval(value, len(positive), len(negative))
    return {"value": value, "low": low, "high": high, "n": len(positive) + len(negative)}


def _null(
    family: str, train: list[Tensor], test: Mapping[Label, Tensor], b: Tensor, draws: int, seed: int, area: float,
    cosine: float,
) -> dict[str, Any]:  # fmt: skip
    """Null directions of the chat model, read in the base: their AUROC (either sign) and |cosine| with its own."""
    areas, cosines = [], []
    for draw in range(draws):
        rng = generator(seed, family, draw)
        match family:
            case "isotropic":
                v = isotropic(len(b), rng)
            case "covariance":
                v = covariance(train[1], rng)
            case _:
                v = shuffled_site(train[0], train[1], rng)
        v = torch.nn.functional.normalize(v.double(), dim=0)
        found = _area_only(test, v)
        areas.append(max(found, 1 - found))
        cosines.append(abs(float(v @ b)))
    return {
        "draws": draws,
        "auroc": {"mean": float(np.mean(areas)), "max": float(np.max(areas)), "p": rank_p(area, areas)},
        "cosine": {"mean": float(np.mean(cosines)), "max": float(np.max(cosines)), "p": rank_p(cosine, cosines)},
    }


def _area_only(h: Mapping[Label, Tensor], r: Tensor) -> float:
    return auroc(*((h[c] @ r).numpy() for c in LABELS))


def _finding(condition: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Whether the chat model's direction separates the classes in the base model, at the selected layer."""
    if subject.direction is None:
        return {"answer": "undetermined", "reason": "no direction was selected"}
    row = condition["layers"][subject.direction.layer]
    area = row["chat_in_base"]
    worst = max(row["nulls"], key=lambda f: row["nulls"][f]["auroc"]["p"])
    p = row["nulls"][worst]["auroc"]["p"]
    said = f"AUROC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}], rank p {p:.3f} against {worst}"
    if area["low"] > 0.5 and p <= 0.05:
        return {"answer": "separates", "reason": said}
    return {
        "answer": "undetermined" if area["low"] > 0.5 or p <= 0.05 else "not separated beyond nulls",
        "reason": said,
    }
