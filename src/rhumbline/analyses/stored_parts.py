"""Parts of an analysis that is not finished, kept as files, so that a stopped analysis resumes.

A part is identified by everything that its result depends on. The parts that an analysis used are removed once its
record is written. Independent of what is analysed.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rhumbline.axes import TokenIds
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint
from rhumbline.records.directory import PARTS
from rhumbline.records.files import read_json, sha256, write_json
from rhumbline.records.source_hash import code_sha256

ROWS = 1024
"""Completions that are generated, and kept, together."""


@dataclass(frozen=True)
class StoredParts:
    """The parts of one analysis."""

    folder: Path
    depends: tuple[str, ...]
    """What every part depends on: the code, the libraries, and the run or the model."""
    used: set[Path] = field(default_factory=set)
    """Files that were read or written."""

    @classmethod
    def of(cls, directory: Path, *depends: str) -> "StoredParts":
        """The parts of an analysis whose record is written to a directory; `depends` are hashes."""
        return cls(directory / PARTS, (code_sha256(), version("torch"), version("transformers"), *depends))

    def result(self, kind: str, inputs: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, a JSON value; it is computed once for equal inputs.

        The parts that `compute` used itself are removed, as they are not needed any more.
        """
        path = self.folder / f"{sha256([*self.depends, kind, repr(inputs)])}.json"
        if not path.is_file():
            before = set(self.used)
            write_json(path, {"kind": kind, "value": compute()})
            self._remove(self.used - before)
        self.used.add(path)
        return read_json(path)["value"]

    def clear(self) -> None:
        """Remove the parts that were used. Those of another analysis stay."""
        self._remove(set(self.used))
        with suppress(OSError):  # missing, or parts of another analysis are there
            self.folder.rmdir()

    def _remove(self, paths: set[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        self.used.difference_update(paths)


@dataclass
class ResumableRunner(Runner):
    """A runner that keeps completions, and what its callers ask it to keep."""

    parts: StoredParts = field(kw_only=True)

    def kept(self, kind: str, inputs: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or what it returned before for equal inputs."""
        return self.parts.result(kind, inputs, compute)

    def completions(
        self,
        sequences: Sequence[TokenIds],
        arms: Sequence[Arm] = (BASELINE,),
        *,
        max_new_tokens: int,
        stop: Collection[int] | None = None,
    ) -> list[list[list[int]]]:
        """Greedy completions by arm and prompt, some arms at a time."""
        # A response is edited as generated tokens are, so the same ids without one are another input.
        texts = tuple((tuple(ids), ids.n_response if isinstance(ids, ChatWithResponse) else 0) for ids in sequences)
        ends = None if stop is None else tuple(sorted(stop))
        size = max(1, ROWS // max(1, len(sequences)))
        completions: list[list[list[int]]] = []
        for some in (arms[first : first + size] for first in range(0, len(arms), size)):
            inputs = (texts, tuple(arm.key for arm in some), max_new_tokens, ends)
            generate = partial(super().completions, sequences, some, max_new_tokens=max_new_tokens, stop=stop)
            completions += self.kept("completions", inputs, generate)
        return completions


def resumable_runner(model: ChatModel, tick: Callable[[int], None], directory: str | Path | None) -> Runner:
    """A runner that keeps completions in a directory; None: one that keeps nothing."""
    if directory is None:
        return Runner(model, tick=tick)
    parts = StoredParts.of(Path(directory), fingerprint(model), model.proof.mode, str(model.device))
    return ResumableRunner(model, tick=tick, parts=parts)
