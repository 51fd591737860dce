"""Contrasts: labelled prompts in, disjoint train, validation and test prompts out.

Knows rows, labels and splits. Does not know where rows come from (contrast_files.py, data/), what a prompt means, how
it is tokenised, nor which model reads it.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rhumbline.errors import ContrastError
from rhumbline.prompts.sampling import Sampling, draw_as_reference, draw_by_lot

Label = Literal["positive", "negative"]
Split = Literal["train", "val", "test"]

LABELS: tuple[Label, Label] = ("positive", "negative")
SPLITS: tuple[Split, Split, Split] = ("train", "val", "test")

_APOSTROPHES = "'’‘"


@dataclass(frozen=True)
class Prompt:
    """One row of a contrast."""

    text: str
    """The instruction, exactly as the file has it."""
    label: Label
    id: str
    """Unique in its contrast."""
    split: Split | None = None
    """The split that the file asks for; None leaves it to the seed."""
    system: str | None = None
    """The prompt's own system prompt, in place of the run's."""
    response: str | None = None
    """Text of the answer, for a contrast of texts."""
    category: str | None = None
    answer: str | None = None
    """What a right completion contains, in whatever style."""
    other_response: str | None = None
    """An answer of the other class to the same prompt, where the label says which class the prompt itself draws out."""

    def __post_init__(self):
        if not self.text.strip():
            raise ContrastError(f"Prompt {self.id!r} has no text; give it an instruction.")
        if self.label not in LABELS:
            raise ContrastError(f"Prompt {self.id!r} has label {self.label!r}; use one of {', '.join(LABELS)}.")
        if self.split is not None and self.split not in SPLITS:
            raise ContrastError(f"Prompt {self.id!r} has split {self.split!r}; use None or one of {', '.join(SPLITS)}.")

    @property
    def content(self) -> tuple[str, str, str]:
        """What makes two rows the same: system, instruction and response."""
        return (self.system or "", self.text, self.response or "")


@dataclass(frozen=True)
class ContrastSet:
    """The prompts of a contrast, without exact duplicates."""

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str
    """Of the prompts in order, every field; the same for the same rows as JSON Lines or as CSV."""
    duplicates: int
    """Rows that repeated an earlier one and were dropped."""
    pools: Mapping[str, Any] | None = None
    """Of a named contrast: its splits are pools that every seed draws from. Says where the rows came from."""

    def record(self) -> dict[str, Any]:
        """What a protocol says of the contrast."""
        found = {"name": self.name, "sha256": self.sha256, "duplicates": self.duplicates}
        return found if self.pools is None else {**found, "pools": dict(self.pools)}

    neutral: tuple[Prompt, ...] = ()
    """Prompts of the label `neutral`, which no split holds. Their `label` says negative, and nothing reads it."""

    @property
    def is_of_texts(self) -> bool:
        """Whether the rows carry responses."""
        return any(prompt.response is not None for prompt in self.prompts)


@dataclass(frozen=True)
class Sizes:
    """How many prompts of each class a sampled split has."""

    train: int = 128
    val: int = 32
    test: int = 100

    def __post_init__(self):
        faults = [f"{split} {size}" for split, size in asdict(self).items() if size < 1]
        if faults:
            raise ContrastError(f"Sizes: {', '.join(faults)}; each split needs at least 1 prompt per class.")


@dataclass(frozen=True)
class Splits:
    """The realised splits of one seed. A prompt keeps the `split` of its file, so a sampled one has None."""

    parts: Mapping[Split, Mapping[Label, tuple[Prompt, ...]]]
    near_duplicates: int
    """Rows that differ from another row only in case, punctuation or spacing: dropped and kept ones together."""
    dropped: int
    """Near duplicates left out of the sample; the others stand in splits that the file decided."""
    fixed: frozenset[Split]
    """Splits that the file decided for both classes; a new seed does not change them."""

    def get(self, split: Split, label: Label) -> tuple[Prompt, ...]:
        """The prompts of one class in one split."""
        return self.parts[split][label]

    def texts(self, split: Split, label: Label) -> tuple[Prompt, ...]:
        """The rows of one class as texts: with the responses of this class to prompts of the other one."""
        other = LABELS[1 - LABELS.index(label)]
        answered = (p for p in self.get(split, other) if p.other_response is not None)
        return (*self.get(split, label), *(replace(p, label=label, response=p.other_response) for p in answered))

    def sizes(self) -> dict[str, dict[str, int]]:
        """Realised number of prompts, per split and label."""
        return {split: {label: len(self.get(split, label)) for label in LABELS} for split in SPLITS}

    def ids(self) -> dict[str, dict[str, list[str]]]:
        """Ids of the prompts, per split and label."""
        return {split: {label: [p.id for p in self.get(split, label)] for label in LABELS} for split in SPLITS}


def pooled(name: str, prompts: Iterable[Prompt], record: Mapping[str, Any]) -> ContrastSet:
    """A contrast whose splits are pools; `record` says where the rows came from. Every prompt names its split."""
    prompts = tuple(prompts)
    missing = [f"{s} {c}" for s in SPLITS for c in LABELS if not any((p.split, p.label) == (s, c) for p in prompts)]
    if missing:
        raise ContrastError(f"{name} has no prompt for {', '.join(missing)}.")
    return ContrastSet(name, prompts, content_sha256(prompts), duplicates=0, pools=record)


def content_sha256(prompts: tuple[Prompt, ...]) -> str:
    """Hash of the prompts in order, every field."""
    # Without the columns that came later where they are empty: a contrast keeps its hash.
    later = ("answer", "other_response")
    rows = [{k: v for k, v in asdict(prompt).items() if k not in later or v is not None} for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


# -- splitting


def split_contrast(contrast: ContrastSet, sizes: Sizes, seed: int, sampling: Sampling = "lots") -> Splits:
    """Realise disjoint splits: the file's own where it names them, the rest sampled by seed, per class.

    A named contrast's splits are pools: each gives up to its size, by lot or (`sampling`) as the paper's code draws.

    A pool smaller than the sizes ask for is shared out in proportion to them. The sample depends on the seed and on
    the texts, not on their order in the file, and it is nested: test is drawn first, then val, then train, so while
    the pool suffices a larger train size adds prompts and changes no other split. In a contrast of texts the responses
    to one prompt lie in one split.
    """
    if contrast.pools is not None:
        return _split_pools(contrast, sizes, seed, sampling)
    fixed = [prompt for prompt in contrast.prompts if prompt.split is not None]
    named = {(prompt.split, prompt.label) for prompt in fixed}
    wanted: dict[Label, list[Split]] = {
        label: [split for split in SPLITS if (split, label) not in named] for label in LABELS
    }
    pool = [prompt for prompt in contrast.prompts if prompt.split is None and wanted[prompt.label]]

    groups = {_near_key(prompt) for prompt in fixed}
    repeats = len(fixed) - len(groups)
    # A prompt that a fixed text answers is in no sample, whichever class its other responses have.
    groups |= {_near_key(replace(prompt, label=label)) for prompt in fixed for label in LABELS}
    distinct: list[Prompt] = []
    pairs = _paired(pool)
    for prompt in sorted(pool, key=lambda prompt: (_prompt_key(prompt) not in pairs, _lot(prompt, seed))):
        if (key := _near_key(prompt)) not in groups:
            groups.add(key)
            distinct.append(prompt)
    dropped = len(pool) - len(distinct)

    parts: dict[Split, dict[Label, tuple[Prompt, ...]]] = {
        split: {label: tuple(p for p in fixed if (p.split, p.label) == (split, label)) for label in LABELS}
        for split in SPLITS
    }
    faults = []
    for label in LABELS:
        lots = [prompt for prompt in distinct if prompt.label == label]
        need = len(wanted[label])
        if len(lots) < need:
            faults.append(
                f"{' and '.join(wanted[label])} of the {label} class need {need} distinct prompts without a split "
                f"(at least 1 each), and there are {len(lots)}"
            )
            continue
        # Pairs come first in either class and in one order, so equal shares hold the same ones.
        available = min(sum(p.label == c for p in distinct) for c in LABELS) if pairs else len(lots)
        for split, share in _dealt(lots[:available], wanted[label], sizes).items():
            parts[split][label] = share
    if faults:
        left_out = f" ({dropped} near duplicates left out)" if dropped else ""
        raise ContrastError(
            f"{contrast.name} cannot be split: {'; '.join(faults)}{left_out}. Add prompts, or rows with those splits."
        )
    decided: set[Split] = {split for split in SPLITS if all((split, label) in named for label in LABELS)}
    return Splits(parts, near_duplicates=repeats + dropped, dropped=dropped, fixed=frozenset(decided))


def _split_pools(contrast: ContrastSet, sizes: Sizes, seed: int, sampling: Sampling) -> Splits:
    pools = {(s, c): [p for p in contrast.prompts if (p.split, p.label) == (s, c)] for s in SPLITS for c in LABELS}
    if sampling == "reference":
        drawn, dropped = draw_as_reference(pools, asdict(sizes), seed), 0
    else:
        drawn, dropped = draw_by_lot(pools, asdict(sizes), lambda p: _lot(p, seed), _near_key)
    parts: dict[Split, dict[Label, tuple[Prompt, ...]]] = {s: {c: drawn[s, c] for c in LABELS} for s in SPLITS}
    chosen = [_near_key(p) for part in drawn.values() for p in part]
    whole: list[Split] = [s for s in SPLITS if all(len(drawn[s, c]) == len(pools[s, c]) for c in LABELS)]
    found = dropped + len(chosen) - len(set(chosen))
    return Splits(parts, near_duplicates=found, dropped=dropped, fixed=frozenset(whole))


def _dealt(lots: list[Prompt], wanted: list[Split], sizes: Sizes) -> dict[Split, tuple[Prompt, ...]]:
    """The lots of one class dealt out to the wanted splits: test first, train last."""
    asked: dict[Split, int] = {"train": sizes.train, "val": sizes.val, "test": sizes.test}
    shares = _shares(len(lots), {split: asked[split] for split in wanted})
    dealt: dict[Split, tuple[Prompt, ...]] = {}
    start = 0
    for split in reversed(wanted):
        dealt[split] = tuple(lots[start : start + shares[split]])
        start += shares[split]
    return dealt


def _shares(available: int, sizes: Mapping[Split, int]) -> dict[Split, int]:
    """The sizes, or where fewer are available their largest-remainder shares, each at least 1."""
    total = sum(sizes.values())
    if available >= total:
        return dict(sizes)
    shares: dict[Split, int] = {split: available * size // total for split, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda split: available * sizes[split] % total, reverse=True)
    for split in by_remainder[: available - sum(shares.values())]:
        shares[split] += 1
    for split in sizes:
        if shares[split] == 0:
            shares[max(shares, key=lambda other: shares[other])] -= 1
            shares[split] = 1
    return shares


def _paired(pool: list[Prompt]) -> set[tuple[str, str]]:
    """The prompts with a response of either class."""
    sides = ({_prompt_key(p) for p in pool if p.label == c and p.response is not None} for c in LABELS)
    return set.intersection(*sides)


def _prompt_key(prompt: Prompt) -> tuple[str, str]:
    return (prompt.system or "", prompt.text)


def _lot(prompt: Prompt, seed: int) -> str:
    # A hash, not random.sample: the same on every platform and Python, and one more prompt reorders no other.
    content = prompt.content if prompt.response is None else (*_prompt_key(prompt), "")
    return hashlib.sha256(json.dumps([seed, *content]).encode()).hexdigest()


def _near_key(prompt: Prompt) -> tuple[str, ...]:
    """What near duplicates share. Of texts it is the prompt, once per class: its responses must lie in one split."""
    if prompt.response is not None:
        return (prompt.label, *(near_text(text) for text in _prompt_key(prompt)))
    return tuple(near_text(text) for text in prompt.content)


def near_text(text: str) -> str:
    """What near duplicates share: the text without case, punctuation, spacing and compatibility forms.

    The text as it is where nothing else is in it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Other punctuation becomes a space, so that "3-2" and "32" stay apart.
    joined = "".join(character for character in folded if character not in _APOSTROPHES)
    words = "".join(" " if unicodedata.category(c).startswith("P") else c for c in joined).split()
    return " ".join(words) or folded
