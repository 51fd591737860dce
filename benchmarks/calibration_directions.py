"""Measure how often the answer of `analyze directions` is correct, on many models with a known truth.

    python benchmarks/calibration_directions.py run  [--out FILE] [--first 110000] [--minutes 30]
    python benchmarks/calibration_directions.py show [--out FILE]      the tables, on standard output

FILE is docs/calibration/directions.jsonl unless another is named. One line of JSON per run is written when it ends, so
an interrupted study resumes. The runs depend on `--first` only; 110000 is reported, 100000 was used to set the sizes.
One process, one thread.

The truth is known by construction. A prompt has the coordinate `effect` times its share of charms on one of n axes; any
two axes have the cosine `overlap`. Ablating their mean leaves effect * (1 - (1 + (n - 1) overlap) / n) of it, and the
threshold of the decision is 0.55: far above it more directions are needed, far below it one is enough. If the decision
reads the sum of the axes, ablating the mean removes all of it. The models of SHAPES are far from the threshold. Those
of NEAR are close to it, and a part of their prompts is on each side.
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

from calibration_tables import as_text, by, share, table
from resumable import append, remaining
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
"""One source of each kind, and the ranks that three axes need; the rule does not read the cones."""
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
"""Models whose prompts are close to the threshold, before or after the ablation."""


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    kind: str
    n: int
    seed: int
    planted: Planted

    @property
    def name(self) -> str:
        """Key of the run in the file."""
        return f"{self.kind}/n{self.n}/s{self.seed}"

    @property
    def truth(self) -> str:
        """The correct answer."""
        p = self.planted
        left = 0.0 if p.readout == "sum" else p.effect * (1 - (1 + (p.axes - 1) * p.overlap) / p.axes)
        return MORE if left > THRESHOLD else ONE


def cases(first: int, repeats: int = 8) -> Iterator[Case]:
    """All models of SHAPES in turn, so that a stopped study has the same mixture; then those of NEAR."""
    for shapes, offset in ((SHAPES, 0), (NEAR, 50)):
        for repeat in range(repeats):
            for k, (kind, spec) in enumerate(shapes):
                seed = first + 100 * repeat + offset + k
                yield Case(kind, N, seed, Planted(prompts=3 * N + 16, seed=seed, **spec))


def study(case: Case, plan: DirectionsPlan) -> dict[str, Any]:
    """One run and its analysis, in a temporary folder."""
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
            answer = summary(analyse(open_subject(Path(scratch) / "run", model, contrast), plan))
        except ProtocolError as error:
            # No candidate passed the selection, so there is no direction to analyse.
            ran, answer = time.process_time(), {"answer": "NO-DIRECTION", "reason": str(error)[-120:]}
    seconds = {"run": round(ran - started, 1), "analysis": round(time.process_time() - ran, 1)}
    planted = {k: v for k, v in asdict(case.planted).items() if k in ("axes", "overlap", "effect", "noise", "readout")}
    head = {"name": case.name, "kind": case.kind, "n": case.n, "truth": case.truth, "planted": planted}
    return head | answer | {"seconds": seconds}


def summary(record: DirectionsRecord) -> dict[str, Any]:
    """The part of a record that the study stores: enough to apply the rule with other bounds."""
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
    """Print how often the answer is right, undetermined or wrong, by model."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answered = [r for r in rows if r["answer"] != "NO-DIRECTION"]
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
    far = [r for r in answered if not r["kind"].startswith("near")]
    everything = [_line("all except near the threshold", some) for some in by(far, lambda r: r["truth"]).values()]
    print(table(head, everything))
    print(table(["Reason for UNDETERMINED", "Truth", "Runs"], _reasons(answered)))
    spent = [r["seconds"]["analysis"] for r in answered]
    print(f"Processor seconds of an analysis: median {sorted(spent)[len(spent) // 2]:.0f}, maximum {max(spent):.0f}")


def _line(kind: str, rows: Sequence[dict[str, Any]]) -> list[Any]:
    answered = [r for r in rows if r["answer"] != "NO-DIRECTION"]
    answers = ", ".join(f"{a} {k}" for a, k in Counter(r["answer"] for r in rows).most_common())
    return [kind, rows[0]["truth"], len(rows), *_shares(answered), answers]


def _shares(rows: Sequence[dict[str, Any]]) -> list[str]:
    right = share(rows, lambda r: r["answer"] == r["truth"])
    undecided = share(rows, lambda r: r["answer"] == OPEN)
    wrong = share(rows, lambda r: r["answer"] not in (r["truth"], OPEN))
    return [as_text(part) for part in (right, undecided, wrong)]


def _reasons(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    counts = Counter((_without_numbers(r["reason"]), r["truth"]) for r in rows if r["answer"] == OPEN)
    return [[reason, truth, k] for (reason, truth), k in counts.most_common()]


def _without_numbers(reason: str) -> str:
    """The text of a reason before its numbers."""
    for end in ("(", " takes ", " decreases "):
        reason = reason.split(end)[0]
    return reason.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/directions.jsonl"))
    parser.add_argument("--first", type=int, default=110_000)
    parser.add_argument("--engine", default="", help="the measured commit, stored with every line")
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        show(a.out)
        return
    torch.set_num_threads(1)
    for case in remaining(cases(a.first), a.out, a.minutes):
        row = study(case, PLAN) | {"engine": a.engine}
        append(a.out, row)
        print(row["name"], row["truth"], row["answer"], row["reason"][:80], row["seconds"], file=sys.stderr)


if __name__ == "__main__":
    main()
