"""A hub name or a directory in, a proved `ChatModel` out; and the fingerprint of what was loaded.

Promises: weights that are missing, truncated or not finite are refused; no code that comes with a model runs unless
asked for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rhumbline.errors import ModelError
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.proving import prove


def load(
    source: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    coarse: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tensor_parallel: bool = False,
) -> ChatModel:
    """Load a chat model by hub name or directory and prove its residual stream.

    `dtype` is a torch dtype's name or `auto` (the checkpoint's); `device` is `cpu`, `cuda`, `cuda:1`, `auto` (a device
    map over all devices) or None for the first accelerator. Remote code is off unless asked for. `revision` is a
    commit, branch or tag of a hub name. With `tensor_parallel` every rank that torchrun started holds a part of each
    matrix, by transformers' own plan. A LoRA adapter is loaded on its base model (needs peft). Raises ModelError.
    """
    from transformers import AutoConfig, AutoTokenizer

    looks_local = Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    folder = Path(source).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(f"{source}: no such directory. Give a directory with a Hugging Face model, or a hub name.")
    where = str(folder) if folder.is_dir() else source
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        base = _base_of_adapter(where, revision)
        config = AutoConfig.from_pretrained(
            base or where, trust_remote_code=trust_remote_code, revision=None if base else revision
        )
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:
        raise ModelError(f"{source}: not a loadable Hugging Face model: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder model ({config.model_type}); rhumbline needs a decoder.")
    how: dict[str, Any] = {"device_map": device}
    if tensor_parallel:
        how = {"distributed_config": _tensor_parallel(source, config)}
    model = _load_weights(source, where, config, dtype, how, trust_remote_code, revision)
    return prove(model, tokenizer, source, coarse=coarse)


def _load_weights(
    source: str, where: str, config: Any, dtype: str, how: Mapping[str, Any], remote: bool, revision: str | None
) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ModelError(f"dtype {dtype!r} is not a torch dtype; use auto, float32, bfloat16 or float16.")
    try:
        loaded: Any = loader.from_pretrained(
            where, dtype=dtype, trust_remote_code=remote, output_loading_info=True, revision=revision, **how
        )
        model, info = loaded
    except Exception as error:
        raise ModelError(f"{source}: its weights cannot be loaded: {_first_line(error)}") from error
    faults = {kind: sorted(map(str, info.get(kind) or [])) for kind in ("missing_keys", "mismatched_keys")}
    for kind, keys in faults.items():
        if keys:
            raise ModelError(
                f"{source}: the checkpoint has {len(keys)} {kind.replace('_keys', '')} tensors ({', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}), which would be random. Is the download complete?"
            )
    for name, held in _tensors(model):
        tensor = held.to_local() if isinstance(held, DTensor) else held
        if tensor.is_floating_point() and not torch.isfinite(_values(model, name, tensor)).all():
            raise ModelError(f"{source}: the weights hold NaN or infinity (first in {name}).")
    return model


def _base_of_adapter(where: str, revision: str | None) -> str | None:
    """The base model that a LoRA adapter was made for, or None for any other checkpoint."""
    from transformers.utils.hub import cached_file

    if cached_file(where, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False) is not None:
        return None
    adapter = cached_file(where, "adapter_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if adapter is None else json.loads(Path(adapter).read_text())["base_model_name_or_path"]


def _tensor_parallel(source: str, config: Any) -> Any:
    from transformers.distributed.configuration_utils import DistributedConfig

    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        raise ModelError(
            f"{source}: transformers has no tensor-parallel plan for {config.model_type}; use --device auto, which "
            "spreads whole layers over the GPUs."
        )
    ranks.join()
    return DistributedConfig(tp_plan="auto")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _values(model: Any, name: str, tensor: Tensor) -> Tensor:
    """The values of a parameter or buffer, wherever they lie: fetched by accelerate where its layer is offloaded."""
    if tensor.device.type != "meta":
        return tensor.detach()
    from accelerate.utils import align_module_device

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, leaf).detach().clone()


def fingerprint(chat_model: ChatModel) -> str:
    """sha256 over every parameter and buffer (name, shape, dtype, bytes) as loaded: what was actually run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(chat_model.model), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        values = _values(chat_model.model, name, whole)
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
