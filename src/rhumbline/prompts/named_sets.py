"""Named data: declared sources of prompts, and the contrasts that are composed of them.

    sources.toml     where each set comes from, what is taken, what is expected
    contrasts.toml   which sources make up which split of a named contrast
    declared.py      both, as records
    rows.py          a source's rows, from a local mirror or through `datasets`

Promises: splits share no prompt, near duplicates included; every row has its source and number in its id; what was read
is recorded with the hash of the rows. No prompt is shipped.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rhumbline.errors import ContrastError
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS, SPLITS, ContrastSet, Label, Prompt, Split, near_text, pooled
from rhumbline.prompts.declared_sets import Recipe, Source, recipes, source, sources
from rhumbline.prompts.set_rows import Item, Loaded, load

__all__ = ["Recipe", "Source", "compose", "load", "open_contrast", "prompts", "recipes", "source", "sources"]

DRAW_SEED = 42
"""Of the rows that are taken of a source that has more than `at_most`; the paper's own draw was not seeded."""


def open_contrast(name: str, data_dir: str | Path | None = None) -> ContrastSet:
    """A contrast file, or a named contrast composed of its sources (from `data_dir` where it has them)."""
    if name in recipes() and not Path(name).exists():
        return compose(recipes()[name], data_dir)
    if not Path(name).suffix and not Path(name).exists():
        raise ContrastError(f"{name} is neither a file nor a named contrast; named: {', '.join(recipes())}.")
    if data_dir is not None:
        raise ContrastError(f"{name} is a file; a data directory is for named contrasts: {', '.join(recipes())}.")
    return read_contrast(name)


def prompts(name: str, label: Label, data_dir: str | Path | None = None) -> tuple[Prompt, ...]:
    """All rows of one source as prompts of one class: an evaluation set such as `xstest-safe`."""
    return _prompts(source(name), load(source(name), data_dir).items, label, None)


def compose(recipe: Recipe, data_dir: str | Path | None = None) -> ContrastSet:
    """The named contrast: every split of either class as a pool, disjoint from the others.

    Positives: rows of `train` that stand in `val`, in `test` or in a set that it is kept apart from are left out, then
    those of `val` that stand in `test` or there; the paper does so for exact repeats, here near ones count too, but for
    rows that its authors filtered themselves (a recipe without `apart_from`).
    """
    loaded = {name: load(source(name), data_dir) for name in recipe.sources}
    pools: dict[tuple[Split, Label], list[Prompt]] = {}
    sides: dict[Label, Mapping[str, tuple[str, ...]]] = {"positive": recipe.positive, "negative": recipe.negative}
    for label in LABELS:
        for split, found in _split(recipe, sides[label], loaded, label).items():
            pools[split, label] = found
    elsewhere = {near_text(item.text) for name in recipe.apart_from for item in loaded[name].items}
    dropped = {"train": 0, "val": 0}
    later: dict[Split, tuple[Split, ...]] = {"train": ("val", "test"), "val": ("test",)}
    if recipe.apart_from:
        for split, others in later.items():
            seen = elsewhere | {near_text(p.text) for s in others for p in pools[s, "positive"]}
            kept = [p for p in pools[split, "positive"] if near_text(p.text) not in seen]
            dropped[split] = len(pools[split, "positive"]) - len(kept)
            pools[split, "positive"] = kept
    record = {
        "recipe": recipe.name,
        "left_out": dropped,
        "pools": {s: {c: len(pools[s, c]) for c in LABELS} for s in SPLITS},
        "sources": [found.provenance for found in loaded.values()],
    }
    return pooled(recipe.name, [p for s in SPLITS for c in LABELS for p in pools[s, c]], record)


def _split(
    recipe: Recipe, sides: Mapping[str, Sequence[str]], loaded: Mapping[str, Loaded], label: Label
) -> dict[Split, list[Prompt]]:
    found: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for name in sides.get(split, ()):
            items = _prompts(source(name), loaded[name].items, label, split)
            limit = recipe.at_most if split == "train" else None
            if limit is not None and len(items) > limit:
                items = random.Random(DRAW_SEED).sample(items, limit)
            found[split] += items
    for name in sides.get("all", ()):
        items = list(_prompts(source(name), loaded[name].items, label, None))
        # As the paper's notebook cuts Alpaca: shuffled by seed, then by shares of the whole, the rest to test.
        random.Random(recipe.shuffle).shuffle(items)
        train, val = (int(share * len(items)) for share in recipe.shares[:2])
        cuts: dict[Split, list[Prompt]] = {
            "train": items[:train],
            "val": items[train : train + val],
            "test": items[train + val :],
        }
        for split, part in cuts.items():
            found[split] += _with_split(part, split)
    return found


def _prompts(of: Source, items: Iterable[Item], label: Label, split: Split | None) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(item.text, label, id=f"{of.name}-{number:05d}", split=split, category=item.category)
        for number, item in enumerate(items, 1)
    )


def _with_split(prompts: Iterable[Prompt], split: Split) -> list[Prompt]:
    return [Prompt(p.text, p.label, p.id, split, category=p.category) for p in prompts]
