"""Named contrasts, composed of declared sources of prompts. No prompt is shipped with the package.

    sources.toml      where each set comes from, which rows are used, what is expected
    contrasts.toml    the sources of every split of a named contrast
    declared_sets.py  both, as records
    set_rows.py       the rows of a source, from a local mirror or through `datasets`

Splits have no prompt in common, near duplicates included. The id of a prompt is its source and row number. The record
of a contrast has the hash of every source's rows.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rhumbline.arguments import checked
from rhumbline.errors import ContrastError
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS, SPLITS, ContrastSet, Label, Prompt, Split, near_text, pooled
from rhumbline.prompts.declared_sets import Recipe, Source, recipes, source, sources
from rhumbline.prompts.set_rows import Item, Loaded, load
from rhumbline.records.protocol_file import PoolFacts
from rhumbline.records.shared import ByLabel, BySplit, TrainVal

__all__ = ["Recipe", "Source", "compose", "load", "open_contrast", "prompts", "recipes", "source", "sources"]

Pools = dict[tuple[Split, Label], list[Prompt]]

DRAW_SEED = 42
"""Seed of the draw from a source with more rows than `at_most`; the paper's own draw was not seeded."""


@checked
def open_contrast(name: str | Path, data_dir: str | Path | None = None) -> ContrastSet:
    """A contrast file, or a named contrast composed of its sources (from `data_dir` if it has their files)."""
    name = str(name)
    if name in recipes() and not Path(name).is_file():
        return compose(recipes()[name], data_dir)
    if not Path(name).suffix and not Path(name).is_file():
        raise ContrastError(
            f"{name} is neither a file nor a named contrast. Pass a file, or one of {', '.join(recipes())}."
        )
    if data_dir is not None:
        raise ContrastError(
            f"{name} is a file; --data-dir is for named contrasts. Remove it, or use one of {', '.join(recipes())}."
        )
    return read_contrast(name)


def prompts(name: str, label: Label, data_dir: str | Path | None = None) -> tuple[Prompt, ...]:
    """All rows of one source as prompts of one class: an evaluation set such as `xstest-safe`."""
    return _prompts(source(name), load(source(name), data_dir).items, label, None)


def compose(recipe: Recipe, data_dir: str | Path | None = None) -> ContrastSet:
    """The named contrast: every split of either class is a pool, disjoint from the others.

    For a recipe with `apart_from`: positives of train that are in validation, in test or in one of these sources are
    excluded, and then those of validation that are in test or in these sources. The paper excludes exact repeats; here
    near duplicates are excluded too. A recipe without `apart_from` has rows that the authors filtered.
    """
    loaded = {name: load(source(name), data_dir) for name in recipe.sources}
    pools: Pools = {}
    sides: dict[Label, Mapping[str, tuple[str, ...]]] = {"positive": recipe.positive, "negative": recipe.negative}
    for label in LABELS:
        for split, rows in _split(recipe, sides[label], loaded, label).items():
            pools[split, label] = rows
    excluded = _exclude_repeats(pools, recipe, loaded) if recipe.apart_from else TrainVal(train=0, val=0)
    facts = PoolFacts(
        recipe=recipe.name,
        left_out=excluded,
        pools=BySplit(*(ByLabel(*(len(pools[s, c]) for c in LABELS)) for s in SPLITS)),
        sources=tuple(rows.facts for rows in loaded.values()),
    )
    return pooled(recipe.name, [p for s in SPLITS for c in LABELS for p in pools[s, c]], facts)


def _exclude_repeats(pools: Pools, recipe: Recipe, loaded: Mapping[str, Loaded]) -> TrainVal[int]:
    """Remove positives that are in a later split or in a source of `apart_from`; returns how many were removed."""
    elsewhere = {near_text(item.text) for name in recipe.apart_from for item in loaded[name].items}

    def exclude(split: Split, later: Sequence[Split]) -> int:
        known = elsewhere | {near_text(p.text) for s in later for p in pools[s, "positive"]}
        kept = [p for p in pools[split, "positive"] if near_text(p.text) not in known]
        n = len(pools[split, "positive"]) - len(kept)
        pools[split, "positive"] = kept
        return n

    return TrainVal(train=exclude("train", ("val", "test")), val=exclude("val", ("test",)))


def _split(
    recipe: Recipe, sides: Mapping[str, Sequence[str]], loaded: Mapping[str, Loaded], label: Label
) -> dict[Split, list[Prompt]]:
    """The prompts of one class, by split."""
    parts: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for name in sides.get(split, ()):
            items = _prompts(source(name), loaded[name].items, label, split)
            limit = recipe.at_most if split == "train" else None
            if limit is not None and len(items) > limit:
                items = random.Random(DRAW_SEED).sample(items, limit)
            parts[split] += items
    for name in sides.get("all", ()):
        items = list(_prompts(source(name), loaded[name].items, label, None))
        # As in the authors' notebook for Alpaca: shuffled by seed, then divided by shares, with the rest in test.
        random.Random(recipe.shuffle).shuffle(items)
        train, val = (int(share * len(items)) for share in recipe.shares[:2])
        cuts: dict[Split, list[Prompt]] = {
            "train": items[:train],
            "val": items[train : train + val],
            "test": items[train + val :],
        }
        for split, part in cuts.items():
            parts[split] += _with_split(part, split)
    return parts


def _prompts(of: Source, items: Iterable[Item], label: Label, split: Split | None) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(item.text, label, id=f"{of.name}-{number:05d}", split=split, category=item.category)
        for number, item in enumerate(items, 1)
    )


def _with_split(prompts: Iterable[Prompt], split: Split) -> list[Prompt]:
    return [Prompt(p.text, p.label, p.id, split, category=p.category) for p in prompts]
