"""The name of a model in, a proved `ChatModel` out; and the fingerprint of the weights as loaded.

Weights that are missing, truncated or not finite are refused. Code that comes with a model runs only on request.
Independent of prompts and of what is done with a model.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rhumbline.errors import ModelError
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.processor import dtype_on_processor
from rhumbline.models.proving import prove
from rhumbline.models.sources import Source, checkpoint


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
    """Load a chat model by hub name, directory or `organism:NAME`, and prove its residual stream.

    `dtype` is the name of a torch dtype or `auto`: that of the checkpoint, but on a processor bfloat16 only if it is
    multiplied natively, and float32 instead of 16 bits otherwise. `device` is `cpu`, `cuda`, `cuda:1`, `auto` (a device
    map over all devices) or None for the first accelerator. Remote code is off by default. `revision` is a commit,
    branch or tag of a hub name. With `tensor_parallel` every rank that torchrun started holds a part of each
    matrix, by transformers' own plan. A LoRA adapter is loaded on its base model (needs peft). Raises ModelError.
    """
    return load_source(
        Source(source, dtype, device, coarse, trust_remote_code, revision), tensor_parallel=tensor_parallel
    )


def load_source(source: Source, *, tensor_parallel: bool = False) -> ChatModel:
    """The same by a record of how the model is loaded."""
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with checkpoint(source.model) as where:
        head = read_head(source, where)
        placement: dict[str, Any] = {"device_map": device}
        if tensor_parallel:
            placement = {"distributed_config": _tensor_parallel(source.model, head.config)}
        model = _load_weights(source, where, head, placement)
    return prove(model, head.tokenizer, source.model, coarse=source.coarse)


class Head(NamedTuple):
    """The parts of a checkpoint that are read before its weights."""

    config: Any
    tokenizer: Any
    base: str | None
    """Name of the model that a LoRA adapter was made for; None for any other checkpoint."""


def read_head(source: Source, where: str) -> Head:
    """Config and tokenizer of the checkpoint `where`; ModelError where transformers cannot read them."""
    from transformers import AutoTokenizer

    config, base = read_config(source, where)
    # peft saves an adapter without its tokenizer.
    own = base is None or _file(where, "tokenizer_config.json", source.revision) is not None
    with _unloadable(source.model), checkpoint(where if own or base is None else base) as place:
        revision = source.revision if own else None
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=source.trust_remote_code, revision=revision)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{source.model} is an encoder-decoder model ({config.model_type}); rhumbline needs a decoder. Give a "
            "causal language model."
        )
    return Head(config, tokenizer, base)


def read_config(source: Source, where: str) -> tuple[Any, str | None]:
    """Config of the checkpoint `where`, and the base of a LoRA adapter; ModelError where it cannot be read."""
    from transformers import AutoConfig

    with _unloadable(source.model):
        base = _base_of_adapter(where, source.revision)
        with checkpoint(base or where) as place:
            revision = None if base else source.revision
            config = AutoConfig.from_pretrained(place, trust_remote_code=source.trust_remote_code, revision=revision)
    return config, base


@contextmanager
def _unloadable(name: str) -> Iterator[None]:
    """Turn whatever transformers raises into a ModelError: the errors of the hub have no common base."""
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"{name}: not a loadable Hugging Face model: {_first_line(error)}. Give a hub name or a directory with "
            "config, tokenizer and weights."
        ) from error


def _load_weights(source: Source, where: str, head: Head, placement: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal = type(head.config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in (
        getattr(head.config, "auto_map", None) or {}
    )
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    check_dtype(source.dtype)
    dtype = source.dtype
    if placement.get("device_map") == "cpu" and dtype == "auto":
        dtype = dtype_on_processor(checkpoint_dtype(head.config))
    options = {"dtype": dtype, "trust_remote_code": source.trust_remote_code, **placement}
    try:
        with checkpoint(head.base or where) as place:
            revision = None if head.base else source.revision
            loaded: Any = loader.from_pretrained(place, output_loading_info=True, revision=revision, **options)
        model, info = loaded
        loads = [info]
        if head.base is not None:
            loads.append(model.load_adapter(where, adapter_kwargs={"revision": source.revision}).to_dict())
    except Exception as error:
        raise ModelError(f"{source.model}: its weights cannot be loaded: {_first_line(error)}") from error
    _check_weights(source.model, model, loads)
    return model


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


def check_dtype(name: str) -> None:
    """ModelError where `name` is neither `auto` nor a torch dtype."""
    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        raise ModelError(f"dtype {name!r} is not a torch dtype; use auto, float32, bfloat16 or float16.")


def _check_weights(name: str, model: Any, loads: Sequence[Mapping[str, Any]]) -> None:
    """ModelError where weights are missing, of another shape, or not finite. `loads`: what transformers reports."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for load in loads for key in load.get(kind) or ())
        if keys:
            raise ModelError(
                f"{name}: the checkpoint has {len(keys)} {kind.replace('_keys', '')} tensors ({', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}), which would be random. Is the download complete?"
            )
    for tensor_name, held in _tensors(model):
        tensor = held.to_local() if isinstance(held, DTensor) else held
        if tensor.is_floating_point() and not torch.isfinite(_values(model, tensor_name, tensor)).all():
            raise ModelError(f"{name}: the weights hold NaN or infinity (first in {tensor_name}). Download it again.")


def _base_of_adapter(where: str, revision: str | None) -> str | None:
    """Name of the base model that a LoRA adapter was made for; None for any other checkpoint."""
    if _file(where, "config.json", revision) is not None:
        return None
    adapter = _file(where, "adapter_config.json", revision)
    return None if adapter is None else json.loads(adapter.read_text())["base_model_name_or_path"]


def _file(where: str, name: str, revision: str | None) -> Path | None:
    """One file of a checkpoint, on this machine; None where the checkpoint has none of this name."""
    from transformers.utils.hub import cached_file

    found = cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


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
