"""The name of a model in, the checkpoint that transformers loads out: hub name, directory or `organism:NAME`.

The one place that resolves the name of a model, and the contrast that comes with a model. Independent of how a model
is loaded, proved and used.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.errors import InputError, ModelError
from rhumbline.organisms import materialise
from rhumbline.organisms.files import CONTRAST
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import ContrastSet
from rhumbline.prompts.named_sets import open_contrast
from rhumbline.records.files import inside, read_json

ORGANISM = "organism:"
"""Prefix of the name of a model organism."""
INDEX = "model.safetensors.index.json"
"""Where a checkpoint of several files says which file has which tensor."""


@dataclass(frozen=True)
class Source:
    """The name of a model and how it is loaded. A record of plain values: every machine can load from it."""

    model: str
    """Hub name, directory (of a checkpoint or of a LoRA adapter), or `organism:NAME`."""
    dtype: str = "auto"
    """Name of a torch dtype, or `auto` for the checkpoint's."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`, `auto` (layers spread over all devices), or None for the first accelerator."""
    coarse: bool = False
    """Accept a model whose residual writers cannot be proved."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    revision: str | None = None
    """Commit, branch or tag of a hub name."""

    @property
    def organism(self) -> str | None:
        """Name of the organism; None for any other model."""
        return self.model.removeprefix(ORGANISM) if self.model.startswith(ORGANISM) else None

    def with_organism_defaults(self) -> "Source":
        """An organism in float32 on the CPU, as `rhumbline demo` runs it, unless dtype or device are set."""
        if self.organism is None:
            return self
        return replace(self, dtype="float32" if self.dtype == "auto" else self.dtype, device=self.device or "cpu")


@contextmanager
def checkpoint(name: str) -> Iterator[str]:
    """The directory or hub name that transformers loads under `name`; ModelError where a directory does not exist.

    An organism that is not embedded is built in a scratch directory, which is removed at the end.
    """
    if name.startswith(ORGANISM):
        with tempfile.TemporaryDirectory(prefix="rhumbline-") as scratch:
            yield str(materialise(name.removeprefix(ORGANISM), Path(scratch)))
        return
    folder = Path(name).expanduser()
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ModelError(f"{name}: no such directory. Give a directory with a Hugging Face model, or a hub name.")
    yield str(folder) if folder.is_dir() else name


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that transformers loads from a directory; none where weights have another format.

    ModelError for an index of another form, and for names that are no plain file names.
    """
    index = folder / INDEX
    if not index.is_file():
        return ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"{index} has no weight_map of tensor names and file names. Is the download complete?")
    return [inside(folder, file, ModelError).name for file in dict.fromkeys(files.values())]


def own_contrast(model: str) -> ContrastSet:
    """The contrast in the directory of a model (`contrast.jsonl`); InputError where it has none.

    The contrast of an organism has the organism's name.
    """
    with checkpoint(model) as where:
        path = Path(where) / CONTRAST
        if not path.is_file():
            raise InputError(f"{model} comes without a contrast ({path} does not exist). Give --contrast FILE|NAME.")
        contrast = read_contrast(path)
    return replace(contrast, name=model) if model.startswith(ORGANISM) else contrast


def contrast_for(model: str, contrast: str | None, data_dir: str | Path | None = None) -> ContrastSet:
    """The contrast by its name (a file, a named contrast, or `organism:NAME`); the model's own where it is None."""
    if contrast is None:
        return own_contrast(model)
    return own_contrast(contrast) if contrast.startswith(ORGANISM) else open_contrast(contrast, data_dir)
