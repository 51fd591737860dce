"""How often the verdict is wrong: the whole procedure, many times, on models whose truth is known.

    python benchmarks/calibration.py run  [--out FILE] [--first 30000] [--only null] [--minutes 60]
    python benchmarks/calibration.py show [--out FILE]      tables on standard output, figures beside the file

FILE is docs/calibration/runs.jsonl unless another is named.
One line of JSON per run, written when the run ends: an interrupted study goes on where it was. The runs are a list that
depends on `--first` alone (their seeds count from there), so that a rule can be tuned on other seeds than it is
reported on: 30000 is reported, tuning used 500, 10000 and 20000. One process, one thread.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rhumbline import contrast_from_prompts, load, preset, read_contrast, run, selected_direction
from rhumbline.contrasts import ContrastSet, Sizes
from rhumbline.errors import ProtocolError
from rhumbline.organisms import materialise, train
from rhumbline.organisms.planted import TRUTH, Planted, build
from rhumbline.protocol import Dose, Nulls, Protocol, Stability
from rhumbline.verdict import BLOG2026, RHUMBLINE, decide

SIZES = (8, 16, 32, 64, 128)
FAMILIES = RHUMBLINE.families


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    group: str
    """null, power, several, or full (power with the default number of draws)."""
    kind: str
    n: int
    """Train and test prompts per class; validation has half of it, at least 8."""
    seed: int
    planted: Planted | None = None
    """None: the embedded trained organism, or one that `kind` names."""
    labels: str = "true"
    """true, permuted (by chance), or the category that is irrelevant to the behaviour."""

    @property
    def name(self) -> str:
        """Its key in the file."""
        return f"{self.group}/{self.kind}/n{self.n}/s{self.seed}"


def cases(first: int) -> Iterator[Case]:
    """Every run of the study, in an order that gives each group its share early on."""
    rng = random.Random(first)
    groups = [list(make(first, rng)) for make in (_nulls, _power, _several, _wide)]
    longest = max(len(g) for g in groups)
    # Interleaved in proportion, so that a study cut short is a smaller study of the same mixture.
    keyed = [((i + 1) / len(g) * longest, k, case) for k, g in enumerate(groups) for i, case in enumerate(g)]
    yield from (case for _, _, case in sorted(keyed, key=lambda item: item[:2]))
    yield from _full(first, random.Random(first))


def _nulls(first: int, rng: random.Random) -> Iterator[Case]:
    """Nothing that the labels say is what the model refuses."""
    seed = first
    for repeat in range(9):
        for n in SIZES if repeat < 1 else SIZES[:-1]:
            prompts = 3 * n + 16
            for rate in (0.5, 0.75):
                one = Planted(positive_rate=rate, negative_rate=rate, prompts=prompts, seed=seed)
                yield Case("null", f"planted axis, rate {rate}", n, seed, one)
                several = replace(one, axes=rng.choice((2, 4, 6)), effect=1.5, jitter=0.05)
                yield Case("null", f"planted axes at random, rate {rate}", n, seed + 1, several)
            yield Case("null", "planted, labels permuted", n, seed + 2, Planted(prompts=prompts, seed=seed), "permuted")
            seed += 5
        if repeat % 2 == 0:
            yield Case("null", "planted, never refuses", SIZES[repeat // 2 % 4], seed, Planted(effect=0.0, prompts=200))
    for n in (8, 16):
        for _ in range(4):
            yield Case("null", "trained, labels permuted", n, seed, None, "permuted")
            yield Case("null", "trained, labels irrelevant", n, seed + 1, None, "category")
            seed += 2


def _power(first: int, rng: random.Random) -> Iterator[Case]:
    """One axis carries it: effect, noise, width and prompts vary."""
    for i in range(198):
        seed, n = first + 3000 + i, rng.choice((8, 8, 16, 16, 32, 32, 64))
        spec = Planted(
            effect=rng.choice((0.7, 0.85, 1.0, 1.2, 1.5, 2.0)),
            noise=rng.choice((0.5, 1.0, 2.0, 4.0)),
            d_model=rng.choice((16, 32, 64, 256)),
            prompts=3 * n + 16,
            seed=seed,
        )
        yield Case("power", "planted", n, seed, spec)


def _several(first: int, rng: random.Random) -> Iterator[Case]:
    """Several axes, any of which suffices."""
    for i in range(36):
        seed, n = first + 5000 + i, rng.choice((16, 16, 32, 64))
        axes, effect = rng.choice((2, 3, 4, 6)), rng.choice((1.0, 1.1, 1.2, 1.5, 2.0, 2.5))
        spec = Planted(axes=axes, effect=effect, jitter=rng.choice((0.05, 0.15)), prompts=3 * n + 16, seed=seed)
        yield Case("several", f"{axes} planted axes", n, seed, spec)


def _full(first: int, rng: random.Random) -> Iterator[Case]:
    """The default number of draws, at a clear effect and moderate noise: where the rule should say SINGLE."""
    for i in range(40):
        seed, n = first + 8000 + i, (32, 64)[i % 2]
        spec = Planted(effect=rng.choice((1.0, 1.2, 1.5)), d_model=rng.choice((64, 128)), prompts=3 * n + 16, seed=seed)
        yield Case("full", "planted, default draws", n, seed, spec)


def _wide(first: int, rng: random.Random) -> Iterator[Case]:
    """The largest widths, a few."""
    for i in range(4):
        yield Case("several", "trained, extended refusals", (16, 32)[i % 2], first + 7000 + i, None)
    for i, width in enumerate((1024, 1024, 4096)):
        seed = first + 6000 + i
        spec = Planted(effect=rng.choice((0.9, 1.2)), noise=1.0, d_model=width, n_layers=4, prompts=64, seed=seed)
        yield Case("power", "planted", 16, seed, spec)


def protocol_of(case: Case) -> Protocol:
    """The default protocol with fewer draws and prompts; the rule is the default one."""
    few = Nulls(FAMILIES, draws=2, wide=39, prompts=8, procedure_prompts=4)
    return preset(
        "rhumbline",
        seeds=(case.seed,),
        sizes=Sizes(case.n, max(8, case.n // 2), case.n),
        nulls=Nulls(FAMILIES) if case.group == "full" else few,
        dose=Dose((), ()),
        stability=Stability(refits=0),
        max_new_tokens=10 if case.planted else 64 if "extended" in case.kind else 24,
        judge="refusal-anywhere" if "extended" in case.kind else "refusal-opening",
        refusal_tokens=("I",) if case.planted else "auto",
    )


def contrast_of(case: Case, folder: Path) -> ContrastSet:
    """The prompts of the model, with the labels of the case."""
    if case.planted is not None and case.planted.negative_rate > 0:
        # Both classes name the same charms: now and then a sentence falls into both. It is kept where it came first.
        rows = [json.loads(line) for line in (folder / "contrast.jsonl").read_text().splitlines()]
        first = {row["prompt"]: row["label"] for row in reversed(rows)}
        return contrast_from_prompts(
            *([p for p, label in first.items() if label == c] for c in ("positive", "negative"))
        )
    found = read_contrast(folder / "contrast.jsonl")
    if case.labels == "true":
        return found
    rng = random.Random(case.seed)
    prompts = list(found.prompts)
    rng.shuffle(prompts)
    if case.labels == "permuted":
        return contrast_from_prompts([p.text for p in prompts[::2]], [p.text for p in prompts[1::2]])
    names = sorted({p.category or "" for p in prompts})
    chosen = set(rng.sample(names, len(names) // 2))
    halves = ([p.text for p in prompts if (p.category in chosen) is inside] for inside in (True, False))
    return contrast_from_prompts(*halves)


def extended(folder: Path) -> Path:
    """The organism whose refusals come late, trained on first use (two minutes)."""
    if not (folder / "contrast.jsonl").is_file():
        train("extended", folder)
    return folder


def study(case: Case) -> dict[str, Any]:
    """One run, in a folder that is thrown away."""
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
            # The instrument says that its metric reads nothing here: no verdict, and no claim.
            return {"name": case.name, "group": case.group, "kind": case.kind, "n": case.n, "verdict": "NO-VERDICT",
                    "blog2026": "NO-VERDICT", "reason": str(error)[:120], "alone": {}, "effects": {},
                    "cosine": None, "spec": spec_of(case),
                    "seconds": round(time.perf_counter() - started, 2)}  # fmt: skip
        cosine = None
        if case.planted is not None and (direction := selected_direction(out)) is not None:
            cosine = abs(float(direction.vector @ load_file(folder / TRUTH)["direction"]))
    return summary(case, result.results["seeds"][0]) | {
        "cosine": cosine,
        "seconds": round(time.perf_counter() - started, 2),
    }


def spec_of(case: Case) -> dict[str, Any] | None:
    """What was planted."""
    names = ("effect", "noise", "d_model", "axes", "jitter")
    return None if case.planted is None else {name: getattr(case.planted, name) for name in names}


def summary(case: Case, seed: Mapping[str, Any]) -> dict[str, Any]:
    """What the study keeps of a run, and what other rules would have said."""
    no_candidate = None if seed["selected"] else "none"

    def verdict(rule: Any) -> str:
        return decide(
            rule, seed["arms"], seed["effects"], "refusal", no_candidate, seed["shift"]["kl"], seed["groups"]
        ).verdict

    return {
        "name": case.name,
        "group": case.group,
        "kind": case.kind,
        "n": case.n,
        "spec": spec_of(case),
        "verdict": seed["verdict"],
        "reason": seed["reason"],
        "blog2026": verdict(BLOG2026),
        "alone": {f: verdict(replace(RHUMBLINE, families=(f,))) for f in FAMILIES},
        "baseline": next((a["rate"] for a in seed["arms"] if (a["arm"], a["set"]) == ("baseline", "positive")), None),
        "effects": {
            e["name"]: {
                "drop": e["drop"],
                "low": e["low"],
                "gap": e["gap"],
                "apart": {f: [gap["gap"], gap["low"], gap["high"]] for f, gap in e["apart"].items()},
                "null_max": {f: null["max"] for f, null in e["null"].items()},
                "p": {f: wide["p"] for f, wide in e["wide"].items()},
                "p_apart": {f: wide["p_apart"] for f, wide in e["wide"].items()},
            }
            for e in seed["effects"]
        },
        "null_cosine": {
            f: max((abs(n["cosine"]) for n in seed["nulls"] if n["family"] == f), default=None) for f in FAMILIES
        },
        "null_energy": {
            f: sum(e) / len(e) if (e := [n["energy"] for n in seed["nulls"] if n["family"] == f]) else None
            for f in FAMILIES
        },
        "energy": seed["energy"],
        "groups": seed["groups"],
    }


def rounded(value: Any) -> Any:
    """Four digits are enough for a table."""
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
    parser.add_argument("--first", type=int, default=30_000)
    parser.add_argument("--only", default="", help="a group")
    parser.add_argument("--minutes", type=float, default=1e9)
    a = parser.parse_args()
    if a.action == "show":
        from calibration_tables import show

        show(a.out)
        return
    torch.set_num_threads(1)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["name"] for line in a.out.read_text().splitlines()} if a.out.exists() else set()
    end = time.monotonic() + 60 * a.minutes
    for case in cases(a.first):
        if case.name in done or (a.only and case.group != a.only) or time.monotonic() > end:
            continue
        row = rounded(study(case))
        with a.out.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(row["name"], row["verdict"], row["blog2026"], row["reason"][:90], row["seconds"], file=sys.stderr)


if __name__ == "__main__":
    main()
