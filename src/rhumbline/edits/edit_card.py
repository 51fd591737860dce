"""The record of an edit as text: the model card of the checkpoint, and a summary for a terminal.

Independent of how an edit is computed and proved.
"""

from pathlib import Path

from rhumbline.edits.new_directory import RECORD
from rhumbline.records.edit_file import EditedDirection, EditRecord, ShardedEditRecord

UNMEASURED = (
    "the difference between this checkpoint and the hooked model was not measured: the difference above is that of a "
    "small model with random gains. Edit in memory, without --sharded, to measure it."
)
"""The meaning of an approximate outcome if the model was not built."""
_REASONS = 6


def card(record: EditRecord | ShardedEditRecord) -> str:
    """The model card of an edited checkpoint: what was changed, from which run, and what was proved."""
    body = _sharded_body(record) if isinstance(record, ShardedEditRecord) else _body(record)
    is_hub_name = record.base_model.count("/") == 1 and not record.base_model.startswith((".", "/", "~"))
    lines = [
        "---",
        *([f"base_model: {record.base_model}"] if is_hub_name else []),
        "library_name: transformers",
        "tags: [rhumbline, edited]",
        "---",
        f"# {Path(record.base_model).name}, edited",
        "",
        *body,
    ]
    return "\n".join(lines)


def _subspace(direction: EditedDirection) -> str:
    return "a direction" if direction.rank == 1 else f"a subspace of rank {direction.rank}"


def _body(record: EditRecord) -> list[str]:
    """The body of the card of an edit in memory."""
    direction, exact, saved = record.direction, record.proof.float32, record.proof.saved
    origin = direction.origin
    change = {
        "weight orthogonalisation": "every parameter that writes into the residual stream is orthogonalised against "
        f"{_subspace(direction)}",
        "activation addition": f"a constant, {direction.coefficient} times the direction, is added to the residual "
        f"stream before block {direction.layer}",
    }[record.edit]
    verdict = origin.verdict or "none (the direction came from a file, without a run)"
    return [
        f"In this copy of `{record.base_model}` {change}. It was made by rhumbline {record.versions['rhumbline']} and "
        "loads in plain transformers.",
        "",
        "| | |",
        "|---|---|",
        f"| edit | {record.edit} |",
        f"| outcome | **{record.outcome}** |",
        f"| direction | `{direction.source}`, layer {direction.layer}, position {direction.position} |",
        f"| verdict of its run | {verdict} |",
        f"| parameters changed | {len(record.changed)}{', embeddings untied first' if record.untied else ''} |",
        f"| proved on | {record.proof.prompts} prompts, {record.proof.tokens} tokens |",
        f"| effect: mean KL(unedited to hooked) | {exact.effect:.3g} nats |",
        f"| gap in float32: mean KL(hooked to edited) | {exact.kl:.2g} nats (max {exact.kl_max:.2g}); "
        f"logits {exact.logits:.2g} of {exact.size:.3g} |",
        f"| gap as saved ({saved.dtype}) | {saved.kl:.2g} nats (max {saved.kl_max:.2g}); logits {saved.logits:.2g} |",
        f"| largest share written along it, as saved | {saved.leak:.1e} (allowed {saved.leak_allowed:.1e}) |",
        "",
        *([f"Result of the run: {origin.sentence}", ""] if origin.sentence else []),
        *(_why_approximate(record.reasons) if record.reasons else []),
        "Side effects on other abilities were not measured here, only the difference above. The changed parameters and "
        f"every number are in `{RECORD}`.",
        "",
    ]


def _sharded_body(record: ShardedEditRecord) -> list[str]:
    """The body of the card of an edit of files: what was proved on the checkpoint, and what on a small model."""
    direction, gap = record.direction, record.proof.small_model
    return [
        f"In this copy of `{record.base_model}` every stored tensor that writes into the residual stream is "
        f"orthogonalised against {_subspace(direction)}. It was made file by file by rhumbline "
        f"{record.versions['rhumbline']}.",
        "",
        "| | |",
        "|---|---|",
        f"| outcome | **{record.outcome}** |",
        f"| direction | `{direction.source}`, layer {direction.layer}, position {direction.position} |",
        f"| verdict of its run | {direction.origin.verdict or 'none'} |",
        f"| tensors changed | {len(record.changed)}{', embeddings untied' if record.untied else ''} |",
        f"| largest share of a tensor along it, as saved | {record.proof.leak:.1e} |",
        f"| on a small random model of the same config | hooked and edited differ by KL {gap.kl:.2g} nats "
        f"(effect of the ablation: {gap.effect:.2g}) |",
        "",
        "The model itself was not built: the small model proves that no other tensor writes into the stream. Behaviour "
        f"and side effects of this checkpoint were not measured. Every number is in `{RECORD}`.",
        "",
        *(_why_approximate((*record.reasons[:_REASONS], UNMEASURED)) if record.outcome == "approximate" else []),
    ]


def _why_approximate(reasons: tuple[str, ...]) -> list[str]:
    return ["Why it is not exact:", "", *[f"- {reason}" for reason in reasons[: _REASONS + 1]], ""]


def summary(record: EditRecord | ShardedEditRecord, out: Path) -> list[str]:
    """The outcome of an edit in a few lines, for a terminal."""
    untied = ", embeddings untied" if record.untied else ""
    reasons = [f"not exact: {reason}" for reason in record.reasons[:3]]
    if isinstance(record, ShardedEditRecord):
        gap = record.proof.small_model
        return [
            f"{record.edit}, file by file: {record.outcome}, {len(record.changed)} tensors{untied}",
            f"largest share of a tensor along it: {record.proof.leak:.1e}; on a small model of the same config hooked "
            f"and edited differ by KL {gap.kl:.2g} nats (effect of the ablation: {gap.effect:.2g})",
            *reasons,
            *([UNMEASURED] if record.outcome != "exact" else []),
            f"model: {out}",
        ]
    gap, saved = record.proof.float32, record.proof.saved
    return [
        f"{record.edit}: {record.outcome}, {len(record.changed)} parameters{untied}",
        f"hooked and edited differ by mean KL {gap.kl:.2g} nats in float32, {saved.kl:.2g} as saved ({saved.dtype}); "
        f"effect of the intervention: {gap.effect:.3g}",
        f"largest share of a write along it: {gap.leak:.1e} in float32, {saved.leak:.1e} as saved",
        *reasons,
        f"model: {out}",
    ]
