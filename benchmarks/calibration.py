"""Measure how often the verdict is wrong, by runs on many models with a known truth.

    python benchmarks/calibration.py run  [--out FILE] [--first 30000] [--only null] [--minutes 60]
    python benchmarks/calibration.py show [--out FILE]      tables on standard output, figures beside the file

FILE is docs/calibration/runs.jsonl unless another is named.
One line of JSON per run is written when the run ends, so an interrupted study resumes. The list of runs depends on
`--first` only (their seeds start there), so that a rule is tuned on other seeds than those that are reported: tuning
used 500, 10000 and 20000, and docs/calibration-planted.md states which are reported. One process, one thread.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from calibration_cases import STUDIES, Case
from resumable import append, remaining
from rhumbline import contrast_from_prompts, load, preset, read_contrast, run, selected_direction
from rhumbline.errors import ProtocolError
from rhumbline.evidence.verdict import SeedEvidence, decide
from rhumbline.evidence.verdict_rules import BLOG2026, RHUMBLINE
from rhumbline.organisms import materialise, train
from rhumbline.organisms.planted import TRUTH, build
from rhumbline.prompts.contrasts import ContrastSet, Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.arms import BASELINE
from rhumbline.records.codec import convert
from rhumbline.records.results import SeedResult
from rhumbline.settings import DoseSettings, NullSettings, StabilitySettings

FAMILIES = RHUMBLINE.families


def protocol_of(case: Case) -> Protocol:
    """The default protocol with fewer draws and prompts; the rule is the default one."""
    few = NullSettings(FAMILIES, draws=2, wide=39, prompts=8, procedure_prompts=4)
    return preset(
        "rhumbline",
        seeds=(case.seed,),
        sizes=Sizes(case.n, max(8, case.n // 2), case.n),
        nulls=NullSettings(FAMILIES) if case.group == "full" else few,
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        max_new_tokens=10 if case.planted else 64 if "extended" in case.kind else 24,
        judge="refusal-anywhere" if "extended" in case.kind else "refusal-opening",
        refusal_tokens=("I",) if case.planted else "auto",
    )


def contrast_of(case: Case, folder: Path) -> ContrastSet:
    """The prompts of the model, with the labels of the case."""
    if case.planted is not None and case.planted.negative_rate > 0:
        # Both classes name the same charms, so a sentence can occur in both. The first occurrence is kept.
        rows = [json.loads(line) for line in (folder / "contrast.jsonl").read_text().splitlines()]
        first = {row["prompt"]: row["label"] for row in reversed(rows)}
        return contrast_from_prompts(
            *([p for p, label in first.items() if label == c] for c in ("positive", "negative"))
        )
    contrast = read_contrast(folder / "contrast.jsonl")
    if case.labels == "true":
        return contrast
    rng = random.Random(case.seed)
    prompts = list(contrast.prompts)
    rng.shuffle(prompts)
    if case.labels == "permuted":
        return contrast_from_prompts([p.text for p in prompts[::2]], [p.text for p in prompts[1::2]])
    if case.labels == "mixed":
        # The model refuses three quarters of each class, so the labels do not determine refusal.
        by_class = [[p.text for p in prompts if p.label == c] for c in ("positive", "negative")]
        cut = 3 * min(map(len, by_class)) // 8
        refused, answered = by_class[0][: 2 * cut], by_class[1][: 2 * (cut // 3)]
        return contrast_from_prompts(refused[::2] + answered[::2], refused[1::2] + answered[1::2])
    names = sorted({p.category or "" for p in prompts})
    chosen = set(rng.sample(names, len(names) // 2))
    halves = ([p.text for p in prompts if (p.category in chosen) is inside] for inside in (True, False))
    return contrast_from_prompts(*halves)


def extended(folder: Path) -> Path:
    """The organism `extended`, trained on first use (two minutes)."""
    if not (folder / "contrast.jsonl").is_file():
        train("extended", folder, seed=7)  # the study is older than the embedded organism with seed 0
    return folder


def study(case: Case) -> dict[str, Any]:
    """One run, in a temporary folder."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        if "extended" in case.kind:
            folder = extended(Path(tempfile.gettempdir()) / "rhumbline-extended")
        elif case.planted is None:
            folder = materialise("refusal", Path(scratch))
        else:
            folder = build(case.planted, Path(scratch) / "model")
        model = load(str(folder), device="cpu", dtype="float32")
        out = Path(scratch) / "run"
        try:
            result = run(model, contrast_of(case, folder), out, protocol_of(case), page=False)
        except ProtocolError as error:
            # The metric cannot be evaluated on this model, so there is no verdict.
            return {"name": case.name, "group": case.group, "kind": case.kind, "n": case.n, "verdict": "NO-VERDICT",
                    "blog2026": "NO-VERDICT", "reason": str(error)[:120], "alone": {}, "effects": {},
                    "cosine": None, "spec": spec_of(case),
                    "seconds": round(time.perf_counter() - started, 2)}  # fmt: skip
        cosine = None
        if case.planted is not None and (direction := selected_direction(out)) is not None:
            cosine = abs(float(direction.vector @ load_file(folder / TRUTH)["direction"]))
    return summary(case, convert(result.results["seeds"][0], SeedResult)) | {
        "cosine": cosine,
        "seconds": round(time.perf_counter() - started, 2),
    }


def spec_of(case: Case) -> dict[str, Any] | None:
    """The parameters of the planted model."""
    names = ("effect", "noise", "d_model", "axes", "jitter", "overlap", "fragile")
    return None if case.planted is None else {name: getattr(case.planted, name) for name in names}


def summary(case: Case, seed: SeedResult) -> dict[str, Any]:
    """The part of a run that the study keeps, and the verdicts of other rules."""
    evidence = SeedEvidence.of(seed)
    families = {f: [null for null in seed.nulls if null.family == f] for f in FAMILIES}
    baseline = evidence.arm(BASELINE, "positive")
    return {
        "name": case.name,
        "group": case.group,
        "kind": case.kind,
        "n": case.n,
        "spec": spec_of(case),
        "verdict": seed.verdict,
        "reason": seed.reason,
        "blog2026": decide(BLOG2026, evidence).verdict.headline,
        "alone": {f: decide(replace(RHUMBLINE, families=(f,)), evidence).verdict.headline for f in FAMILIES},
        "claims": {claim.kind: [claim.state, claim.value, claim.low, claim.high] for claim in seed.claims},
        "baseline": baseline.rate if baseline else None,
        "effects": {
            e.name: {
                "drop": e.drop,
                "low": e.low,
                "gap": e.gap,
                "relative": e.relative and [e.relative.value, e.relative.low, e.relative.high],
                "relative_gap": {f: [gap.value, gap.low, gap.high] for f, gap in (e.relative_gap or {}).items()},
                "null_max": {f: null.max for f, null in e.null.items()},
                "p": {f: wide.p for f, wide in e.wide.items()},
            }
            for e in seed.effects
        },
        "null_cosine": {f: max((abs(n.cosine) for n in some), default=None) for f, some in families.items()},
        "null_energy": {f: sum(n.energy for n in some) / len(some) if some else None for f, some in families.items()},
        "energy": seed.energy,
        "groups": seed.groups,
    }


def rounded(value: Any) -> Any:
    """The value with four digits."""
    match value:
        case float():
            return round(value, 4)
        case list():
            return [rounded(v) for v in value]
        case dict():
            return {k: rounded(v) for k, v in value.items()}
        case _:
            return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/runs.jsonl"))
    parser.add_argument("--study", choices=tuple(STUDIES), default="first")
    parser.add_argument("--first", type=int, default=30_000)
    parser.add_argument("--engine", default="", help="the measured commit, stored with every line")
    parser.add_argument("--only", default="", help="run only this group")
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        from calibration_tables import show

        show(a.out.parent)
        return
    torch.set_num_threads(1)
    chosen = (case for case in STUDIES[a.study](a.first) if a.only in ("", case.group))
    for case in remaining(chosen, a.out, a.minutes):
        row = rounded(study(case)) | {"engine": f"{version('rhumbline')} {a.engine}".strip()}
        append(a.out, row)
        print(row["name"], row["verdict"], row["blog2026"], row["reason"][:90], row["seconds"], file=sys.stderr)


if __name__ == "__main__":
    main()
