"""Adapters of PEFT: find the base of one, apply it as a whole or refuse it, and merge it into the weights.

Every tensor of the file must have a place in the model, and every place must get a tensor. Independent of how the base
model is loaded.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rhumbline.errors import ModelError
from rhumbline.models.resource_limits import LimitExceeded, limited
from rhumbline.models.weight_files import check_archive, extra, listed, one_line, safetensors_header
from rhumbline.records.user_files import read_json

CONFIG = "adapter_config.json"
PATTERNS, TABLES = ("target_modules", "exclude_modules"), ("rank_pattern", "alpha_pattern")
"""Fields of an adapter that can be a regular expression, or have them as keys."""


class Base(NamedTuple):
    """The model that an adapter was made for."""

    name: str
    revision: str | None


def base_of(name: str, config: Path) -> Base:
    """The base that adapter_config.json names; ModelError if it names none. `name` is the adapter's, for messages."""
    content = read_json(config, ModelError, "the config of an adapter")
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{name}: {CONFIG} names no base model. Write its name or directory as base_model_name_or_path."
        )
    beside = config.parent / base
    if not Path(base).is_absolute() and not Path(base).exists() and beside.exists():
        base = str(beside.resolve())
    return Base(base, content.get("revision") or None)


def apply_adapter(model: Any, name: str, where: str, revision: str | None) -> None:
    """Add the adapter in `where` to its base model, in place. ModelError if not every tensor finds its place.

    The modules of the base keep their names, and each gets the tensors of the adapter beside its own.
    """
    peft = extra("peft", "peft")
    _check_file(name, Path(where))
    before = {id(p) for p in model.parameters()}
    try:
        with warnings.catch_warnings():
            # peft warns of tensors that are missing, which is an error here, and of tied weights.
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(where, revision=revision)
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise ModelError(
                    f"{name} is an adapter of type {config.peft_type.value}, which adds virtual tokens. Only adapters "
                    "that change weights, such as LoRA, can be measured."
                )
            _check_patterns(name, config, [key for key, _ in model.named_modules()])
            config.inference_mode = True
            wrapped = peft.PeftModel(model, config, autocast_adapter_dtype=False)
            weights = peft.utils.save_and_load.load_peft_weights(where, device="cpu", revision=revision)
            result = peft.set_peft_model_state_dict(wrapped, weights)
    except ModelError:
        raise
    except Exception as error:  # The errors of peft, safetensors and the hub have no common base.
        raise ModelError(
            f"{name}: the adapter cannot be applied to its base model: {one_line(error)}. Is it an adapter of this "
            "base, and complete?"
        ) from error
    own = {key for key, p in wrapped.named_parameters() if id(p) not in before}
    _refuse(name, "has no tensors for", own & set(result.missing_keys))
    _refuse(name, "has tensors for modules that the base lacks:", result.unexpected_keys)
    model.requires_grad_(False).eval()


def _check_patterns(name: str, config: Any, modules: Sequence[str]) -> None:
    """ModelError if a regular expression of an adapter needs too long for the names of the modules."""
    patterns = {text for field in PATTERNS if isinstance(text := getattr(config, field, None), str)}
    patterns |= {text for field in TABLES for text in getattr(config, field, None) or {}}
    for pattern in patterns:
        try:
            with limited():
                for module in modules:
                    re.fullmatch(pattern, module)
                    re.match(rf"(.*\.)?({pattern})$", module)  # as peft reads a table
        except LimitExceeded as error:
            raise ModelError(
                f"{name}: the pattern {pattern[:99]!r} of {CONFIG} cannot be used: {error}. Write the names of modules."
            ) from error


def _check_file(name: str, folder: Path) -> None:
    """ModelError if the weights of an adapter on this machine are missing or cut off."""
    if not folder.is_dir():
        return
    files = [path for path in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if path.is_file()]
    if not files:
        raise ModelError(
            f"{name} is an adapter without weights: it has no adapter_model.safetensors. Download it again."
        )
    if files[0].suffix == ".safetensors":
        safetensors_header(files[0])
    else:
        check_archive(files[0], ModelError)


def _refuse(name: str, fault: str, keys: Iterable[str]) -> None:
    names = sorted(key.removeprefix("base_model.model.") for key in keys)
    if names:
        raise ModelError(
            f"{name}: the adapter would be applied only in part: it {fault} {len(names)} parameters ({listed(names)}). "
            "Use an adapter of this base, with the adapter_config.json that it was saved with."
        )


def _adapted(model: Any) -> list[tuple[str, Any]]:
    """The modules that peft put in the place of others, innermost last."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError:
        return []
    return [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def merge_adapter(model: Any) -> None:
    """Add the adapter of a model, if it has one, to its weights in place; ModelError if it cannot be merged.

    A weight that other modules share, such as that of a tied head, is copied first: the adapter acts on one of them.
    """
    try:
        with torch.no_grad():
            while found := _adapted(model):
                name, module = found[0]
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, _merged(model, module))
    except (ValueError, NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the adapter cannot be merged into its base: {one_line(error)}. Merge it with peft."
        ) from error


def _merged(model: Any, module: Any) -> nn.Module:
    """The module that peft replaced, with the adapter in its weights."""
    if hasattr(module, "unload_and_optionally_merge_module"):
        return module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    _unshare(model, module.get_base_layer())
    module.merge(safe_merge=True)
    return module.get_base_layer()


def _unshare(model: Any, layer: nn.Module) -> None:
    """Give a layer whose weight is also that of another module a weight of its own."""
    weight = getattr(layer, "weight", None)
    if weight is None or not any(
        m is not layer and vars(m)["_parameters"].get("weight") is weight for m in model.modules()
    ):
        return
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
