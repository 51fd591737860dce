"""The files beside the weights of a checkpoint (processor, templates): copied into that of an edit.

Those of a hub name are taken from the cache on this machine; nothing is downloaded. Independent of the edit.
"""

import shutil
from pathlib import Path
from typing import Any

from rhumbline.models.adapters import CONFIG as ADAPTER
from rhumbline.organisms.files import CARD, CONTRAST
from rhumbline.records.edit_file import FILE as RECORD

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""Files of the processors of multimodal models, which a run does not read and therefore does not download."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx"}


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a local checkpoint that are not weights (processors, templates), unless `folder` has them."""
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        is_weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
        is_own = path.name in {RECORD, CARD, CONTRAST, ADAPTER}
        if path.is_file() and not is_weights and not is_own and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def copy_companions_of(source: str, config: Any, folder: Path) -> None:
    """The same for a directory or a hub name with this config, and for the base of an adapter."""
    for name in _names(source, config):
        path = Path(name).expanduser()
        if not path.is_dir() and isinstance(cached := _cached(name, "config.json", config), str):
            path = Path(cached).parent
        copy_companions(path, folder)


def files_not_cached(source: str, config: Any, folder: Path) -> tuple[str, ...]:
    """Processor files that a multimodal model of the hub can have, and that neither the cache nor `folder` has."""
    names = [name for name in _names(source, config) if not Path(name).expanduser().exists()]
    if not names or config.get_text_config() is config:
        return ()
    absent = [file for file in PROCESSOR_FILES if not (folder / file).exists()]
    # The client of the hub stores which files a repository lacks; for others the result is None.
    return tuple(file for file in absent if all(_cached(name, file, config) is None for name in names))


def _names(source: str, config: Any) -> list[str]:
    """The checkpoint, and the one that transformers loaded: the base of an adapter."""
    return [name for name in dict.fromkeys((source, getattr(config, "_name_or_path", ""))) if name]


def _cached(name: str, file: str, config: Any) -> Any:
    """Path of a file of a hub name in the cache of the hub; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return try_to_load_from_cache(name, file, revision=getattr(config, "_commit_hash", None))
    except HFValidationError:  # a directory that was removed
        return None
