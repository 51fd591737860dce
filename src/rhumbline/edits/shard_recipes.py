"""Determine the stored tensors to edit, and their axes, from the config of a checkpoint.

A small model has the same layers, heads, experts and ties, with narrow matrices. It is edited in memory with a proof,
and saved before and after. Comparing the files gives the axis and the norm of every changed tensor. Independent of the
weights of the checkpoint.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhumbline.edits.edit_plan import plan_ablation, untie
from rhumbline.edits.projection import EditPlan, carry_out, orthonormal, project
from rhumbline.edits.proved_edit import LEAK, ROUNDING, measure_gap, probe_rows, reference
from rhumbline.errors import EditError
from rhumbline.models.proving import prove
from rhumbline.records.edit_file import EditGap
from rhumbline.records.files import written

IN_MEMORY = "Edit the checkpoint in memory, without --sharded."
NARROW = 8
"""Width of an attention head of the small model."""
MAX_PARAMETERS = 300_000_000
"""Largest number of parameters of the small model."""
_WIDTHS = {
    "intermediate_size": 40, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "ffn_dim": 40,
    "n_inner": 40, "ffn_hidden_size": 40, "intermediate_size_mlp": 40, "shared_intermediate_size": 24,
    "head_dim": NARROW, "v_head_dim": NARROW, "qk_rope_head_dim": NARROW, "qk_nope_head_dim": NARROW,
    "q_lora_rank": 16, "kv_lora_rank": 16, "query_pre_attn_scalar": NARROW, "word_embed_proj_dim": None,
    "vocab_size": 96, "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "sliding_window": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Entries of a config that set a width only, and their values in the small model (None: the hidden size)."""
_HIDDEN = ("hidden_size", "n_embd", "d_model")


class StoredEdit(NamedTuple):
    """The edit of one stored tensor."""

    axis: int
    norm: str
    """The norm after the tensor, whose gain determines the vectors of the edit; empty for the plain projection."""


@dataclass(frozen=True)
class ShardRecipe:
    """The edits of the stored tensors, as measured on the small model."""

    edits: Mapping[str, StoredEdit]
    names: frozenset[str]
    """All stored tensors of the edited small model."""
    untied: tuple[str, str] | None
    """(head, embedding) if the head is stored as a copy of the unedited embedding."""
    plan: EditPlan
    gap: EditGap
    oblique: bool


# -- the small model --------------------------------------------------------------------------------------------------


def narrow_config(config: Any) -> Any:
    """The same architecture with narrow matrices: depth, heads, experts, layer types, biases and ties are unchanged."""
    values = config.to_dict()
    for part in [values, *(v for k, v in values.items() if k == "text_config" and isinstance(v, dict))]:
        heads = part.get("num_attention_heads") or part.get("n_head") or 4
        hidden = max(32, heads * NARROW)
        changes = {k: (hidden if v is None else v) for k, v in _WIDTHS.items() if isinstance(part.get(k), int)}
        changes |= {k: hidden for k in _HIDDEN if isinstance(part.get(k), int)}
        part |= changes
        if isinstance(part.get("initializer_range"), float):
            part["initializer_range"] = 0.1
        part.pop("quantization_config", None)
    return type(config).from_dict(values)


def _small_model(source: str, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal = type(config) in AutoModelForCausalLM._model_mapping
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    try:
        small = narrow_config(config)
        with torch.device("meta"):
            size = sum(p.numel() for p in loader.from_config(small).parameters())
        if size > MAX_PARAMETERS:
            raise ValueError(f"it would have {size / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = loader.from_config(small, dtype=torch.float32).eval()
    except Exception as error:
        raise EditError(
            f"{source}: no small model of its config can be built ({error}), so the edit of its files cannot be "
            f"proved. {IN_MEMORY}"
        ) from error
    with torch.no_grad():
        for parameter in model.parameters():
            # With gains of 1 and biases of 0 an edit of them could not be detected.
            if parameter.ndim == 1 or not parameter.any():
                parameter += 0.5 * torch.rand_like(parameter) - 0.25
    return model


def _stored(model: Any, folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with written(folder):
        model.save_pretrained(folder)
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def recipe(source: str, config: Any, rank: int) -> ShardRecipe:
    """Edit a small model of the config, and compare its stored tensors before and after."""
    model = _small_model(source, config)
    chat_model = prove(model, None, source)
    basis = orthonormal(torch.randn(rank, chat_model.d_model, generator=torch.Generator().manual_seed(1)))
    with tempfile.TemporaryDirectory() as scratch:
        target = reference(chat_model, basis)
        was_tied = untie(model)
        before = _stored(model, Path(scratch) / "before")
        rows = probe_rows(target.sequences, chat_model.device)
        plan, oblique = plan_ablation(chat_model, basis, rows), False
        if plan.outcome == "approximate":
            try:
                plan, oblique = plan_ablation(chat_model, basis, rows, oblique=True), True
            except EditError:  # the output of a LayerNorm is centred, so only the orthogonal edit exists
                oblique = False
        kept = {e.name: model.get_parameter(e.name).detach().clone() for e in plan.edits}
        carry_out(model, plan)
        same = [name for name, old in kept.items() if torch.equal(old, model.get_parameter(name))]
        if same:
            raise EditError(f"{source}: on a small model the edit does not change {same[0]}. {IN_MEMORY}")
        gap, _ = measure_gap(chat_model, basis, target)
        after = _stored(model, Path(scratch) / "after")
    if gap.leak > LEAK or (plan.outcome == "exact" and gap.logits > ROUNDING * max(gap.size, 1.0)):
        raise EditError(f"{source}: the edit of a small model of its config does not agree with the hooks. {IN_MEMORY}")
    changed = {n: (old, after[n]) for n, old in before.items() if not torch.equal(old, after[n])}
    edits = {name: _stored_edit(name, old, new, plan) for name, (old, new) in changed.items()}
    return ShardRecipe(edits, frozenset(after), _head(before, model) if was_tied else None, plan, gap, oblique)


def _stored_edit(name: str, old: Tensor, new: Tensor, plan: EditPlan) -> StoredEdit:
    """The edit that gives the new stored tensor, independent of its name in the model."""
    different = {(e.norm, e.read.numpy().tobytes()): e for e in plan.edits}
    d_model = plan.edits[0].read.shape[1]
    for edit in different.values():
        for axis in (a for a, n in enumerate(old.shape) if n == d_model):
            if torch.allclose(project(old, axis, edit.read, edit.write), new, atol=1e-6, rtol=1e-5):
                return StoredEdit(axis, edit.norm)
    raise EditError(f"the change of the stored tensor {name} is not a projection. {IN_MEMORY}")


def _head(before: Mapping[str, Tensor], model: Any) -> tuple[str, str]:
    embedding = model.get_input_embeddings().weight
    head = next(n for n, p in model.named_parameters() if p is model.get_output_embeddings().weight)
    tokens = next(n for n, p in model.named_parameters() if p is embedding)
    if not {head, tokens} <= before.keys():
        raise EditError(f"the tied head is stored under another name than in the model. {IN_MEMORY}")
    return head, tokens
