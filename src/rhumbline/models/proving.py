"""A loaded model in, a `ChatModel` with a proved residual stream out: the writers are proved, not tabulated.

One probe forward finds the submodules whose outputs sum to (layer output - layer input). A second one, with a random
direction ablated at them, shows that the whole stream is orthogonal to it. Further ones show whether padding and the
cache change anything. A model that cannot be explained is refused, or run in the coarse mode when that was asked for.

Knows no family by name.
"""

import inspect
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rhumbline.axes import Residual
from rhumbline.errors import ModelError
from rhumbline.models.chat_model import ChatModel, Edit, Mode, Proof, Writer, forward, fresh_cache
from rhumbline.models.hooks import Trace, hooked, resumed, run_until, trace_layers
from rhumbline.models.packing import attention_of, pack, packed_forward

log = logging.getLogger("rhumbline")


def decoder_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's one list of as many blocks as the config says the model is deep, and its dotted name."""
    depth = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    inside = {name: m for name, m in found.items() if any(m is other for other in decoder.modules())} or found
    # Lists nested in a block (experts, say) can have the same length by chance: the outermost is the decoder's.
    outer = {n: m for n, m in inside.items() if not any(n != o and n.startswith(f"{o}.") for o in inside)}
    if len(outer) != 1:
        raise ModelError(
            f"{type(model).__name__}: expected one list of {depth} blocks in the text decoder, found "
            f"{sorted(outer) or 'none'}. rhumbline handles decoder-only models whose blocks are one ModuleList."
        )
    return next(iter(outer.items()))


def _distinct(trace: Trace) -> dict[tuple[str, ...], Tensor]:
    """Submodule outputs of the residual's size, grouped by value; the names finish innermost first."""
    groups: list[tuple[list[str], Tensor]] = []
    for name, output in trace.outputs.items():
        if output.numel() != trace.before.numel() or output.shape[-1] != trace.before.shape[-1]:
            continue
        values = output.reshape(trace.before.shape)
        if torch.equal(values, trace.before) or torch.equal(values, trace.after):
            continue
        for names, known in groups:
            if torch.equal(known, values):
                names.append(name)
                break
        else:
            groups.append(([name], values))
    return {tuple(names): values.double().flatten() for names, values in groups}


class _Explanation(NamedTuple):
    names: tuple[tuple[str, ...], ...]
    carry: float
    scale: float
    error: float


def _sum_error(after: Tensor, terms: Sequence[Tensor], carry: float, scale: float) -> float:
    scaled = [carry * terms[0], *(scale * t for t in terms[1:])]
    size = torch.stack([t.abs() for t in scaled]).sum(0)
    return float(((after - torch.stack(scaled).sum(0)).abs() / size.clamp_min(1e-30)).max())


def _explain(trace: Trace) -> _Explanation | None:
    """The set of outputs with after = carry * before + scale * sum, within rounding of the model's dtype.

    A smaller set wins unless a larger one leaves much less: at 16 bits a small write can hide in the rounding.
    """
    before, after = trace.before.double().flatten(), trace.after.double().flatten()
    groups = _distinct(trace)
    bound = 6 * torch.finfo(trace.before.dtype).eps
    names = list(groups)
    values = torch.stack([before, after, *groups.values()])
    gram = (values @ values.T).cpu()
    best: _Explanation | None = None
    least = float("inf")
    for size in range(1, min(4, len(names)) + 1):
        if size == 4 and best is not None:
            break
        for chosen in itertools.combinations(range(len(names)), size):
            carry, scale, left = _fit(gram, [i + 2 for i in chosen])
            if left > 1e-3 * float(gram[1, 1]):
                continue
            terms = [before, *(values[i + 2] for i in chosen)]
            rest = after - carry * before - scale * torch.stack(terms[1:]).sum(0)
            squares = float(rest @ rest)
            error = _sum_error(after, terms, carry, scale)
            if error <= bound and squares < 0.25 * least:
                best, least = _Explanation(tuple(names[i] for i in chosen), carry, scale, error), squares
    return best


def _fit(gram: Tensor, chosen: list[int]) -> tuple[float, float, float]:
    """Least squares of `after` on (before, sum of chosen) from the Gram matrix; coefficients near 1 become 1."""
    total = gram[chosen][:, chosen].sum()
    cross = gram[0, chosen].sum()
    a = torch.stack([torch.stack([gram[0, 0], cross]), torch.stack([cross, total])])
    b = torch.stack([gram[0, 1], gram[chosen, 1].sum()])
    exact = gram[1, 1] + gram[0, 0] + total - 2 * (gram[0, 1] + gram[chosen, 1].sum() - cross)
    if float(exact) <= 1e-4 * float(gram[1, 1] + gram[0, 0]):
        return 1.0, 1.0, float(exact)
    solution = torch.linalg.lstsq(a, b).solution
    left = float(gram[1, 1] - b @ solution)
    return float(solution[0]), float(solution[1]), left


def _writers(traces: Sequence[Trace]) -> tuple[list[Writer], list[float], list[float], list[str]]:
    writers: list[Writer] = []
    errors, carries, faults = [], [], []
    for layer, trace in enumerate(traces):
        if trace.before.ndim != 3:
            faults.append(f"layer {layer}: the residual has shape {tuple(trace.before.shape)}, expected 3 axes")
            continue
        found = _explain(trace)
        if found is None:
            faults.append(f"layer {layer}: no set of submodule outputs sums to (output - input){_ending(trace)}")
            continue
        errors.append(found.error)
        carries.append(found.carry)
        for names in found.names:
            # The hook needs rows apart: prefer the innermost alias that returns [row, position, d_model].
            shaped = [n for n in names if trace.outputs[n].shape == trace.before.shape]
            writers.append(Writer(layer, (shaped or names)[0], names, found.scale, flat=not shaped))
    return writers, errors, carries, faults


def _ending(trace: Trace) -> str:
    """Why a block may not be a sum: its output is what one submodule made of the whole stream (a post-norm, say)."""
    same = [n for n, o in trace.outputs.items() if o.shape == trace.after.shape and torch.equal(o, trace.after)]
    return f"; its output is what {same[0]} returned, of the whole stream" if same else ""


def _probe_inputs(model: Any, tokenizer: Any) -> dict[str, Any]:
    text = "The ship left the harbour at dawn and held one bearing all day long, whatever the wind did."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer is not None else []
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = ([i for i in ids if i < vocab] or list(range(1, 17)))[:16]
    device = model.get_input_embeddings().weight.device
    rows = torch.tensor([ids, ids[::-1]], device="cpu" if device.type == "meta" else device)
    off = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows), **off}


def prove(model: Any, tokenizer: Any, name: str, *, coarse: bool = False) -> ChatModel:
    """Find and prove the residual writers of a loaded model; ModelError says which layers stay unexplained.

    With `coarse=True` a model that stays unexplained is run at block inputs and outputs instead, and its proof says so.
    """
    model.eval()
    blocks_name, blocks = decoder_blocks(model)
    inputs = _probe_inputs(model, tokenizer)
    traces = trace_layers(model, list(blocks), inputs)
    writers, errors, carries, faults = _writers(traces)
    shape = {tuple(t.before.shape) for t in traces}
    if faults and not (coarse and all(len(s) == 3 for s in shape)):
        advice = "" if any(len(s) != 3 for s in shape) else " Use --coarse to edit block inputs and outputs instead."
        raise ModelError(
            f"{name} ({type(model).__name__}): the residual stream is not explained by its submodules:\n  "
            + "\n  ".join(faults[:8])
            + (f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else "")
            + f"\n{advice.strip()}"
        )
    mode: Mode = "coarse" if faults else "exact"
    proof = Proof(mode, tuple(errors), tuple(carries), 0.0, 0.0, False, False, False, False, "; ".join(faults[:3]))
    keywords = frozenset(inspect.signature(model.forward).parameters)
    proposal = ChatModel(model, tokenizer, name, tuple(blocks), blocks_name, tuple(writers), proof, keywords)
    return _proved(proposal, inputs)


def _proved(proposal: ChatModel, inputs: Mapping[str, Any]) -> ChatModel:
    """The functional half of the proof: ablate a random direction and look for it everywhere."""
    leak, bound = _leak(proposal, inputs), 1e-5
    if proposal.dtype != torch.float32:
        # Each write rounds anew, so the leak is of the order of the dtype's rounding, not of the method.
        bound = 4 * torch.finfo(proposal.dtype).eps
    if leak > bound and proposal.proof.mode == "exact":
        raise ModelError(
            f"{proposal.name}: after ablating a random direction at every residual writer, |r.x|/|x| is still "
            f"{leak:.2e} (allowed {bound:.0e}). Something else writes into the stream; use --coarse to run it anyway."
        )
    unpadded = not _padding_holds(proposal, inputs)
    known = replace(proposal, proof=replace(proposal.proof, leak=leak, leak_bound=bound, unpadded=unpadded))
    narrow = replace(known, proof=replace(known.proof, narrowed=True))
    # A model that cannot narrow its last block (gpt2 reshapes to the length of its input) may pack all the same.
    proof = next((m.proof for m in (narrow, known) if _packing_holds(m, inputs)), None)
    return replace(
        known, proof=replace(proof or known.proof, cached=_cache_holds(known, inputs), packed=proof is not None)
    )


def _random_direction(chat_model: ChatModel) -> Tensor:
    r = torch.randn(chat_model.d_model, generator=torch.Generator().manual_seed(0))
    return r / r.norm()


def _ablation(r: Tensor) -> Edit:
    def ablate(h: Residual) -> Residual:
        unit = r.to(h.device)
        return (h.float() - (h.float() @ unit)[..., None] * unit).to(h.dtype)

    return ablate


def _leak(chat_model: ChatModel, inputs: Mapping[str, Any]) -> float:
    r = _random_direction(chat_model)
    worst = 0.0

    def watch(layer: int, h: Residual) -> None:
        nonlocal worst
        x = h.float()
        share = (x @ r.to(h.device)).abs() / x.norm(dim=-1).clamp_min(1e-30)
        worst = max(worst, float(share.max()))

    with torch.no_grad(), hooked(chat_model, dict.fromkeys(chat_model.ablation_sites, _ablation(r)), watch):
        chat_model.model(**inputs)
    return worst


def _agree(chat_model: ChatModel, a: Tensor, b: Tensor) -> bool:
    """Whether two sets of logits are the same at the model's precision."""
    tolerance = 1e-4 if chat_model.dtype == torch.float32 else 16 * torch.finfo(chat_model.dtype).eps
    return bool((a.float() - b.float()).abs().max() <= tolerance * a.float().abs().max().clamp_min(1.0))


def _padding_holds(chat_model: ChatModel, inputs: Mapping[str, Any]) -> bool:
    """Whether a left-padded prompt gives the logits it gives alone."""
    ids = inputs["input_ids"][:1]
    pad = torch.full((1, 3), chat_model.pad_token, device=ids.device, dtype=ids.dtype)
    padded = torch.cat([torch.cat([pad, ids[:, :-3]], 1), ids], 0)
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    with torch.no_grad():
        alone = forward(chat_model, ids[:, :-3], torch.ones_like(ids[:, :-3]))
        return _agree(chat_model, alone, forward(chat_model, padded, mask)[:1])


def _cache_holds(chat_model: ChatModel, inputs: Mapping[str, Any]) -> bool:
    """Whether token-by-token decoding with the cache gives the logits of a whole forward pass."""
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids)
    n = ids.shape[1] - 3
    if not chat_model.proof.unpadded:
        mask[0, :2] = 0
    cache = fresh_cache(chat_model)
    if cache is None:
        return False
    try:
        with torch.no_grad():
            steps = [forward(chat_model, ids[:, :n], mask[:, :n], cache)]
            for i in range(n, n + 3):
                steps.append(forward(chat_model, ids[:, i : i + 1], mask[:, : i + 1], cache))
            whole = [forward(chat_model, ids[:, :i], mask[:, :i]) for i in range(n, n + 4)]
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        log.info("%s: its cache is not used (%s)", chat_model.name, error)
        return False
    return all(_agree(chat_model, a, b) for a, b in zip(whole, steps, strict=True))


def _packing_holds(chat_model: ChatModel, inputs: Mapping[str, Tensor]) -> bool:
    """Whether packed prompts, also when resumed at a middle layer, give the logits that each gives alone."""
    ids = inputs["input_ids"][0].tolist()
    prompts = [[*ids[:4], *ids[6:9]], [*ids[:4], *ids[8:14]], [*ids[:4], *ids[5:7]]]
    tried = pack(prompts, 1, chat_model.device)
    attention = attention_of(chat_model, tried)
    middle = chat_model.n_layers // 2
    # Under an edit, since hooks must hold there too.
    ablated = dict.fromkeys(chat_model.ablation_sites, _ablation(_random_direction(chat_model)))
    try:
        with torch.no_grad(), hooked(chat_model, ablated):
            alone = torch.cat(
                [forward(chat_model, row, torch.ones_like(row)) for p in prompts for row in [tried.ids.new_tensor([p])]]
            )
            together = packed_forward(chat_model, tried, 2, attention)
            stream = run_until(chat_model, middle, lambda: packed_forward(chat_model, tried, 2, attention))
            with resumed(chat_model, middle, stream):
                later = packed_forward(chat_model, tried, 2, attention)
    except (AttributeError, KeyError, LookupError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        log.info("%s: prompts are padded, not packed (%s)", chat_model.name, error)
        return False
    return all(_agree(chat_model, alone, logits[a]) for logits in (together, later) for a in range(2))


def explain(chat_model: ChatModel) -> dict[str, Any]:
    """What the instrument understood of the architecture, for people and programs: `rhumbline model`."""
    model, proof = chat_model.model, chat_model.proof
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    patterns: dict[str, list[int]] = {}
    for layer in range(chat_model.n_layers):
        names = [
            w.module + ("" if w.scale == 1 else f" x {w.scale:.4g}") for w in chat_model.writers if w.layer == layer
        ]
        patterns.setdefault(" + ".join(names) or "not explained", []).append(layer)
    biases = {
        f"{w.module}.bias"
        for w in chat_model.writers
        if getattr(chat_model.blocks[w.layer].get_submodule(w.module), "bias", None) is not None
    }
    carried = sorted({round(c, 6) for c in proof.carry if c != 1.0})
    return {
        **chat_model.record(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": embedding.shape[0],
        "blocks": chat_model.blocks_name,
        "writers": [f"{pattern}   (layers {_ranges(layers)})" for pattern, layers in patterns.items()],
        "output_biases": sorted(biases) or ["none"],
        "tied_embeddings": head is not None and head.weight is embedding,
        "stream_rescaled_by": carried or ["nothing"],
        "proof": [
            f"sum of writes = output - input: relative error {max(proof.sum_error, default=float('nan')):.1e}",
            f"random direction ablated: |r.x|/|x| <= {proof.leak:.1e} at every layer (allowed {proof.leak_bound:.0e})",
            f"left padding changes nothing: {'no, prompts are batched by length' if proof.unpadded else 'yes'}",
            f"packing behind the shared prefix changes nothing: {'yes' if proof.packed else 'no, prompts are padded'}",
            f"cached decoding equals whole passes: {'yes' if proof.cached else 'no, nothing is cached'}",
            *([f"coarse: {proof.note}"] if proof.mode == "coarse" else []),
        ],
    }


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    groups: list[list[int]] = []
    for n in numbers:
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)
