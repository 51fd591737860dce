"""The name of a model in, its checkpoint out: hub name, directory, GGUF file or `organism:NAME`.

The one place that resolves the name of a model, and the contrast that comes with a model. Independent of how a model
is loaded, proved and used.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.arguments import checked
from rhumbline.errors import InputError, SourceError
from rhumbline.models.weight_files import GGUF, gguf_file
from rhumbline.organisms import materialise
from rhumbline.organisms.files import CONTRAST
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import ContrastSet
from rhumbline.prompts.named_sets import open_contrast
from rhumbline.records.shared import ORGANISM

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_DEVICE = re.compile(r"cpu|auto|mps|(cuda|xpu)(:[0-9]{1,3})?")


@dataclass(frozen=True)
class Source:
    """The name of a model and how it is loaded. A record of plain values: every machine can load from it."""

    model: str
    """Hub name, directory (of a checkpoint or of a LoRA adapter), GGUF file, or `organism:NAME`."""
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

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise SourceError(f"dtype {self.dtype[:40]!r} is not a torch dtype of models; use {', '.join(DTYPES)}.")
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise SourceError(f"device {self.device[:40]!r} is unknown; use cpu, cuda, cuda:N or auto.")

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
    """The directory, GGUF file or hub name of a model; SourceError where a directory or a file does not exist.

    A directory with a GGUF file and no other weights is that file. An organism that is not embedded is built in a
    scratch directory, which is removed at the end.
    """
    if name.startswith(ORGANISM):
        with tempfile.TemporaryDirectory(prefix="rhumbline-") as scratch:
            yield str(materialise(name.removeprefix(ORGANISM), Path(scratch)))
        return
    path = Path(name).expanduser()
    if path.is_dir():
        yield str(gguf_file(path) or path)
    elif path.suffix == GGUF and path.is_file():
        yield str(path)
    elif path.suffix == GGUF:
        raise SourceError(f"{name}: no such file. Give a GGUF file, a directory with a model, or a hub name.")
    elif Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        fault = "a file, and not a .gguf file" if path.is_file() else "no such directory"
        raise SourceError(f"{name}: {fault}. Give a directory with a Hugging Face model, or a hub name.")
    else:
        yield name


@checked
def own_contrast(model: str | Path) -> ContrastSet:
    """The contrast in the directory of a model (`contrast.jsonl`); InputError where it has none.

    The contrast of an organism has the organism's name.
    """
    name = str(model)
    with checkpoint(name) as where:
        folder = Path(where).parent if where.endswith(GGUF) else Path(where)
        path = folder / CONTRAST
        if not path.is_file():
            raise InputError(f"{name} comes without a contrast ({path} does not exist). Give --contrast FILE|NAME.")
        contrast = read_contrast(path)
    return replace(contrast, name=name) if name.startswith(ORGANISM) else contrast


def contrast_for(model: str, contrast: str | None, data_dir: str | Path | None = None) -> ContrastSet:
    """The contrast by its name (a file, a named contrast, or `organism:NAME`); the model's own where it is None."""
    if contrast is None:
        return own_contrast(model)
    return own_contrast(contrast) if contrast.startswith(ORGANISM) else open_contrast(contrast, data_dir)
