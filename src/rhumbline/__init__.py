"""rhumbline: is a behaviour of a chat model mediated by a single direction, and how confident can one be?

The public names, in the order of the flow. They are imported when first used, so that reading a run needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhumbline.edits.proved_edit import orthogonalized
    from rhumbline.edits.read_direction import read_directions
    from rhumbline.errors import RhumblineError
    from rhumbline.evals.monitor import Monitor
    from rhumbline.evidence.selection_rules import choose, read_scores
    from rhumbline.evidence.verdict import decide
    from rhumbline.evidence.verdict_rules import Rule
    from rhumbline.experiment import Result, discover, run, selected_direction
    from rhumbline.inference.applied import applied
    from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
    from rhumbline.inference.runner import Runner
    from rhumbline.inference.side_by_side import compare
    from rhumbline.judging.judge_names import judge
    from rhumbline.models.chat import Chat
    from rhumbline.models.chat_model import ChatModel
    from rhumbline.models.loading import load
    from rhumbline.models.proving import prove
    from rhumbline.models.sources import own_contrast
    from rhumbline.presets.protocols import preset, quick
    from rhumbline.prompts.chat_options import ChatOptions
    from rhumbline.prompts.contrast_files import contrast_from_prompts, read_contrast
    from rhumbline.prompts.contrasts import ContrastSet, Prompt, Sizes, split_contrast
    from rhumbline.prompts.named_sets import open_contrast
    from rhumbline.protocol import Protocol
    from rhumbline.verification import verify

_HOME = {
    "RhumblineError": "errors",
    "Prompt": "prompts.contrasts",
    "ContrastSet": "prompts.contrasts",
    "Sizes": "prompts.contrasts",
    "read_contrast": "prompts.contrast_files",
    "open_contrast": "prompts.named_sets",
    "own_contrast": "models.sources",
    "contrast_from_prompts": "prompts.contrast_files",
    "split_contrast": "prompts.contrasts",
    "Chat": "models.chat",
    "ChatOptions": "prompts.chat_options",
    "ChatModel": "models.chat_model",
    "prove": "models.proving",
    "load": "models.loading",
    "Direction": "inference.interventions",
    "read_directions": "edits.read_direction",
    "Ablate": "inference.interventions",
    "Add": "inference.interventions",
    "Arm": "inference.interventions",
    "Runner": "inference.runner",
    "compare": "inference.side_by_side",
    "judge": "judging.judge_names",
    "choose": "evidence.selection_rules",
    "read_scores": "evidence.selection_rules",
    "Rule": "evidence.verdict_rules",
    "decide": "evidence.verdict",
    "Protocol": "protocol",
    "preset": "presets.protocols",
    "quick": "presets.protocols",
    "run": "experiment",
    "discover": "experiment",
    "Result": "experiment",
    "selected_direction": "experiment",
    "verify": "verification",
    "applied": "inference.applied",
    "orthogonalized": "edits.proved_edit",
    "Monitor": "evals.monitor",
}

__all__ = [  # noqa: RUF022 - the order of the flow
    "RhumblineError",
    "Prompt",
    "ContrastSet",
    "Sizes",
    "read_contrast",
    "open_contrast",
    "own_contrast",
    "contrast_from_prompts",
    "split_contrast",
    "Chat",
    "ChatOptions",
    "ChatModel",
    "prove",
    "load",
    "Direction",
    "read_directions",
    "Ablate",
    "Add",
    "Arm",
    "Runner",
    "compare",
    "judge",
    "choose",
    "read_scores",
    "Rule",
    "decide",
    "Protocol",
    "preset",
    "quick",
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
