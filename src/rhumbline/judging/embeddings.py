"""Content by sentence embeddings: texts in, cosines out.

The model is a local directory of sentence-transformers (extra `embeddings`). It is read without code of its own and
from safetensors only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rhumbline.errors import InputError
from rhumbline.models.weight_files import extra, one_line
from rhumbline.records.files import file_sha256, read_json

OPTION = "--embeddings"
MODULES = "modules.json"
"""The file of a model directory that lists its parts."""


@dataclass(frozen=True)
class SentenceEmbeddings:
    """A sentence embedding model."""

    name: str
    sha256: str
    """Of its first weight file."""
    encode: Callable[[Sequence[str]], Float[np.ndarray, "text width"]]
    """The unit vector of every text."""

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "SentenceEmbeddings":
        """The model of a directory. InputError if it is none, or if sentence-transformers is not installed."""
        folder, library = Path(path), extra("embeddings", "sentence_transformers")
        weights = sorted(folder.rglob("*.safetensors"))
        if not (folder / MODULES).is_file() or not weights:
            raise InputError(
                f"{OPTION} {path}: expected a local directory with {MODULES} and .safetensors weights. Save a model "
                "there: hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir DIR."
            )
        _check_modules(folder / MODULES)
        try:
            model = library.SentenceTransformer(
                str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:  # sentence-transformers raises errors of any type for a faulty directory
            raise InputError(
                f"{OPTION} {path} could not be loaded ({one_line(error)}). Save the model again, or use another one."
            ) from error

        def encode(texts: Sequence[str]) -> Float[np.ndarray, "text width"]:
            return model.encode([*texts], normalize_embeddings=True, show_progress_bar=False)

        return cls(folder.resolve().name, file_sha256(weights[0]), encode)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Float[np.ndarray, " pair"]:
        """The cosine of each text and the other one; 0 if one of them is empty."""
        written = np.array([bool(a.strip() and b.strip()) for a, b in zip(texts, others, strict=True)])
        return np.where(written, (self.encode(texts) * self.encode(others)).sum(1), 0.0).astype(float)

    def by_chance(self, texts: Sequence[str]) -> float:
        """Mean cosine of two different texts."""
        vectors, n = self.encode(texts).astype(float), len(texts)
        return float((vectors @ vectors.T).sum() - n) / (n * (n - 1)) if n > 1 else 0.0


def _check_modules(path: Path) -> None:
    """Raise InputError if a part of the model is not a class of sentence-transformers."""
    parts: Any = read_json(path)
    types = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if not types or not all(isinstance(t, str) and t.startswith("sentence_transformers.") for t in types):
        raise InputError(
            f"{OPTION} {path.parent}: {MODULES} lists parts of the types {types}, expected classes of "
            "sentence_transformers. Use a model without code of its own."
        )
