"""Compare two run directories artefact by artefact, number by number; exit code 1 and a list if they differ.

    python benchmarks/compare_runs.py OLD NEW [--sentences]

Every JSON, JSON Lines and safetensors file is compared, and every number must be equal. Timings, environments, hashes,
versions and paths are ignored. Reasons that version 0.1 wrote as sentences are compared as codes. Sentences are
compared only with `--sentences`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking

SUFFIXES = (".json", ".jsonl", ".safetensors")
IGNORED_FILES = ("timings.json",)
IGNORED_KEYS = frozenset({"environment", "timings", "versions", "files", "sha256", "protocol_sha256", "id", "key"})
"""Where and when a run took place, and hashes over files that contain versions."""
SENTENCE_KEYS = frozenset({"reason", "sentence", "warnings"})
NEW_KEYS = frozenset({"reasons", "schema"})
"""Keys that one of the two versions may lack."""
CODES: Mapping[tuple[str, str], Callable[[str], str]] = {
    ("selection.json", "discarded"): Discard,
    ("selection.json", "reason"): NoCandidate,
    ("metric.json", "reason"): TokensLacking,
}
"""(file, key): the code of a reason, from a code or from a sentence of version 0.1."""


def differences(old: Path, new: Path, sentences: bool = False) -> list[str]:
    """Places in which two run directories differ."""
    files = [{p.relative_to(run).as_posix() for p in artefacts(run)} for run in (old, new)]
    lines = [f"{name} is only in {old if name in files[0] else new}" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        compare = Comparison(Path(name).name, sentences)
        lines += [f"{name}{place}" for place in compare.values(read(old / name), read(new / name))]
    return lines


def artefacts(run: Path) -> Iterator[Path]:
    """The files of a run directory that contain results; hidden files are not results."""
    for path in run.rglob("*"):
        parts = path.relative_to(run).parts
        is_shown = parts[0] != "figures" and not any(part.startswith(".") for part in parts)
        if path.suffix in SUFFIXES and path.name not in IGNORED_FILES and is_shown:
            yield path


def read(path: Path) -> Any:
    """The content of an artefact as JSON values."""
    match path.suffix:
        case ".json":
            return json.loads(path.read_bytes())
        case ".jsonl":
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        case _:
            return {name: tensor.tolist() for name, tensor in load_file(path).items()}


class Comparison:
    """Compares the values of one file."""

    def __init__(self, file: str, sentences: bool) -> None:
        self.file, self.sentences = file, sentences

    def values(self, old: Any, new: Any, at: str = "", key: str = "") -> Iterator[str]:
        """The places in which two JSON values differ, with both values."""
        match old, new:
            case dict(), dict():
                for name in sorted(old.keys() | new.keys()):
                    if not self._is_ignored(name, old, new):
                        if name in old and name in new:
                            yield from self.values(old[name], new[name], f"{at}.{name}", name)
                        else:
                            yield f"{at}.{name} is only in the {'old' if name in old else 'new'} run"
            case list(), list() if len(old) == len(new):
                for index, pair in enumerate(zip(old, new, strict=True)):
                    yield from self.values(*pair, f"{at}[{index}]", key)
            case _:
                a, b = self._code(old, key), self._code(new, key)
                are_nan = a != a and b != b
                if (a != b and not are_nan) or isinstance(a, bool) != isinstance(b, bool):
                    yield f"{at}: {brief(a)} -> {brief(b)}"

    def _is_ignored(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        if name in IGNORED_KEYS and not isinstance(old.get(name), int | float):
            return True
        if name in NEW_KEYS and (name in old) != (name in new):
            return True
        return name in SENTENCE_KEYS and not self.sentences and (self.file, name) not in CODES

    def _code(self, value: Any, key: str) -> Any:
        """A reason as its code; a path by its name; any other value as it is."""
        if not isinstance(value, str):
            return value
        if (code := CODES.get((self.file, key))) is not None:
            return str(code(value))
        return Path(value).name if value.startswith("/") or (key == "name" and "/" in value) else value


def brief(value: Any) -> str:
    """A value in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def main(arguments: list[str] | None = None) -> int:
    """Print the differences; 1 if there are any."""
    parser = argparse.ArgumentParser(description="Compare two run directories number by number.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--sentences", action="store_true", help="compare sentences too")
    a = parser.parse_args(arguments)
    for run in (a.old, a.new):
        if not any(artefacts(run)):
            parser.error(f"{run} contains no artefact of a run. Pass two run directories.")
    lines = differences(a.old, a.new, a.sentences)
    print("\n".join(lines) if lines else f"{a.old} and {a.new}: no difference")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
