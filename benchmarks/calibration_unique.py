"""Measure how often the claim *unique* is correct, on planted models whose second direction is known.

    python benchmarks/calibration_unique.py run  [--out FILE] [--first 160000] [--repeats 8] [--coefficient 2]
    python benchmarks/calibration_unique.py show [--out FILE]      the table, on standard output

FILE is docs/calibration/unique.jsonl unless another is named. One line of JSON per run is written when it ends, so an
interrupted study resumes. One process, one thread.

A second direction exists if either of two axes is enough (readout `any`) and the ablation of the difference of the
axes leaves less than the threshold of the decision, 0.55. It leaves effect / 2. Its addition, with the norm of the
first direction and the coefficient 2, puts `effect` on an axis; with the default coefficient 1 neither the first nor
the second direction induces in these models. `strength` is the distance of what is left from the threshold, relative
to it. In all other models there is no second direction that is orthogonal to the first, independent of it, and has
both effects: one axis, the sum or the product of two, and two axes at a small angle.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calibration_tables import as_text, by, share, table
from resumable import append, remaining
from rhumbline import load, preset, read_contrast, run
from rhumbline.organisms.planted import THRESHOLD, Planted, build
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.claims import ClaimKind, claim_of
from rhumbline.settings import AdditionSettings, DoseSettings, SideEffectSettings, StabilitySettings

NONE, SECOND = "unique", "a second direction"
N = 24
"""Test prompts per class, as many as the default run measures a second direction on."""
MARGIN = 0.5
"""Margin of the rule."""
JITTER = 0.05
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one axis", NONE, {"effect": 1.2}),
    ("two axes, sum", NONE, {"axes": 2, "effect": 1.3, "jitter": JITTER, "readout": "sum"}),
    ("two axes, AND", NONE, {"axes": 2, "effect": 1.2, "jitter": JITTER, "readout": "all"}),
    ("narrow cone, cosine 0.7", NONE, {"axes": 2, "overlap": 0.7, "effect": 1.5, "jitter": JITTER}),
    ("two axes, OR, effect 0.75", SECOND, {"axes": 2, "effect": 0.75, "jitter": JITTER}),
    ("two axes, OR, effect 0.8", SECOND, {"axes": 2, "effect": 0.8, "jitter": JITTER}),
    ("two axes, OR, effect 0.9", SECOND, {"axes": 2, "effect": 0.9, "jitter": JITTER}),
)


def protocol(seed: int, coefficient: float) -> Any:
    """The default preset with the stages that the claim needs, and one seed."""
    own = preset("rhumbline")
    return replace(
        own,
        sizes=Sizes(N, N // 2, N),
        seeds=(seed,),
        max_new_tokens=4,
        refusal_tokens=("I",),
        addition=AdditionSettings(coefficient),
        nulls=replace(own.nulls, draws=2, wide=19, procedure=19, prompts=6, procedure_prompts=4, interim=0),
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        side_effects=SideEffectSettings(documents=0),
    )


def cases(first: int, repeats: int) -> Iterator[tuple[str, str, Planted]]:
    """All kinds in turn, so that a stopped study has the same mixture."""
    for repeat in range(repeats):
        for k, (kind, truth, spec) in enumerate(KINDS):
            yield kind, truth, Planted(prompts=3 * N + 16, seed=first + 100 * repeat + k, **spec)


def study(kind: str, truth: str, planted: Planted, coefficient: float) -> dict[str, Any]:
    """One run, in a temporary folder."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(planted, Path(scratch) / "model")
        model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
        result = run(model, contrast, Path(scratch) / "run", protocol(planted.seed, coefficient), page=False)
    unique, seed = claim_of(ClaimKind.UNIQUE, result.claims), result.results["seeds"][0]
    second = seed.get("second", {})
    left = planted.effect / 2
    return {
        "name": f"{kind}/s{planted.seed}",
        "kind": kind,
        "truth": truth,
        "strength": round(1 - left / THRESHOLD, 2) if truth == SECOND else None,
        "claim": str(unique.state),
        "verdict": str(result.verdict),
        "source": second.get("source"),
        "effects": {e["name"]: [e["relative"][k] for k in ("value", "low", "high")] for e in second.get("effects", ())},
        "independence": second.get("independence"),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def is_found(row: dict[str, Any]) -> bool:
    """Whether both effects of the second direction are estimated at the margin or above."""
    return len(row["effects"]) == 2 and all(value >= MARGIN for value, _, _ in row["effects"].values())


def show(path: Path) -> None:
    """Print how often a second direction is found, and the claim shown, undecided and refuted, by kind.

    It is found if both of its effects reach the margin as estimates. Runs in which nothing was tested are left out.
    """
    every = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in every if r["claim"] != "not-tested"]
    lines = []
    for kind, some in by(rows, lambda r: r["kind"]).items():
        states = (as_text(share(some, lambda r, s=s: r["claim"] == s)) for s in ("shown", "refuted"))
        open_ = sum(r["claim"] == "undecided" for r in some)
        lines.append([kind, some[0]["truth"], len(some), as_text(share(some, is_found)), *states, open_])
    print(table(["Model", "Truth", "Runs", "Found", "Shown", "Refuted", "Undecided"], lines))
    print(f"Nothing was tested in {len(every) - len(rows)} of {len(every)} runs.")
    for truth, some in by(rows, lambda r: r["truth"]).items():
        wrong = "refuted" if truth == NONE else "shown"
        print(f"{truth}: wrong ({wrong}) in {as_text(share(some, lambda r, w=wrong: r['claim'] == w))}")
    spent = sorted(r["cpu_seconds"] for r in rows)
    print(f"Processor seconds of a run: median {spent[len(spent) // 2]:.1f}, in all {sum(spent):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/unique.jsonl"))
    parser.add_argument("--first", type=int, default=160_000)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--coefficient", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        show(a.out)
        return
    torch.set_num_threads(1)
    every = cases(a.first, a.repeats)
    for kind, truth, planted in remaining(every, a.out, a.minutes, lambda case: f"{case[0]}/s{case[2].seed}"):
        row = study(kind, truth, planted, a.coefficient)
        append(a.out, row)
        print(row["name"], row["truth"], row["claim"], row["effects"], row["cpu_seconds"], file=sys.stderr)


if __name__ == "__main__":
    main()
