"""The default protocol beside the one before it, on models whose truth is known and on the same seeds.

    python benchmarks/cost_calibration.py run  [--out docs/calibration/cost.jsonl] [--first 200000] [--minutes 60]
    python benchmarks/cost_calibration.py show [--out docs/calibration/cost.jsonl]     tables on standard output

One line of JSON per model and protocol: verdict, selected site, claims, rows of every stage, processor time.
An interrupted study resumes. The models are those of docs/calibration-planted.md, with new seeds. One process, one
thread.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from calibration import contrast_of, rounded
from calibration_cases import Case, interleaved
from resumable import append, remaining
from rhumbline import load, preset, run, selected_direction
from rhumbline.errors import ProtocolError
from rhumbline.organisms.planted import TRUTH, Planted, build
from rhumbline.presets.protocols import quick
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.codec import convert
from rhumbline.records.results import SeedResult
from rhumbline.settings import DoseSettings, NullSettings, StabilitySettings

NEW = preset("rhumbline")
OLD = replace(NEW, nulls=NullSettings(), screen=0, dose=DoseSettings(), stability=StabilitySettings())
PROTOCOLS: Mapping[str, Protocol] = {"old": OLD, "new": NEW, "quick": quick(NEW)}
LAYERS = 10
"""Layers of a planted model: more candidates than the screens leave."""


def cases(first: int) -> Iterator[Case]:
    """One axis (power), nothing to find (false positives), cones and fragile models, mixed in proportion."""
    rng = random.Random(first)
    yield from interleaved([list(make(first, rng)) for make in (_power, _nulls, _several)])


def _power(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(40):
        n, seed, noise = (16, 32)[i % 2], first + i, (1.0, 1.0, 2.0)[i % 3]
        spec = Planted(effect=rng.choice((1.0, 1.2, 1.5)), noise=noise, **_shape(n, seed))
        yield Case("power", f"one axis, noise {noise:g}", n, seed, spec)


def _nulls(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(50):
        n, seed, rate = (16, 32)[i % 2], first + 1000 + i, (0.5, 0.6, 0.75)[i % 3]
        if i % 4 == 3:
            yield Case("null", "labels permuted", n, seed, Planted(**_shape(n, seed)), "permuted")
        else:
            spec = Planted(positive_rate=rate, negative_rate=rate, **_shape(n, seed))
            yield Case("null", f"rate {rate:g} in both classes", n, seed, spec)


def _several(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(30):
        n, seed = (16, 32)[i % 2], first + 2000 + i
        if i % 2:
            spec = Planted(effect=3.0, fragile=2.5, noise=0.5, **_shape(n, seed))
            yield Case("several", "any vector moves it", n, seed, spec)
        else:
            axes, overlap = ((2, 0.3), (2, 0.6), (3, 0.4))[i // 2 % 3]
            spec = Planted(axes=axes, overlap=overlap, effect=1.1, noise=0.5, jitter=0.05, **_shape(n, seed))
            yield Case("several", f"{axes} axes, cosine {overlap}", n, seed, spec)


def _shape(n: int, seed: int) -> dict[str, Any]:
    return {"n_layers": LAYERS, "prompts": 3 * n + 16, "seed": seed}


def protocol_of(case: Case, protocol: Protocol) -> Protocol:
    """The protocol at the sizes of a case. Dose curves and losses, which decide nothing, are left out."""
    sizes = Sizes(case.n, max(8, case.n // 2), case.n)
    of_case = replace(
        protocol,
        seeds=(case.seed,),
        sizes=Sizes(*map(min, astuple(protocol.sizes), astuple(sizes))),
        dose=DoseSettings((), ()),
        side_effects=replace(protocol.side_effects, documents=0),
        max_new_tokens=10,
        refusal_tokens=("I",),
    )
    return of_case


def study(case: Case) -> Iterator[dict[str, Any]]:
    """The runs of one model, one for each protocol."""
    assert case.planted is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(case.planted, Path(scratch) / "m")
        model, contrast = load(str(folder), device="cpu", dtype="float32"), contrast_of(case, folder)
        truth = load_file(folder / TRUTH)["direction"]
        for name, protocol in PROTOCOLS.items():
            started, counted = time.process_time(), Counter[str]()
            row = {"name": case.name, "group": case.group, "kind": case.kind, "n": case.n, "protocol": name}
            out = Path(scratch) / name
            try:
                progress = partial(_count, counted)
                result = run(model, contrast, out, protocol_of(case, protocol), page=False, progress=progress)
            except ProtocolError as error:
                row |= {"verdict": "NO-VERDICT", "reason": str(error)[:120]}
            else:
                direction = selected_direction(out)
                cosine = None if direction is None else abs(float(direction.vector @ truth))
                row |= summary(convert(result.results["seeds"][0], SeedResult)) | {"cosine": cosine}
            cost = {stage: n for stage, n in counted.items() if n}
            yield row | {"rows": cost, "cpu_seconds": round(time.process_time() - started, 2)}


def _count(counted: Counter[str], stage: str, rows: int | None) -> None:
    """Add the finished rows of a stage."""
    counted[stage] += rows or 0


def summary(seed: SeedResult) -> dict[str, Any]:
    """Verdict, selected site, own rates and claims of a run."""
    return {
        "verdict": seed.verdict,
        "reason": seed.reason,
        "site": None if seed.selected is None else [int(seed.selected.position), seed.selected.layer],
        "rates": {f"{arm.arm} {arm.side}": arm.rate for arm in seed.arms if not arm.arm.is_null},
        "claims": {str(c.kind): [str(c.state), c.value, c.low, c.high, c.n] for c in seed.claims},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/cost.jsonl"))
    parser.add_argument("--first", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        from cost_tables import show

        show(a.out)
        return
    torch.set_num_threads(1)
    for case in remaining(cases(a.first), a.out, a.minutes):
        append(a.out, *(rounded(row) for row in study(case)))
        print(case.name, file=sys.stderr)


if __name__ == "__main__":
    main()
