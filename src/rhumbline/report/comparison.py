"""Compute one table from finished runs: results and costs of each seed of each run. Writes CSV, JSON and Parquet.

Every number is one that a run wrote. Independent of models and markup.
"""

import csv
import io
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os.path import realpath
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from rhumbline.errors import InputError
from rhumbline.records.arms import BASELINE
from rhumbline.records.codec import JsonObject, to_json
from rhumbline.records.directory import JOB_LOG, RunDirectory
from rhumbline.records.files import write_bytes, write_json
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import EffectName, StageTiming
from rhumbline.report.run_record import RunFiles, measured_arm, read_summary

TABLE = "comparison"
"""Stem of the files."""


Estimate = tuple[float | None, float | None, float | None]
"""A value and the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One seed of a finished run. A number is None if it was not measured. Times are of the stages of this seed.

    The p of an effect is its largest rank p over the null families, the gap its smallest one.
    """

    run: str
    model: str
    fingerprint: str
    """Hash of the weights as loaded."""
    model_type: str
    layers: int
    contrast: str
    preset: str
    behaviour: str
    seed: int
    verdict: str
    reason: str
    baseline: float | None
    """Rate on positives at baseline."""
    position: int | None
    """Position of the selected candidate; 0 is the response mean, k > 0 the k-th response token."""
    layer: int | None
    layer_share: float | None
    norm: float | None
    suppression: float | None
    suppression_low: float | None
    suppression_high: float | None
    suppression_p: float | None
    suppression_gap: float | None
    induction: float | None
    induction_low: float | None
    induction_high: float | None
    induction_p: float | None
    induction_gap: float | None
    fragility: float | None
    half_strength: float | None
    """Strength at which half of the behaviour is removed."""
    kl: float | None
    """Mean KL divergence under ablation on negatives, nats."""
    same_site: float | None
    """Share of the bootstrap refits that select the same site."""
    refit_cosine: float | None
    seconds: float
    cpu_seconds: float | None
    """None if workers computed a part of the run."""
    peak_memory_mb: float | None
    """Of the run."""
    engine: str
    device: str

    def effect(self, name: EffectName) -> Estimate:
        """Return an effect and the ends of its interval."""
        if name == "suppression":
            return self.suppression, self.suppression_low, self.suppression_high
        return self.induction, self.induction_low, self.induction_high


class Failure(NamedTuple):
    """A run without results, and the reason."""

    run: str
    reason: str


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_of(path: str | Path, name: str | None = None) -> list[ComparisonRow]:
    """Return one row for each seed of a finished run. Raises OutputError if there is none."""
    run = read_summary(RunDirectory.read(path))
    return [_row(name or run.directory.name, run, seed) for seed in run.results.seeds]


def _row(name: str, run: RunFiles, seed: SeedResult) -> ComparisonRow:
    results, model, cell = run.results, run.context.model, seed.selected
    stages = [stage for stage in results.timings.stages if stage.seed == seed.seed]
    baseline, dose = measured_arm(seed, BASELINE, "positive"), seed.dose and seed.dose.fragility
    engine = results.environment.engine
    return ComparisonRow(
        run=name,
        model=model.name,
        fingerprint=model.fingerprint,
        model_type=model.model_type,
        layers=model.n_layers,
        contrast=run.context.contrast.name,
        preset=run.protocol.preset,
        behaviour=run.protocol.behaviour,
        seed=seed.seed,
        verdict=seed.verdict,
        reason=seed.reason,
        baseline=baseline and baseline.rate,
        position=cell and int(cell.position),
        layer=cell and cell.layer,
        layer_share=cell and cell.layer / model.n_layers,
        norm=cell and cell.norm,
        **_effect(seed, "suppression"),
        **_effect(seed, "induction"),
        fragility=dose and dose.fragility,
        half_strength=dose and dose.half,
        kl=seed.shift.kl,
        same_site=_same_site(seed),
        refit_cosine=seed.stability and seed.stability.cosine.mean,
        seconds=round(sum(stage.seconds for stage in stages), 3),
        cpu_seconds=_processor_seconds(run, stages),
        peak_memory_mb=max((stage.peak_memory_mb for stage in results.timings.stages), default=None),
        engine="local" if engine is UNSET else engine,
        device=results.environment.device,
    )


def _processor_seconds(run: RunFiles, stages: Sequence[StageTiming]) -> float | None:
    """Return the processor time of the stages; None if it excludes that of workers, which then wrote a log."""
    spent = [stage.cpu_seconds for stage in stages if stage.cpu_seconds is not None]
    has_workers = (run.directory.path / JOB_LOG).exists()
    return round(sum(spent), 3) if len(spent) == len(stages) and not has_workers else None


def _effect(seed: SeedResult, name: EffectName) -> dict[str, float | None]:
    effect = next((effect for effect in seed.effects if effect.name == name), None)
    if effect is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_p", f"{name}_gap"))
    return {
        name: effect.drop,
        f"{name}_low": effect.low,
        f"{name}_high": effect.high,
        f"{name}_p": max((p for p in effect.p.values() if p is not None), default=None),
        f"{name}_gap": min((gap for gap in effect.gap.values() if gap is not None), default=None),
    }


def _same_site(seed: SeedResult) -> float | None:
    """Return the share of the refits that select the site of the direction."""
    stability, cell = seed.stability, seed.selected
    if stability is None or cell is None or not stability.refits:
        return None
    return next((site.share for site in stability.chosen if site.site == cell.site), 0.0)


def named(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Return a short name for each run directory: the last parts of its path that distinguish it from the others."""
    folders = [Path(realpath(p)) for p in paths]  # resolve() raises at a link to itself
    if len(set(folders)) != len(folders):
        raise InputError("the same run is given twice. Pass each run once.")
    depth = 1
    while len({p.parts[-depth:] for p in folders}) < len(folders):
        depth += 1
    return {"/".join(p.parts[-depth:]): p for p in folders}


def gather(runs: Mapping[str, Path]) -> tuple[list[ComparisonRow], list[Failure]]:
    """Return the rows of all runs, and the runs that could not be read."""
    rows: list[ComparisonRow] = []
    failures: list[Failure] = []
    for name, path in runs.items():
        try:
            rows += rows_of(path, name)
        except InputError as error:
            failures.append(Failure(name, str(error)))
    return rows, failures


# -- tables -----------------------------------------------------------------------------------------------------------


def table_json(rows: Iterable[ComparisonRow], failures: Iterable[Failure]) -> JsonObject:
    """Return the JSON value of the table."""
    return {"rows": [to_json(row) for row in rows], "failures": [failure._asdict() for failure in failures]}


def write_tables(rows: Sequence[ComparisonRow], failures: Iterable[Failure], out: Path) -> list[Path]:
    """Write comparison.json and comparison.csv, and comparison.parquet if pyarrow (extra `data`) is installed."""
    paths = [out / f"{TABLE}.json", out / f"{TABLE}.csv"]
    write_json(paths[0], table_json(rows, failures))
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, _columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_without_formulas(row) for row in rows)
    write_bytes(paths[1], text.getvalue().encode())
    if rows and (parquet := _parquet(rows)) is not None:
        paths.append(out / f"{TABLE}.parquet")
        write_bytes(paths[-1], parquet)
    return paths


def _columns() -> list[str]:
    return [field.name for field in fields(ComparisonRow)]


def _without_formulas(row: ComparisonRow) -> JsonObject:
    """Return the cells of a row; a text that a spreadsheet would run as a formula starts with an apostrophe."""
    return {k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t" else v for k, v in asdict(row).items()}


def _parquet(rows: Sequence[ComparisonRow]) -> bytes | None:
    """Return the table as Parquet; None if pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    # The type of a column is that of its field: a column that is empty here can have numbers in another table.
    types = typing.get_type_hints(ComparisonRow)
    schema = pa.schema([(name, _arrow_type(pa, types[name])) for name in _columns()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink)
    return sink.getvalue().to_pybytes()


def _arrow_type(pa: Any, kind: Any) -> Any:
    kinds = typing.get_args(kind) or (kind,)
    return pa.string() if str in kinds else pa.int64() if int in kinds else pa.float64()
