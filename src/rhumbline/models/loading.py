"""The name of a model in, a proved `ChatModel` out; and the fingerprint of the weights as loaded.

Code that comes with a model runs only on request. What is loaded is checked in loaded_weights.py. Independent of
prompts and of what is done with a model.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from rhumbline.arguments import checked
from rhumbline.errors import ModelError, SourceError
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.adapters import apply_adapter
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.gguf_words import is_split_known, split_words
from rhumbline.models.loaded_weights import check_keys, check_tied, check_values, named_tensors, values_of
from rhumbline.models.places import Places, file_of, json_of, places_of, readable
from rhumbline.models.processor import dtype_on_processor
from rhumbline.models.proving import prove
from rhumbline.models.sources import Source
from rhumbline.models.vocabulary import check_vocabulary, log_unused
from rhumbline.models.weight_files import gguf_split, integer_matrices, listed, one_line, stored_tensors
from rhumbline.records.user_files import read_json

MOST_COUNTED = 1_000_000
"""Layers, heads, labels or experts of a config."""
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
"""Fields of a config that are at least 1. Every config has the first three, some under other names in its file."""
_NO_ADAPTER = {"subfolder": "rhumbline applies adapters itself"}
"""Where transformers looks for an adapter that it would apply unchecked: a folder that no checkpoint has."""


@checked
def load(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    coarse: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tensor_parallel: bool = False,
) -> ChatModel:
    """Load a chat model by hub name, directory, GGUF file or `organism:NAME`, and prove its residual stream.

    `dtype` is the name of a torch dtype or `auto`: that of the checkpoint, but on a processor bfloat16 only if it is
    multiplied natively, and float32 instead of 16 bits otherwise. `device` is `cpu`, `cuda`, `cuda:1`, `auto` (a device
    map over all devices) or None for the first accelerator. Remote code is off by default. `revision` is a commit,
    branch or tag of a hub name. With `tensor_parallel` every rank that torchrun started holds a part of each
    matrix, by transformers' own plan. A LoRA adapter is loaded on its base model (needs peft), and a GGUF file is
    dequantised (needs gguf). Raises ModelError, and of these SourceError where there is no such model, device or dtype.
    """
    return load_source(
        Source(str(source), dtype, device, coarse, trust_remote_code, revision), tensor_parallel=tensor_parallel
    )


def load_source(source: Source, *, tensor_parallel: bool = False) -> ChatModel:
    """The same by a record of how the model is loaded."""
    check_device(source.device)
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with places_of(source) as places:
        head = read_head(places)
        placement: dict[str, Any] = {"device_map": device}
        if tensor_parallel:
            placement = {"distributed_config": _tensor_parallel(source.model, head.config)}
        model = _load_weights(places, head, placement)
        _adapt(places, model)
        dequantised = _dequantised(places, head, model)
        if dequantised is not None:
            _convert(model, dtype_of(source, head.config))
    check_values(source.model, model)
    proved = prove(model, head.tokenizer, source.model, coarse=source.coarse)
    log_unused(source.model, model, head.tokenizer)
    return replace(proved, dequantised=dequantised)


class Head(NamedTuple):
    """The parts of a checkpoint that are read before its weights."""

    config: Any
    tokenizer: Any


def read_head(places: Places) -> Head:
    """Config and tokenizer of a checkpoint; ModelError where transformers cannot read them."""
    from transformers import AutoTokenizer

    config = read_config(places)
    with readable(places, places.own if places.own_tokenizer else places.whole):
        tokenizer = AutoTokenizer.from_pretrained(**places.arguments(tokenizer=True))
        if places.gguf is not None:
            split_words(tokenizer, gguf_split(places.gguf))
    return Head(config, tokenizer)


def read_config(places: Places) -> Any:
    """Config of a checkpoint; ModelError where it cannot be read, or is not that of a decoder."""
    from transformers import AutoConfig

    name = places.source.model
    with readable(places):
        if places.gguf is not None:
            stored_tensors(places.gguf)  # refuses a file that is cut off
        _check_generation_config(places)
        _check_counts(places)
        try:
            config = AutoConfig.from_pretrained(**places.arguments())
        except ArithmeticError:
            # Configs divide by their sizes. The file says which of them is faulty.
            _check_numbers(name, read_json(Path(places.whole) / "config.json", ModelError, "a config"))
            raise
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{name} is an encoder-decoder model ({config.model_type}); rhumbline needs a decoder. Give a causal "
                "language model."
            )
        text = config.get_text_config()
        _check_numbers(name, {**text.to_dict(), **{field: getattr(text, field, None) for field in SIZES[:3]}})
    return config


def _check_counts(places: Places) -> None:
    """ModelError where config.json counts so many layers or labels that transformers would make lists for minutes."""
    content = json_of(places.whole, "config.json", places.revision)
    if not isinstance(content, dict):
        return  # transformers says what is missing
    nested = [value for value in content.values() if isinstance(value, dict)]
    for values in (content, *nested):
        for field, count in values.items():
            if field.startswith("num_") and isinstance(count, int) and count > MOST_COUNTED:
                raise ModelError(f"{places.source.model}: {field} is {count} in config.json. Restore the config.")


def _check_numbers(name: str, values: Mapping[str, Any]) -> None:
    """ModelError where the config of a model has no layers, heads or channels, or numbers that are not finite."""
    faults = [f"{field} is {size}" for field in SIZES if isinstance(size := values.get(field), int) and size < 1]
    for field, value in values.items():
        is_negative = field.endswith(("eps", "epsilon")) and isinstance(value, float) and value < 0
        if isinstance(value, float) and (not math.isfinite(value) or is_negative):
            faults.append(f"{field} is {value}")
    if faults:
        raise ModelError(f"{name}: its config describes no model: {', '.join(faults)}. Correct config.json.")


def _check_generation_config(places: Places) -> None:
    """Raise if generation_config.json is no JSON object, which transformers ignores, or names its ends by other values
    than ids.
    """
    path = file_of(places.whole, "generation_config.json", places.revision)
    content = {} if path is None else read_json(path, ModelError, "a generation config")
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object. Restore it, or remove it to decode without one.")
    ends = content.get("eos_token_id")
    if any(type(i) is not int for i in (ends if isinstance(ends, list) else [ends] if ends is not None else [])):
        raise ModelError(
            f"{path}: eos_token_id is {json.dumps(ends)}, expected the id of a token, or several. Correct it."
        )


# -- weights ----------------------------------------------------------------------------------------------------------


def check_checkpoint(places: Places, head: Head) -> None:
    """Check names and shapes of the tensors of a checkpoint, without reading their values. Raises ModelError."""
    if places.weights is not None:
        local = replace(places, whole=str(places.weights), revision=None)
        model = _load_weights(local, head, {"device_map": "meta"})
        _adapt(places, model)
        check_vocabulary(places.source.model, model, head.tokenizer)


def _load_weights(places: Places, head: Head, placement: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    source = places.source
    _check_files(places, head.config)
    causal = type(head.config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in (
        getattr(head.config, "auto_map", None) or {}
    )
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    dtype = source.dtype
    if placement.get("device_map") == "cpu" and dtype == "auto":
        dtype = dtype_on_processor(checkpoint_dtype(head.config))
    options = {"dtype": dtype, "adapter_kwargs": _NO_ADAPTER, **placement}
    if places.gguf is not None:
        options["quantization_config"] = _dequantising()
    try:
        # Tensors of another shape are listed in `info`, and refused below.
        loaded: Any = loader.from_pretrained(
            **places.arguments(), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:
        raise ModelError(f"{source.model}: its weights cannot be loaded: {one_line(error)}.") from error
    model, info = loaded
    check_keys(places, model, info)
    check_tied(places, model)
    return model


def _adapt(places: Places, model: Any) -> None:
    """Apply the adapter to its base, if the model is one."""
    if places.base is not None:
        apply_adapter(model, places.source.model, places.own, places.source.revision)


def checkpoint_dtype(config: Any) -> torch.dtype | None:
    """The dtype that the config of a checkpoint states."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return getattr(torch, stated, None) if isinstance(stated, str) else stated


def dtype_of(source: Source, config: Any) -> torch.dtype:
    """The dtype in which a model will be loaded; float32 if nothing states one."""
    name = source.dtype
    is_processor = source.device == "cpu" or (source.device is None and not torch.cuda.is_available())
    if name == "auto" and is_processor:
        name = dtype_on_processor(checkpoint_dtype(config))
    return (checkpoint_dtype(config) or torch.float32) if name == "auto" else getattr(torch, name)


def check_device(name: str | None) -> None:
    """SourceError where a device is not on this machine."""
    kind, _, index = (name or "cpu").partition(":")
    present = {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count(), "cpu": 1, "auto": 1}
    present["mps"] = int(torch.backends.mps.is_available())
    if int(index or 0) >= present[kind]:
        raise SourceError(
            f"--device {name}: this machine has {present[kind]} such devices. Use cpu, or another device."
        )


def _check_files(places: Places, config: Any) -> None:
    """ModelError where weight files of a path are missing, cut off, or quantised without their config."""
    if not Path(places.whole).exists():
        return  # a hub name, whose files transformers downloads
    stored = stored_tensors(Path(places.whole))
    integers = [] if places.gguf else list(integer_matrices(stored))
    if integers and getattr(config, "quantization_config", None) is None:
        raise ModelError(
            f"{places.source.model}: {len(integers)} matrices are stored as integers ({listed(integers)}), and "
            "config.json has no quantization_config that says how they were quantised. Restore it."
        )


def _dequantising() -> Any:
    """The option with which transformers dequantises a GGUF file; None for versions that always do."""
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:
        return None
    return GgufConfig(dequantize=True)


def _dequantised(places: Places, head: Head, model: Any) -> str | None:
    """The stored format that transformers dequantised while loading: that of a GGUF file, or mxfp4 and fp8 on a CPU."""
    if places.gguf is not None:
        types, split = sorted({t.dtype for t in stored_tensors(places.gguf).values()}), gguf_split(places.gguf)
        known = is_split_known(head.tokenizer, split)
        note = "" if known else f"; words are split as transformers splits them for this architecture, not as {split}"
        return f"GGUF ({', '.join(types)}){note}"
    stored = getattr(head.config, "quantization_config", None)
    if stored is None or getattr(model, "is_quantized", False):
        return None
    return str(dict(stored).get("quant_method", "an unknown method"))


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Convert all parameters. transformers dequantises some tensors to another dtype than the others have."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _tensor_parallel(source: str, config: Any) -> Any:
    from transformers.distributed.configuration_utils import DistributedConfig

    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        raise ModelError(
            f"{source}: transformers has no tensor-parallel plan for {config.model_type}; use --device auto, which "
            "spreads whole layers over the GPUs."
        )
    ranks.join()
    return DistributedConfig(tp_plan="auto")


def fingerprint(chat_model: ChatModel) -> str:
    """sha256 over every parameter and buffer (name, shape, dtype, bytes) as loaded: what was actually run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(chat_model.model), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        values = values_of(chat_model.model, name, whole)
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
