"""A file with one line of JSON for each run of a study, which an interrupted study resumes."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")


def remaining(
    cases: Iterable[Case], out: Path, minutes: float, name: Callable[[Case], str] = lambda case: case.name
) -> Iterator[Case]:
    """The cases that the file does not hold yet, until the time is over."""
    end = time.monotonic() + 60 * minutes
    done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    for case in cases:
        if time.monotonic() > end:
            return
        if name(case) not in done:
            yield case


def append(out: Path, *rows: Mapping[str, Any]) -> None:
    """Add rows to the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
