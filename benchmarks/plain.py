"""The plain implementation: the loops of the paper, in float32 and in the order of the paper.

One candidate and one arm at a time, whole padded sequences in batches of 32, full logits; generation by arm in batches
of 8 with `generate` of transformers. It has no optimisation and is not slower than a direct implementation of the
method. It shares only the formulas of judging/metric.py with the engine.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.judging.metric import kl_divergence, refusal_metric
from rhumbline.models.chat_model import ChatModel

Sequences = Sequence[Sequence[int]]
BATCH = 32


def padded(sequences: Sequences, pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, sequences))
    ids = torch.tensor([[pad] * (width - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask


def _run(model: ChatModel, sequences: Sequences) -> Tensor:
    """Logits of whole padded sequences; models with absolute positions (gpt2) need the positions of the real tokens."""
    ids, mask = (x.to(model.device) for x in padded(sequences, model.pad_token))
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if "position_ids" in model.keywords else {}
    return model.model(input_ids=ids, attention_mask=mask, **positions).logits


def _with_first(output, edit: Callable[[Tensor], Tensor]):
    return edit(output) if isinstance(output, Tensor) else (edit(output[0]), *output[1:])


@contextmanager
def hooks(model: ChatModel, pre: dict[int, Callable] | None = None, write: Callable | None = None) -> Iterator[None]:
    """Hook block inputs by layer, and every residual writer."""
    with ExitStack() as stack:
        for layer, edit in (pre or {}).items():
            handle = model.blocks[layer].register_forward_pre_hook(lambda m, a, f=edit: (f(a[0]), *a[1:]))
            stack.callback(handle.remove)
        if write is not None:
            for w in model.writers:
                module = model.blocks[w.layer].get_submodule(w.module)
                stack.callback(module.register_forward_hook(lambda m, a, o: _with_first(o, write)).remove)
        yield


def ablation(model: ChatModel, direction: Float[Tensor, " d_model"]):
    r = (direction / direction.norm()).to(model.device, model.dtype)

    def edit(h: Tensor) -> Tensor:
        return h - (h @ r)[..., None] * r

    # As in the authors' code: block inputs, and the outputs of both sublayers.
    return hooks(model, dict.fromkeys(range(model.n_layers), edit), edit)


def addition(model: ChatModel, direction: Float[Tensor, " d_model"], layer: int):
    r = direction.to(model.device, model.dtype)
    return hooks(model, {layer: lambda h: h + r})


@torch.no_grad()
def last_logits(model: ChatModel, sequences: Sequences) -> Float[Tensor, "prompt vocab"]:
    batches = range(0, len(sequences), BATCH)
    return torch.cat([_run(model, sequences[i : i + BATCH])[:, -1].clone() for i in batches])


@torch.no_grad()
def mean_residuals(
    model: ChatModel, sequences: Sequences, positions: Sequence[int]
) -> Float[Tensor, "position layer d_model"]:
    total = torch.zeros(len(positions), model.n_layers, model.d_model, dtype=torch.float64)

    def see(layer: int) -> Callable[[Tensor], Tensor]:
        def keep(h: Tensor) -> Tensor:
            total[:, layer] += h[:, list(positions)].double().sum(0).cpu()
            return h

        return keep

    for i in range(0, len(sequences), BATCH):
        with hooks(model, {layer: see(layer) for layer in range(model.n_layers)}):
            _run(model, sequences[i : i + BATCH])
    return total / len(sequences)


def scores(
    model: ChatModel,
    candidates: Float[Tensor, "position layer d_model"],
    positions: Sequence[int],
    positive: Sequences,
    negative: Sequences,
    tokens: Sequence[int],
    layers: Sequence[int] | None = None,
) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(position, layer) -> (bypass, induce, kl); the authors' code scores the layers that are pruned too."""
    baseline = last_logits(model, negative)
    table = {}
    for p, position in enumerate(positions):
        for layer in range(model.n_layers) if layers is None else layers:
            r = candidates[p, layer]
            with ablation(model, r):
                kl = float(kl_divergence(baseline, last_logits(model, negative)).mean())
            with ablation(model, r):
                bypass = float(refusal_metric(last_logits(model, positive), tokens).mean())
            with addition(model, r, layer):
                induce = float(refusal_metric(last_logits(model, negative), tokens).mean())
            table[position, layer] = (bypass, induce, kl)
    return table


@torch.no_grad()
def generate(model: ChatModel, sequences: Sequences, new_tokens: int, batch: int = 8) -> list[list[int]]:
    stops = sorted(model.stop_tokens())
    completions = []
    for i in range(0, len(sequences), batch):
        ids, mask = (x.to(model.device) for x in padded(sequences[i : i + batch], model.pad_token))
        out = model.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=stops or None, pad_token_id=model.pad_token,
        )  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            cut = next((i for i, t in enumerate(row) if t in stops), len(row))
            completions.append(row[:cut])
    return completions
