"""Checks of loaded weights: a transformers model and its loading report in, a ModelError with the names or nothing out.

Every stored tensor of the decoder must have a place in the model, and every place a stored tensor with finite values.
Independent of files and of the forward pass.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rhumbline.errors import ModelError
from rhumbline.models.places import Places, file_of
from rhumbline.models.proving import decoder_blocks
from rhumbline.models.weight_files import listed, stored_tensors
from rhumbline.records.edit_file import FILE as EDIT_RECORD
from rhumbline.records.user_files import read_json

log = logging.getLogger("rhumbline")

LARGEST = 1e12
"""Trained weights are far smaller, and faulty files hold far larger values. A fragile planted model has weights of 1e7,
which act on the tail of a sigmoid (rhumbline.organisms.fragile)."""
NOT_FINITE, HUGE = "NaN or infinity", f"values above {LARGEST:.1e}"
"""Faults of values."""


# -- names and shapes -------------------------------------------------------------------------------------------------


def check_keys(places: Places, model: Any, report: Mapping[str, Any]) -> None:
    """ModelError where tensors are missing, of another shape, or of the decoder and not loaded.

    `report` is what transformers reports of the loading. Other tensors that are not loaded are logged.
    """
    name = places.source.model
    if missing := sorted(map(str, report.get("missing_keys") or ())):
        raise ModelError(
            f"{name}: the checkpoint has {len(missing)} missing tensors ({listed(missing)}), which would be random. Is "
            "the download complete?"
        )
    wrong: list[Any] = sorted(report.get("mismatched_keys") or ())
    if wrong:
        shapes = [f"{key} {list(stored)}, expected {list(expected)}" for key, stored, expected in wrong]
        raise ModelError(
            f"{name}: the checkpoint has {len(wrong)} tensors of another shape than its config describes "
            f"({'; '.join(shapes[:3])}{'; ...' if len(wrong) > 3 else ''}). Use the config that the weights were saved "
            "with."
        )
    unexpected = sorted(map(str, report.get("unexpected_keys") or ()))
    unexpected += _unread(places, model)
    decoder = [key for key in unexpected if _is_of_decoder(model, key)]
    if decoder:
        raise ModelError(
            f"{name}: the checkpoint has {len(decoder)} tensors of the decoder that its config does not describe "
            f"({listed(decoder)}), so another model would be measured. Use the config that the weights were saved with."
        )
    if unexpected:
        log.warning("%s: %d tensors of the checkpoint are not part of the decoder and are not used (%s)",
                    name, len(unexpected), listed(unexpected))  # fmt: skip


def _is_of_decoder(model: Any, key: str) -> bool:
    """Whether a stored tensor that was not loaded belongs to the text decoder or to its unembedding."""
    names = {id(module): name for name, module in model.named_modules()}
    config, decoder = model.config.get_text_config(), getattr(model, "get_decoder", lambda: model)()
    roots = [names.get(id(decoder), ""), names.get(id(model.get_output_embeddings()), "")]
    blocks = decoder_blocks(model)[0]
    # GGUF numbers its blocks as blk.N; a checkpoint of the decoder alone has no prefix.
    inner = blocks.removeprefix(f"{model.base_model_prefix}.")
    found = re.match(rf"(?:{re.escape(blocks)}|{re.escape(inner)}|blk)\.(\d+)\.", key)
    if found is not None:
        # Layers after the last block predict further tokens at once; no forward pass of the decoder runs them.
        extra_layers = getattr(config, "num_nextn_predict_layers", None) or 0
        return not config.num_hidden_layers <= int(found[1]) < config.num_hidden_layers + extra_layers
    return any(root and key.startswith(f"{root}.") for root in roots)


def _unread(places: Places, model: Any) -> list[str]:
    """Tensors of a GGUF file that transformers left out, which it does not report."""
    if places.gguf is None:
        return []
    stored = stored_tensors(places.gguf)
    if sum(tensor.elements for tensor in stored.values()) == sum(p.numel() for p in model.parameters()):
        return []
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    config = model.config.get_text_config()
    processor = TENSOR_PROCESSORS.get(config.model_type, TensorProcessor)(config=config.to_dict())
    return sorted(stored.keys() - get_gguf_hf_weights_map(model, processor).keys())


def check_tied(places: Places, model: Any) -> None:
    """ModelError where the config ties two weights, and the checkpoint stores different values for them."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) or untied_by_edit(
        file_of(places.whole, EDIT_RECORD, places.revision)
    ):
        return
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    apart = [f"{a} and {b}" for a, b in sorted(tied.items()) if model.get_parameter(a) is not model.get_parameter(b)]
    if apart and next(model.parameters()).device.type != "meta":
        raise stored_apart(places.source.model, apart)


def stored_apart(name: str, pairs: list[str]) -> ModelError:
    """The error for weights that a config ties, and whose stored values differ."""
    return ModelError(
        f"{name}: its config ties {listed(pairs)}, and the checkpoint stores different values for them. Set "
        "tie_word_embeddings to false in config.json if both belong to the model."
    )


def untied_by_edit(path: Path | None) -> bool:
    """Whether rhumbline untied the head of a checkpoint whose config ties other weights by the same entry.

    `path` is the record of the edit, if there is one.
    """
    return path is not None and bool(read_json(path, ModelError, "the record of an edit").get("untied"))


# -- values -----------------------------------------------------------------------------------------------------------


def check_values(name: str, model: Any) -> None:
    """ModelError where weights are not finite, or so large that rounding removes everything else."""
    parameters = dict(model.named_parameters())
    faulty: dict[str, list[str]] = {}
    for key, held in named_tensors(model):
        tensor = held.to_local() if isinstance(held, DTensor) else held
        fault = fault_of(values_of(model, key, tensor)) if tensor.is_floating_point() else None
        # A buffer, such as a mask, can hold the largest number of its dtype.
        if fault is not None and (key in parameters or fault == NOT_FINITE):
            faulty.setdefault(fault, []).append(key)
    if faulty:
        named = "; ".join(f"{fault} in {len(keys)} tensors ({listed(keys)})" for fault, keys in faulty.items())
        raise ModelError(
            f"{name}: the weights hold {named}. Download it again, or pass --dtype float32 if they overflow in a "
            "smaller format."
        )


def fault_of(values: Tensor) -> str | None:
    """What is wrong with the values of a tensor; None if nothing is."""
    if values.numel() == 0:
        return None
    if values.itemsize == 1 and values.is_floating_point():
        values = values.float()  # torch cannot test 8-bit numbers
    if not torch.isfinite(values).all():
        return NOT_FINITE
    return HUGE if float(values.abs().max()) > LARGEST else None


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def values_of(model: Any, name: str, tensor: Tensor) -> Tensor:
    """The values of a parameter or buffer, wherever they lie: fetched by accelerate where its layer is offloaded."""
    if tensor.device.type != "meta":
        return tensor.detach()
    from accelerate.utils import align_module_device

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, leaf).detach().clone()
