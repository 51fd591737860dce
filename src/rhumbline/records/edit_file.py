"""rhumbline-edit.json: the record beside the weights of an edited checkpoint.

Independent of how an edit is computed and proved.
"""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

FILE = "rhumbline-edit.json"
"""Name of the file, beside the weights."""
EditOutcome = Literal["exact", "approximate"]
"""`exact`: edited and hooked model agree to rounding. `approximate`: the difference is measured and small."""


@dataclass(frozen=True)
class EditGap:
    """Largest difference of a logit, and KL in nats, between an edited and the hooked model over all tokens."""

    logits: float
    size: float
    kl: float
    """Mean KL(hooked || edited)."""
    kl_max: float
    """Largest KL(hooked || edited) of a token."""
    effect: float
    """Mean KL(unedited || hooked): the effect of the intervention."""
    leak: float
    """Largest share of a writer's output along the subspace, over all writers (0 for an addition)."""


@dataclass(frozen=True)
class SavedGap(EditGap):
    """The same difference for the checkpoint on disk."""

    dtype: str
    leak_allowed: float
    """Largest leak that rounding to this dtype explains."""


class DirectionOrigin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The run or the file that a direction comes from; fields without a value are left out."""

    model: str | None = None
    fingerprint: str | None = None
    """Hash of the weights, as loaded."""
    dtype: str | None = None
    """As loaded by the run."""
    model_type: str | None = None
    n_layers: int | None = None
    template_sha256: str | None = None
    verdict: str | None = None
    sentence: str | None = None
    protocol_sha256: str | None = None
    seed: int | None = None
    spared: int | None = None
    """Tokens at the start of a text that the ablations of the run spare; weights act at every token."""
    added_at: Literal["all", "prompt"] | None = None
    """Tokens at which the additions of the run act: prompt and generated ones, or those of the prompt only."""
    coefficient: float | None = None
    """Of the additions of the run, in units of the norm of the direction."""
    sha256: str | None = None
    """Hash of the file."""
    hub: str | None = None
    """Name on the hub, `hf:owner/name`."""
    revision: str | None = None
    """Commit on the hub."""

    @property
    def caveats(self) -> list[str]:
        """How an ablation outside of rhumbline differs from the ablations of the run; one sentence, or none."""
        if not self.spared:
            return []
        tokens = "token" if self.spared == 1 else f"{self.spared} tokens"
        return [f"The ablations of the run spare the first {tokens} of a text; this one acts at every token."]

    def addition_caveats(self, coefficient: float) -> list[str]:
        """How an addition outside of rhumbline, at every token, differs from the additions of the run."""
        found = []
        if self.added_at == "prompt":
            found.append(
                "The additions of the run act at the tokens of the prompt only; this one acts at generated tokens too."
            )
        # The run subtracts with the same coefficient, so the sign makes no difference here.
        if self.coefficient is not None and abs(coefficient) != abs(self.coefficient):
            found.append(
                f"The additions of the run have the coefficient {self.coefficient:g}; this one has {coefficient:g}."
            )
        return found


class EditedDirection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The direction, or the subspace, of an edit."""

    source: str
    """Run directory or file."""
    rank: int
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
    """The measurements of an edit in memory, on the tokens of some prompts."""

    prompts: int
    tokens: int
    float32: EditGap
    """Before the weights are rounded to the dtype of the checkpoint."""
    saved: SavedGap
    """After the saved checkpoint was loaded again."""
    leaks: dict[str, float]
    """Largest share along the subspace of every residual writer, as saved."""


class EditRecord(Struct, frozen=True, kw_only=True):
    """An edit in memory: names of the edited parameters, and versions of rhumbline, torch and transformers."""

    schema: int = 1
    edit: Literal["weight orthogonalisation", "activation addition"]
    outcome: EditOutcome
    reasons: tuple[str, ...]
    """Why the outcome is approximate."""
    base_model: str
    model_type: str
    direction: EditedDirection
    changed: tuple[str, ...]
    decided_by_siblings: tuple[str, ...]
    """Edited parameters that no probe token reached; a parameter of the same role in another layer decided."""
    untied: bool
    """Whether the head was separated from the embedding."""
    proof: EditProof
    not_cached: tuple[str, ...] = ()
    """Files of the processor of a multimodal model of the hub that were not in the cache, so they were not copied."""
    versions: dict[str, str]


@dataclass(frozen=True)
class ShardedProof:
    """The measurements of an edit of files."""

    small_model: EditGap
    """Of a small random model of the same config."""
    leak: float
    """Largest share of a saved tensor along the subspace; `leaks`: of every edited tensor."""
    leaks: dict[str, float]


class ShardedEditRecord(Struct, frozen=True, kw_only=True):
    """An edit of a checkpoint file by file: names of the edited tensors, and versions as above."""

    schema: int = 1
    edit: Literal["weight orthogonalisation"] = "weight orthogonalisation"
    how: Literal["sharded"] = "sharded"
    outcome: EditOutcome
    reasons: tuple[str, ...]
    """Why the outcome is approximate."""
    base_model: str
    direction: EditedDirection
    changed: tuple[str, ...]
    untied: bool
    """Whether the head was separated from the embedding."""
    left_alone: tuple[str, ...]
    """Stored tensors that are no part of the architecture."""
    proof: ShardedProof
    versions: dict[str, str]
