"""Measure how often the verdict is wrong on real language models, by runs whose truth is known from the labels.

    python benchmarks/calibration_models.py run  --models DIR --data DIR --out FILE [--only permuted] [--minutes 60]
    python benchmarks/calibration_models.py show --out FILE

DIR of `--models` holds the folders of `MODELS`; DIR of `--data` is `dataset/` of andyrdt/refusal_direction. Kinds:

permuted    the prompts of `true` with random labels: nothing is there
harmless    random halves of Alpaca: nothing is there
topic       two kinds of Alpaca instructions by their first word: a topic, but no behaviour
true        AdvBench against Alpaca: refusal, which only some models show
taught      models of benchmarks/taught_models.py on their contrast: folders `taught-one`, ... of `--models`
relabelled  the same models and prompts with random labels: nothing is there
known       as relabelled, with the first tokens of the taught refusals, so that candidates are scored

One line of JSON per run is written when the run ends, so an interrupted study resumes. The rule is the default one; the
protocol is the default one but for the number of prompts, 16 new tokens (32 for late refusals), and what no verdict of
one seed reads. `--quick` makes the same runs with the protocol of `rhumbline run --quick`. No prompt and no completion
is stored. One process, one thread; `--shard 2/14` runs the second of 14 parts of the study, for as many processes side
by side.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

import torch

from calibration import rounded
from resumable import append, remaining
from rhumbline import contrast_from_prompts, load, preset, run
from rhumbline.errors import ProtocolError, RhumblineError
from rhumbline.evidence.statistics import exact_interval
from rhumbline.presets.protocols import quick
from rhumbline.prompts.contrasts import ContrastSet, Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.codec import convert
from rhumbline.records.results import SeedResult
from rhumbline.settings import DoseSettings, StabilitySettings
from taught_models import KINDS as TAUGHT_KINDS
from taught_models import NOUNS, TAUGHT, requests

MODELS = ("qwen2.5-coder-0.5b", "smollm2-135m")
TAUGHT_MODELS = tuple(f"taught-{kind}" for kind in TAUGHT_KINDS)
KINDS = {
    **dict.fromkeys(("permuted", "harmless", "topic", "true"), MODELS),
    **dict.fromkeys(("taught", "relabelled"), TAUGHT_MODELS),
    "known": tuple(model for model in TAUGHT_MODELS if model != "taught-late"),
}
"""The models of every kind."""
SIZES = (24, 48, 100)
"""Test prompts per class; training has twice as many, validation half."""
FIRST_WORDS = {"positive": ("write", "create", "generate"), "negative": ("what", "how", "who", "which")}
SHOWN, REFUTED = "SINGLE-DIRECTION-REPRODUCES", "NOT-SINGLE-DIRECTION"
NOTHING = ("permuted", "harmless", "topic", "relabelled", "known")
FIRST_TOKENS = ("I", "Unfortunately")
"""Of the taught refusals, but for late ones."""
TRUTHS: dict[str, tuple[Callable[[dict[str, Any]], bool], str, str | None]] = {
    "nothing is there": (lambda row: row["kind"] in NOTHING, SHOWN, None),
    "one direction": (lambda row: (row["kind"], row["model"]) == ("taught", "taught-one"), REFUTED, SHOWN),
}
"""Rows of a truth, the wrong verdict, and the right one. That of the other kinds is not known by construction: ordinary
fine-tuning can teach one direction, and several vectors can meet in one."""


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    kind: str
    n: int
    seed: int
    is_quick: bool = False
    """Whether the run has the protocol of `rhumbline run --quick`, on the same prompts."""

    @property
    def protocol(self) -> str:
        """`default` or `quick`."""
        return "quick" if self.is_quick else "default"

    @property
    def name(self) -> str:
        """Its key in the file."""
        return f"{self.kind}-{self.model}-{self.n}-{self.seed}" + ("-quick" if self.is_quick else "")


def cases(first: int, repeats: int, is_quick: bool) -> Iterator[Case]:
    """Every model, kind and size, seed by seed, so that an interrupted study is balanced."""
    for seed in range(first, first + repeats):
        for n in SIZES:
            yield from (Case(model, kind, n, seed, is_quick) for kind, models in KINDS.items() for model in models)


def contrast_of(case: Case, data: Path) -> ContrastSet:
    """The prompts of the case with its labels."""
    if case.kind in ("taught", "relabelled", "known"):
        return _taught(case)
    harmful, harmless = (_instructions(data / "processed" / f"{name}.json") for name in ("advbench", "alpaca"))
    rng = random.Random(f"{case.kind} {case.seed}")
    need = 4 * case.n
    match case.kind:
        case "true":
            return contrast_from_prompts(rng.sample(harmful, min(need, len(harmful))), rng.sample(harmless, need))
        case "permuted":
            both = [*rng.sample(harmful, need // 2), *rng.sample(harmless, 3 * need // 2)]
            rng.shuffle(both)
            return contrast_from_prompts(both[::2], both[1::2])
        case "harmless":
            some = rng.sample(harmless, 2 * need)
            return contrast_from_prompts(some[::2], some[1::2])
        case "topic":
            of = {c: [p for p in harmless if p.split()[0].lower() in words] for c, words in FIRST_WORDS.items()}
            return contrast_from_prompts(rng.sample(of["positive"], need), rng.sample(of["negative"], need))
    raise ValueError(f"kind {case.kind!r} is unknown: use one of {', '.join(KINDS)}.")


def _taught(case: Case) -> ContrastSet:
    """Requests about nouns that the training did not use, with their labels or with random ones."""
    rng = random.Random(f"{case.kind} {case.seed}")
    some = requests(NOUNS[TAUGHT:])
    refused, answered = (rng.sample([r.text for r in some if r.is_refused is c], 4 * case.n) for c in (True, False))
    if case.kind == "taught":
        return contrast_from_prompts(refused, answered)
    both = rng.sample([*refused, *answered], 8 * case.n)
    return contrast_from_prompts(both[::2], both[1::2])


def _instructions(path: Path) -> list[str]:
    return [row["instruction"] for row in json.loads(path.read_text()) if row["instruction"].strip()]


def protocol_of(case: Case) -> Protocol:
    """The default protocol with fewer prompts, without what no verdict of one seed reads: dose curves and refits."""
    tokens = {"refusal_tokens": FIRST_TOKENS} if case.kind == "known" else {}
    protocol = preset(
        "rhumbline",
        seeds=(case.seed,),
        sizes=Sizes(2 * case.n, max(8, case.n // 2), case.n),
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        max_new_tokens=32 if case.model == "taught-late" else 16,
        **tokens,
    )
    return quick(protocol) if case.is_quick else protocol


def study(case: Case, models: Path, data: Path, device: str) -> dict[str, Any]:
    """One run in a temporary folder, and the part of it that is kept."""
    started, wall = time.process_time(), time.monotonic()
    row: dict[str, Any] = {"name": case.name, "model": case.model, "kind": case.kind, "n": case.n}
    row["protocol"] = case.protocol
    with tempfile.TemporaryDirectory() as scratch:
        model = load(str(models / case.model), device=device)
        try:
            result = run(model, contrast_of(case, data), Path(scratch) / "run", protocol_of(case), page=False)
        except ProtocolError as error:
            return row | {"verdict": "NO-VERDICT", "reason": str(error)[:120], "claims": {}}
        seed = convert(result.results["seeds"][0], SeedResult)
    return row | {
        "verdict": str(seed.verdict),
        "reason": seed.reason,
        "claims": {str(c.kind): [str(c.state), c.value, c.low, c.high, c.n] for c in seed.claims},
        "rates": {f"{arm.arm} {arm.side}": arm.rate for arm in seed.arms if arm.arm.is_own},
        "p": {e.name: {family: wide.p for family, wide in e.wide.items()} for e in seed.effects},
        "seconds": round(time.process_time() - started, 1),
        "wall": round(time.monotonic() - wall, 1),
        "device": device,
    }


def show(path: Path) -> None:
    """By protocol: errors by truth, then verdicts by kind and model, with exact intervals."""
    rows = [{"protocol": "default"} | json.loads(line) for line in path.read_text().splitlines()]
    for protocol in ("default", "quick"):
        print(f"\n{protocol}\n")
        _show([row for row in rows if row["protocol"] == protocol])


def _show(rows: Sequence[dict[str, Any]]) -> None:
    for truth, (is_of, wrong, right) in TRUTHS.items():
        some = [row for row in rows if is_of(row)]
        tested = [row for row in some if _is_tested(row)]
        print(
            f"- {truth}: {len(some)} runs; {wrong} in {_share(some, wrong)}, in {_share(tested, wrong)} of the tested"
        )
        if right is not None:
            print(f"    {right} in {_share(some, right)}")
    print("| kind | model | runs (n) | tested | verdicts | minutes |\n| --- | --- | --- | --- | --- | --- |")
    for kind, models in KINDS.items():
        for model in models:
            some = [row for row in rows if (row["kind"], row["model"]) == (kind, model)]
            if not some:
                continue
            verdicts = ", ".join(f"{v} {n}" for v, n in Counter(row["verdict"] for row in some).most_common())
            sizes = ", ".join(f"{k} ({n})" for n, k in sorted(Counter(row["n"] for row in some).items()))
            minutes = median(row.get("seconds", nan) for row in some) / 60
            tested = sum(map(_is_tested, some))
            print(f"| {kind} | {model} | {sizes} | {tested} | {verdicts} | {minutes:.1f} |")


def _is_tested(row: dict[str, Any]) -> bool:
    """Whether a direction was selected and tested."""
    return any(state != "not-tested" for state, *_ in row["claims"].values())


def _share(rows: Sequence[dict[str, Any]], verdict: str) -> str:
    """How many rows have a verdict, with the exact 95 % interval of the share."""
    n = sum(row["verdict"] == verdict for row in rows)
    if not rows:
        return "0 of 0"
    low, high = exact_interval(n, len(rows))
    return f"{n} of {len(rows)} [{low:.0%}, {high:.0%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/calibration/models.jsonl"))
    parser.add_argument("--first", type=int, default=40_000, help="first seed; tuning used none of these")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--engine", default="", help="the measured commit, stored with every line")
    parser.add_argument("--only", choices=KINDS, help="run only this kind")
    parser.add_argument("--model", help="run only this model")
    parser.add_argument("--size", type=int, choices=SIZES, help="run only this number of test prompts per class")
    parser.add_argument("--quick", action="store_true", help="with the protocol of `rhumbline run --quick`")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard", default="1/1", help="which part of the cases, of how many")
    a = parser.parse_args()
    if a.action == "show":
        show(a.out)
        return
    if a.models is None or a.data is None:
        parser.error("run needs --models DIR and --data DIR.")
    torch.set_num_threads(1)
    chosen = (
        case
        for case in cases(a.first, a.repeats, a.quick)
        if (a.models / case.model).is_dir()
        and a.only in (None, case.kind)
        and a.model in (None, case.model)
        and a.size in (None, case.n)
    )
    shard, shards = map(int, a.shard.split("/"))
    mine = islice(chosen, shard - 1, None, shards)
    for case in remaining(mine, a.out, a.minutes):
        try:
            row = study(case, a.models, a.data, a.device)
        except RhumblineError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        append(a.out, rounded(row) | {"engine": f"{version('rhumbline')} {a.engine}".strip()})
        print(row["name"], row["verdict"], row["reason"][:90], row.get("seconds"), file=sys.stderr)


if __name__ == "__main__":
    main()
