"""Where a model comes from, in words that any machine understands: a hub name, a directory, or `organism:NAME`.

Knows names. Does not know what is done with a model.
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import ContrastSet

ORGANISM = "organism:"


@dataclass(frozen=True)
class Source:
    """How a model is loaded."""

    model: str
    dtype: str = "auto"
    device: str | None = None
    coarse: bool = False
    trust_remote_code: bool = False

    @property
    def organism(self) -> str | None:
        """Name of the organism, where it is one."""
        return self.model.removeprefix(ORGANISM) if self.model.startswith(ORGANISM) else None

    def load(self) -> ChatModel:
        """The model, proved. Weights come from the directory or the hub cache of the machine that this runs on."""
        from rhumbline.models.loading import load

        options = {"dtype": self.dtype, "device": self.device, "coarse": self.coarse}
        if self.organism is None:
            return load(self.model, trust_remote_code=self.trust_remote_code, **options)
        folder, scratch = _organism(self.organism)
        try:
            return replace(load(str(folder), **options), name=self.model)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def own_contrast(self) -> ContrastSet:
        """The contrast that comes with an organism."""
        assert self.organism is not None
        folder, scratch = _organism(self.organism)
        try:
            return replace(read_contrast(folder / "contrast.jsonl"), name=self.model)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


def _organism(name: str) -> tuple[Path, Path | None]:
    """The organism's directory, and the scratch folder that it was built in, if it was: weights are read at once."""
    from rhumbline.organisms import ORGANISMS, materialise

    if name in ORGANISMS and ORGANISMS[name].is_embedded:
        return materialise(name, Path()), None
    scratch = Path(tempfile.mkdtemp(prefix="rhumbline-"))
    try:
        return materialise(name, scratch), scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
