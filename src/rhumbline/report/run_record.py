"""A finished run as the report reads it: its JSON files, checked against the schema. Decides and draws nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from rhumbline.errors import OutputError
from rhumbline.report import figures
from rhumbline.report.figures import Row

_MAYBE, _TEXT, _POSITION = (int, float, NoneType), (str, NoneType), (int, str)
_COUNTS = {"positive": int, "negative": int}
_MODEL = {"name": str, "n_layers": int, "mode?": str}
_INTERVAL = {"low": _MAYBE, "high": _MAYBE}
_ARM = _INTERVAL | {"arm": str, "set": str, "n": int, "rate": _MAYBE, "degenerate": _MAYBE, "metric?": _MAYBE}
_EFFECT = _INTERVAL | {"name": str, "drop": _MAYBE, "gap": dict, "p": dict, "null?": dict}
_NULL = {"family": str, "draw": int, "cosine": _MAYBE}
_SITE = {"position": _POSITION, "layer": int}
_GRID = [_SITE | {"auroc": _MAYBE, "cosine": _MAYBE, "norm": _MAYBE}]
_SCORES = {"bypass": _MAYBE, "induce": _MAYBE, "kl": _MAYBE, "norm": _MAYBE, "discarded": _TEXT}
_OPTIONAL_SITE = (_SITE, None)
_SEED = {
    "seed": int,
    "verdict": str,
    "selected": _OPTIONAL_SITE,
    "arms": [_ARM],
    "effects": [_EFFECT],
    "nulls": [_NULL],
    "n": {"train?": _COUNTS, "val?": _COUNTS, "test?": _COUNTS},
    "refusal_tokens?": [{"id": int, "text": str}],
    "near_duplicates?": dict,
}
_RULE = {"min_baseline?": _MAYBE, "min_drop?": _MAYBE, "min_gap?": _MAYBE, "families?": [str]}
_SHAPES: dict[str, Any] = {
    "protocol.json": {
        "preset": str,
        "behaviour": str,
        "model": _MODEL,
        "chat": {"positions": [_POSITION], "suffix_tokens": [str]},
        "contrast": {"name": str},
        "sizes": dict,
        "selection": dict,
        "rule": _RULE,
    },
    "results.json": {
        "protocol_sha256": str,
        "verdict": str,
        "sentence": str,
        "rule": _RULE,
        "model": _MODEL,
        "seeds": [_SEED],
        "environment": dict,
        "timings": {"stages?": [dict]},
    },
    "selection.json": {
        "protocol_sha256": str,
        "selected": _OPTIONAL_SITE,
        "survivors": int,
        "tied?": [_SITE],
        "candidates": [_SITE | _SCORES],
    },
    "separation.json": {
        "protocol_sha256": str,
        "n": _COUNTS,
        "grid": _GRID,
        "projections": [{"label": str, "projection": _MAYBE}],
    },
    "comparison.json": {
        "settings": {"seed": int},
        "rows": [_INTERVAL | {"task": str, "metric": str, "filter": str, "arm": str, "n": int, "change": _MAYBE}],
    },
    "discover.json": {
        "protocol_sha256": str,
        "model": _MODEL,
        "train": _COUNTS,
        "split": str,
        "n": _COUNTS,
        "grid": _GRID,
    },
}
"""What the page relies on; files may hold more. A key that ends in `?` may be absent; (shape, None) may be null."""


def _faults(value: Any, shape: Any, where: str) -> list[str]:
    """Everything in which `value` departs from `shape`."""
    if isinstance(shape, tuple) and shape[-1] is None:
        return [] if value is None else _faults(value, shape[0], where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where} is not an object"]
        faults = []
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if key in value:
                faults += _faults(value[key], inner, f"{where}.{key}")
            elif key == name:
                faults.append(f"{where}.{key} is missing")
        return faults
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is not a list"]
        return [fault for k, item in enumerate(value) for fault in _faults(item, shape[0], f"{where}[{k}]")]
    return [] if isinstance(value, shape) else [f"{where} is {json.dumps(value)[:40]}"]


def read_checked(path: Path) -> Row:
    """One JSON file of the run, checked; NaN and infinities become null."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing: is {path.parent} a finished run?") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read as JSON: {error}") from error
    faults = _faults(value, _SHAPES[path.name], path.stem)
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise OutputError(f"{path} is malformed: {'; '.join(faults[:5])}{more}. Run `rhumbline verify {path.parent}`.")
    return value


@dataclass(frozen=True)
class Run:
    """What the files of a run say."""

    path: Path
    protocol: Row
    results: Row
    selections: Mapping[int, Row] = field(default_factory=dict)
    """By seed; a seed that ended before has none."""
    separations: Mapping[int, Row] = field(default_factory=dict)

    @property
    def seeds(self) -> list[Row]:
        """One row a seed."""
        return self.results["seeds"]

    @property
    def labels(self) -> dict:
        """Position -> what stands there, for axes."""
        chat = self.protocol["chat"]
        found = figures.position_labels(chat["positions"], chat["suffix_tokens"])
        # Positions from 0 up lie in the response: 0 is its mean, K its K-th token (protocol.Extraction).
        _, _, token = str(self.protocol["extraction"].get("positions", "")).partition("response:")
        return {**found, 0: "response mean", **({int(token): f"response {token}"} if token.isdecimal() else {})}

    def site(self, site: Row | None) -> str:
        """A position and a layer, as text."""
        if site is None:
            return "none"
        where = site["position"] if site["position"] < 0 else self.labels.get(site["position"], site["position"])
        return f"({where}, {site['layer']})"


def read_run(path: Path) -> Run:
    """The files of a finished run; OutputError where one is missing, malformed or of another protocol."""
    protocol, results = read_checked(path / "protocol.json"), read_checked(path / "results.json")
    found: dict[str, dict[int, Row]] = {"selection.json": {}, "separation.json": {}}
    for seed in results["seeds"]:
        early = seed["verdict"].startswith("NO-BASELINE")
        for name, needed in (("selection.json", not early), ("separation.json", seed["selected"] is not None)):
            file = path / f"seed-{seed['seed']}" / name
            if not needed and not file.exists():
                continue
            value = found[name][seed["seed"]] = read_checked(file)
            if value["protocol_sha256"] != results["protocol_sha256"]:
                raise OutputError(
                    f"{file} belongs to another protocol than {path / 'results.json'}: rerun into a new directory."
                )
    return Run(path, protocol, results, found["selection.json"], found["separation.json"])
