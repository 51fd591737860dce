"""Write a new directory that is either complete or absent.

Independent of its content.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rhumbline.errors import ModelError, OutputError
from rhumbline.records.directory import check_writable


def check_target(target: Path) -> None:
    """OutputError unless `target` is an empty directory, or can become one."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not an empty directory. Nothing was changed; pass another --out.")
    check_writable(target)


@contextmanager
def new_directory(target: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """A folder that is renamed to `target` on success and removed after an error.

    With `unfinished`, that folder is used, and only a ModelError removes it, so that the next call can resume.
    """
    from safetensors import SafetensorError

    folder = unfinished or target.with_name(f".{target.name}.partial-{os.getpid()}")
    advice = "Nothing was written. Free the disk or fix the permissions, and rerun the same command."
    if unfinished is not None:
        advice = (
            f"The finished files are in {folder}. Free the disk and rerun the same command to resume, or remove them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=unfinished is not None)
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{target} cannot be written: {reason}. {advice}") from error
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if unfinished is None:
            shutil.rmtree(folder, ignore_errors=True)
