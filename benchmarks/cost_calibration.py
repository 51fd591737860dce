"""The default protocol beside the one before it, on models whose truth is known and on the same seeds.

    python benchmarks/cost_calibration.py run  [--out docs/calibration/cost.jsonl] [--first 100000] [--minutes 60]
    python benchmarks/cost_calibration.py show [--out docs/calibration/cost.jsonl]     tables on standard output

One line of JSON per model and protocol: verdict, selected site, effects, prompt and generated tokens, processor time.
An interrupted study resumes. The models are those of docs/calibration.md, and new seeds. One process, one thread.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calibration import contrast_of, rounded
from calibration_cases import Case, interleaved
from rhumbline import load, preset, run
from rhumbline.errors import ProtocolError
from rhumbline.evidence.statistics import exact_interval
from rhumbline.jobs.forecast import forecast
from rhumbline.models.chat import Chat
from rhumbline.organisms import materialise
from rhumbline.organisms.planted import Planted, build
from rhumbline.prompts.contrasts import Sizes, split_contrast
from rhumbline.protocol import DoseSettings, NullSettings, Protocol, StabilitySettings
from rhumbline.records.codec import convert
from rhumbline.records.results import SeedResult

NEW = preset("rhumbline")
OLD = replace(NEW, nulls=NullSettings(), screen=0, dose=DoseSettings(), stability=StabilitySettings())
PROTOCOLS: Mapping[str, Protocol] = {"old": OLD, "new": NEW}


def cases(first: int) -> Iterator[Case]:
    """One axis (power), nothing to find (false positives), cones and fragile models, mixed in proportion."""
    rng = random.Random(first)
    yield from interleaved([list(make(first, rng)) for make in (_power, _nulls, _several)])


def _power(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(60):
        n, seed = (32, 64)[i % 2], first + i
        sizes = {"d_model": rng.choice((64, 128)), "prompts": 3 * n + 16, "seed": seed}
        noise = (1.0, 1.0, 2.0)[i % 3]
        yield Case(
            "power",
            f"one axis, noise {noise}",
            n,
            seed,
            Planted(effect=rng.choice((1.0, 1.2, 1.5)), noise=noise, **sizes),
        )


def _nulls(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(80):
        n, seed = (16, 32)[i % 2], first + 1000 + i
        if i % 8 == 7:
            yield Case("null", "trained, refusals at random, rate 0.75", 16, seed, None, "mixed")
            continue
        rate = (0.5, 0.6, 0.75)[i % 3]
        spec = Planted(positive_rate=rate, negative_rate=rate, prompts=3 * n + 16, seed=seed)
        if i % 4 == 3:
            yield Case("null", "planted, labels permuted", n, seed, Planted(prompts=3 * n + 16, seed=seed), "permuted")
        else:
            yield Case("null", f"planted axis, rate {rate}", n, seed, spec)


def _several(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(30):
        n, seed = (16, 32)[i % 2], first + 2000 + i
        if i % 2:
            spec = Planted(effect=3.0, fragile=2.5, noise=0.5, d_model=64, prompts=3 * n + 16, seed=seed)
            yield Case("several", "any vector moves it", n, seed, spec)
        else:
            axes, overlap = ((2, 0.3), (2, 0.6), (3, 0.4))[i // 2 % 3]
            spec = Planted(
                axes=axes, overlap=overlap, effect=1.1, noise=0.5, jitter=0.05, prompts=3 * n + 16, seed=seed
            )
            yield Case("several", f"{axes} axes, cosine {overlap}", n, seed, spec)


def protocol_of(case: Case, protocol: Protocol) -> Protocol:
    """The protocol at the sizes of a case."""
    return replace(
        protocol,
        seeds=(case.seed,),
        sizes=Sizes(case.n, max(8, case.n // 2), case.n),
        max_new_tokens=10 if case.planted else 24,
        refusal_tokens=("I",) if case.planted else "auto",
    )


def count(counted: Counter[str], stage: str, rows: int | None) -> None:
    """Add the finished rows of a stage."""
    counted[stage] += rows or 0


def study(case: Case) -> Iterator[dict[str, Any]]:
    """The runs of one model, one for each protocol."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            materialise("refusal", Path(scratch)) if case.planted is None else build(case.planted, Path(scratch) / "m")
        )
        model, contrast = load(str(folder), device="cpu", dtype="float32"), contrast_of(case, folder)
        for name, protocol in PROTOCOLS.items():
            protocol, started = protocol_of(case, protocol), time.process_time()
            counted: Counter[str] = Counter()
            row = {"name": case.name, "group": case.group, "kind": case.kind, "n": case.n, "protocol": name}
            try:
                out, progress = Path(scratch) / name, partial(count, counted)
                result = run(model, contrast, out, protocol, page=False, progress=progress)
                seed = convert(result.results["seeds"][0], SeedResult)
                row |= {"verdict": seed.verdict, "reason": seed.reason[:160]}
                row["site"] = None if seed.selected is None else [int(seed.selected.position), seed.selected.layer]
                row["effects"] = {e.name: [e.drop, e.low] for e in seed.effects}
                row["p"] = {e.name: max((w.p_apart or 1 for w in e.wide.values()), default=None) for e in seed.effects}
            except ProtocolError as error:
                row |= {"verdict": "NO-VERDICT", "reason": str(error)[:120], "site": None}
            splits = split_contrast(contrast, protocol.sizes, case.seed)
            stages = forecast(Chat.of(model.tokenizer), splits, protocol, model.n_layers)
            rows, written = sum(s.rows for s in stages), sum(s.written for s in stages)
            row |= {"rows": sum(counted.values()), "planned_rows": rows, "planned_written": written}
            yield row | {"cpu_seconds": round(time.process_time() - started, 2)}


def show(path: Path) -> None:
    """Rates of SINGLE, agreement of the two protocols and their cost, by group."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_name: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["protocol"]] = row
    pairs = [both for both in by_name.values() if len(both) == 2]
    print(
        "| Models | Runs | SINGLE, old | SINGLE, new | same verdict | same site | rows, old | rows, new "
        "| processor s, old | processor s, new |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    kinds = [("all", pairs)] + [
        (f"{g}: {k}", [p for p in pairs if p["old"]["group"] == g and k in ("all", p["old"]["kind"])])
        for g in ("null", "several", "power")
        for k in ["all", *sorted({p["old"]["kind"] for p in pairs if p["old"]["group"] == g})]
    ]
    for name, some in kinds:
        if not some:
            continue
        cells = [name, str(len(some))]
        for which in ("old", "new"):
            k = sum(p[which]["verdict"] == "SINGLE-DIRECTION-REPRODUCES" for p in some)
            low, high = exact_interval(k, len(some))
            cells.append(f"{k} [{100 * low:.1f}, {100 * high:.1f}] %")
        cells.append(str(sum(p["old"]["verdict"] == p["new"]["verdict"] for p in some)))
        chosen = [p for p in some if p["old"]["site"] is not None]
        cells.append(f"{sum(p['old']['site'] == p['new']['site'] for p in chosen)} of {len(chosen)}")
        for value in ("rows", "cpu_seconds"):
            cells += [f"{sum(p[which][value] for p in some) / len(some):,.0f}" for which in ("old", "new")]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/cost.jsonl"))
    parser.add_argument("--first", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        show(a.out)
        return
    torch.set_num_threads(1)
    done = {json.loads(line)["name"] for line in a.out.read_text().splitlines()} if a.out.exists() else set()
    end = time.monotonic() + 60 * a.minutes
    for case in cases(a.first):
        if case.name in done or time.monotonic() > end:
            continue
        lines = [json.dumps(rounded(row)) for row in study(case)]
        with a.out.open("a") as f:
            f.write("\n".join(lines) + "\n")
        print(*lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
