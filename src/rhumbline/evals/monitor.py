"""A run's direction as a detector in anyone's code: prompts in, their projections out, in one forward pass.

The pass ends at the input of the direction's layer; nothing is generated. A score is the projection of the residual
stream on the unit direction, in the stream's own units; it says how far a prompt lies along what separated the
training classes, not what the model will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import at_site
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.files import read_json
from rhumbline.records.positions import Position
from rhumbline.stages.finished_run import SeedArtefacts, open_run


@dataclass(frozen=True)
class Monitor:
    """Scores prompts by their projection on a direction."""

    model: ChatModel
    chat: Chat
    direction: Direction
    threshold: float | None = None
    """Prompts that score above it are flagged; None where none was chosen."""

    def __post_init__(self):
        position = Position(int(self.direction.position))
        if position.is_in_response:
            raise DirectionError(
                f"the direction was read in responses (position: {position}), and a monitor reads prompts. Use a "
                "direction of a run with --positions post-instruction or last-instruction."
            )

    @classmethod
    def from_run(
        cls, run: str | Path, model: ChatModel, *, seed: int | None = None, template: str | None = None
    ) -> "Monitor":
        """The monitor of a finished run (its first seed unless another is named), on the run's own model.

        The threshold is the one that `rhumbline analyze monitor` chose on validation prompts, where it was run for
        this seed. `template` is the Jinja text of a run that used one of its own. Raises InputError where the model or
        the template is not the run's, ProtocolError where no direction was selected.
        """
        finished = open_run(run)
        artefacts = finished.artefacts(seed)
        if artefacts.direction is None:
            raise ProtocolError(
                f"{run}: no candidate passed the selection of seed {artefacts.seed}, so there is no direction to "
                "monitor. Give another seed or run."
            )
        chat = finished.chat(model, template)
        finished.check_model(model)
        return cls(model, chat, artefacts.direction, _threshold(artefacts))

    def score(self, prompts: Sequence[str]) -> Float[np.ndarray, " prompt"]:
        """Projection of every prompt at the direction's site, float64."""
        return self.score_ids([self.chat.encode(Prompt(text, "negative", id="monitored")) for text in prompts])

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> Float[np.ndarray, " prompt"]:
        """The same for chats that are token ids already, up to where the answer begins."""
        if not sequences:
            return np.zeros(0)
        h = at_site(Runner(self.model), sequences, self.direction.position, self.direction.layer)
        return (h.double() @ self.direction.vector.double()).numpy()

    def flags(self, prompts: Sequence[str]) -> Bool[np.ndarray, " prompt"]:
        """Which prompts score above the threshold. Raises ProtocolError where there is none."""
        if self.threshold is None:
            raise ProtocolError(
                "this monitor has no threshold: run `rhumbline analyze monitor RUN --fpr 0.01`, or give one, "
                "dataclasses.replace(monitor, threshold=...)."
            )
        return self.score(prompts) > self.threshold


def _threshold(artefacts: SeedArtefacts) -> float | None:
    directory = artefacts.directory
    path = directory.path / "analyses" / "monitor.json"
    if not path.is_file():
        return None
    record: Mapping[str, Any] = read_json(path)
    is_own = record.get("protocol_sha256") == directory.protocol_sha256 and record.get("seed") == artefacts.seed
    return record["threshold"] if is_own else None
