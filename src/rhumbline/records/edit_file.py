"""rhumbline-edit.json: the record beside the weights of an edited checkpoint.

Independent of how an edit is computed and proved.
"""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

EditOutcome = Literal["exact", "approximate"]
"""`exact`: edited and hooked model agree to rounding. `approximate`: the difference is measured and small."""


@dataclass(frozen=True)
class EditGap:
    """Difference between an edited model and the hooked one, over every token of the prompts."""

    logits: float
    """Largest absolute difference of a logit."""
    size: float
    """Largest absolute logit of the hooked model."""
    kl: float
    """Mean KL(hooked || edited), nats."""
    kl_max: float
    """Largest KL(hooked || edited) of a token, nats."""
    effect: float
    """Mean KL(unedited || hooked), nats: the effect of the intervention."""
    leak: float
    """Largest share of a writer's output along the subspace, over all writers (0 for an addition)."""


@dataclass(frozen=True)
class SavedGap(EditGap):
    """The same difference for the checkpoint on disk."""

    dtype: str
    """dtype of the saved weights."""
    leak_allowed: float
    """Largest leak that rounding to this dtype explains."""


class DirectionOrigin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a direction comes from; a field without a value is left out."""

    model: str | None = None
    """Name of the model of the run."""
    fingerprint: str | None = None
    """Hash of the weights of that model, as loaded."""
    dtype: str | None = None
    """dtype in which the run loaded the model."""
    model_type: str | None = None
    """`model_type` of its config."""
    n_layers: int | None = None
    """Decoder blocks of the model."""
    template_sha256: str | None = None
    """Hash of the chat template of the run."""
    verdict: str | None = None
    """Verdict of the run."""
    sentence: str | None = None
    """The verdict as a sentence, with its numbers."""
    protocol_sha256: str | None = None
    """Hash of the protocol of the run."""
    seed: int | None = None
    """Seed of the run."""
    sha256: str | None = None
    """Hash of the file that the direction was read from."""


class EditedDirection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The direction, or the subspace, of an edit."""

    source: str
    """Run directory or file."""
    rank: int
    """Number of vectors."""
    layer: int | None
    """Block at whose input the direction was read or acts; None if it is not known."""
    position: int | None
    """Position at which it was read; None if it is not known."""
    norms: tuple[float, ...] | None = None
    """Norm of every vector before normalisation. Left out of edits of files."""
    coefficient: float | None = None
    """Of an addition, in units of the norm. Left out of orthogonalisations."""
    origin: DirectionOrigin


@dataclass(frozen=True)
class EditProof:
    """The measurements of an edit in memory."""

    prompts: int
    """Prompts on which the models were compared."""
    tokens: int
    """Tokens of these prompts."""
    float32: EditGap
    """Before the weights are rounded to the dtype of the checkpoint."""
    saved: SavedGap
    """After the saved checkpoint was loaded again."""
    leaks: dict[str, float]
    """Largest share along the subspace of every residual writer, as saved."""


class EditRecord(Struct, frozen=True, kw_only=True):
    """An edit in memory."""

    schema: int = 1
    edit: Literal["weight orthogonalisation", "activation addition"]
    outcome: EditOutcome
    reasons: tuple[str, ...]
    """Why the outcome is approximate."""
    base_model: str
    """Name of the unedited model."""
    model_type: str
    """`model_type` of its config."""
    direction: EditedDirection
    changed: tuple[str, ...]
    """Names of the edited parameters."""
    decided_by_siblings: tuple[str, ...]
    """Edited parameters that no probe token reached; a parameter of the same role in another layer decided."""
    untied: bool
    """Whether the head was separated from the embedding."""
    proof: EditProof
    versions: dict[str, str]
    """Versions of rhumbline, torch and transformers."""


@dataclass(frozen=True)
class ShardedProof:
    """The measurements of an edit of files."""

    small_model: EditGap
    """Of a small random model of the same config."""
    leak: float
    """Largest share of a saved tensor along the subspace."""
    leaks: dict[str, float]
    """The share of every edited tensor."""


class ShardedEditRecord(Struct, frozen=True, kw_only=True):
    """An edit of a checkpoint file by file."""

    schema: int = 1
    edit: Literal["weight orthogonalisation"] = "weight orthogonalisation"
    how: Literal["sharded"] = "sharded"
    outcome: EditOutcome
    reasons: tuple[str, ...]
    """Why the outcome is approximate."""
    base_model: str
    """Name of the unedited model."""
    direction: EditedDirection
    changed: tuple[str, ...]
    """Names of the edited tensors."""
    untied: bool
    """Whether the head was separated from the embedding."""
    left_alone: tuple[str, ...]
    """Stored tensors that are no part of the architecture."""
    proof: ShardedProof
    versions: dict[str, str]
    """Versions of rhumbline, torch and transformers."""
