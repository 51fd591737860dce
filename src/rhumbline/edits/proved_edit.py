"""Proved weight edits: a float32 model and an intervention in, the edited model and the proof of the edit out.

The proof compares the edited with the hooked model on prompts. `exact`: they agree to rounding. `approximate`: nothing
is written along the direction, and the difference is small compared with the effect. Any other edit is an error.
Independent of files.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rhumbline.axes import Residual
from rhumbline.edits.addition_bias import add_constant, plan_addition, with_output_biases
from rhumbline.edits.edit_plan import plan_ablation, untied
from rhumbline.edits.projection import Basis, Plan, carry_out, orthonormal
from rhumbline.errors import EditError
from rhumbline.inference.interventions import Add, Arm, BatchEdits, Direction
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint, forward
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
GAP_SHARE = 0.5
"""Largest mean KL between an approximate edit and the hooks, as a share of the effect of the hooks."""
GAP_FLOOR = 0.01
"""Mean KL, in nats, that is accepted for every effect."""


@dataclass(frozen=True)
class Proof:
    """The measurements of an edit."""

    outcome: EditOutcome
    gap: EditGap
    """In float32, before the weights are rounded to the dtype of the checkpoint."""
    leaks: Mapping[str, float] = field(repr=False)
    """Largest share of the output along the subspace, per writer."""
    prompts: int
    tokens: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edited:
    """A model after an edit in place, in float32, with its proof."""

    chat_model: ChatModel
    """The edited model, with a new proof of its writers."""
    proof: Proof
    plan: Plan | None
    """None for an addition."""
    changed: tuple[str, ...]
    """Names of the edited parameters."""
    untied: bool
    reference: "Reference"


@dataclass(frozen=True)
class Reference:
    """Logits of the hooked model on the prompts, and the effect of the hooks (mean KL to the unedited model, nats)."""

    sequences: tuple[tuple[int, ...], ...]
    hooked: tuple[Tensor, ...] = field(repr=False)
    effect: float


Change = Basis | Add
"""A subspace to orthogonalise against [rank, d_model], or an addition."""


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


def logits_of(chat_model: ChatModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [position, vocab] of each prompt in float32, one prompt per batch."""
    logits = []
    for ids in sequences:
        tokens = torch.tensor([list(ids)], device=chat_model.device)
        with torch.no_grad():
            logits.append(forward(chat_model, tokens, torch.ones_like(tokens), keep=0)[0].float())
    return logits


def probe_rows(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Two rows of prompt tokens, for the search of the writing parameters."""
    ids = [i for s in sequences for i in s]
    n = min(48, len(ids) // 2)
    rows = torch.tensor([ids[:n], ids[-n:]], device=device)
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


def _kl(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def subspace_edits(chat_model: ChatModel, basis: Basis) -> dict[HookPoint, Edit]:
    """Hooks that remove a subspace at every write and from the input of the first block."""

    def edit(h: Residual) -> Residual:
        q = basis.to(device=h.device, dtype=torch.float32)
        x = h.float()
        return (x - (x @ q.T) @ q).to(h.dtype)

    return dict.fromkeys(chat_model.ablation_points, edit)


def _hooks(chat_model: ChatModel, change: Change) -> Mapping[HookPoint, Edit]:
    if isinstance(change, Add):
        rows = torch.zeros(1, dtype=torch.long, device=chat_model.device)
        return BatchEdits.of([Arm("addition", (change,))], chat_model).on(rows)
    return subspace_edits(chat_model, change)


def reference(chat_model: ChatModel, change: Change, prompts: Sequence[str] = PROMPTS) -> Reference:
    """Logits of the hooked model, with which an edited model has to agree."""
    sequences = proof_tokens(chat_model, prompts)
    base = logits_of(chat_model, sequences)
    with hooked(chat_model, _hooks(chat_model, change)):
        logits = logits_of(chat_model, sequences)
    effect = torch.cat([_kl(a, b) for a, b in zip(base, logits, strict=True)])
    return Reference(sequences, tuple(logits), float(effect.mean()))


def writer_leaks(chat_model: ChatModel, basis: Basis, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Largest |Q y| over tokens, divided by the root mean square of |y|, per writer and for the first block input."""
    along: dict[str, float] = {}
    squares: dict[str, list[float]] = {}

    def see(name: str, hidden: Tensor) -> None:
        y = hidden.float().reshape(-1, chat_model.d_model)
        q = basis.to(device=y.device, dtype=torch.float32)
        along[name] = max(along.get(name, 0.0), float((y @ q.T).norm(dim=1).max()))
        squares.setdefault(name, []).append(float(y.square().sum(1).mean()))

    def observer(name: str, module: Any, side: Any = "output") -> Observer:
        def read(args: tuple, kwargs: dict, output: Any) -> None:
            value = (args[0] if args else kwargs["hidden_states"]) if output is None else output
            see(name, value if isinstance(value, Tensor) else value[0])

        return Observer(module, read, side)

    observers = [observer("embedding", chat_model.blocks[0], "input")]
    observers += [
        observer(f"{w.layer}.{w.module}", chat_model.blocks[w.layer].get_submodule(w.module))
        for w in chat_model.writers
    ]
    with observed(observers):
        logits_of(chat_model, sequences)
    return {n: a / max((sum(squares[n]) / len(squares[n])) ** 0.5, 1e-30) for n, a in along.items()}


def measure_gap(chat_model: ChatModel, change: Change, target: Reference) -> tuple[EditGap, dict[str, float]]:
    """Difference between an edited and the hooked model, and the leak of every writer."""
    edited = logits_of(chat_model, target.sequences)
    kl = torch.cat([_kl(a, b) for a, b in zip(target.hooked, edited, strict=True)])
    pairs = list(zip(target.hooked, edited, strict=True))
    leaks = {} if isinstance(change, Add) else writer_leaks(chat_model, change, target.sequences)
    gap = EditGap(
        max(float((a - b).abs().max()) for a, b in pairs),
        max(float(a.abs().max()) for a in target.hooked),
        float(kl.mean().clamp_min(0)),
        float(kl.max()),
        target.effect,
        max(leaks.values(), default=0.0),
    )
    return gap, leaks


# -- the edit ---------------------------------------------------------------------------------------------------------


def check_width(chat_model: ChatModel, vectors: Tensor) -> None:
    """EditError if a direction has another width than the model."""
    if vectors.shape[-1] != chat_model.d_model:
        raise EditError(
            f"the direction has {vectors.shape[-1]} components, but {chat_model.name} has a residual stream of "
            f"{chat_model.d_model}. Nothing was changed; use a direction of this model."
        )


def edit_in_place(chat_model: ChatModel, change: Change, prompts: Sequence[str] = PROMPTS) -> Edited:
    """Edit a float32 model in place and prove the edit; after an EditError the model must be loaded again."""
    refuse_quantised(chat_model.model)
    if chat_model.dtype != torch.float32:
        raise EditError("an edit is computed and proved in float32. Convert the model: model.float().")
    if isinstance(change, Add):
        return _add_in_place(chat_model, change, prompts)
    check_width(chat_model, change)
    target = reference(chat_model, change, prompts)
    was_tied = untied(chat_model.model)
    rows = probe_rows(target.sequences, chat_model.device)
    plan = plan_ablation(chat_model, change, rows)
    plan = better_plan(chat_model, change, target, plan, rows)
    carry_out(chat_model.model, plan)
    gap, leaks = measure_gap(chat_model, change, target)
    proof = _judged(chat_model.name, plan.outcome, gap, leaks, target, plan.reasons)
    return Edited(chat_model, proof, plan, tuple(sorted(e.name for e in plan.edits)), was_tied, target)


def better_plan(
    chat_model: ChatModel, change: Basis, target: Reference, plan: Plan, rows: Mapping[str, Tensor]
) -> Plan:
    """Of the orthogonal and the oblique edit of the input of a norm, the one with the smaller mean KL."""
    if plan.outcome == "exact":
        return plan
    try:
        plans = [plan, plan_ablation(chat_model, change, rows, oblique=True)]
    except EditError:  # the output of a LayerNorm is centred, so it cannot contain the direction itself
        return plan
    parameters = dict(chat_model.model.named_parameters(remove_duplicate=False))
    gaps = []
    for trial in plans:
        kept = {e.name: parameters[e.name].data.clone() for e in trial.edits}
        carry_out(chat_model.model, trial)
        gaps.append(measure_gap(chat_model, change, target)[0].kl)
        for name, value in kept.items():
            parameters[name].data = value
    best = min(range(len(plans)), key=gaps.__getitem__)
    how = ("orthogonally to the gain-weighted direction", "obliquely, along the direction itself")[best]
    note = f"the input of a norm is edited {how} (mean KL {gaps[best]:.2g}; the other edit {gaps[1 - best]:.2g})"
    return replace(plans[best], reasons=(note, *plans[best].reasons))


def _add_in_place(chat_model: ChatModel, change: Add, prompts: Sequence[str]) -> Edited:
    if change.positions != "all":
        raise EditError("an addition at prompt tokens only cannot be saved as weights. Use rhumbline.applied.")
    check_width(chat_model, change.direction.vector)
    target = reference(chat_model, change, prompts)
    layer = change.direction.layer
    rows = probe_rows(target.sequences, chat_model.device)
    was_tied = untied(chat_model.model) if layer == 0 else False
    try:
        bias = plan_addition(chat_model, layer, rows)
    except EditError:
        biased = with_output_biases(chat_model.model)
        if biased is None:
            raise
        chat_model = prove(biased, chat_model.tokenizer, chat_model.name)
        bias = plan_addition(chat_model, layer, rows)
    add_constant(chat_model.model, bias, change.coefficient * change.direction.difference)
    gap, leaks = measure_gap(chat_model, change, target)
    proof = _judged(chat_model.name, "exact", gap, leaks, target, ())
    return Edited(chat_model, proof, None, (bias.name,), was_tied, target)


def _judged(
    name: str,
    outcome: EditOutcome,
    gap: EditGap,
    leaks: Mapping[str, float],
    target: Reference,
    reasons: tuple[str, ...],
) -> Proof:
    if gap.leak > 1e-4:
        worst = max(leaks, key=leaks.__getitem__)
        raise EditError(
            f"{name}: after the edit {worst} still writes along the direction (share {gap.leak:.1e}). Nothing was "
            "saved; use rhumbline.applied instead."
        )
    if outcome == "exact" and not gap.logits <= ROUNDING * max(gap.size, 1.0):
        outcome = "approximate"
        reasons = (f"the logits differ by {gap.logits:.2g}, which is more than rounding", *reasons)
    if outcome == "approximate":
        refuse_large(name, gap)
    tokens = sum(map(len, target.sequences))
    return Proof(outcome, gap, leaks, len(target.sequences), tokens, tuple(dict.fromkeys(reasons)))


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


def orthogonalized(model: Any, direction: Direction | Tensor, prompts: Sequence[str] = PROMPTS) -> Any:
    """A copy of a model (a ChatModel, or any transformers model) that cannot write along a direction, proved.

    `direction` may be a tensor, [d_model] or [rank, d_model]. Raises EditError if the edit cannot be proved.
    """
    vectors = direction.vector if isinstance(direction, Direction) else direction
    basis = orthonormal(vectors if vectors.ndim == 2 else vectors[None])
    original = model.model if isinstance(model, ChatModel) else model
    refuse_quantised(original)
    twin = copy.deepcopy(original)
    dtypes = dtypes_of(twin)
    name = model.name if isinstance(model, ChatModel) else type(model).__name__
    tokenizer = model.tokenizer if isinstance(model, ChatModel) else None
    edited = edit_in_place(prove(twin.float(), tokenizer, name), basis, prompts)
    cast_back(twin, dtypes)
    return edited.chat_model if isinstance(model, ChatModel) else twin


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    """The dtype of every parameter and buffer."""
    return {n: t.dtype for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}


def cast_back(model: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Convert every parameter and buffer to its previous dtype; a head that was untied gets that of the embedding."""
    embedding = model.get_input_embeddings().weight
    usual = next((dtypes[n] for n, p in model.named_parameters() if p is embedding and n in dtypes), torch.float32)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, usual))
    model.config.dtype = usual
