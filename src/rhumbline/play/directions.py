"""The directions that a session can use: that of a run or a file at every layer, and null directions of its norm.

Independent of prompts. Draws the same null directions for the same direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rhumbline.axes import Vector
from rhumbline.edits.read_direction import ImportedDirections
from rhumbline.errors import DirectionError, InputError
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.seed_files import MetricTokens
from rhumbline.stages.finished_run import FinishedRun
from rhumbline.stages.null_families import generator, isotropic

OWN = "direction"
"""Name of the direction that was passed."""
DRAWS = 3
"""Null directions of each family."""
PROBE = "Hello"
"""Prompt whose residual stream gives a random direction its norm, if no direction was passed."""


@dataclass(frozen=True)
class Choices:
    """Directions by name and layer."""

    vectors: Mapping[str, Vector | Mapping[int, Vector]]
    """One vector for all layers, or one for each. Norms do not matter."""
    norms: Mapping[int, float]
    """By layer: the norm of the addition with coefficient 1."""
    layer: int
    """The layer of the direction that was passed; the middle one without it."""
    position: int = -1
    tokens: tuple[int, ...] = field(default=(), repr=False)
    """Ids of the tokens whose probability is shown; empty: none are known."""
    start: tuple[int, ...] = field(default=(), repr=False)
    """Generated tokens after which the probability is read."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the passed direction first."""
        return tuple(self.vectors)

    def direction(self, name: str, layer: int) -> Direction:
        """A direction by its name, at the input of a layer. Raises InputError."""
        check_name(name, self.names)
        if layer not in self.norms:
            raise InputError(f"layer is {layer}; this direction has layers {min(self.norms)} to {max(self.norms)}.")
        vectors = self.vectors[name]
        vector = vectors[layer] if isinstance(vectors, Mapping) else vectors
        return Direction.from_vector(vector / vector.norm() * self.norms[layer], self.position, layer)

    @classmethod
    def of_run(cls, run: FinishedRun, seed: int | None) -> "Choices":
        """The candidates at the selected position, one for each layer, and the first null directions of the run."""
        artefacts = run.artefacts(seed)
        selected = artefacts.direction
        if selected is None:
            raise DirectionError(
                f"{run.path}: no candidate passed the selection of seed {artefacts.seed}, so there is no direction. "
                "Pass another --seed, run or file."
            )
        candidates = artefacts.candidates[artefacts.positions.index(selected.position)]
        norms = {layer: float(v.norm()) for layer, v in enumerate(candidates) if float(v.norm()) > 0}
        nulls = {f"{n.family} {n.draw}": n.direction.vector for n in artefacts.nulls if n.draw < DRAWS}
        own = {layer: candidates[layer] for layer in norms}
        metric = artefacts.read(MetricTokens)
        return cls(
            {OWN: own, **nulls},
            norms,
            selected.layer,
            int(selected.position),
            tuple(token.id for token in metric.tokens),
            () if metric.start is None else metric.start.tokens,
        )

    @classmethod
    def of_file(cls, imported: ImportedDirections, n_layers: int) -> "Choices":
        """The vector of a file at every layer, and isotropic vectors of its norm."""
        direction = imported.direction()
        vectors = {OWN: direction.vector, **_isotropic(len(direction.vector))}
        norms = dict.fromkeys(range(n_layers), direction.norm)
        return cls(vectors, norms, direction.layer, int(direction.position))

    @classmethod
    def random(cls, model: ChatModel, chat: Chat) -> "Choices":
        """Isotropic vectors only, with the norm of the residual stream at the last token of one prompt."""
        ((_, h, _),) = Runner(model).residuals([chat.encode(PROBE)], [-1])
        norms = {layer: float(v.float().norm()) for layer, v in enumerate(h[0, 0])}
        return cls(_isotropic(model.d_model), norms, model.n_layers // 2)


def random_names() -> tuple[str, ...]:
    """The names of the null directions of a file."""
    return tuple(f"isotropic {draw}" for draw in range(DRAWS))


def check_name(name: str | None, names: Sequence[str]) -> None:
    """Raise InputError unless the name is None or one of `names`."""
    if name is not None and name not in names:
        raise InputError(f"direction {name[:60]!r} is unknown. Use one of {', '.join(names)}.")


def _isotropic(d_model: int) -> dict[str, torch.Tensor]:
    draws = enumerate(random_names())
    return {name: isotropic(d_model, generator(0, "isotropic", draw)) for draw, name in draws}
