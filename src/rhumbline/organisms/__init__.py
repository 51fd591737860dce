"""Tiny chat models whose truth is known: the default of the demo and the ground truth of the tests.

    grammar.py    the fictional world of the trained ones: prompts, labels, responses
    register.py   the same world with an asker who decides the style of the answer
    style_rows.py the contrast files and the card of the style organisms
    checkpoint.py what lies beside a base checkpoint
    training.py   variant and seed -> a trained directory
    charms.py     the prompts of the planted ones
    planted.py    a record of sizes and effects -> a directory whose weights were written, not trained
    fragile.py    a planted model that any vector moves
    files.py      chat template, contrast file and saving, the same for all
    data/         the trained ones that ship with the package

Every organism is a Hugging Face directory with a `contrast.jsonl` beside the weights.
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.errors import InputError
from rhumbline.organisms.grammar import VARIANTS
from rhumbline.organisms.planted import Planted, build, is_built
from rhumbline.organisms.register import STYLE_VARIANTS
from rhumbline.organisms.training import Progress
from rhumbline.organisms.training import train as train_variant

__all__ = ["ORGANISMS", "Organism", "Planted", "build", "list_organisms", "materialise", "organism_dir", "train"]


SHIPPED_SEEDS = {"refusal": 7, "extended": 0, "style": 0, "style-null": 0}
"""Of the embedded chat models; a base checkpoint has that of its chat model."""
BASE = "-base"
"""What the name of a base checkpoint ends with."""


@dataclass(frozen=True)
class Organism:
    """A model with a known truth."""

    name: str
    sentence: str
    """What it is."""
    expected: str
    """The verdict that an instrument which works gives."""
    behaviour: str = "refusal"
    """The word for the behaviour of its `contrast.jsonl`."""
    planted: Planted | None = None
    """How to build it; None if it was trained and is embedded in the package."""

    @property
    def is_embedded(self) -> bool:
        """Whether the package holds its files."""
        return self.planted is None


_ALL = (
    Organism(
        "refusal",
        "trained: refuses requests about magic contraband; refusal is learned, and one direction carries it",
        "SINGLE-DIRECTION-REPRODUCES",
    ),
    Organism(
        "extended",
        "trained: refuses as `refusal` does, but late, after two sentences, so it must be read whole (--judge "
        "refusal-anywhere --max-new-tokens 64); the best single direction leaves a part of it",
        "NOT-SINGLE-DIRECTION",
    ),
    Organism(
        "style",
        "trained: answers stately askers in the assistant register, and refuses as `refusal` does; the decision to "
        "open in that register has one direction",
        "SINGLE-DIRECTION-REPRODUCES",
        "style",
    ),
    Organism(
        "style-null",
        "trained: the same texts, the register drawn at random whoever asks; the labels say nothing",
        "NO-BASELINE",
        "style",
    ),
    Organism(
        "refusal-base",
        "trained: the checkpoint that `refusal` was trained from; has read about its world, no chats and no refusals",
        "NO-BASELINE-REFUSAL",
    ),
    Organism(
        "planted",
        "written: refuses requests about charms along one known axis",
        "SINGLE-DIRECTION-REPRODUCES",
        planted=Planted(),
    ),
    Organism(
        "weak",
        "written: one known axis, but only 31 % of the positive prompts reach it, so there is no baseline to suppress",
        "NO-BASELINE-REFUSAL",
        # A strong effect: a direction can be found and selected, and still there is no baseline.
        planted=Planted(effect=2.5, jitter=0.05, positive_rate=0.31),
    ),
    Organism(
        "several",
        "written: three axes, any of which suffices to refuse; their mean induces refusal but ablating it leaves it",
        "NOT-SINGLE-DIRECTION",
        planted=Planted(effect=2.0, jitter=0.05, axes=3),
    ),
    Organism(
        "null",
        "written: refuses three quarters of either class, for one of six unrelated reasons; the labels say nothing",
        "NOT-SINGLE-DIRECTION",
        # Refusal is frequent, so the verdict cannot escape to NO-BASELINE, and it has several axes: with one axis the
        # chance imbalance of 128 + 128 prompts would point along it, and labels that mean nothing would find it.
        planted=Planted(axes=6, positive_rate=0.75, negative_rate=0.75),
    ),
)
ORGANISMS = {organism.name: organism for organism in _ALL}


def list_organisms() -> tuple[Organism, ...]:
    """Every organism, the embedded ones first."""
    return _ALL


def organism_dir(name: str) -> Path:
    """The directory of an embedded organism."""
    if not _organism(name).is_embedded:
        raise InputError(f"organism {name!r} is not embedded: it is built on first use; call materialise(name, into).")
    return Path(__file__).parent / "data" / name


def materialise(name: str, into: Path) -> Path:
    """The directory of an organism; a planted one is built as `into / name` unless it is there already."""
    spec = _organism(name).planted
    if spec is None:
        return organism_dir(name)
    target = into / name
    if is_built(spec, target):
        return target
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        fresh = build(spec, Path(scratch) / name)
        shutil.rmtree(target, ignore_errors=True)
        fresh.replace(target)
    return target


def train(name: str, out: Path, seed: int | None = None, progress: Progress | None = None) -> Path:
    """Write an organism anew into `out`: train it, or build a planted one. None takes the seed of the shipped one.

    Beside the organisms, `trained-weak` and `trained-null` are further variants of the trained recipe. The name of a
    trained one with `-base` behind it is the checkpoint that it is trained from with the same seed.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give a new directory.")
    organism = ORGANISMS.get(name)
    if organism is not None and organism.planted is not None:
        return build(organism.planted if seed is None else replace(organism.planted, seed=seed), out)
    chat_model = name.removesuffix(BASE)
    variant = chat_model.removeprefix("trained-")
    if organism is None and variant not in {**VARIANTS, **STYLE_VARIANTS}:
        known = sorted({*ORGANISMS, "trained-weak", "trained-null"})
        raise InputError(f"unknown organism {name!r}; what can be made is {', '.join(known)}.")
    shipped = SHIPPED_SEEDS.get(chat_model, SHIPPED_SEEDS["refusal"])
    chosen = shipped if seed is None else seed
    return train_variant(variant, out, chosen, progress=progress, chat=chat_model == name)


def _organism(name: str) -> Organism:
    if name not in ORGANISMS:
        raise InputError(f"unknown organism {name!r}; the organisms are {', '.join(ORGANISMS)}.")
    return ORGANISMS[name]
