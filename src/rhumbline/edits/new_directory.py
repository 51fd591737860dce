"""A new directory that is complete or absent: a target in, a folder that takes its name at the end out.

Independent of what is written into it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rhumbline.errors import OutputError
from rhumbline.models.adapters import CONFIG as ADAPTER
from rhumbline.organisms.files import CONTRAST
from rhumbline.records.edit_file import FILE as RECORD

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx"}


def check_target(target: Path) -> None:
    """OutputError unless `target` is absent or an empty directory."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not an empty directory. Nothing was changed; pass another --out.")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that is renamed to `target` on success and removed after an error."""
    from safetensors import SafetensorError

    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{target} cannot be written: {getattr(error, 'strerror', None) or error}. Nothing was left behind; free "
            "the disk or fix the permissions, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files beside the weights of a local checkpoint (processors, templates) that `folder` does not have."""
    if not source.is_dir():
        return
    for path in sorted(source.iterdir()):
        is_weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
        is_own = path.name in {RECORD, "README.md", CONTRAST, ADAPTER}
        if path.is_file() and not is_weights and not is_own and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
