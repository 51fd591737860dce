"""Prove the residual writers of a loaded model: a transformers model in, a `ChatModel` with its proof out.

A first probe forward pass finds the submodules whose outputs sum to (block output - block input). A second one ablates
a random direction at them and measures what remains of it in the whole stream. Further passes test padding, packing
and the cache. A model whose writers cannot be proved is refused, or run in the coarse mode on request.

Independent of model families: no name of a family or of a module occurs here.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.arguments import checked
from rhumbline.axes import Residual
from rhumbline.errors import ModelError
from rhumbline.models.chat_model import ChatModel, Proof, TransformersModel, Writer
from rhumbline.models.exact_lengths import longest_pack, longest_proved
from rhumbline.models.forward_check import check_forward, first_pass
from rhumbline.models.hooks import Trace, hooked
from rhumbline.models.pass_checks import (
    ablation,
    cache_is_exact,
    check_packing,
    needed,
    padding_changes,
    random_direction,
)
from rhumbline.models.vocabulary import TEXT, check_vocabulary

PROBE_TOKENS = 16
"""Tokens of the probe, of which at least half are distinct, unless the vocabulary has fewer."""


# -- blocks and writers -----------------------------------------------------------------------------------------------


def decoder_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its dotted name: the one ModuleList with as many modules as the config's depth."""
    depth = model.config.get_text_config().num_hidden_layers
    if depth < 1:
        raise ModelError(f"{type(model).__name__}: its config has num_hidden_layers = {depth}; expected 1 or more.")
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    inside = {name: m for name, m in lists.items() if any(m is other for other in decoder.modules())} or lists
    # A list inside a block, such as one of experts, can have the same length by chance: the outermost is the decoder's.
    outer = {n: m for n, m in inside.items() if not any(n != o and n.startswith(f"{o}.") for o in inside)}
    if len(outer) != 1:
        raise ModelError(
            f"{type(model).__name__}: expected one list of {depth} blocks in the text decoder, found "
            f"{sorted(outer) or 'none'}. Use a decoder-only model whose blocks are one ModuleList."
        )
    return next(iter(outer.items()))


def _distinct(trace: Trace) -> dict[tuple[str, ...], Float[Tensor, " element"]]:
    """Submodule outputs of the size of the residual stream, grouped by value; the names of a group innermost first.

    Outputs of zero are left out: they are equal without being the same.
    """
    groups: list[tuple[list[str], Tensor]] = []
    for name, output in trace.outputs.items():
        if output.numel() != trace.before.numel() or output.shape[-1] != trace.before.shape[-1]:
            continue
        values = output.reshape(trace.before.shape)
        if torch.equal(values, trace.before) or torch.equal(values, trace.after) or not values.any():
            continue
        for names, known in groups:
            if torch.equal(known, values):
                names.append(name)
                break
        else:
            groups.append(([name], values))
    return {tuple(names): values.double().flatten() for names, values in groups}


class _Decomposition(NamedTuple):
    """A block output as a sum: after = carry * before + scale * (outputs of some submodules)."""

    names: tuple[tuple[str, ...], ...]
    """For each of these outputs, the submodules that returned it."""
    carry: float
    scale: float
    error: float
    """Largest absolute residual over the sum of the absolute terms."""


def _sum_error(after: Tensor, terms: Sequence[Tensor], carry: float, scale: float) -> float:
    scaled = [carry * terms[0], *(scale * t for t in terms[1:])]
    size = torch.stack([t.abs() for t in scaled]).sum(0)
    return float(((after - torch.stack(scaled).sum(0)).abs() / size.clamp_min(1e-30)).max())


def _decompose(trace: Trace) -> _Decomposition | None:
    """The outputs with after = carry * before + scale * sum, within rounding of the model's dtype; None if none fit.

    A smaller set is preferred unless a larger one leaves much less: at 16 bits a small write can be below the rounding.
    """
    before, after = trace.before.double().flatten(), trace.after.double().flatten()
    groups = _distinct(trace)
    names = list(groups)
    values = torch.stack([before, after, *groups.values()])
    gram = (values @ values.T).cpu()
    best: _Decomposition | None = None
    least = float("inf")
    if (error := _sum_error(after, [before], 1.0, 1.0)) <= _bound(trace):
        best, least = _Decomposition((), 1.0, 1.0, error), float((after - before) @ (after - before))
    for size in range(1, min(4, len(names)) + 1):
        if size == 4 and best is not None:
            break
        for subset in itertools.combinations(range(len(names)), size):
            carry, scale, rest_squared = _fit(gram, [i + 2 for i in subset])
            if rest_squared > 1e-3 * float(gram[1, 1]):
                continue
            terms = [before, *(values[i + 2] for i in subset)]
            rest = after - carry * before - scale * torch.stack(terms[1:]).sum(0)
            squares = float(rest @ rest)
            error = _sum_error(after, terms, carry, scale)
            if error <= _bound(trace) and squares < 0.25 * least:
                best, least = _Decomposition(tuple(names[i] for i in subset), carry, scale, error), squares
    return best


def _fit(gram: Float[Tensor, "vector vector"], subset: list[int]) -> tuple[float, float, float]:
    """Least squares of `after` on (before, sum of the subset), from the Gram matrix of (before, after, outputs...).

    Returns both coefficients and the squared norm of the residual. Coefficients close to 1 are set to 1.
    """
    total = gram[subset][:, subset].sum()
    cross = gram[0, subset].sum()
    a = torch.stack([torch.stack([gram[0, 0], cross]), torch.stack([cross, total])])
    b = torch.stack([gram[0, 1], gram[subset, 1].sum()])
    exact = gram[1, 1] + gram[0, 0] + total - 2 * (gram[0, 1] + gram[subset, 1].sum() - cross)
    if float(exact) <= 1e-4 * float(gram[1, 1] + gram[0, 0]):
        return 1.0, 1.0, float(exact)
    solution = torch.linalg.lstsq(a, b).solution
    rest = float(gram[1, 1] - b @ solution)
    return float(solution[0]), float(solution[1]), rest


class _Writers(NamedTuple):
    """The decompositions of all blocks."""

    writers: tuple[Writer, ...]
    errors: tuple[float, ...]
    carries: tuple[float, ...]
    faults: tuple[str, ...]
    """One for each block that no sum explains."""


def _find_writers(traces: Sequence[Trace]) -> _Writers:
    writers: list[list[Writer]] = [[] for _ in traces]
    errors, carries, faults = [], [], []
    sums: dict[int, _Decomposition] = {}
    for layer, trace in enumerate(traces):
        if trace.before.ndim != 3:
            faults.append(f"layer {layer}: the residual has shape {tuple(trace.before.shape)}, expected 3 axes")
            continue
        sum_of = _decompose(trace)
        if sum_of is None:
            faults.append(f"layer {layer}: no set of submodule outputs sums to (output - input){_post_norm(trace)}")
            continue
        sums[layer] = sum_of
        errors.append(sum_of.error)
        carries.append(sum_of.carry)
        for names in sum_of.names:
            # A hook needs separate rows: prefer the innermost alias that returns [row, position, d_model].
            shaped = [n for n in names if trace.outputs[n].shape == trace.before.shape]
            hooked_name = _outermost_wrapper((shaped or names)[0], shaped or names, trace)
            writers[layer].append(Writer(layer, hooked_name, names, sum_of.scale, flat=not shaped))
    known = {w.module: w for some in writers for w in some}
    for layer, sum_of in sums.items():
        writers[layer] += _negligible(layer, traces[layer], sum_of, writers[layer], known)
    return _Writers(tuple(w for some in writers for w in some), tuple(errors), tuple(carries), tuple(faults))


def _outermost_wrapper(name: str, aliases: Sequence[str], trace: Trace) -> str:
    """The outermost submodule that passes its input to the submodule `name` and returns the same output, or `name`.

    An adapter that adds nothing in the probe is such a wrapper; once it adds, its output is what is written.
    """
    around = [a for a in aliases if name.startswith(f"{a}.") and trace.inputs.get(a, 0) == trace.inputs.get(name)]
    return min(around, key=len, default=name)


def _negligible(
    layer: int, trace: Trace, sum_of: _Decomposition, writers: Sequence[Writer], known: Mapping[str, Writer]
) -> list[Writer]:
    """The writers of other blocks whose outputs in this block are too small for the probe to find.

    Other prompts, or an ablation, can make them write. One that does not write into the stream does not fit the sum.
    """
    before, after = trace.before.double().flatten(), trace.after.double().flatten()
    terms = [before, *(trace.outputs[w.module].double().flatten() for w in writers)]
    aliases = {alias for w in writers for alias in w.aliases}
    found = []
    for name, writer in known.items():
        output = trace.outputs.get(name)
        if name in aliases or output is None or output.numel() != before.numel():
            continue
        with_it = [*terms, output.double().flatten()]
        if _sum_error(after, with_it, sum_of.carry, sum_of.scale) <= _bound(trace):
            terms = with_it
            found.append(replace(writer, layer=layer, scale=sum_of.scale, flat=output.shape != trace.before.shape))
    return found


def _bound(trace: Trace) -> float:
    """Largest error of a sum: rounding of the model's dtype."""
    return 6 * torch.finfo(trace.before.dtype).eps


def _post_norm(trace: Trace) -> str:
    """Why a block is not a sum: one submodule, such as a norm, computes its output from the whole stream."""
    same = [n for n, o in trace.outputs.items() if o.shape == trace.after.shape and torch.equal(o, trace.after)]
    return f"; {same[0]} computes the output from the whole stream" if same else ""


# -- the proof --------------------------------------------------------------------------------------------------------


@checked
def prove(model: TransformersModel, tokenizer: Any, name: str, *, coarse: bool = False) -> ChatModel:
    """Find and prove the residual writers of a loaded model. ModelError lists the layers that could not be proved.

    With `coarse=True` such a model is edited at block inputs and outputs instead, and its proof states so.
    """
    model.eval()
    blocks_name, blocks = decoder_blocks(model)
    if tokenizer is not None:
        check_vocabulary(name, model, tokenizer)
    inputs = probe_inputs(model, tokenizer)
    traces, logits = first_pass(name, model, list(blocks), inputs)
    check_forward(name, traces, logits)
    found = _find_writers(traces)
    has_rows = all(t.before.ndim == 3 for t in traces)
    if found.faults and not (coarse and has_rows):
        more = f"\n  ... and {len(found.faults) - 8} more" if len(found.faults) > 8 else ""
        advice = "Use --coarse to edit block inputs and outputs instead." if has_rows else ""
        raise ModelError(
            f"{name} ({type(model).__name__}): the residual stream is not a sum of submodule outputs:\n  "
            + "\n  ".join(found.faults[:8])
            + f"{more}\n{advice}"
        )
    proof = Proof(
        mode="coarse" if found.faults else "exact",
        sum_error=found.errors,
        carry=found.carries,
        leak=0.0,
        leak_bound=0.0,
        padding_changes_logits=False,
        packing_is_exact=False,
        last_block_can_be_pruned=False,
        cache_is_exact=False,
        note="; ".join(found.faults[:3]),
    )
    keywords = frozenset(inspect.signature(model.forward).parameters)
    proposal = ChatModel(model, tokenizer, name, tuple(blocks), blocks_name, found.writers, proof, keywords)
    return _proved(proposal, inputs, coarse)


def probe_inputs(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Arguments of the probe forward pass: two rows of token ids, a sentence and the same reversed.

    A sentence of which the tokenizer knows few words is replaced by tokens of the whole vocabulary: at equal tokens
    every position has the same logits.
    """
    embedding = model.get_input_embeddings().weight
    ids = [] if tokenizer is None else tokenizer(TEXT, add_special_tokens=False)["input_ids"][:PROBE_TOKENS]
    if len(set(ids)) < PROBE_TOKENS // 2:
        ids = [(2 * i + 1) * len(embedding) // (2 * PROBE_TOKENS) for i in range(PROBE_TOKENS)]
    rows = torch.tensor([ids, ids[::-1]], device="cpu" if embedding.device.type == "meta" else embedding.device)
    off = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows), **off}


def _proved(proposal: ChatModel, inputs: Mapping[str, Any], coarse: bool) -> ChatModel:
    """The functional part of the proof: ablation, padding, packing, pruning of the last block, and the cache."""
    leak, probe = _leak(proposal, inputs), inputs["input_ids"]
    # Each write is rounded again, so the leak is of the order of the dtype's rounding error; it is read in float32.
    bound = max(1e-5, 4 * torch.finfo(proposal.dtype).eps)
    if leak > bound and proposal.proof.mode == "exact":
        fault = (
            f"with a random direction ablated at every residual writer, |r.x|/|x| is still {leak:.2e} (allowed "
            f"{bound:.0e}). Another submodule writes into the stream"
        )
        if not coarse:
            raise ModelError(f"{proposal.name}: {fault}. Use --coarse to run it.")
        proposal = _with_proof(proposal, mode="coarse", note=fault)
        leak = _leak(proposal, inputs)
    known = _with_proof(proposal, leak=leak, leak_bound=bound, padding_changes_logits=padding_changes(proposal, probe))
    # Packing can be exact without pruning: gpt2 reshapes to the length of its input, which pruning changes.
    options = (_with_proof(known, last_block_can_be_pruned=True), known)
    tests = ((m, check_packing(m, probe)) for m in options)
    best, packing = next(((m, test) for m, test in tests if test.is_exact), (known, None))
    config = proposal.model.config.get_text_config(decoder=True)
    return _with_proof(
        best,
        packing_is_exact=packing is not None,
        cache_is_exact=cache_is_exact(known, probe),
        longest_proved=longest_proved(config, window_is_read=packing is None or packing.window_is_read),
        longest_pack=longest_pack(config),
    )


def _with_proof(chat_model: ChatModel, **changes: Any) -> ChatModel:
    return replace(chat_model, proof=replace(chat_model.proof, **changes))


def _leak(chat_model: ChatModel, inputs: Mapping[str, Any]) -> float:
    """Largest |r.x| / |x| over all block inputs and the final state while a random direction r is ablated."""
    r = random_direction(chat_model)
    worst = 0.0

    def watch(layer: int, h: Residual) -> None:
        del layer
        nonlocal worst
        x = h.float()
        share = (x @ r.to(h.device)).abs() / x.norm(dim=-1).clamp_min(1e-30)
        worst = max(worst, float(share.max()))

    edits = dict.fromkeys(chat_model.ablation_points, ablation(r))
    with torch.no_grad(), hooked(chat_model, edits, watch), needed(chat_model):
        chat_model.model(**inputs)
    return worst
