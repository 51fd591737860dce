"""The models of the paper's table and of the blog as data: what to run, and what was published of it (models.toml).

Knows names and numbers; runs nothing. Every number has its source in the file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from rhumbline.errors import ProtocolError
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol, preset

BYTES = 2
"""Of a parameter in bfloat16."""
TOKENS = 512
"""Of a completion in the paper."""


@dataclass(frozen=True)
class Published:
    """One model, how it was run, and what came out; models.toml says what the fields mean."""

    name: str
    hub: str
    preset: str
    contrast: str
    layers: int
    parameters: float
    """In billions."""
    licence: str
    template: str | None = None
    """Jinja text; None is the template that the model brings."""
    refusal_tokens: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    positions: int | None = None
    selected: tuple[int, int] | None = None
    run_selected: tuple[int, int] | None = None
    selected_layer: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    n: int = 100
    """Prompts behind a rate."""
    verdict: str | None = None
    remote_code: bool = False
    note: str = ""

    def protocol(self, **changes: Any) -> Protocol:
        """The protocol that the model was run with, with fields replaced."""
        own: dict[str, Any] = {"chat": ChatOptions(template=self.template)}
        if self.refusal_tokens:
            own["refusal_tokens"] = self.refusal_tokens
        if self.n != Sizes().test:
            own["sizes"] = Sizes(test=self.n)
        return preset(self.preset, **{**own, **changes})

    def sites(self) -> tuple[tuple[int, int], ...]:
        """Every (position, layer) that was published for the model."""
        return tuple(dict.fromkeys(s for s in (self.selected, self.run_selected) if s is not None))

    def hardware(self) -> dict[str, float]:
        """Estimates, not measurements: {"disk_gib", "memory_gib", "generated_tokens", "gpu_hours"}.

        Disk and weights: 2 bytes a parameter. Memory: a quarter more, for activations, the cache and the logits.
        Tokens: eight arms on every prompt to their full length. Hours: those tokens at 2 floating point operations per
        parameter and token on a device that reaches 5e13 a second in decoding (assumed of an H100, batched),
        and half as much again for selection.
        """
        weights = self.parameters * 1e9 * BYTES / 2**30
        tokens = 8 * self.n * TOKENS
        hours = 1.5 * 2 * self.parameters * 1e9 * tokens / 5e13 / 3600
        return {
            "disk_gib": round(weights, 1),
            "memory_gib": round(weights * 1.25, 1),
            "generated_tokens": tokens,
            "gpu_hours": round(hours, 2),
        }


@cache
def models() -> Mapping[str, Published]:
    """Every published model by its name."""
    table = tomllib.loads((files("rhumbline.presets") / "models.toml").read_text(encoding="utf-8"))
    templates = table["templates"]
    found = {}
    for name, own in table["models"].items():
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}
        if "template" in plain:
            plain["template"] = templates[plain["template"]]
        found[name] = Published(name=name, **plain)
    return found


def model_preset(name: str) -> Published:
    """The published model of that name."""
    if name not in models():
        raise ProtocolError(f"unknown model {name!r}; known: {', '.join(models())} (rhumbline reproduce --list).")
    return models()[name]
