"""Write an ablation as a LoRA adapter of PEFT, proved on the model with the adapter.

The projection of a matrix has the rank of the subspace, so LoRA represents it exactly: W - write^T (read . W) is
W + B A with B = -write^T and A = read . W. Independent of the source of the direction.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rhumbline.edits.edit_plan import untie
from rhumbline.edits.projection import ParameterEdit, orthonormal
from rhumbline.edits.proved_edit import best_plan, measure_gap, reference, refuse_large, refuse_quantised
from rhumbline.edits.read_direction import ImportedDirections
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.proving import prove


def lora(chat_model: ChatModel, imported: ImportedDirections, folder: Path) -> list[str]:
    """Write an adapter with the effect of the weight edit; EditError if LoRA cannot represent it."""
    from peft import LoraConfig, get_peft_model

    refuse_quantised(chat_model.model)
    source, dtype = chat_model.name, chat_model.dtype
    basis = orthonormal(imported.vectors)
    float32 = prove(chat_model.model.float(), chat_model.tokenizer, source)
    target = reference(float32, basis)
    is_tied = untie(float32.model)
    plan = best_plan(float32, basis, target)
    wrapped = _wrapped(float32.model, plan.edits)
    factors = {e.name: _factors(float32.model.get_parameter(e.name), e) for e in plan.edits}
    rank = len(basis)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(wrapped.modules),
        target_parameters=sorted(wrapped.parameters) or None,
        bias="lora_only" if wrapped.has_biases else "none",
        lora_dropout=0.0,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in float32.model.modules()),
    )
    with warnings.catch_warnings():
        # peft uses a deprecated name of transformers, and warns of tied weights, which the returned lines report.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(float32.model, config)
    for edit in plan.edits:
        _fill(adapted, edit, *factors[edit.name])
    # peft replaces modules inside the model, so a new proof of the model includes the adapter.
    gap, _ = measure_gap(prove(float32.model, chat_model.tokenizer, source), basis, target)
    refuse_large(f"{source} with its adapter", gap)
    for active in adapted.peft_config.values():
        active.base_model_name_or_path = source
    with warnings.catch_warnings():
        # It warns that it saves an embedding that the adapter changes.
        warnings.filterwarnings("ignore", module="peft")
        adapted.save_pretrained(str(folder))
    n_matrices = len(wrapped.modules) + len(wrapped.parameters)
    lines = [
        f"rank {rank}, {n_matrices} matrices, {plan.outcome}: mean KL to the hooked model {gap.kl:.2g} "
        f"nats in float32 (effect of the ablation: {gap.effect:.3g}); base dtype {dtype}"
    ]
    if is_tied:
        lines.append(
            "the base model ties its head to the embedding: merging the adapter edits the head too. Untie it first"
        )
    return lines


class _Wrapped(NamedTuple):
    """Names of the modules and of the other parameters that LoRA wraps."""

    modules: set[str]
    parameters: set[str]
    has_biases: bool
    """Whether biases of the modules are edited too."""


def _wrapped(model: Any, edits: tuple[ParameterEdit, ...]) -> _Wrapped:
    """The modules and parameters of the edits; EditError if LoRA does not support one of them."""
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
    with_bias = set() if parameters else modules
    faults += [f"{owner}.bias" for owner in sorted(biases - with_bias)]
    if faults:
        raise EditError(
            f"LoRA cannot represent this edit: it does not support {'; '.join(faults[:3])}. Use `rhumbline edit`, "
            "which saves the whole checkpoint."
        )
    if parameters:
        # With fused experts, peft takes some names of plain modules for experts, so their weights are named instead.
        plain = {owner for owner in modules if isinstance(model.get_submodule(owner), nn.Linear)}
        modules, parameters = modules - plain, parameters | {f"{owner}.weight" for owner in plain}
    return _Wrapped(modules, parameters, bool(biases))


def _factors(parameter: Tensor, edit: ParameterEdit) -> tuple[Tensor, Tensor]:
    """(A, B) with change = B A along the axis of the edit: A [rank, the other axes], B [d_model, rank]."""
    p = parameter.detach().double()
    read, write = edit.read.double().to(p.device), edit.write.double().to(p.device)
    a = torch.tensordot(read, p.movedim(edit.axis, 0), dims=1)
    return a.float(), -write.T.float()


def _fill(adapted: Any, edit: ParameterEdit, a: Tensor, b: Tensor) -> None:
    """Write the factors of one edit into the adapter; a bias is changed in place."""
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
    """The layer with which peft wrapped a parameter; several can be nested."""
    layer = adapted.base_model.model.get_submodule(owner)
    while getattr(layer, "parameter_name", leaf) != leaf:
        layer = layer.base_layer
    return layer


def _fill_experts(layer: Any, a: Tensor, b: Tensor, axis: int) -> None:
    """Write the factors of fused experts, which peft stores as A [expert * rank, in] and B [out, rank * expert]."""
    rank, n_experts, _ = a.shape
    change = torch.einsum("dr,rei->edi" if axis == 1 else "dr,rei->eid", b, a)
    per_expert = a.permute(1, 0, 2)  # [expert, rank, other]
    spread = b[:, :, None].expand(-1, -1, n_experts)  # [d_model, rank, expert]
    pairs = [
        (per_expert.reshape(n_experts * rank, -1), spread.reshape(len(b), -1)),
        # The transposed layout: peft uses the residual axis as the input.
        (b.T[None].expand(n_experts, -1, -1).reshape(n_experts * rank, -1), per_expert.permute(2, 1, 0).flatten(1)),
    ]
    for first, second in pairs:
        if layer.lora_A["default"].weight.shape == first.shape and layer.lora_B["default"].weight.shape == second.shape:
            layer.lora_A["default"].weight.copy_(first)
            layer.lora_B["default"].weight.copy_(second)
            if torch.allclose(layer.get_delta_weight("default"), change, atol=1e-5, rtol=1e-4):
                return
    raise EditError("no adapter can be written for the layout of these experts in peft. Use `rhumbline edit`.")
