"""The chat model's directions on the activations of its base model: does the direction precede the chat training?

Both forms of the prompts are read in both models. `template`: the token ids of the chat, template included. `plain`:
the instruction alone, at its last token. The chat model's directions are fitted on its training prompts, the base
model's own directions in the same way. Everything is measured on test prompts. Nothing is selected here: the finding
refers to the selected layer, and the other layers are descriptive.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.subject import SITE_FAMILIES, Subject, residuals_at
from rhumbline.axes import Vector
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import auroc, auroc_interval, rank_p
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.control_tokens import ControlTokens, shared_leading
from rhumbline.prompts.contrasts import LABELS, Label, Split
from rhumbline.records.analysis_files import (
    Auroc,
    BaseCondition,
    BaseConditions,
    BaseFinding,
    BaseLayer,
    BaseNull,
    BaseParameters,
    BaseRecord,
    NullRank,
    TokenComparison,
    TrainTest,
)
from rhumbline.records.positions import Position
from rhumbline.records.shared import ByLabel
from rhumbline.records.verdict_rule import is_number
from rhumbline.stages.null_families import covariance, generator, isotropic, shuffled_site

Set = tuple[Split, Label]
"""A class of a split."""
SETS: tuple[Set, ...] = tuple((split, label) for split in ("train", "test") for label in LABELS)
"""Sets that are read."""
Ids = Mapping[Set, list[list[int]]]
"""Token ids of the prompts of each set."""
Residuals = Mapping[Set, Float[Tensor, "prompt layer d_model"]]
"""Block inputs of the prompts of each set, at one position."""


def analyse(subject: Subject, base: ChatModel, *, draws: int = 99, retokenise: bool = False) -> BaseRecord:
    """Compare the run's directions with those of its base model on the same prompts, and write analyses/base.json.

    With `retokenise` the texts are tokenised again for a base model with another tokenizer. Raises InputError for such
    a model without `retokenise`, and for a base model of another depth or width.
    """
    chat = subject.model
    if (base.n_layers, base.d_model) != (chat.n_layers, chat.d_model):
        raise InputError(
            f"{base.name} has {base.n_layers} layers of width {base.d_model}, {chat.name} has {chat.n_layers} of width "
            f"{chat.d_model}; both must be equal to compare directions. Pass the model that {chat.name} was trained "
            "from."
        )
    position = Position(-1) if subject.direction is None else subject.direction.position
    prompts, tokens = _tokenised(subject, base, retokenise)
    if tokens.retokenised:
        # With other tokens only the last position is the same in both models.
        position = Position(-1)

    def compare(ids: _ForBoth, at: Position, own: Tensor | None) -> BaseCondition:
        in_chat = {k: residuals_at(subject.runner, s, at) for k, s in ids.chat.items()}
        in_base = {k: residuals_at(Runner(base), s, at) for k, s in ids.base.items()}
        layers = _Comparison(in_chat, in_base, own, draws, subject.seed).layers()
        return BaseCondition(at, layers)

    own = subject.candidates[subject.positions.index(position)].double() if position in subject.positions else None
    template, plain = compare(prompts["template"], position, own), compare(prompts["plain"], Position(-1), None)
    n = TrainTest(*(ByLabel(*(len(prompts["template"].chat[s, c]) for c in LABELS)) for s in ("train", "test")))
    record = BaseRecord(
        seed=subject.seed,
        site=subject.site,
        parameters=BaseParameters(base.name, draws, retokenise),
        base=base.record(),
        tokens=tokens,
        n=n,
        conditions=BaseConditions(template, plain),
        finding=_finding(template, subject),
    )
    return subject.save(record)


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ForBoth:
    """Token ids of one form of the prompts, for either model."""

    chat: Ids
    base: Ids


def _tokenised(subject: Subject, base: ChatModel, retokenise: bool) -> tuple[Mapping[str, _ForBoth], TokenComparison]:
    """Token ids of both forms of the prompts for both models, and how they differ."""
    in_chat, in_base = subject.chat.controls, ControlTokens(base.tokenizer, subject.chat.controls.template)
    decode = subject.model.tokenizer.decode
    with_template = {at: subject.sequences(*at) for at in SETS}
    chats = {at: [decode(ids) for ids in with_template[at]] for at in SETS}
    instructions = {at: [prompt.text for prompt in subject.prompts(*at)] for at in SETS}

    # A chat contains its special tokens; a plain text gets those that a tokenizer puts before it.
    leading, is_plain = shared_leading(in_chat, in_base), subject.chat.options.control_tokens == "plain"

    def plain(controls: ControlTokens) -> Ids:
        return {
            at: [[*leading, *controls.encode_text(text, plain=is_plain)] for text in instructions[at]] for at in SETS
        }

    for_base = {"template": {at: [in_base.ids_of(t) for t in chats[at]] for at in SETS}, "plain": plain(in_base)}
    for_chat = {"template": with_template, "plain": plain(in_chat)}
    same = for_base == for_chat
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    largest = max(t for at in SETS for ids in with_template[at] for t in ids)
    if (not same or largest >= vocabulary) and not retokenise:
        outside = f" (its vocabulary has {vocabulary} entries, the chats contain id {largest})"
        raise InputError(
            f"{base.name} and {subject.model.name} tokenise the chats differently"
            f"{outside if largest >= vocabulary else ''}, so the same ids cannot be read in both. Pass --retokenise to "
            "read the same text in the base model's own tokens, at the last token only."
        )
    ids = {form: _ForBoth(for_chat[form], for_chat[form] if same else for_base[form]) for form in for_base}
    return ids, TokenComparison(same, not same, _unusual_tokens(subject, base))


def _unusual_tokens(subject: Subject, base: ChatModel) -> tuple[str, ...]:
    """Template tokens whose embedding in the base model has a norm outside the central 99 %.

    A base model can contain control tokens that were never trained.
    """
    embedding = base.model.get_input_embeddings().weight.detach().float().norm(dim=1)
    low, high = (float(embedding.quantile(q)) for q in (0.005, 0.995))
    template = sorted({t for t in subject.chat.suffix + subject.chat.prefix if t < len(embedding)})
    return tuple(subject.model.tokenizer.decode([t]) for t in template if not low <= float(embedding[t]) <= high)


# -- directions of both models ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Comparison:
    """Directions of both models on one form of the prompts."""

    chat: Residuals
    base: Residuals
    own: Float[Tensor, "layer d_model"] | None
    """The run's own candidates at this position; None: the chat model's directions are fitted here."""
    draws: int
    seed: int

    def layers(self) -> tuple[BaseLayer, ...]:
        """Cosine, AUROC and nulls of every layer."""
        fitted = _differences(self.chat) if self.own is None else self.own
        base_fitted = _differences(self.base)
        return tuple(self._layer(layer, fitted[layer], base_fitted[layer]) for layer in range(fitted.shape[0]))

    def _layer(self, layer: int, fitted: Vector, base_fitted: Vector) -> BaseLayer:
        r, b = (torch.nn.functional.normalize(v, dim=0) for v in (fitted, base_fitted))
        in_base, in_chat = (_test_residuals(residuals, layer) for residuals in (self.base, self.chat))
        cosine, area = float(r @ b), _area(in_base, r)
        return BaseLayer(
            layer=layer,
            cosine=cosine,
            chat_in_base=_auroc(in_base, r),
            base_in_base=_auroc(in_base, b),
            chat_in_chat=_auroc(in_chat, r),
            nulls={family: self._null(family, layer, b, area, cosine) for family in SITE_FAMILIES},
        )

    def _null(self, family: str, layer: int, b: Vector, area: float, cosine: float) -> BaseNull:
        """Null directions of the chat model in the base model: AUROC of the better sign, |cosine| with its own."""
        draw_null = _sampler(family, *(self.chat["train", c][:, layer] for c in LABELS))
        in_base = _test_residuals(self.base, layer)
        areas, cosines = [], []
        for draw in range(self.draws):
            v = torch.nn.functional.normalize(draw_null(generator(self.seed, family, draw)).double(), dim=0)
            null_area = _area(in_base, v)
            areas.append(max(null_area, 1 - null_area))
            cosines.append(abs(float(v @ b)))
        return BaseNull(self.draws, _rank(area, areas), _rank(cosine, cosines))


def _sampler(family: str, positive: Tensor, negative: Tensor) -> Callable[[np.random.Generator], Tensor]:
    """Draws one null direction of a family from the training activations of a layer."""
    match family:
        case "isotropic":
            return lambda rng: isotropic(negative.shape[1], rng)
        case "covariance":
            return lambda rng: covariance(negative, rng)
        case _:
            return lambda rng: shuffled_site(positive, negative, rng)


def _test_residuals(residuals: Residuals, layer: int) -> ByLabel[Float[Tensor, "prompt d_model"]]:
    return ByLabel(*(residuals["test", c][:, layer].double() for c in LABELS))


def _differences(residuals: Residuals) -> Float[Tensor, "layer d_model"]:
    return residuals["train", "positive"].double().mean(0) - residuals["train", "negative"].double().mean(0)


def _area(h: ByLabel[Tensor], r: Vector) -> float:
    return auroc(*((h[c] @ r).numpy() for c in LABELS))


def _auroc(h: ByLabel[Tensor], r: Vector) -> Auroc:
    value, counts = _area(h, r), (len(h.positive), len(h.negative))
    low, high = auroc_interval(value, *counts)
    return Auroc(value, low, high, sum(counts))


def _rank(own: float, draws: Sequence[float]) -> NullRank:
    return NullRank(float(np.mean(draws)), float(np.max(draws)), rank_p(own, draws))


def _finding(condition: BaseCondition, subject: Subject) -> BaseFinding:
    """Whether the chat model's direction separates the classes in the base model, at the selected layer."""
    if subject.direction is None:
        return BaseFinding("undetermined", "no direction was selected")
    row = condition.layers[subject.direction.layer]
    area = row.chat_in_base
    if not is_number(area.value):
        return BaseFinding("undetermined", "the AUROC in the base model was not measured")
    family = max(row.nulls, key=lambda f: row.nulls[f].auroc.p)
    p = row.nulls[family].auroc.p
    numbers = f"AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], rank p {p:.3f} against {family}"
    above_chance, beyond_nulls = area.low > 0.5, p <= 0.05
    if above_chance and beyond_nulls:
        return BaseFinding("separates", numbers)
    return BaseFinding("undetermined" if above_chance or beyond_nulls else "not separated beyond nulls", numbers)
