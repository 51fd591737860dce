"""The ablation as a PEFT adapter: the projection of a matrix has the rank of the subspace, so LoRA holds it exactly.

W - write^T (read . W) is W + B A with B = -write^T and A = read . W. Proved on the model with the adapter in place.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rhumbline.edits.edit_plan import plan_ablation, untied
from rhumbline.edits.projection import ParameterEdit, orthonormal
from rhumbline.edits.proved_edit import better_plan, measure_gap, probe_rows, reference, refuse_large, refuse_quantised
from rhumbline.edits.read_direction import Imported
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.proving import prove


def lora(chat_model: ChatModel, found: Imported, folder: Path) -> list[str]:
    """Write an adapter whose effect is the weight edit; EditError where a writer cannot be reached by LoRA."""
    from peft import LoraConfig, get_peft_model

    refuse_quantised(chat_model.model)
    source, dtype = chat_model.name, chat_model.dtype
    basis = orthonormal(found.vectors)
    float32 = prove(chat_model.model.float(), chat_model.tokenizer, source)
    known = reference(float32, basis)
    tied = untied(float32.model)
    rows = probe_rows(known.sequences, float32.device)
    plan = better_plan(float32, basis, known, plan_ablation(float32, basis, rows), rows)
    modules, parameters, biased = _targets(float32.model, plan.edits)
    factors = {e.name: _factors(float32.model.get_parameter(e.name), e) for e in plan.edits}
    rank = len(basis)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(modules),
        target_parameters=sorted(parameters) or None,
        bias="lora_only" if biased else "none",
        lora_dropout=0.0,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in float32.model.modules()),
    )
    with warnings.catch_warnings():
        # peft asks transformers under a deprecated name, and warns of what `export` says itself: ties.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(float32.model, config)
    for edit in plan.edits:
        _fill(adapted, edit, *factors[edit.name])
    # peft put its layers into the model itself: proved anew, it runs with them.
    gap, _ = measure_gap(prove(float32.model, chat_model.tokenizer, source), basis, known)
    refuse_large(f"{source} with its adapter", gap)
    for active in adapted.peft_config.values():
        active.base_model_name_or_path = source
    adapted.save_pretrained(str(folder))
    lines = [
        f"rank {rank}, {len(modules) + len(parameters)} matrices, {plan.outcome}: mean KL to the hooked model "
        f"{gap.kl:.2g} nats in float32 (the ablation moves it by {gap.effect:.3g}); base dtype {dtype}"
    ]
    if tied:
        lines.append(
            "the base model ties its head to the embedding: merging the adapter would edit the head too; untie first"
        )
    return lines


def _targets(model: Any, edits: tuple[ParameterEdit, ...]) -> tuple[set[str], set[str], bool]:
    """Names of the modules and of the bare parameters that LoRA has to wrap, and whether biases are among them."""
    modules, parameters, biases, faults = set(), set(), set(), []
    for edit in edits:
        owner, _, leaf = edit.name.rpartition(".")
        module, parameter = model.get_submodule(owner), model.get_parameter(edit.name)
        if leaf == "weight" and (isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"):
            modules.add(owner)
        elif leaf == "bias" and parameter.ndim == 1:
            biases.add(owner)
        elif parameter.ndim == 3:
            parameters.add(edit.name)
        else:
            faults.append(f"{edit.name} of shape {tuple(parameter.shape)} in a {type(module).__name__}")
    held = set() if parameters else modules
    faults += [f"{owner}.bias" for owner in sorted(biases - held)]
    if faults:
        raise EditError(
            "LoRA cannot hold this edit: it has no place for "
            + "; ".join(faults[:3])
            + ". Use rhumbline edit, which saves the whole checkpoint."
        )
    if parameters:
        # Beside fused experts peft takes some names of plain modules for theirs: name their weights instead.
        plain = {owner for owner in modules if isinstance(model.get_submodule(owner), nn.Linear)}
        modules, parameters = modules - plain, parameters | {f"{owner}.weight" for owner in plain}
    return modules, parameters, bool(biases)


def _factors(parameter: Tensor, edit: ParameterEdit) -> tuple[Tensor, Tensor]:
    """(A, B) with change = B A along the edit's axis: A [rank, the other axes], B [d_model, rank]; a bias: its
    change."""
    p = parameter.detach().double()
    read, write = edit.read.double().to(p.device), edit.write.double().to(p.device)
    a = torch.tensordot(read, p.movedim(edit.axis, 0), dims=1)
    return a.float(), -write.T.float()


def _fill(adapted: Any, edit: ParameterEdit, a: Tensor, b: Tensor) -> None:
    owner, _, leaf = edit.name.rpartition(".")
    with torch.no_grad():
        if leaf == "bias":
            bias = adapted.base_model.model.get_submodule(owner).base_layer.bias
            bias.add_((b @ a).to(bias))
            return
        if a.ndim == 3:
            _fill_experts(_wrapper(adapted, owner, leaf), a, b, edit.axis)
            return
        layer = adapted.base_model.model.get_submodule(owner)
        if "default" in layer.lora_embedding_A:
            layer.lora_embedding_A["default"].copy_(a)
            layer.lora_embedding_B["default"].copy_(b)
        else:
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)


def _wrapper(adapted: Any, owner: str, leaf: str) -> Any:
    """The layer that peft put around a bare parameter; several may be nested."""
    layer = adapted.base_model.model.get_submodule(owner)
    while getattr(layer, "parameter_name", leaf) != leaf:
        layer = layer.base_layer
    return layer


def _fill_experts(layer: Any, a: Tensor, b: Tensor, axis: int) -> None:
    """Fused experts: peft holds A as [expert * rank, in] and B as [out, rank * expert]."""
    rank, n_experts, _ = a.shape
    wanted = torch.einsum("dr,rei->edi" if axis == 1 else "dr,rei->eid", b, a)
    per_expert = a.permute(1, 0, 2)  # [expert, rank, other]
    spread = b[:, :, None].expand(-1, -1, n_experts)  # [d_model, rank, expert]
    pairs = [
        (per_expert.reshape(n_experts * rank, -1), spread.reshape(len(b), -1)),
        # The other way round: the residual is what peft takes for the input.
        (b.T[None].expand(n_experts, -1, -1).reshape(n_experts * rank, -1), per_expert.permute(2, 1, 0).flatten(1)),
    ]
    for first, second in pairs:
        if layer.lora_A["default"].weight.shape == first.shape and layer.lora_B["default"].weight.shape == second.shape:
            layer.lora_A["default"].weight.copy_(first)
            layer.lora_B["default"].weight.copy_(second)
            if torch.allclose(layer.get_delta_weight("default"), wanted, atol=1e-5, rtol=1e-4):
                return
    raise EditError("peft lays these experts out in a way that the adapter cannot be written for; use rhumbline edit.")
