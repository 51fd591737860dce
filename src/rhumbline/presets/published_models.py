"""The models of the paper's table and of the blog as data: their settings and their published figures (models.toml).

Every number has its source in the file. Independent of how a run is computed.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from rhumbline.errors import ProtocolError
from rhumbline.presets.protocols import preset
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.codec import convert
from rhumbline.records.positions import Position
from rhumbline.records.shared import Site

PARAMETER_BYTES = 2
"""Bytes of a parameter in bfloat16."""
PAPER_TOKENS = 512
"""Tokens of a completion in the paper."""
ARMS = 8
"""Arms that complete the test prompts."""
FLOPS = 5e13
"""Assumed operations per second of an H100 while it decodes a batch."""
SELECTION_SHARE = 0.5
"""Assumed time of selection, as a share of the time of decoding."""


class Hardware(NamedTuple):
    """Estimated requirements of a reproduction, from the number of parameters alone."""

    disk_gib: float
    """Size of the weights in bfloat16."""
    memory_gib: float
    """The weights and a quarter more, for activations, the cache and the logits."""
    generated_tokens: int
    """All arms on every prompt, at full length."""
    gpu_hours: float
    """Decoding with 2 floating point operations per parameter and token, and selection."""


@dataclass(frozen=True)
class Published:
    """One model, its settings and its published figures."""

    name: str
    """Name for the command line."""
    hub: str
    """Name on the Hugging Face hub."""
    preset: str
    """Preset of its protocol."""
    contrast: str
    """Named contrast."""
    layers: int
    """Blocks of the decoder."""
    parameters: float
    """Parameters in billions, by the model's name."""
    licence: str
    template: str | None = None
    """Chat template (Jinja); None: the model's own."""
    refusal_tokens: tuple[str, ...] = ()
    """First tokens of a refusal; empty: those of the preset."""
    token_ids: tuple[int, ...] = ()
    """Their ids in the model's vocabulary."""
    positions: int | None = None
    """Post-instruction tokens of the template."""
    selected: tuple[int, int] | None = None
    """Position and layer in the paper's table 5."""
    run_selected: tuple[int, int] | None = None
    """Position and layer of the run that the authors' code contains."""
    selected_layer: int | None = None
    """Layer, if no position was published."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Published rates and scores, by name."""
    n: int = 100
    """Prompts of each rate."""
    verdict: str | None = None
    remote_code: bool = False
    """Whether the model needs code of its own."""
    note: str = ""

    def protocol(self, **changes: Any) -> Protocol:
        """The protocol of the published run, with fields replaced."""
        protocol = preset(self.preset, chat=ChatOptions(template=self.template))
        if self.refusal_tokens:
            protocol = replace(protocol, refusal_tokens=self.refusal_tokens)
        if self.n != Sizes().test:
            protocol = replace(protocol, sizes=Sizes(test=self.n))
        return replace(protocol, **changes)

    def sites(self) -> tuple[Site, ...]:
        """Every published site of the direction."""
        cells = dict.fromkeys(cell for cell in (self.selected, self.run_selected) if cell is not None)
        return tuple(Site(Position(position), layer) for position, layer in cells)

    def hardware(self) -> Hardware:
        """Estimated requirements; nothing is measured."""
        parameters = self.parameters * 1e9
        weights = parameters * PARAMETER_BYTES / 2**30
        tokens = ARMS * self.n * PAPER_TOKENS
        hours = (1 + SELECTION_SHARE) * 2 * parameters * tokens / FLOPS / 3600
        return Hardware(round(weights, 1), round(weights * 1.25, 1), tokens, round(hours, 2))


@cache
def published_models() -> Mapping[str, Published]:
    """Every published model by its name."""
    table = tomllib.loads((files("rhumbline.presets") / "models.toml").read_text(encoding="utf-8"))
    templates = table["templates"]

    def read(name: str, fields: dict) -> Published:
        template = templates[fields["template"]] if "template" in fields else None
        return convert({**fields, "name": name, "template": template}, Published)

    return {name: read(name, fields) for name, fields in table["models"].items()}


def published_model(name: str) -> Published:
    """The published model of that name. Raises ProtocolError."""
    if name not in published_models():
        known = ", ".join(published_models())
        raise ProtocolError(f"{name!r} is not a published model. Use one of {known} (`rhumbline reproduce --list`).")
    return published_models()[name]
