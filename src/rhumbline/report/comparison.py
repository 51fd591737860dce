"""Finished runs in, one table out: what each seed of each run found, and what it cost. CSV, JSON and Parquet.

Knows results.json. Computes nothing anew: every number is one that a run wrote. Imports no torch.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import InputError, OutputError
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import finite, read_json, write_bytes, write_json

Row = dict[str, Any]

TABLE = "comparison"
"""Stem of the files."""


class Failure(NamedTuple):
    """A run that has no results, and why."""

    run: str
    reason: str


def rows_of(path: str | Path, name: str | None = None) -> list[Row]:
    """One row for each seed of a finished run. OutputError where it is none."""
    directory = RunDirectory.read(path)
    results = read_json(directory.path / "results.json")
    try:
        return [_row(name or directory.path.name, directory.protocol, results, seed) for seed in results["seeds"]]
    except (KeyError, TypeError, IndexError) as error:
        raise OutputError(f"{path}: results.json lacks {error}. Run `rhumbline verify {path}`.") from error


def _row(name: str, protocol: Mapping[str, Any], results: Mapping[str, Any], seed: Mapping[str, Any]) -> Row:
    model, cell, timings = protocol["model"], seed["selected"], results["timings"]
    own = [t["seconds"] for t in timings["stages"] if t["seed"] == seed["seed"]]
    cpu = [t.get("cpu_seconds") or 0.0 for t in timings["stages"] if t["seed"] == seed["seed"]]
    effects = {e["name"]: e for e in seed["effects"]}
    stability, dose = seed.get("stability") or {}, seed.get("dose") or {}
    row: Row = {
        "run": name,
        "model": model["name"],
        "model_type": model.get("model_type"),
        "layers": model["n_layers"],
        "contrast": protocol["contrast"]["name"],
        "preset": protocol["preset"],
        "behaviour": protocol["behaviour"],
        "seed": seed["seed"],
        "verdict": seed["verdict"],
        "reason": seed.get("reason"),
        "baseline": _rate(seed, "baseline", "positive"),
        "position": cell["position"] if cell else None,
        "layer": cell["layer"] if cell else None,
        "layer_share": cell["layer"] / model["n_layers"] if cell else None,
        "norm": cell["norm"] if cell else None,
    }
    for effect in ("suppression", "induction"):
        found = effects.get(effect, {})
        row |= {
            effect: found.get("drop"),
            f"{effect}_low": found.get("low"),
            f"{effect}_high": found.get("high"),
            f"{effect}_p": max((p for p in (found.get("p") or {}).values() if p is not None), default=None),
            f"{effect}_gap": min((g for g in (found.get("gap") or {}).values() if g is not None), default=None),
        }
    chosen = {(c["position"], c["layer"]): c["share"] for c in stability.get("chosen", [])}
    row |= {
        "fragility": (dose.get("fragility") or {}).get("fragility"),
        "half_strength": (dose.get("fragility") or {}).get("half"),
        "kl": (seed.get("shift") or {}).get("kl"),
        "same_site": chosen.get((cell["position"], cell["layer"]), 0.0) if cell and stability.get("refits") else None,
        "refit_cosine": (stability.get("cosine") or {}).get("mean"),
        "seconds": round(sum(own), 3),
        "cpu_seconds": round(sum(cpu), 3),
        "peak_memory_mb": max((t["peak_memory_mb"] for t in timings["stages"]), default=None),
        "engine": results["environment"].get("engine", "local"),
        "device": results["environment"]["device"],
    }
    return finite(row)


def _rate(seed: Mapping[str, Any], arm: str, which: str) -> float | None:
    return next((a["rate"] for a in seed["arms"] if (a["arm"], a["set"]) == (arm, which)), None)


def named(paths: Sequence[str | Path]) -> dict[str, Path]:
    """A short name for each run directory: its last part, with as many of the parts before it as tell them apart."""
    found = [Path(p).resolve() for p in paths]
    if len(set(found)) != len(found):
        raise InputError("the same run is given twice; give each once.")
    depth = 1
    while len({p.parts[-depth:] for p in found}) < len(found):
        depth += 1
    return {"/".join(p.parts[-depth:]): p for p in found}


def gather(runs: Mapping[str, Path]) -> tuple[list[Row], list[Failure]]:
    """The rows of all runs, and those that could not be read with the reason."""
    rows: list[Row] = []
    failures: list[Failure] = []
    for name, path in runs.items():
        try:
            rows += rows_of(path, name)
        except OutputError as error:
            failures.append(Failure(name, str(error)))
    return rows, failures


def write_tables(rows: Sequence[Row], failures: Iterable[Failure], out: Path) -> list[Path]:
    """comparison.json, comparison.csv, and comparison.parquet where pyarrow (extra `table`) is installed."""
    made = [out / f"{TABLE}.json", out / f"{TABLE}.csv"]
    write_json(made[0], {"rows": list(rows), "failures": [f._asdict() for f in failures]})
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_no_formula(row) for row in rows)
    write_bytes(made[1], text.getvalue().encode())
    parquet = _parquet()
    if parquet is not None and rows:
        made.append(out / f"{TABLE}.parquet")
        write_bytes(made[-1], parquet(rows))
    return made


def _no_formula(row: Row) -> Row:
    """Texts that a spreadsheet would run as a formula begin with an apostrophe."""
    return {k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t" else v for k, v in row.items()}


def _parquet() -> Callable[[Sequence[Row]], bytes] | None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None

    def written(rows: Sequence[Row]) -> bytes:
        # A column's type is its name's, not that of the values at hand: one that is empty here may not be elsewhere.
        kinds = {k: pa.string() if k in _TEXTS else pa.int64() if k in _WHOLE else pa.float64() for k in rows[0]}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(list(kinds.items()))), sink)
        return sink.getvalue().to_pybytes()

    return written


_TEXTS = {"run", "model", "model_type", "contrast", "preset", "behaviour", "verdict", "reason", "engine", "device"}
_WHOLE = {"layers", "seed", "position", "layer"}
