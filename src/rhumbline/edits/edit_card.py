"""The record of an edit as text: the model card of the checkpoint, and a summary for a terminal.

Independent of how an edit is computed and proved.
"""

import tomllib
from pathlib import Path

from rhumbline.records.edit_file import EditRecord, ShardedEditRecord

UNMEASURED = (
    "the difference between this checkpoint and the hooked model was not measured: the difference above is that of a "
    "small model with random gains. Edit in memory, without --sharded, to measure it."
)
"""The meaning of an approximate outcome if the model was not built."""
MAX_REASONS = 6


def card(record: EditRecord | ShardedEditRecord) -> str:
    """The model card of an edited checkpoint: what was changed, from which run, and what was proved."""
    templates = tomllib.loads(Path(__file__).with_name("edit_cards.toml").read_text(encoding="utf-8"))
    is_sharded = isinstance(record, ShardedEditRecord)
    direction, origin = record.direction, record.direction.origin
    part = "stored tensor" if is_sharded else "parameter"
    subspace = "a direction" if direction.rank == 1 else f"a subspace of rank {direction.rank}"
    change = f"every {part} that writes into the residual stream is orthogonalised against {subspace}"
    if record.edit == "activation addition":
        change = (
            f"a constant, {direction.coefficient} times the direction, is added to the residual stream before block "
            f"{direction.layer}"
        )
    reasons = record.reasons[:MAX_REASONS]
    if is_sharded and record.outcome == "approximate":
        reasons = (*reasons, UNMEASURED)
    listed = "".join(f"- {reason}\n" for reason in reasons)
    result = [f"Result of the run: {origin.sentence}"] if origin.sentence else []
    body = templates["sharded" if is_sharded else "in_memory"].format(
        record=record,
        direction=direction,
        proof=record.proof,
        version=record.versions["rhumbline"],
        change=change,
        verdict=origin.verdict or "none (the direction came from a file, without a run)",
        changed=f"{len(record.changed)}{', embeddings untied first' if record.untied else ''}",
        sentence="".join(f"{text}\n\n" for text in (*result, *caveats(record))),
        reasons=f"Why it is not exact:\n\n{listed}\n" if listed else "",
    )
    is_hub_name = record.base_model.count("/") == 1 and not record.base_model.startswith((".", "/", "~"))
    base = f"base_model: {record.base_model}\n" if is_hub_name else ""
    head = f"---\n{base}library_name: transformers\ntags: [rhumbline, edited]\n---\n"
    return f"{head}# {Path(record.base_model).name}, edited\n\n{body}"


def caveats(record: EditRecord | ShardedEditRecord) -> list[str]:
    """How the edit differs from the intervention of the run, and which files it may lack."""
    direction, files = record.direction, []
    if not isinstance(record, ShardedEditRecord) and record.not_cached:
        names = record.not_cached
        files = [
            f"Not in the cache of the hub, so not copied: {', '.join(names)}. If the original model has them, run "
            f"`hf download {record.base_model} {' '.join(names)}` and edit again, or copy them into the directory."
        ]
    if direction.coefficient is None:
        return [*direction.origin.caveats, *files]
    return [*direction.origin.addition_caveats(direction.coefficient), *files]


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
            *caveats(record),
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
        *caveats(record),
        f"model: {out}",
    ]
