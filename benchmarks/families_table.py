"""`make families`: runs and edits of a tiny random model of every decoder family of transformers.

Writes docs/models.md. A family is a row if a model of it can be built on a CPU from a config with small sizes; the
others are listed below the table with the reason. The library does not read this table.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from families import FAMILIES, MOE, OTHERS, random_model  # noqa: E402
from rhumbline.edits.projection import orthonormal  # noqa: E402
from rhumbline.edits.proved_edit import edit_in_place  # noqa: E402
from rhumbline.errors import ModelError, RhumblineError  # noqa: E402
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction  # noqa: E402
from rhumbline.inference.runner import Runner  # noqa: E402
from rhumbline.models import proving  # noqa: E402

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9]]
GUESS = {**MOE, "head_dim": 8, "moe_num_experts": 4, "n_routed_experts": 4}
LARGEST = 3_000_000


def built(family: str):
    """A tiny model, from the options of the family or from guessed ones; raises the last error."""
    known = family in FAMILIES or family in OTHERS
    error: Exception = ValueError("no config")
    for options in [{}] if known else [{}, GUESS]:
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in random_model(family, **options).parameters())
            if size > LARGEST:
                raise ValueError(f"{size / 1e6:.0f}M parameters at small sizes: its config has other names for them")
            return random_model(family, gains=True, **options)
        except Exception as e:
            error = e
    raise error


def reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith(("layer ", "before "))), lines[0] if lines else "")
    return text.split(": ", 1)[-1].replace("|", "/")[:230] if text.startswith(("layer", "before")) else text[:230]


def batched_equals_alone(chat_model) -> bool:
    arms = arms_of(chat_model)
    together = {}
    for rows, logits in Runner(chat_model).last_logits(PROMPTS, arms):
        for a, p, row in zip(rows.arm.tolist(), rows.prompt.tolist(), logits, strict=True):
            together[a, p] = row
    for a, arm in enumerate(arms):
        for p, prompt in enumerate(PROMPTS):
            alone = next(iter(Runner(chat_model).last_logits([prompt], [arm])))[1][0]
            if (alone - together[a, p]).abs().max() > 1e-4 * alone.abs().max().clamp_min(1):
                return False
    return True


def cached_equals_uncached(chat_model) -> bool:
    from dataclasses import replace

    slow = replace(chat_model, proof=replace(chat_model.proof, cache_is_exact=False))
    arms = arms_of(chat_model)
    fast = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=5)[0]
    return fast == Runner(slow).generate(PROMPTS, arms, max_new_tokens=5)[0]


def arms_of(chat_model) -> list[Arm]:
    direction = Direction.from_vector(torch.arange(1.0, chat_model.d_model + 1).sin() * 2, -1, 1)
    return [BASELINE, Arm("ablation", (Ablate(direction),)), Arm("addition", (Add(direction),))]


def row_of(family: str) -> dict[str, str]:
    """One row of the table; raises if no model can be built."""
    model = built(family)
    row = dict.fromkeys(("runs", "leak", "batched", "cached", "edit", "gap", "reload", "note"), "-")
    try:
        chat_model = proving.prove(model, None, family)
        row["runs"] = "exact"
    except ModelError as error:
        row["note"] = reason(error)
        try:
            chat_model = proving.prove(model, None, family, coarse=True)
        except ModelError:
            return row | {"runs": "refused", "edit": "refused"}
        row["runs"] = "coarse"
    row["leak"] = f"{chat_model.proof.leak:.0e}"
    row["batched"] = (
        ("yes, by length" if chat_model.proof.padding_changes_logits else "yes")
        if batched_equals_alone(chat_model)
        else "no"
    )
    if chat_model.proof.cache_is_exact:
        row["cached"] = "yes" if cached_equals_uncached(chat_model) else "no"
    else:
        row["cached"] = "not cached"
    if row["runs"] == "coarse":
        return row | {"edit": "refused"}
    before = list(dict.fromkeys(w.module for w in chat_model.writers))
    basis = orthonormal(torch.randn(1, chat_model.d_model, generator=torch.Generator().manual_seed(0)))
    try:
        edited = edit_in_place(chat_model, basis)
    except RhumblineError as error:
        return row | {"edit": "refused", "note": reason(error)}
    gap = edited.gap
    row |= {"edit": edited.outcome, "gap": f"{gap.kl:.0e} of {gap.effect:.0e}"}
    row["note"] = ", ".join(f"`{name}`" for name in before[:4])
    if edited.outcome == "approximate":
        row["note"] += "; " + edited.reasons[-1].split(": ", 1)[-1]
    row["reload"] = reloaded(edited.chat_model.model)
    if row["reload"] != "equal" and edited.untied:
        # As in edits/save.py: an entry that ties more than the head stays enabled.
        for part in (model.config, model.config.get_text_config()):
            part.tie_word_embeddings = True
        row["reload"] = reloaded(edited.chat_model.model)
    if row["reload"] != "equal":
        row |= {"edit": "refused", "note": f"{row['reload']}, so no file would be saved", "reload": "differs"}
    return row


def reloaded(model) -> str:
    """`equal`, or the difference after saving and loading."""
    ids = torch.tensor(PROMPTS[:1])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).eval()
        theirs = dict(again.named_parameters(remove_duplicate=False))
        mine = model.named_parameters(remove_duplicate=False)
        other = [n for n, p in mine if n not in theirs or not torch.equal(p, theirs[n])]
        off = float((model(ids).logits - again(ids).logits).abs().max())
    if other:
        return f"transformers loads the saved checkpoint with another {other[0]} ({len(other)} parameters)"
    return "equal" if off < 1e-5 else f"the saved checkpoint gives other logits (by {off:.1g})"


HEAD = """# Models

Generated by `make families` with transformers {version} and torch {torch}. Each row is a tiny random model (with
random gains of the norms) of a decoder family of transformers that can be built on a CPU from small sizes. The library
contains none of these names. It proves each model when it is loaded; a family that is not listed works, or is refused
with a reason, in the same way.

- **runs**: `exact`, every residual writer was proved; `coarse`, ablation edits block inputs and outputs instead (only
  with `--coarse`, and the report states it); `refused`, the stream is not [row, position, d_model].
- **leak**: largest |r.x|/|x| at any block input and before the final norm while a random direction r is ablated.
- **batched**: arms and prompts in one batch give the logits that they give alone (`by length`: padding changes the
  logits of this family, so a batch contains prompts of one length). **cached**: decoding with the cache gives the
  tokens of whole passes.
- **edit**: the outcome of `rhumbline edit`. `exact`: equal to the hooks at rounding level. `approximate`: nothing is
  written along r, but a norm after the edited matrices changes its scale. **gap** is the mean KL(hooked to edited) and
  the mean KL(unedited to hooked), in nats, of this random model. **reload**: the saved checkpoint loads to the same
  bits.

{counts}

| family | runs | leak | batched | cached | edit | gap | reload | writers, or the reason |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="default: all, and docs/models.md is written")
    names = parser.parse_args().families
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, absent = {}, {}
    for family in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        start = time.perf_counter()
        try:
            rows[family] = row_of(family)
            shown = " | ".join(rows[family].values())
        except Exception as error:
            absent[family] = f"{type(error).__name__}: {reason(error)}"
            shown = absent[family]
        print(f"{family:24s} {time.perf_counter() - start:5.1f} s  {shown}", flush=True)
    if names:
        return
    kinds = ("exact", "approximate", "refused")
    counts = ", ".join(f"{sum(r['edit'] == k for r in rows.values())} {k}" for k in kinds)
    runs = ", ".join(f"{sum(r['runs'] == k for r in rows.values())} {k}" for k in ("exact", "coarse", "refused"))
    head = HEAD.format(
        version=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        counts=f"{len(rows)} families. Runs: {runs}. Edits: {counts}.",
    )
    table = "".join(f"| {family} | {' | '.join(row.values())} |\n" for family, row in rows.items())
    foot = (
        "\n## Families that could not be built\n\n"
        "No small model could be built from these configs, so nothing is known about them.\n\n"
    )
    foot += "".join(f"- {family}: {why}\n" for family, why in absent.items())
    (ROOT / "docs" / "models.md").write_text(head + table + foot)


if __name__ == "__main__":
    main()
