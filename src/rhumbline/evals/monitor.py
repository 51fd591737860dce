"""Monitor: score prompts by the projection of their residual stream on the direction of a run, in one forward pass.

The pass ends at the input of the layer of the direction, and no token is generated. A score is the projection on the
unit direction, in units of the residual stream. It measures where a prompt is along the difference of the training
classes; it does not predict the completion. Independent of the source of the direction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from rhumbline.arguments import check_fields, checked
from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.inference.batch_edits import check_fits
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import at_site
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.analysis_files import MonitorRecord
from rhumbline.records.positions import Position
from rhumbline.stages.finished_run import SeedArtefacts, open_run


@dataclass(frozen=True)
class Monitor:
    """Scores prompts by their projection on a direction."""

    model: ChatModel
    chat: Chat
    direction: Direction
    threshold: float | None = None
    """Prompts with a larger score are flagged; None if no threshold was selected."""

    def __post_init__(self):
        check_fields(self)
        check_fits(self.direction, self.model, "Monitor")
        position = Position(int(self.direction.position))
        if position.is_in_response:
            raise DirectionError(
                f"the direction was read in responses (position: {position}), and a monitor reads prompts. Use a "
                "direction of a run with --positions post-instruction, last-token or last-instruction."
            )

    @classmethod
    @checked
    def from_run(
        cls, run: str | Path, model: ChatModel, *, seed: int | None = None, template: str | None = None
    ) -> "Monitor":
        """The monitor of a finished run (default: of its first seed), with the model of the run.

        The threshold is that of `rhumbline analyze monitor` for this seed, if it was run. `template` is the Jinja text
        of the chat template, if the run had one of its own. Raises InputError if model or template are not the run's,
        and ProtocolError if no direction was selected.
        """
        finished = open_run(run)
        artefacts = finished.artefacts(seed)
        if artefacts.direction is None:
            raise ProtocolError(
                f"{run}: no candidate passed the selection of seed {artefacts.seed}, so there is no direction to "
                "monitor. Use another seed or run."
            )
        chat = finished.chat(model, template)
        finished.check_model(model)
        return cls(model, chat, artefacts.direction, _threshold(artefacts))

    @checked
    def score(self, prompts: Iterable[str]) -> Float[np.ndarray, " prompt"]:
        """Projection of every prompt at the site of the direction, float64."""
        named = [Prompt(text, "negative", id=f"number {i}") for i, text in enumerate(prompts)]
        self.chat.check_texts((prompt.id, prompt.text) for prompt in named)
        return self.score_ids([self.chat.encode(prompt) for prompt in named])

    @checked
    def score_ids(self, sequences: Sequence[Sequence[int]]) -> Float[np.ndarray, " prompt"]:
        """The same for chats as token ids, up to the start of the response."""
        if not sequences:
            return np.zeros(0)
        h = at_site(Runner(self.model), sequences, self.direction.position, self.direction.layer)
        return (h.double() @ self.direction.vector.double()).numpy()

    @checked
    def flags(self, prompts: Iterable[str]) -> Bool[np.ndarray, " prompt"]:
        """Which prompts score above the threshold. Raises ProtocolError if there is none."""
        if self.threshold is None:
            raise ProtocolError(
                "this monitor has no threshold. Run `rhumbline analyze monitor RUN --fpr 0.01`, or set one: "
                "dataclasses.replace(monitor, threshold=...)."
            )
        return self.score(prompts) > self.threshold


def _threshold(artefacts: SeedArtefacts) -> float | None:
    """The threshold that `analyze monitor` selected for the seed; None if it was not run for this seed."""
    if not artefacts.directory.has(MonitorRecord):
        return None
    record = artefacts.directory.read_record(MonitorRecord)
    return record.threshold if record.seed == artefacts.seed else None
