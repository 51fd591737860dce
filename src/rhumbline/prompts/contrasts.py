"""Divide the labelled prompts of a contrast into disjoint train, validation and test splits.

Independent of the source of the rows (contrast_files.py, named_sets.py), of tokenizers and of models.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from msgspec import UNSET

from rhumbline.arguments import check_fields, checked
from rhumbline.errors import ContrastError
from rhumbline.prompts.sampling import Sampling, draw_as_reference, draw_by_hash
from rhumbline.records.made_contrast import MadeContrast
from rhumbline.records.protocol_file import ContrastFacts, PoolFacts
from rhumbline.records.shared import Label, NearDuplicates, Split
from rhumbline.records.unicode_text import nfkc

LABELS: tuple[Label, Label] = ("positive", "negative")
SPLITS: tuple[Split, Split, Split] = ("train", "val", "test")

_APOSTROPHES = "'’‘"
_DASHES = re.compile("[-\u2010-\u2013\u2212]")
_SIGN, _LETTER = r"[-*/%+\u2010-\u2013\u2212]", r"[^\W\d_]"
_SIGNS = re.compile(
    rf"(?:(?<=[\d)])|(?<=[\d)] )|(?<!\w.)(?<={_LETTER})|(?<!\w. )(?<={_LETTER} )){_SIGN}+"
    rf"(?= ?{_SIGN}?(?:[\d(]|{_LETTER}(?!\w)))"  # between two operands
    rf"|(?<![\w)]){_DASHES.pattern}(?=\d)|(?<=\d)%|(?<=\d )%|(?<!\w.)(?<={_LETTER})#"
)
"""Signs that `near_text` keeps, in a text with single spaces."""


Group = tuple[str, ...]
"""Rows that must be in one split: those with one instruction, or with one instruction and system prompt."""


@dataclass(frozen=True)
class Prompt:
    """One row of a contrast."""

    text: str
    """The instruction, exactly as in the file."""
    label: Label
    id: str
    """Unique in the contrast."""
    split: Split | None = None
    """The split in the file; None: the seed decides."""
    system: str | None = None
    """System prompt of this prompt, instead of that of the run."""
    response: str | None = None
    """The response, in a contrast of texts."""
    category: str | None = None
    """Topic of the prompt."""
    answer: str | None = None
    """Text that a correct completion contains, in any style."""
    other_response: str | None = None
    """A response of the other class to the same prompt, if the label is the class that the prompt induces."""

    def __post_init__(self):
        check_fields(self)
        if not self.text.strip():
            raise ContrastError(f"Prompt {self.id!r} has no text; write an instruction.")
        if self.label not in LABELS:
            raise ContrastError(f"Prompt {self.id!r} has label {self.label!r}; use one of {', '.join(LABELS)}.")
        if self.split is not None and self.split not in SPLITS:
            raise ContrastError(f"Prompt {self.id!r} has split {self.split!r}; use None or one of {', '.join(SPLITS)}.")

    @property
    def content(self) -> tuple[str, str, str]:
        """System prompt, instruction and response; equal for duplicates."""
        return (self.system or "", self.text, self.response or "")


@dataclass(frozen=True)
class ContrastSet:
    """The prompts of a contrast, without exact duplicates."""

    name: str
    """Stem of the file, or name of the named contrast."""
    prompts: tuple[Prompt, ...]
    """The prompts of both classes, in the order of the source."""
    sha256: str
    """Hash of every field of the prompts in order; the same for JSON Lines and CSV."""
    duplicates: int
    """Number of repeated rows that were dropped."""
    pools: PoolFacts | None = None
    """For a named contrast, whose splits are pools that every seed draws from: the sources of the rows."""
    neutral: tuple[Prompt, ...] = ()
    """Prompts with the label `neutral`, which are in no split. Their field `label` is `negative` and is not read."""
    made: MadeContrast | None = None
    """How the contrast was made, if `rhumbline contrast make` wrote it."""

    def __post_init__(self):
        check_fields(self)

    def record(self) -> ContrastFacts:
        """The contrast as protocol.json describes it."""
        return ContrastFacts(
            name=self.name, sha256=self.sha256, duplicates=self.duplicates, pools=self.pools, made=self.made
        )

    @property
    def is_of_texts(self) -> bool:
        """Whether the rows have responses."""
        return any(prompt.response is not None for prompt in self.prompts)


@dataclass(frozen=True)
class Sizes:
    """Number of prompts of each class in each split that is sampled."""

    train: int = 128
    val: int = 32
    test: int = 100

    def __post_init__(self):
        check_fields(self)
        faults = [f"{split} {size}" for split, size in asdict(self).items() if size < 1]
        if faults:
            raise ContrastError(
                f"Sizes: {', '.join(faults)}; each split needs at least 1 prompt per class. Use larger numbers."
            )


@dataclass(frozen=True)
class Splits:
    """The splits of one seed. A prompt keeps the `split` of its file, so a sampled prompt has None."""

    parts: Mapping[Split, Mapping[Label, tuple[Prompt, ...]]]
    near_duplicates: int
    """Number of rows that differ from another row only in case, punctuation or spacing, dropped or kept."""
    dropped: int
    """Near duplicates that are not in the sample; the others are in splits that the file decides."""
    fixed: frozenset[Split]
    """Splits that the file decides for both classes; they are the same for every seed."""
    further_responses: int = 0
    """Dropped rows with a further response to a prompt of their class, of which the first response is read."""

    def record(self) -> NearDuplicates:
        """The near duplicates as protocol.json describes them."""
        return NearDuplicates(self.near_duplicates, self.dropped, self.further_responses or UNSET)

    def get(self, split: Split, label: Label) -> tuple[Prompt, ...]:
        """The prompts of one class in one split."""
        return self.parts[split][label]

    def texts(self, split: Split, label: Label) -> tuple[Prompt, ...]:
        """The texts of one class: its rows, and the responses of this class to prompts of the other class."""
        other = LABELS[1 - LABELS.index(label)]
        both = (p for p in self.get(split, other) if p.other_response is not None)
        return (*self.get(split, label), *(replace(p, label=label, response=p.other_response) for p in both))

    def sizes(self) -> dict[str, dict[str, int]]:
        """Number of prompts, by split and label."""
        return {split: {label: len(self.get(split, label)) for label in LABELS} for split in SPLITS}

    def first(self, sizes: Sizes) -> "Splits":
        """The first prompts of each class in each split, at most `sizes`."""
        parts: dict[Split, dict[Label, tuple[Prompt, ...]]] = {
            split: {label: self.get(split, label)[: getattr(sizes, split)] for label in LABELS} for split in SPLITS
        }
        return replace(self, parts=parts)

    def ids(self) -> dict[str, dict[str, list[str]]]:
        """Ids of the prompts, by split and label."""
        return {split: {label: [p.id for p in self.get(split, label)] for label in LABELS} for split in SPLITS}


def pooled(name: str, prompts: Iterable[Prompt], pools: PoolFacts) -> ContrastSet:
    """A contrast whose splits are pools; every prompt has a split. ContrastError if a pool is empty."""
    prompts = tuple(prompts)
    missing = [f"{s} {c}" for s in SPLITS for c in LABELS if not any((p.split, p.label) == (s, c) for p in prompts)]
    if missing:
        raise ContrastError(
            f"{name} has no prompt for {', '.join(missing)}. Check its sources with `rhumbline data check`."
        )
    return ContrastSet(name, prompts, content_sha256(prompts), duplicates=0, pools=pools)


def content_sha256(prompts: tuple[Prompt, ...]) -> str:
    """Hash of every field of the prompts, in order."""
    # Columns of later versions are excluded if they are empty, so that an old contrast keeps its hash.
    later = ("answer", "other_response")
    rows = [{k: v for k, v in asdict(prompt).items() if k not in later or v is not None} for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


# -- splitting ---------------------------------------------------------------------------------------------------------


@checked
def split_contrast(contrast: ContrastSet, sizes: Sizes, seed: int, sampling: Sampling = "lots") -> Splits:
    """The disjoint splits of a seed: those that the file decides, and samples of the other prompts, for each class.

    The splits of a named contrast are pools, from which up to the requested size is drawn: by hash, or (`sampling`) as
    in the authors' code. If a file has fewer prompts than the sizes require, they are divided in proportion
    to the sizes.

    The sample depends on the seed and the texts, and not on their order in the file. It is nested: test is drawn first,
    then validation, then train, so that a larger train size adds prompts and changes no other split, while there are
    enough prompts. All rows with one instruction are in one split: its responses, and the same instruction under other
    system prompts (unless the contrast has more of these than instructions). Rows that would be in two are excluded.
    """
    if contrast.pools is not None:
        return _split_pools(contrast, sizes, seed, sampling)
    fixed = [prompt for prompt in contrast.prompts if prompt.split is not None]
    named = {(prompt.split, prompt.label) for prompt in fixed}
    wanted: dict[Label, list[Split]] = {
        label: [split for split in SPLITS if (split, label) not in named] for label in LABELS
    }
    pool = [prompt for prompt in contrast.prompts if prompt.split is None and wanted[prompt.label]]

    groups = _groups(contrast.prompts)
    pairs = set.intersection(*({groups[p.id] for p in pool if p.label == label} for label in LABELS))
    distinct = _distinct(_in_order(pool, groups, pairs, seed), fixed, groups)
    dropped, repeats = len(pool) - len(distinct), _repeats(fixed, groups)
    further = _further_responses(pool, distinct)
    has_pairs = any(prompt.response is not None and groups[prompt.id] in pairs for prompt in distinct)

    parts: dict[Split, dict[Label, tuple[Prompt, ...]]] = {
        split: {label: tuple(p for p in fixed if (p.split, p.label) == (split, label)) for label in LABELS}
        for split in SPLITS
    }
    faults: list[str] = []
    split_of: dict[Group, Split] = {}
    for label in LABELS:
        available = [prompt for prompt in distinct if prompt.label == label]
        need = len(wanted[label])
        if len(available) < need:
            faults.append(
                f"{' and '.join(wanted[label])} of the {label} class need {need} distinct prompts without a split "
                f"(at least 1 each), and there are {len(available)}"
            )
            continue
        # Pairs are first in both classes and in the same order, so equal shares contain the same pairs.
        n = min(sum(p.label == c for p in distinct) for c in LABELS) if has_pairs else len(available)
        shares, n_excluded = _divided(available[:n], wanted[label], sizes, groups, split_of)
        dropped += n_excluded
        if empty := [split for split, share in shares.items() if not share]:
            faults.append(f"{' and '.join(empty)} of the {label} class have only instructions of other splits")
        for split, share in shares.items():
            parts[split][label] = tuple(share)
    if faults:
        excluded = f" ({dropped} near duplicates excluded)" if dropped else ""
        raise ContrastError(
            f"{contrast.name} cannot be split: {'; '.join(faults)}{excluded}. Add prompts, or rows with these splits."
        )
    decided: set[Split] = {split for split in SPLITS if all((split, label) in named for label in LABELS)}
    return Splits(parts, repeats + dropped, dropped, frozenset(decided), further)


def _split_pools(contrast: ContrastSet, sizes: Sizes, seed: int, sampling: Sampling) -> Splits:
    pools = {(s, c): [p for p in contrast.prompts if (p.split, p.label) == (s, c)] for s in SPLITS for c in LABELS}
    if sampling == "reference":
        drawn, dropped = draw_as_reference(pools, asdict(sizes), seed), 0
    else:
        drawn, dropped = draw_by_hash(pools, asdict(sizes), lambda p: _order(p, seed), _near_key)
    parts: dict[Split, dict[Label, tuple[Prompt, ...]]] = {s: {c: drawn[s, c] for c in LABELS} for s in SPLITS}
    keys = [_near_key(p) for part in drawn.values() for p in part]
    whole: list[Split] = [s for s in SPLITS if all(len(drawn[s, c]) == len(pools[s, c]) for c in LABELS)]
    near_duplicates = dropped + len(keys) - len(set(keys))
    return Splits(parts, near_duplicates=near_duplicates, dropped=dropped, fixed=frozenset(whole))


def _divided(
    prompts: list[Prompt],
    wanted: list[Split],
    sizes: Sizes,
    groups: Mapping[str, Group],
    split_of: dict[Group, Split],
) -> tuple[dict[Split, list[Prompt]], int]:
    """The prompts of one class divided among the splits, test first, and how many had to be excluded.

    `split_of` holds the split of every group of rows, and is extended.
    """
    requested: dict[Split, int] = {"train": sizes.train, "val": sizes.val, "test": sizes.test}
    shares = shares_of(len(prompts), {split: requested[split] for split in wanted})
    parts: dict[Split, list[Prompt]] = {split: [] for split in reversed(wanted)}
    excluded = 0
    for prompt in sorted(prompts, key=lambda p: groups[p.id] not in split_of):
        incomplete: list[Split] = [split for split, share in parts.items() if len(share) < shares[split]]
        if not incomplete:
            break
        split = split_of.setdefault(groups[prompt.id], incomplete[0])
        if split in incomplete:
            parts[split].append(prompt)
        else:
            excluded += 1
    return parts, excluded


def shares_of(available: int, sizes: Mapping[Split, int]) -> dict[Split, int]:
    """The sizes, or their largest-remainder shares if fewer are available, each at least 1."""
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


def _groups(prompts: Sequence[Prompt]) -> dict[str, Group]:
    """The group of every prompt by its id. Near duplicates are in one group."""
    keys = {prompt.id: (near_text(prompt.text), near_text(prompt.system or "")) for prompt in prompts}
    texts, systems = (len(set(some)) for some in zip(*keys.values(), strict=True)) if keys else (0, 0)
    return {id_: key if systems > texts else key[:1] for id_, key in keys.items()}


def _repeats(fixed: Iterable[Prompt], groups: Mapping[str, Group]) -> int:
    """Rows with a split in the file that repeat an earlier one: near duplicates, or its instruction in another one."""
    keys: set[tuple[str, ...]] = set()
    splits: dict[Group, Split | None] = {}
    n = 0
    for prompt in fixed:
        is_elsewhere = splits.setdefault(groups[prompt.id], prompt.split) != prompt.split
        n += is_elsewhere or _near_key(prompt) in keys
        keys.add(_near_key(prompt))
    return n


def _distinct(pool: Iterable[Prompt], fixed: Sequence[Prompt], groups: Mapping[str, Group]) -> list[Prompt]:
    """The first prompt of all near duplicates. An instruction of a fixed split is in no sample, in neither class."""
    keys, taken = {_near_key(prompt) for prompt in fixed}, {groups[prompt.id] for prompt in fixed}
    distinct: list[Prompt] = []
    for prompt in pool:
        if groups[prompt.id] not in taken and (key := _near_key(prompt)) not in keys:
            keys.add(key)
            distinct.append(prompt)
    return distinct


def _further_responses(pool: Iterable[Prompt], distinct: Iterable[Prompt]) -> int:
    """The number of responses, without near duplicates, to the prompts of `distinct` that are not in it."""
    read = {_near_key(p): {near_text(p.response)} for p in distinct if p.response is not None}
    for prompt in pool:
        if prompt.response is not None and (responses := read.get(_near_key(prompt))) is not None:
            responses.add(near_text(prompt.response))
    return sum(len(responses) - 1 for responses in read.values())


def _in_order(pool: Sequence[Prompt], groups: Mapping[str, Group], pairs: Collection[Group], seed: int) -> list[Prompt]:
    """The prompts in their random order, groups together, and those with rows of both classes first."""
    orders = {prompt.id: _order(prompt, seed) for prompt in pool}
    first: dict[Group, str] = {}
    for prompt in pool:
        group, order = groups[prompt.id], orders[prompt.id]
        first[group] = min(order, first.get(group, order))
    return sorted(pool, key=lambda p: (groups[p.id] not in pairs, first[groups[p.id]], orders[p.id]))


def _prompt_key(prompt: Prompt) -> tuple[str, str]:
    return (prompt.system or "", prompt.text)


def _order(prompt: Prompt, seed: int) -> str:
    """The random order of a prompt under a seed."""
    # A hash is the same on every platform, and a further prompt does not change the order of the others.
    content = prompt.content if prompt.response is None else (*_prompt_key(prompt), "")
    return hashlib.sha256(json.dumps([seed, *content]).encode()).hexdigest()


def _near_key(prompt: Prompt) -> tuple[str, ...]:
    """Equal for near duplicates. For texts: label and prompt, since all responses to a prompt must be in one split."""
    if prompt.response is not None:
        return (prompt.label, *(near_text(text) for text in _prompt_key(prompt)))
    return tuple(near_text(text) for text in prompt.content)


def near_text(text: str) -> str:
    """The text without case, punctuation, spacing and compatibility forms; equal for near duplicates.

    Signs with a meaning of their own are kept: `* / + - %` between numbers or single letters ("6*3", "a / b"), `-`
    before and `%` after a number, and `#` after a single letter ("C#"). A text that consists of punctuation only is
    returned unchanged but for case.
    """
    folded = nfkc(nfkc(text).casefold())
    joined = " ".join("".join(character for character in folded if character not in _APOSTROPHES).split())
    kept = {place for found in _SIGNS.finditer(joined) for place in range(*found.span())}
    # Other punctuation becomes a space, so that "3.2" and "32" remain different.
    plain = (
        f" {_DASHES.sub('-', c)} " if place in kept else " " if unicodedata.category(c).startswith("P") else c
        for place, c in enumerate(joined)
    )
    return " ".join("".join(plain).split()) or folded
