"""Proved weight edits: edit a float32 model in place, and compare it with the hooked model on prompts.

The outcome is `exact` if both agree to rounding. It is `approximate` if nothing is written along the direction and the
difference is small compared with the effect. Any other edit raises EditError. Independent of files.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.arguments import checked
from rhumbline.axes import Residual, Vector
from rhumbline.edits.edit_plan import add_constant, plan_ablation, plan_addition, untie, with_output_biases
from rhumbline.edits.probe import hidden_states
from rhumbline.edits.projection import Basis, EditPlan, carry_out, orthonormal, parameters_of
from rhumbline.errors import EditError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Add, Arm, Direction
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint, TransformersModel, forward
from rhumbline.models.hooks import Observer, hooked, observed
from rhumbline.models.proving import prove
from rhumbline.records.edit_file import EditGap, EditOutcome

PROMPTS = (
    "Write a short note that thanks a neighbour for lending a ladder.",
    "Which is further north, Lisbon or Naples?",
    "Explain in two sentences why the sky is blue.",
    "List three things to check before a long drive.",
    "How do I boil an egg so that the yolk stays soft?",
    "Translate 'good morning' into Spanish and French.",
)
"""Default prompts of a proof."""
ROUNDING = 1e-4
"""Largest difference of the logits of an exact edit, as a share of the largest logit, in float32."""
GAP_SHARE, GAP_FLOOR = 0.5, 0.01
"""Largest mean KL between an approximate edit and the hooks: a share of the effect of the hooks, or at least so many
nats."""
LEAK = 1e-4
"""Largest share of a writer's output along the subspace after an edit in float32."""

Change = Basis | Add
"""A subspace to orthogonalise against [rank, d_model], or an addition."""


@dataclass(frozen=True)
class Reference:
    """Logits of the hooked model on the prompts, and the effect of the hooks (mean KL to the unedited model, nats)."""

    sequences: tuple[tuple[int, ...], ...]
    hooked: tuple[Tensor, ...] = field(repr=False)
    effect: float


@dataclass(frozen=True)
class Edited:
    """A model after an edit in place, in float32, and the measurements of the proof."""

    chat_model: ChatModel
    """The edited model, with a new proof of its writers."""
    outcome: EditOutcome
    reasons: tuple[str, ...]
    """Why the outcome is approximate."""
    gap: EditGap
    """In float32, before the weights are rounded to the dtype of the checkpoint."""
    leaks: Mapping[str, float] = field(repr=False)
    """Largest share of the output along the subspace, per writer."""
    changed: tuple[str, ...]
    """Names of the edited parameters."""
    inferred: tuple[str, ...]
    """Those of them that no token of the probe reached."""
    untied: bool
    reference: Reference


# -- prompts and logits -----------------------------------------------------------------------------------------------


def proof_tokens(chat_model: ChatModel, prompts: Sequence[str] = PROMPTS) -> tuple[tuple[int, ...], ...]:
    """Token ids of the prompts, as chats if the tokenizer has a template; random ids without a tokenizer."""
    vocab, tokenizer = chat_model.model.get_input_embeddings().weight.shape[0], chat_model.tokenizer
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return tuple(tuple(torch.randint(1, vocab, (24,), generator=generator).tolist()) for _ in prompts)
    sequences = []
    for prompt in prompts:
        text = prompt
        if getattr(tokenizer, "chat_template", None):
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = [i for i in tokenizer(text, add_special_tokens=text is prompt)["input_ids"] if i < vocab]
        sequences.append(tuple(ids[:128]))
    return tuple(s for s in sequences if s)


def probe_rows(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Two rows of prompt tokens, for the search of the writing parameters."""
    ids = [i for s in sequences for i in s]
    n = min(48, len(ids) // 2)
    rows = torch.tensor([ids[:n], ids[-n:]], device=device)
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


def logits_of(chat_model: ChatModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [position, vocab] of each prompt in float32, one prompt per batch."""
    logits = []
    for ids in sequences:
        tokens = torch.tensor([list(ids)], device=chat_model.device)
        with torch.no_grad():
            logits.append(forward(chat_model, tokens, torch.ones_like(tokens), keep=0)[0].float())
    return logits


def _kl(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """KL divergence of every token of the prompts, nats."""
    pairs = [(x.double().log_softmax(-1), y.double().log_softmax(-1)) for x, y in zip(a, b, strict=True)]
    return torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs])


def subspace_edits(chat_model: ChatModel, basis: Basis) -> dict[HookPoint, Edit]:
    """Hooks that remove a subspace from the output of every writer and from the input of the first block."""

    def edit(h: Residual) -> Residual:
        q = basis.to(device=h.device, dtype=torch.float32)
        x = h.float()
        return (x - (x @ q.T) @ q).to(h.dtype)

    return dict.fromkeys(chat_model.ablation_points, edit)


def reference(chat_model: ChatModel, change: Change, prompts: Sequence[str] = PROMPTS) -> Reference:
    """Logits of the hooked model, with which an edited model has to agree."""
    if isinstance(change, Add):
        row = torch.zeros(1, dtype=torch.long, device=chat_model.device)
        hooks = BatchEdits.of([Arm("addition", (change,))], chat_model).on(row)
    else:
        hooks = subspace_edits(chat_model, change)
    sequences = proof_tokens(chat_model, prompts)
    base = logits_of(chat_model, sequences)
    with hooked(chat_model, hooks):
        logits = logits_of(chat_model, sequences)
    return Reference(sequences, tuple(logits), float(_kl(base, logits).mean()))


def writer_leaks(chat_model: ChatModel, basis: Basis, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Largest |Q y| over tokens, divided by the root mean square of |y|, per writer and for the first block input."""
    along: dict[str, float] = {}
    squares: dict[str, list[float]] = {}

    def observer(name: str, module: Any, side: Any = "output") -> Observer:
        def read(args: tuple, kwargs: dict, output: Any) -> None:
            hidden = hidden_states(args, kwargs, output)
            assert hidden is not None
            y = hidden.float().reshape(-1, chat_model.d_model)
            q = basis.to(device=y.device, dtype=torch.float32)
            along[name] = max(along.get(name, 0.0), float((y @ q.T).norm(dim=1).max()))
            squares.setdefault(name, []).append(float(y.square().sum(1).mean()))

        return Observer(module, read, side)

    observers = [observer("embedding", chat_model.blocks[0], "input")]
    for w in chat_model.writers:
        observers.append(observer(f"{w.layer}.{w.module}", chat_model.blocks[w.layer].get_submodule(w.module)))
    with observed(observers):
        logits_of(chat_model, sequences)
    return {n: a / max((sum(squares[n]) / len(squares[n])) ** 0.5, 1e-30) for n, a in along.items()}


def measure_gap(chat_model: ChatModel, change: Change, target: Reference) -> tuple[EditGap, dict[str, float]]:
    """Difference between an edited and the hooked model, and the leak of every writer."""
    edited = logits_of(chat_model, target.sequences)
    kl = _kl(target.hooked, edited)
    leaks = {} if isinstance(change, Add) else writer_leaks(chat_model, change, target.sequences)
    gap = EditGap(
        max(float((a - b).abs().max()) for a, b in zip(target.hooked, edited, strict=True)),
        max(float(a.abs().max()) for a in target.hooked),
        float(kl.mean().clamp_min(0)),
        float(kl.max()),
        target.effect,
        max(leaks.values(), default=0.0),
    )
    return gap, leaks


# -- the edit ---------------------------------------------------------------------------------------------------------


def check_width(vectors: Tensor, width: int, name: str) -> None:
    """EditError if a direction has another width than the model `name`."""
    if vectors.shape[-1] != width:
        raise EditError(
            f"the direction has {vectors.shape[-1]} components, but {name} has a residual stream of {width}. Nothing "
            "was changed; use a direction of this model."
        )


def edit_in_place(chat_model: ChatModel, change: Change, prompts: Sequence[str] = PROMPTS) -> Edited:
    """Edit a float32 model in place and prove the edit; after an EditError the model must be loaded again."""
    refuse_quantised(chat_model.model)
    if chat_model.dtype != torch.float32:
        raise EditError("an edit is computed and proved in float32. Convert the model: model.float().")
    if isinstance(change, Add) and change.positions != "all":
        raise EditError("an addition at prompt tokens only cannot be saved as weights. Use rhumbline.applied.")
    vectors = change.direction.vector if isinstance(change, Add) else change
    check_width(vectors, chat_model.d_model, chat_model.name)
    target = reference(chat_model, change, prompts)
    if isinstance(change, Add):
        is_tied = untie(chat_model.model) if change.direction.layer == 0 else False
        chat_model, name = _add_in_place(chat_model, change, target)
        plan, changed = EditPlan("exact", ()), (name,)
    else:
        is_tied = untie(chat_model.model)
        plan = best_plan(chat_model, change, target)
        carry_out(chat_model.model, plan)
        changed = tuple(sorted(edit.name for edit in plan.edits))
    gap, leaks = measure_gap(chat_model, change, target)
    outcome, reasons = _judge(chat_model.name, plan, gap, leaks)
    inferred = tuple(edit.name for edit in plan.edits if edit.inferred)
    return Edited(chat_model, outcome, reasons, gap, leaks, changed, inferred, is_tied, target)


def best_plan(chat_model: ChatModel, basis: Basis, target: Reference) -> EditPlan:
    """The plan of an untied model. Of the orthogonal and the oblique edit of a norm, that with the smaller mean KL."""
    rows = probe_rows(target.sequences, chat_model.device)
    plan = plan_ablation(chat_model, basis, rows)
    if plan.outcome == "exact":
        return plan
    try:
        plans = [plan, plan_ablation(chat_model, basis, rows, oblique=True)]
    except EditError:  # the output of a LayerNorm is centred, so it cannot contain the direction itself
        return plan
    parameters = parameters_of(chat_model.model)
    gaps = []
    for trial in plans:
        kept = {e.name: parameters[e.name].data.clone() for e in trial.edits}
        carry_out(chat_model.model, trial)
        gaps.append(measure_gap(chat_model, basis, target)[0].kl)
        for name, value in kept.items():
            parameters[name].data = value
    best = min(range(len(plans)), key=gaps.__getitem__)
    how = ("orthogonally to the gain-weighted direction", "obliquely, along the direction itself")[best]
    note = f"the input of a norm is edited {how} (mean KL {gaps[best]:.2g}; the other edit {gaps[1 - best]:.2g})"
    return replace(plans[best], reasons=(note, *plans[best].reasons))


def _add_in_place(chat_model: ChatModel, change: Add, target: Reference) -> tuple[ChatModel, str]:
    """The model with the addition in a bias, and the name of the bias."""
    layer, rows = change.direction.layer, probe_rows(target.sequences, chat_model.device)
    try:
        bias = plan_addition(chat_model, layer, rows)
    except EditError:
        biased = with_output_biases(chat_model.model)
        if biased is None:
            raise
        chat_model = prove(biased, chat_model.tokenizer, chat_model.name)
        bias = plan_addition(chat_model, layer, rows)
    add_constant(chat_model.model, bias, change.coefficient * change.direction.difference)
    return chat_model, bias.name


def _judge(name: str, plan: EditPlan, gap: EditGap, leaks: Mapping[str, float]) -> tuple[EditOutcome, tuple[str, ...]]:
    """The outcome of an edit with the reasons for it; EditError if the edit is not proved."""
    if gap.leak > LEAK:
        worst = max(leaks, key=leaks.__getitem__)
        raise EditError(
            f"{name}: after the edit {worst} still writes along the direction (share {gap.leak:.1e}). Nothing was "
            "saved; use rhumbline.applied instead."
        )
    outcome, reasons = plan.outcome, plan.reasons
    if outcome == "exact" and not gap.logits <= ROUNDING * max(gap.size, 1.0):
        outcome = "approximate"
        reasons = (f"the logits differ by {gap.logits:.2g}, which is more than rounding", *reasons)
    if outcome == "approximate":
        refuse_large(name, gap)
    return outcome, tuple(dict.fromkeys(reasons))


def refuse_large(name: str, gap: EditGap) -> None:
    """EditError if an edited model differs too much from the hooked one."""
    allowed = max(GAP_FLOOR, GAP_SHARE * gap.effect)
    if not gap.kl <= allowed:
        raise EditError(
            f"{name}: the edited model differs from the hooked one by mean KL {gap.kl:.3g} nats, allowed {allowed:.3g} "
            f"(effect of the intervention: {gap.effect:.3g}). Nothing was saved; use rhumbline.applied instead."
        )


def refuse_quantised(model: Any) -> None:
    """EditError if the weights are quantised, because their values cannot be set."""
    config = getattr(model.config, "quantization_config", None)
    if config is not None or getattr(model, "is_quantized", False):
        method = getattr(config, "quant_method", None) or (config or {}).get("quant_method", "an unknown method")
        raise EditError(
            f"the weights are quantised ({getattr(method, 'value', method)}), and a quantised matrix cannot be edited "
            "exactly. Edit the original checkpoint and quantise the result, or pass --dequantize. Runs and "
            "rhumbline.applied work with quantised weights."
        )


@checked
def orthogonalized(
    model: ChatModel | TransformersModel,
    direction: Direction | Vector | Float[Tensor, "rank d_model"],
    prompts: Sequence[str] = PROMPTS,
) -> Any:
    """A copy of a model (a ChatModel, or any transformers model) that cannot write along a direction, proved.

    `direction` can be a tensor, [d_model] or [rank, d_model]. Raises EditError if the edit cannot be proved.
    """
    vectors = direction.vector if isinstance(direction, Direction) else direction
    basis = orthonormal(vectors if vectors.ndim == 2 else vectors[None])
    is_chat_model = isinstance(model, ChatModel)
    original = model.model if is_chat_model else model
    refuse_quantised(original)
    twin = copy.deepcopy(original)
    dtypes = dtypes_of(twin)
    name, tokenizer = (model.name, model.tokenizer) if is_chat_model else (type(model).__name__, None)
    edited = edit_in_place(prove(twin.float(), tokenizer, name), basis, prompts)
    cast_back(twin, dtypes)
    return edited.chat_model if is_chat_model else twin


def tensors_of(model: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name."""
    return {**parameters_of(model), **dict(model.named_buffers())}


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    """The dtype of every parameter and buffer."""
    return {name: tensor.dtype for name, tensor in tensors_of(model).items()}


def cast_back(model: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Convert every parameter and buffer to its previous dtype; a head that was untied gets that of the embedding."""
    embedding = model.get_input_embeddings().weight
    usual = next((dtypes[n] for n, p in model.named_parameters() if p is embedding and n in dtypes), torch.float32)
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, usual))
    model.config.dtype = usual
