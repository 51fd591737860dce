"""How often `analyze directions` is right: a run and the analysis, many times, on models whose truth is known.

    python benchmarks/calibration_directions.py run  [--out FILE] [--first 110000] [--minutes 30]
    python benchmarks/calibration_directions.py show [--out FILE]      the tables, on standard output

FILE is docs/calibration/directions.jsonl unless another is named. One line of JSON per run, written when it ends: an
interrupted study goes on where it was. The runs depend on `--first` alone; 110000 is reported, 100000 was for setting
sizes. One process, one thread.

The truth is by construction. A prompt stands on one of n axes, at `effect` times its share of charms; any two axes have
the cosine `overlap`. Ablating their mean leaves it at effect * (1 - (1 + (n - 1) overlap) / n) on its axis, and the
decision is made at 0.55: well above that more directions are needed, well below it one is enough. Where the decision
reads the sum of the axes, the mean takes all of it. SHAPES lie well away from the threshold, NEAR at it; prompts differ
in how far they stand out, so that there a part of them is on either side.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from calibration_tables import by, share, table, told
from rhumbline import load, preset, read_contrast, run
from rhumbline.analyses.further_directions import analyse
from rhumbline.analyses.subject import open_subject
from rhumbline.errors import ProtocolError
from rhumbline.organisms.planted import THRESHOLD, Planted, build
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.analysis_files import MeanRate
from rhumbline.records.directions_file import ChosenRank, DirectionsPlan, DirectionsRecord, Gain

ONE, MORE, OPEN = "ONE-IS-ENOUGH", "MORE-HELPS", "UNDETERMINED"
PLAN = DirectionsPlan(sources=("candidates", "clusters", "gradient"), max_rank=3, steps=40, samples=1)
"""One source of each kind, as many ranks as three axes need; the cones are not read by the rule."""
N = 64
"""Test prompts per class, the default of the analysis."""
SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one axis", {"effect": 1.2}),
    ("two axes", {"axes": 2, "effect": 2.0, "jitter": 0.05}),
    ("sum of two axes", {"axes": 2, "effect": 1.3, "jitter": 0.05, "readout": "sum"}),
    ("three axes", {"axes": 3, "effect": 2.0, "jitter": 0.05}),
    ("two axes, cosine 0.7", {"axes": 2, "overlap": 0.7, "effect": 1.5, "jitter": 0.05}),
    ("two axes, cosine 0.3", {"axes": 2, "overlap": 0.3, "effect": 2.5, "jitter": 0.05}),
)
NEAR: tuple[tuple[str, dict[str, Any]], ...] = (
    ("near: two axes, effect 1.2", {"axes": 2, "effect": 1.2, "jitter": 0.05}),
    ("near: one axis, effect 0.85, noise 2", {"effect": 0.85, "noise": 2.0}),
    ("near: two axes, effect 1.0", {"axes": 2, "effect": 1.0, "jitter": 0.05}),
)
"""Shapes whose prompts stand close to the threshold, before or after the ablation."""


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    kind: str
    n: int
    seed: int
    planted: Planted

    @property
    def name(self) -> str:
        """Its key in the file."""
        return f"{self.kind}/n{self.n}/s{self.seed}"

    @property
    def truth(self) -> str:
        """What an instrument that works says."""
        p = self.planted
        left = 0.0 if p.readout == "sum" else p.effect * (1 - (1 + (p.axes - 1) * p.overlap) / p.axes)
        return MORE if left > THRESHOLD else ONE


def cases(first: int, repeats: int = 8) -> Iterator[Case]:
    """Every shape, over and over, so that a study cut short is a smaller one of the same mixture; then those near."""
    for shapes, offset in ((SHAPES, 0), (NEAR, 50)):
        for repeat in range(repeats):
            for k, (kind, spec) in enumerate(shapes):
                seed = first + 100 * repeat + offset + k
                yield Case(kind, N, seed, Planted(prompts=3 * N + 16, seed=seed, **spec))


def study(case: Case, plan: DirectionsPlan) -> dict[str, Any]:
    """One run and its analysis, in a folder that is thrown away."""
    started = time.process_time()
    protocol = preset(
        "arditi2024",
        sizes=Sizes(case.n, case.n // 2, case.n),
        seeds=(case.seed,),
        max_new_tokens=4,
        refusal_tokens=("I",),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(case.planted, Path(scratch) / "model")
        model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
        try:
            run(model, contrast, Path(scratch) / "run", protocol, page=False)
            ran = time.process_time()
            found = summary(analyse(open_subject(Path(scratch) / "run", model, contrast), plan))
        except ProtocolError as error:
            # No candidate passed: there is no direction to ask about, and no answer.
            ran, found = time.process_time(), {"answer": "NO-DIRECTION", "reason": str(error)[-120:]}
    seconds = {"run": round(ran - started, 1), "analysis": round(time.process_time() - ran, 1)}
    planted = {k: v for k, v in asdict(case.planted).items() if k in ("axes", "overlap", "effect", "noise", "readout")}
    head = {"name": case.name, "kind": case.kind, "n": case.n, "truth": case.truth, "planted": planted}
    return head | found | {"seconds": seconds}


def summary(record: DirectionsRecord) -> dict[str, Any]:
    """The part of a record that the study keeps: enough to apply the rule with other values."""
    sources = {
        name: {
            "rates": [round(r.suppression.rate, 4) for r in source.ranks],
            "drop": _interval(source.ranks[0].suppression.drop),
            "chosen": None if source.chosen is None else _chosen(source.chosen),
        }
        for name, source in record.sources.items()
    }
    verdict = record.verdict
    return {"answer": verdict.answer, "source": verdict.source, "reason": verdict.reason, "sources": sources}


def _interval(value: MeanRate | Gain) -> list[float]:
    return [round(v, 4) for v in (value.mean, value.low, value.high)]


def _chosen(c: ChosenRank) -> dict[str, Any]:
    beyond = {family: _interval(difference) for family, difference in c.beyond_random.items()}
    metric, kl = (float("nan") if v is None else round(v, 4) for v in (c.val_metric, c.kl.mean))
    kept = {"rank": c.rank, "val_rate": round(c.val_rate, 4), "val_metric": metric}
    return kept | {"gain": _interval(c.gain), "beyond": beyond, "kl": kl}


# -- tables -----------------------------------------------------------------------------------------------------------


def show(path: Path) -> None:
    """How often the answer is right, open or wrong, by what was planted and by the number of prompts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [r for r in rows if r["answer"] != "NO-DIRECTION"]
    head = ["Model", "Truth", "Runs", "Right", "Undetermined", "Wrong", "Answers"]
    print(
        table(
            head,
            [
                _line(kind.replace("near:", "near the threshold:"), some)
                for kind, some in by(rows, lambda r: r["kind"]).items()
            ],
        )
    )
    far = [r for r in asked if not r["kind"].startswith("near")]
    everything = [_line("all except near the threshold", some) for some in by(far, lambda r: r["truth"]).values()]
    print(table(head, everything))
    print(table(["Reason for UNDETERMINED", "Truth", "Runs"], _reasons(asked)))
    spent = [r["seconds"]["analysis"] for r in asked]
    print(f"Processor seconds of an analysis: median {sorted(spent)[len(spent) // 2]:.0f}, maximum {max(spent):.0f}")


def _line(kind: str, rows: Sequence[dict[str, Any]]) -> list[Any]:
    asked = [r for r in rows if r["answer"] != "NO-DIRECTION"]
    answers = ", ".join(f"{a} {k}" for a, k in Counter(r["answer"] for r in rows).most_common())
    return [kind, rows[0]["truth"], len(rows), *_told(asked), answers]


def _told(rows: Sequence[dict[str, Any]]) -> list[str]:
    right = share(rows, lambda r: r["answer"] == r["truth"])
    undecided = share(rows, lambda r: r["answer"] == OPEN)
    wrong = share(rows, lambda r: r["answer"] not in (r["truth"], OPEN))
    return [told(found) for found in (right, undecided, wrong)]


def _reasons(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    counts = Counter((_without_numbers(r["reason"]), r["truth"]) for r in rows if r["answer"] == OPEN)
    return [[reason, truth, k] for (reason, truth), k in counts.most_common()]


def _without_numbers(reason: str) -> str:
    """The beginning of a reason, before its numbers."""
    for end in ("(", " takes ", " decreases "):
        reason = reason.split(end)[0]
    return reason.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/directions.jsonl"))
    parser.add_argument("--first", type=int, default=110_000)
    parser.add_argument("--engine", default="", help="the commit that is measured, kept with every line")
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
        row = study(case, PLAN) | {"engine": a.engine}
        with a.out.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(row["name"], row["truth"], row["answer"], row["reason"][:80], row["seconds"], file=sys.stderr)


if __name__ == "__main__":
    main()
