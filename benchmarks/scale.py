"""Measure the cost of the engines and project it to many GPUs; writes docs/scale.md.

python benchmarks/scale.py [--quick] [--shape m24] [--model-only]      about 6 minutes on two free cores; --quick 2

Measured here: one Ray worker compared with this process, two workers on two cores, and the cost of a job by its size
and by the bytes that jobs share. From these and from named assumptions follow 8 to 512 GPUs (`projected`).
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent / "src"), str(HERE), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

import shapes  # noqa: E402
from rhumbline.engines.engine import Job, Local, Pool, Worker, run_jobs  # noqa: E402
from rhumbline.engines.ray import Ray  # noqa: E402
from rhumbline.inference.interventions import Ablate, Arm, Direction  # noqa: E402
from rhumbline.inference.runner import Runner  # noqa: E402
from rhumbline.jobs.sizing import PROMPT_TOKENS, Device, work  # noqa: E402
from rhumbline.presets.protocols import preset  # noqa: E402
from rhumbline.settings import ROWS_PER_JOB  # noqa: E402
from rhumbline.stages.stage_jobs import (  # noqa: E402
    CANDIDATES_PER_JOB,
    DOCUMENTS_PER_JOB,
    DRAWS_PER_JOB,
    NULLS_PER_JOB,
    REFITS_PER_JOB,
)

OUT = HERE.parent / "docs"


def make(options: dict[str, Any]) -> Any:
    """A worker with a random model of a shape; a job evaluates rows (arms x prompts), or nothing."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = shapes.random_model(shapes.SHAPES[options["shape"]])
    prompts = shapes.prompts(32, shapes.SYSTEM, shapes.SHAPES[options["shape"]].vocab, 1)

    def run(kind: str, arguments: dict[str, Any], shared: Any) -> Any:
        if kind == "nothing":
            return len(shared)
        g = torch.Generator().manual_seed(arguments["seed"])
        arms = [
            Arm(f"{i}", (Ablate(Direction.from_vector(torch.randn(model.d_model, generator=g), -1, 3)),))
            for i in range(arguments["arms"])
        ]
        values = torch.zeros(len(arms), arguments["prompts"], dtype=torch.float64)
        for rows, logits in Runner(model).last_logits(prompts[: arguments["prompts"]], arms):
            values[rows.arm, rows.prompt] = logits[:, 5].double()
        return values.mean(1).tolist()

    return run


class Taken(NamedTuple):
    wall: float
    busy: float
    """Seconds inside the jobs, summed over workers."""
    values: list[Any]


def mapped(pool: Pool, jobs: list[Job], shared: dict[str, bytes] | None = None) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        busy = []
        start = time.perf_counter()
        values = run_jobs(pool, jobs, Path(folder), shared, report=lambda job, result: busy.append(result.seconds))
        return Taken(time.perf_counter() - start, sum(busy), values)


def reading(arms: int, prompts: int, n: int) -> list[Job]:
    return [Job("read", {"arms": arms, "prompts": prompts, "seed": i}) for i in range(n)]


def warmed(pool: Pool, workers: int) -> float:
    """Seconds until this number of workers has a first result: the start-up."""
    start = time.perf_counter()
    for _ in range(60):
        mapped(pool, reading(1, 4, 2 * workers))
        if workers == 1 or len(pool.actors) - len(pool.starting) >= workers:  # type: ignore[attr-defined]
            break
    return time.perf_counter() - start


def measure(quick: bool, shape: str) -> dict[str, Any]:
    spec = Worker("scale:make", {"shape": shape})
    n, repeats = (4, 1) if quick else (8, 2)
    measured: dict[str, Any] = {"shape": shape, "jobs": n, "load_average": os.getloadavg()[0]}
    jobs = reading(8, 8, n)
    with Local().pool(spec) as pool:
        mapped(pool, reading(1, 4, 2))
        local = [mapped(pool, jobs) for _ in range(repeats)]
    best = statistics.median(t.wall for t in local)
    measured["local"] = {"wall": best, "busy": statistics.median(t.busy for t in local)}
    for workers in (1, 2):
        begin = time.perf_counter()
        with Ray(replicas=workers).pool(spec) as pool:
            up = time.perf_counter() - begin
            first = warmed(pool, workers)
            times = [mapped(pool, jobs) for _ in range(repeats)]
            assert all(t.values == local[0].values for t in times)  # the same numbers, bit for bit
            wall = statistics.median(t.wall for t in times)
            entry = {"start": up + first, "wall": wall, "busy": statistics.median(t.busy for t in times)}
            if workers == 1:
                entry["overhead"] = wall / best - 1
                entry["engine_share"] = statistics.median((t.wall - t.busy) / t.busy for t in times)
                measured["by_size"] = [sized(pool, arms) for arms in (1, 4, 16)]
                measured["by_bytes"] = [shared(pool, mib) for mib in (0, 1, 16, 128)]
            else:
                entry["efficiency"] = best / (workers * wall)
        measured[f"ray_{workers}"] = entry
        print(json.dumps({f"ray_{workers}": entry}), flush=True)
    return measured


def sized(pool: Pool, arms: int) -> dict[str, float]:
    n = max(2, 16 // arms)
    taken = mapped(pool, reading(arms, 8, n))
    return {"rows": arms * 8, "seconds": taken.busy / n, "cost_ms": 1000 * (taken.wall - taken.busy) / n}


def shared(pool: Pool, mib: int) -> dict[str, float]:
    n = 8
    data = {"file": os.urandom(mib * 2**20)}
    mapped(pool, [Job("nothing", {"i": -1})], data)
    taken = mapped(pool, [Job("nothing", {"i": i}) for i in range(n)], data)
    return {"mib": mib, "cost_ms": 1000 * taken.wall / n}


# -- many GPUs --------------------------------------------------------------------------------------------------------


class Assumed(NamedTuple):
    """Assumptions. Replace them with the properties of your cluster."""

    parameters: float = 70e9
    layers: int = 80
    d_model: int = 8192
    bytes_per_parameter: float = 2
    gpus_per_replica: int = 4
    parallel_efficiency: float = 0.7
    """Efficiency of tensor parallelism over the GPUs of a replica."""
    disk: float = 2e9
    """Bytes per second with which one node reads weights."""
    shared_disk: float = 20e9
    """The same for all nodes together."""
    network: float = 2.5e9
    """Bytes per second from the driver to the nodes."""
    models: int = 13
    seeds: int = 3
    prefix_sharing: float = 2.0
    """Factor by which packing reduces the tokens (docs/benchmarks.md)."""


TOKENS = {"before 2026-11-29": (972_066, 278_528), "default": (339_254, 99_456), "`--quick`": (48_355, 9_984)}
"""Prompt tokens of one seed without repeated prefixes, and generated ones, as `run --plan` counts them for 24 layers
and five positions (docs/benchmarks.md)."""
SIZES = {"1.5B": 1.5e9, "8B": 8e9, "32B": 32e9, "70B": 70e9}
JOBS = {"candidates": 2, "shuffled": 7, "wide": 5, "refits": 5, "outcomes": 8, "dose": 2}
"""Jobs of each stage of one seed at 80 layers (stages/stage_jobs.py)."""


def projected(gpus: int, measured: dict[str, Any], a: Assumed, device: Device) -> dict[str, Any]:
    """Hours of the sweep, and the limiting factor."""
    passes, steps = work(preset("rhumbline", seeds=(0,)), a.layers)
    rate = a.gpus_per_replica * a.parallel_efficiency
    weights = a.parameters * a.bytes_per_parameter
    second = 2 * a.parameters * PROMPT_TOKENS / a.prefix_sharing / (device.flops * rate)
    seconds = {kind: n * second for kind, n in passes.items()}
    seconds["outcomes"] += steps * 1.15 * weights / (device.bandwidth * rate)
    run = sum(seconds.values())
    replicas = max(1, gpus // a.gpus_per_replica)
    runs = a.models * a.seeds
    at_once = min(replicas, runs)
    load = max(weights / a.disk, at_once * weights / a.shared_disk)
    per_run = max(1, replicas // runs)
    job_cost = measured["by_size"][-1]["cost_ms"] / 1000
    inputs = 4 * a.d_model * (2 * 5 * a.layers + 514)
    computing = seconds["serial"] + sum(seconds[k] * math.ceil(n / per_run) / n for k, n in JOBS.items())
    engine = sum(math.ceil(n / per_run) * job_cost + per_run * inputs / a.network for n in JOBS.values())
    inside = computing + (engine if per_run > 1 else 0.0)
    waves = math.ceil(runs / replicas)
    total = waves * (load + inside)
    used = runs * run / (replicas * total)
    bound = "reading weights" if load > inside else "computing"
    if bound == "computing" and load > inside / 2:
        bound = "computing and the shared disk"
    if waves == 1 and per_run == 1 and replicas > runs:
        bound += ", more replicas than runs"
    elif per_run > 1 and bound == "computing":
        bound = "few jobs in a stage"
    return {
        "gpus": gpus,
        "replicas": replicas,
        "per_run": per_run,
        "load": load,
        "run": inside,
        "engine": (engine if per_run > 1 else 0.0) / inside,
        "hours": total / 3600,
        "gpu_hours": total / 3600 * gpus,
        "busy": used,
        "bound": bound,
    }


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(results: dict[str, Any]) -> str:
    a, device = Assumed(), Device()
    projections = [projected(g, results, a, device) for g in (8, 16, 32, 64, 128, 256, 512)]
    one, two = results["ray_1"], results["ray_2"]
    busy = " (**busy: preliminary figures**)" if results["load_average"] > 1 else ""
    engines = [
        ["local", f"{results['local']['wall']:.1f}", f"{results['local']['busy']:.1f}", "", ""],
        ["ray, 1 worker", f"{one['wall']:.1f}", f"{one['busy']:.1f}", f"{one['start']:.1f}",
         f"overhead **{one['overhead']:+.1%}** of local's wall time; outside of the jobs {one['engine_share']:.1%}"],
        ["ray, 2 workers", f"{two['wall']:.1f}", f"{two['busy']:.1f}", f"{two['start']:.1f}",
         f"efficiency **{two['efficiency']:.2f}**"],
    ]  # fmt: skip
    sizes = [
        [f"{r['rows']}", f"{r['seconds']:.2f}", f"{r['cost_ms']:.1f}", f"{r['cost_ms'] / 1000 / r['seconds']:.1%}"]
        for r in results["by_size"]
    ]
    clusters = [
        [f"{r['gpus']}", f"{r['replicas']}", f"{r['per_run']}", f"{r['load'] / 60:.1f}", f"{r['run'] / 60:.1f}",
         f"{r['engine']:.2%}", f"{r['hours']:.1f}", f"{r['gpu_hours']:.0f}", f"{r['busy']:.0%}", r["bound"]]
        for r in projections
    ]  # fmt: skip
    turns = a.gpus_per_replica * a.parallel_efficiency
    weights = a.parameters * a.bytes_per_parameter / 1e9
    return "\n\n".join(
        [
            "# Scale: cost of the engines, and projections",
            paragraph(
                "Generated by `python benchmarks/scale.py`, which overwrites this page. "
                "[guide/scale.md](guide/scale.md) describes how to use engines and sweeps."
            ),
            "## Measured",
            paragraph(
                f"{results['when']}, torch {torch.__version__}, Ray {results['ray']}, Python "
                f"{platform.python_version()}, a shared virtual machine of two x86-64 cores, one thread per worker, "
                "load average "
                f"{results['load_average']:.1f} at the start{busy}. Work: {results['jobs']} jobs of 8 ablations x 8 "
                f"prompts on {results['shape']} (docs/benchmarks.md); medians of the repeats. The script checks "
                "that the values are the same bit for bit on every engine."
            ),
            table(["engine", "wall s", "inside the jobs s", "start-up s", ""], engines),
            "Targets: overhead at most 5 % beyond start-up, efficiency at least 0.85.",
            "Cost of a job in addition to its work (one worker): sending, waiting, and writing the result (fsync).",
            table(["rows of a job", "seconds of work", "cost, ms", "share"], sizes),
            table(
                ["MiB that all jobs of a call share", "cost of an empty job, ms"],
                [[f"{r['mib']}", f"{r['cost_ms']:.1f}"] for r in results["by_bytes"]],
            ),
            paragraph(
                "**Size of a job.** It is a constant, so that every engine runs the same passes. A job should last a "
                "second or more, so that its cost is small in comparison, and a stage should have more jobs than a run "
                f"has replicas: {CANDIDATES_PER_JOB} candidates, {NULLS_PER_JOB} null draws, {DRAWS_PER_JOB} of the "
                f"whole procedure, {REFITS_PER_JOB} refits, {DOCUMENTS_PER_JOB} documents, {ROWS_PER_JOB} completions."
            ),
            f"## Projection for 8 to 512 GPUs: {a.models} models of {a.parameters / 1e9:.0f}B, {a.seeds} seeds",
            paragraph(
                "Not measured, because no such cluster was available. The projection follows from the cost per job "
                "above, from the passes of the default protocol (`rhumbline.jobs.sizing.work`), and from these "
                "assumptions:"
            ),
            "\n".join(
                textwrap.fill(" ".join(text.split()), 120, initial_indent="- ", subsequent_indent="  ")
                for text in (
                    f"a GPU reaches {device.flops / 1e12:.0f} TFLOP/s on prompts and {device.bandwidth / 1e12:.1f} "
                    f"TB/s while generating; a replica has {a.gpus_per_replica} GPUs of 80 GB, "
                    f"{a.parallel_efficiency:.0%} of them effective under tensor parallelism (with `--device auto` "
                    f"they work one after another, and a run takes {turns:.1f} times as long);",
                    f"a node reads weights of {weights:.0f} GB at {a.disk / 1e9:.0f} GB/s, all nodes together at "
                    f"{a.shared_disk / 1e9:.0f} GB/s; artefacts are sent at {a.network / 1e9:.1f} GB/s;",
                    f"packing reduces the tokens by a factor of {a.prefix_sharing:.0f}; prompts have {PROMPT_TOKENS} "
                    "tokens;",
                    "a run has one replica; with more replicas than runs, the jobs of a run are distributed over "
                    "several replicas (`run --engine ray` for each run; `sweep` distributes whole runs only);",
                    "every run loads its model again, although a replica keeps it between runs of one model.",
                )
            ),
            table(
                ["GPUs", "replicas", "per run", "reading weights, min", "a run, min", "engine", "sweep, h", "GPU-hours",
                 "busy", "bound by"],
                clusters,
            ),
            *_by_tokens(a, device),
            *_reading(projections, a),
        ]
    ) + "\n"  # fmt: skip


def _by_tokens(a: Assumed, device: Device) -> list[str]:
    """The cost of one seed and of the sweep by protocol, on one GPU-equivalent."""

    def minutes(parameters: float, tokens: tuple[int, int]) -> float:
        steps, weights = tokens[1] / ROWS_PER_JOB, parameters * a.bytes_per_parameter
        return (2 * parameters * tokens[0] / device.flops + steps * weights / device.bandwidth) / 60

    rows = []
    for name, parameters in SIZES.items():
        seeds = [minutes(parameters, tokens) for tokens in TOKENS.values()]
        runs = [
            minute * a.models * (1 if "quick" in which else a.seeds) / 60
            for which, minute in zip(TOKENS, seeds, strict=True)
        ]
        rows.append([name, *(f"{value:.2f}" for value in (*seeds, *runs))])
    head = [*(f"a seed, {name}" for name in TOKENS), *(f"{a.models} models, {name}" for name in TOKENS)]
    return [
        paragraph(
            "Reading the weights takes longer than a run. Workers that keep a model for all of its seeds would save "
            "two readings of three. The cost without reading, from the tokens that `run --plan` counts for one seed "
            "(docs/benchmarks.md, *Old and new protocol*), at the same assumptions, on one GPU-equivalent; a seed in "
            f"GPU-minutes, {a.models} models in GPU-hours, with {a.seeds} seeds each (`--quick`: one):"
        ),
        table(["model", *head], rows),
    ]


def _reading(projections: list[dict[str, Any]], a: Assumed) -> list[str]:
    runs = a.models * a.seeds
    least = min(projections, key=lambda r: r["gpu_hours"])
    first = next((r for r in projections if r["bound"] != "computing"), projections[-1])
    most = max(r["engine"] for r in projections)
    return [
        paragraph(
            f"Below {first['gpus']} GPUs the sweep is bound by computing alone; from there on by {first['bound']}. "
            f"{runs} runs keep {runs * a.gpus_per_replica} GPUs busy. Further replicas can only take jobs of a run, of "
            f"which a stage has {min(JOBS.values())} to {max(JOBS.values())}. The engine (messages, artefacts, "
            f"results) takes at most {most:.1%} of a run. The cheapest row is that of {least['gpus']} GPUs: "
            f"{least['gpu_hours']:.0f} GPU-hours, {least['hours']:.1f} h."
        ),
        paragraph(
            "The projection ignores queues, stragglers, failures (a lost node costs its unfinished jobs and one "
            "loading), models that differ in size, and judges that are models."
        ),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--shape", default="m24", choices=shapes.SHAPES)
    options.add_argument("--model-only", action="store_true", help="write the page again from the last measurements")
    a = options.parse_args()
    kept = OUT / "scale.json"
    if a.model_only:
        results = json.loads(kept.read_text())
    else:
        import ray

        results = {**measure(a.quick, a.shape), "ray": ray.__version__, "when": time.strftime("%Y-%m-%d")}
        kept.write_text(json.dumps(results, indent=1) + "\n")
    (OUT / "scale.md").write_text(written(results))


if __name__ == "__main__":
    main()
