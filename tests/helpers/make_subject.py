"""Small finished runs of organisms, and the subjects that analyses are asked about."""

from dataclasses import replace
from pathlib import Path

from rhumbline import load, preset, read_contrast, run
from rhumbline.analyses.subject import Subject, open_subject
from rhumbline.organisms import Planted, build, materialise
from rhumbline.prompts.contrasts import Sizes

QUICK = preset("arditi2024", sizes=Sizes(32, 16, 40), seeds=(0,), max_new_tokens=4)
"""The fewest stages that end in a direction."""


def organism(of: str | Planted, into: Path) -> Path:
    """The directory of an organism by name, or of a planted one by its spec."""
    return build(of, into / "model") if isinstance(of, Planted) else materialise(of, into)


def finished_run(of: str | Planted, into: Path, protocol=QUICK) -> Subject:
    """A run of the organism in `into / run`, opened."""
    folder = organism(of, into)
    model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
    if isinstance(of, str):
        model, contrast = replace(model, name=f"organism:{of}"), replace(contrast, name=f"organism:{of}")
    run(model, contrast, into / "run", protocol, page=False)
    return replace(open_subject(into / "run", model, contrast), page=False)
