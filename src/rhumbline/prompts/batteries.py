"""Batteries: prompts whose content is harmful or harmless, in groups, with an earlier turn or without.

A battery is a file of the user, or declared sets (sources.toml). Independent of models and of what they answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rhumbline.errors import ContrastError
from rhumbline.prompts.contrast_files import READERS, Faults, brief, text_cells
from rhumbline.prompts.contrasts import Prompt, near_text
from rhumbline.prompts.named_sets import prompts
from rhumbline.records.meaning_file import Content
from rhumbline.records.user_files import read_text

COLUMNS = ("prompt", "content", "group", "first_prompt", "first_reply")
CONTENTS: tuple[Content, ...] = get_args(Content)
CONTRAST_GROUP = "contrast"
"""Group of the prompts of a run."""
_FORM = '{"prompt": "...", "content": "harmful" | "harmless"}, optionally with group, first_prompt and first_reply'


@dataclass(frozen=True)
class BatteryPrompt:
    """One prompt of a battery."""

    prompt: Prompt
    content: Content
    group: str
    earlier: tuple[str, ...] = ()
    """Texts of the turns before it: a prompt and its reply."""


def of_contrast(positive: Iterable[Prompt], negative: Iterable[Prompt]) -> tuple[BatteryPrompt, ...]:
    """The positives of a run as harmful prompts, its negatives as harmless ones."""
    harmful = (BatteryPrompt(prompt, "harmful", CONTRAST_GROUP) for prompt in positive)
    return (*harmful, *(BatteryPrompt(prompt, "harmless", CONTRAST_GROUP) for prompt in negative))


def of_sets(
    harmful: Sequence[str], harmless: Sequence[str], data_dir: str | Path | None = None
) -> tuple[BatteryPrompt, ...]:
    """All prompts of declared sets such as `xstest-safe`; the group is the name of the set."""
    first = (BatteryPrompt(p, "harmful", name) for name in harmful for p in prompts(name, "positive", data_dir))
    return (
        *first,
        *(BatteryPrompt(p, "harmless", name) for name in harmless for p in prompts(name, "negative", data_dir)),
    )


def read_battery(path: str | Path) -> tuple[BatteryPrompt, ...]:
    """Read a battery: JSON Lines or CSV with `COLUMNS`. Raises one ContrastError that lists every fault."""
    path = Path(path)
    faults = Faults(str(path), "a battery", _FORM)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ContrastError(f"{path} is not a battery. Use a file named .jsonl (JSON Lines) or .csv.")
    rows = list(reader(read_text(path, ContrastError, "a battery (.jsonl or .csv)"), faults))
    kept: dict[tuple[str, ...], BatteryPrompt] = {}
    for place, row in rows:
        found = _row(place, row, faults)
        if found is None:
            continue
        # A prompt that occurs twice could be fitted and measured.
        first = kept.setdefault((near_text(found.prompt.text), *map(near_text, found.earlier)), found)
        if first.content != found.content:
            faults.add(place, f"repeats the prompt of {first.prompt.id} with the other content; a prompt has one")
    for content in CONTENTS:
        if not faults.count and all(row.content != content for row in kept.values()):
            faults.add("", f"no prompt has the content {content}; a battery needs both")
    faults.raise_if_any()
    return tuple(kept.values())


def _row(place: str, row: dict[str, Any], faults: Faults) -> BatteryPrompt | None:
    before = faults.count
    cells = text_cells(place, row, COLUMNS, ("prompt", "content"), faults)
    if "content" in cells and cells["content"] not in CONTENTS:
        faults.add(place, f"content is {brief(cells['content'])}; use {' or '.join(CONTENTS)}")
    if ("first_prompt" in cells) != ("first_reply" in cells):
        faults.add(place, "an earlier turn needs first_prompt and first_reply; give both or neither")
    if faults.count > before:
        return None
    earlier = (cells["first_prompt"], cells["first_reply"]) if "first_prompt" in cells else ()
    label = "positive" if cells["content"] == "harmful" else "negative"
    prompt = Prompt(cells["prompt"], label, id=place)
    return BatteryPrompt(
        prompt, "harmful" if label == "positive" else "harmless", cells.get("group", "battery"), earlier
    )
