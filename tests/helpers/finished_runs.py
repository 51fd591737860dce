"""Finished runs of organisms: protocols of several sizes, a run in a folder, and the subject that analyses read.

The fixtures `organism` and `finished` of conftest.py make each of them once, for all workers; a test that writes in a
run works on a copy.
"""

from dataclasses import replace
from pathlib import Path

from rhumbline import load, preset, read_contrast, run
from rhumbline.analyses.subject import Subject, open_subject
from rhumbline.organisms import Planted, build, materialise
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.settings import DoseSettings, NullSettings, SideEffectSettings, StabilitySettings

QUICK = preset(
    "arditi2024", sizes=Sizes(32, 16, 40), seeds=(0,), max_new_tokens=4, side_effects=SideEffectSettings(documents=0)
)
"""The fewest stages that end in a direction."""
COMPLETIONS = replace(QUICK, sizes=Sizes(32, 16, 24), max_new_tokens=40, save_completions=True)
"""The same on fewer prompts, with completions that are long enough for the trained organisms."""
TEXTS = preset("arditi2024", seeds=(0,), sizes=Sizes(16, 8, 12), max_new_tokens=12, save_completions=True)
"""The same on still fewer prompts, with completions that are long enough for the planted organisms."""
EVERY_STAGE = preset(
    "rhumbline",
    sizes=Sizes(24, 12, 20),
    nulls=NullSettings(draws=2, wide=19, prompts=6, procedure_prompts=4),
    dose=DoseSettings((0.0, 0.5, 1.0), (-1.0, 0.0, 1.0), draws=1, prompts=6),
    stability=StabilitySettings(refits=4, sites=2, prompts=6),
    max_new_tokens=12,
)
"""Two seeds and every stage, as small as the default rule allows."""


def finish(name: str, folder: Path, out: Path, protocol: Protocol, *, by_name: bool = True, page: bool = False) -> Path:
    """A run of the organism in `folder`. `by_name`: the run names it organism:NAME, so that others find it again."""
    model = load(str(folder), device="cpu", dtype="float32" if by_name else "auto")
    contrast = read_contrast(folder / "contrast.jsonl")
    if by_name:
        model, contrast = replace(model, name=f"organism:{name}"), replace(contrast, name=f"organism:{name}")
    run(model, contrast, out, protocol, page=page)
    return out


def finished_run(of: str | Planted, into: Path, protocol: Protocol = QUICK) -> Subject:
    """A run of the organism in `into / run`, opened."""
    folder = build(of, into / "model") if isinstance(of, Planted) else materialise(of, into)
    model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
    if isinstance(of, str):
        model, contrast = replace(model, name=f"organism:{of}"), replace(contrast, name=f"organism:{of}")
    run(model, contrast, into / "run", protocol, page=False)
    return replace(open_subject(into / "run", model, contrast), page=False)
