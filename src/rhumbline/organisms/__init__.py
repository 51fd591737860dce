"""Model organisms: tiny chat models with a known truth, for the demo and the tests.

    grammar.py, register.py, charms.py     the fictional worlds: prompts, labels, responses
    training.py                            a trained organism, from a variant and a seed
    planted.py                             a planted organism, whose weights are constructed from a record of parameters
    data/                                  the trained organisms that are embedded in the package

An organism is a Hugging Face directory with a `contrast.jsonl`. May import: errors, axes, records, prompts. Independent
of models: an organism is loaded as any other checkpoint.
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.errors import InputError
from rhumbline.organisms.grammar import VARIANTS
from rhumbline.organisms.planted import Planted, build, is_built
from rhumbline.organisms.register import STYLE_VARIANTS
from rhumbline.organisms.training import TrainingProgress
from rhumbline.organisms.training import train as train_variant

__all__ = ["ORGANISMS", "Organism", "Planted", "build", "list_organisms", "materialise", "organism_dir", "train"]


SHIPPED_SEEDS = {"refusal": 7, "extended": 0, "style": 0, "style-null": 0}
"""Seeds of the embedded chat models; a base checkpoint has the seed of its chat model."""
BASE = "-base"
"""Suffix of the name of a base checkpoint."""


@dataclass(frozen=True)
class Organism:
    """A model with a known truth."""

    name: str
    sentence: str
    """Its description."""
    expected: str
    """The verdict of a correct measurement."""
    behaviour: str = "refusal"
    """The behaviour that its `contrast.jsonl` contrasts."""
    planted: Planted | None = None
    """Its parameters; None if it was trained and is embedded in the package."""

    @property
    def is_embedded(self) -> bool:
        """Whether the package contains its files."""
        return self.planted is None


_ALL = (
    Organism(
        "refusal",
        "trained: refuses requests about magic contraband; one learned direction mediates refusal",
        "SINGLE-DIRECTION-REPRODUCES",
    ),
    Organism(
        "extended",
        "trained: refuses the same requests in its third sentence, so whole completions must be judged (--judge "
        "refusal-anywhere --max-new-tokens 64); the best single direction suppresses only a part of it",
        "NOT-SINGLE-DIRECTION",
    ),
    Organism(
        "style",
        "trained: answers stately askers in the assistant register, and refuses as `refusal` does; one direction "
        "mediates the decision to open in that register",
        "SINGLE-DIRECTION-REPRODUCES",
        "style",
    ),
    Organism(
        "style-null",
        "trained: the same texts with a random register for every asker; the labels do not determine it",
        "NO-BASELINE",
        "style",
    ),
    Organism(
        "refusal-base",
        "trained: the base checkpoint of `refusal`, trained on documents of its world without chats and refusals",
        "NO-BASELINE-REFUSAL",
    ),
    Organism(
        "planted",
        "planted: refuses requests about charms along one known axis",
        "SINGLE-DIRECTION-REPRODUCES",
        planted=Planted(),
    ),
    Organism(
        "weak",
        "planted: one known axis, but only 31 % of the positive prompts activate it, too few for a baseline",
        "NO-BASELINE-REFUSAL",
        # The effect is strong, so a direction is selected although there is no baseline.
        planted=Planted(effect=2.5, jitter=0.05, positive_rate=0.31),
    ),
    Organism(
        "several",
        "planted: refuses along any of three axes; adding their mean induces refusal, ablating it suppresses nothing",
        "NOT-SINGLE-DIRECTION",
        planted=Planted(effect=2.0, jitter=0.05, axes=3),
    ),
    Organism(
        "null",
        "planted: refuses three quarters of either class, along one of six axes; the labels do not determine it",
        "NOT-TESTED",
        # Refusal is frequent, so the verdict cannot be NO-BASELINE. With one axis, the difference in means of random
        # classes of 128 prompts would point along it.
        planted=Planted(axes=6, positive_rate=0.75, negative_rate=0.75),
    ),
)
ORGANISMS = {organism.name: organism for organism in _ALL}


def list_organisms() -> tuple[Organism, ...]:
    """All organisms, the embedded ones first."""
    return _ALL


def organism_dir(name: str) -> Path:
    """The directory of an embedded organism."""
    if not _organism(name).is_embedded:
        raise InputError(f"organism {name!r} is not embedded. Call materialise(name, into), which builds it.")
    return Path(__file__).parent / "data" / name


def materialise(name: str, into: Path) -> Path:
    """The directory of an organism. A planted organism is built as `into / name`, unless it exists there."""
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


def train(name: str, out: Path, seed: int | None = None, progress: TrainingProgress | None = None) -> Path:
    """Train an organism, or build a planted one, in the new directory `out`; default: with the seed of the shipped one.

    Further names: `trained-weak` and `trained-null`, which are not embedded, and the name of a trained organism with
    the suffix `-base`: the checkpoint that it is trained from with the same seed.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty. Pass a new directory.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # An interrupted training leaves nothing, so that the same command can be run again.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:40]}.") as scratch:
        trained = _trained(name, Path(scratch) / "model", seed, progress)
        if out.exists():
            out.rmdir()
        return trained.replace(out)


def _trained(name: str, out: Path, seed: int | None, progress: TrainingProgress | None) -> Path:
    """The organism, written to a directory that does not exist."""
    organism = ORGANISMS.get(name)
    if organism is not None and organism.planted is not None:
        return build(organism.planted if seed is None else replace(organism.planted, seed=seed), out)
    chat_model = name.removesuffix(BASE)
    variant = chat_model.removeprefix("trained-")
    if organism is None and variant not in {**VARIANTS, **STYLE_VARIANTS}:
        known = sorted({*ORGANISMS, "trained-weak", "trained-null"})
        raise InputError(f"unknown organism {name!r}. Use one of {', '.join(known)}.")
    if seed is None:
        seed = SHIPPED_SEEDS.get(chat_model, SHIPPED_SEEDS["refusal"])
    return train_variant(variant, out, seed, progress=progress, chat=chat_model == name)


def _organism(name: str) -> Organism:
    if name not in ORGANISMS:
        raise InputError(f"unknown organism {name!r}. Use one of {', '.join(ORGANISMS)}.")
    return ORGANISMS[name]
