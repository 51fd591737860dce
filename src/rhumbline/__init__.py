"""rhumbline: is a behaviour of a chat model mediated by a single direction, and how sure may one be?

The public names, in the order of the flow. They are imported when first used, so that reading a run needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhumbline.applying import applied
    from rhumbline.chat import Chat, ChatOptions
    from rhumbline.choosing import choose, read_scores
    from rhumbline.contrast_files import contrast_from_prompts, read_contrast
    from rhumbline.contrasts import ContrastSet, Prompt, Sizes, split_contrast
    from rhumbline.data import open_contrast
    from rhumbline.errors import RhumblineError
    from rhumbline.experiment import Result, discover, run, selected_direction
    from rhumbline.interventions import Ablate, Add, Arm, Direction
    from rhumbline.loading import load
    from rhumbline.models import ChatModel
    from rhumbline.monitoring import Monitor
    from rhumbline.protocol import Protocol, preset
    from rhumbline.proving import prove
    from rhumbline.rules import Rule
    from rhumbline.running import Runner
    from rhumbline.verdict import decide
    from rhumbline.verification import verify
    from rhumbline.weights import orthogonalized

_HOME = {
    "RhumblineError": "errors",
    "Prompt": "contrasts",
    "ContrastSet": "contrasts",
    "Sizes": "contrasts",
    "read_contrast": "contrast_files",
    "open_contrast": "data",
    "contrast_from_prompts": "contrast_files",
    "split_contrast": "contrasts",
    "Chat": "chat",
    "ChatOptions": "chat",
    "ChatModel": "models",
    "prove": "proving",
    "load": "loading",
    "Direction": "interventions",
    "Ablate": "interventions",
    "Add": "interventions",
    "Arm": "interventions",
    "Runner": "running",
    "choose": "choosing",
    "read_scores": "choosing",
    "Rule": "rules",
    "decide": "verdict",
    "Protocol": "protocol",
    "preset": "protocol",
    "run": "experiment",
    "discover": "experiment",
    "Result": "experiment",
    "selected_direction": "experiment",
    "verify": "verification",
    "applied": "applying",
    "orthogonalized": "weights",
    "Monitor": "monitoring",
}

__all__ = [  # noqa: RUF022 - the order of the flow
    "RhumblineError",
    "Prompt",
    "ContrastSet",
    "Sizes",
    "read_contrast",
    "open_contrast",
    "contrast_from_prompts",
    "split_contrast",
    "Chat",
    "ChatOptions",
    "ChatModel",
    "prove",
    "load",
    "Direction",
    "Ablate",
    "Add",
    "Arm",
    "Runner",
    "choose",
    "read_scores",
    "Rule",
    "decide",
    "Protocol",
    "preset",
    "run",
    "discover",
    "Result",
    "selected_direction",
    "verify",
    "applied",
    "orthogonalized",
    "Monitor",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rhumbline' has no attribute {name!r}")
    return getattr(import_module(f"rhumbline.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
