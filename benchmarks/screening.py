"""How often the screen of the default protocol misses the selection of the full grid.

    python benchmarks/screening.py collect MODEL --data-dir DIR --contrast NAME [--seed 0] [--val 16] --out FILE.json
    python benchmarks/screening.py known [--out docs/calibration/screen-known.jsonl] [--minutes 20]
    python benchmarks/screening.py show [FILE ...]

`collect` computes bypass, induce and KL of every candidate on every validation prompt, beside their first-order
estimates; it stops after --seconds and resumes. `known` does the same for planted models and organisms, one line for
each, and keeps the means. `show` applies the rule of the paper to all candidates and to those of screens of several
sizes, and counts the differences. For the files of `collect` it also resamples the prompts and varies the bounds of the
rule. The files hold numbers only.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resumable import append, remaining
from rhumbline import load, read_contrast
from rhumbline.evidence.selection_rules import ARDITI2024, SelectionRule, choose, screened
from rhumbline.evidence.statistics import exact_interval
from rhumbline.inference.first_order import first_order
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.sources import contrast_for
from rhumbline.organisms import materialise
from rhumbline.organisms.planted import Planted, build
from rhumbline.prompts.contrasts import LABELS, Sizes, Splits, split_contrast
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Candidate, Estimates
from rhumbline.stages.candidate_scores import ScoreGrid, ScoreName

AT_ONCE = 19
"""Candidates whose scores are computed before the file is written."""
RESAMPLES = 400
MAX_KL, MIN_INDUCE = (0.05, 0.1, 0.15, 0.2, 0.4), (-4.0, -3.0, -1.0, -0.5, -0.2, 0.0)
SCREENS = (8, 12, 16, 24, 32)
KNOWN_LAYERS, KNOWN_SIZES = 24, Sizes(32, 16, 4)
"""Planted models have as many candidates as a model of 0.5B parameters."""
ESTIMATED: Mapping[ScoreName, str] = {"bypass": "ablation", "induce": "addition"}
NAMES = ("bypass", "induce", "kl", "estimated_bypass", "estimated_induce")


class Scored:
    """The candidates of a model on one sample of prompts, and their scores by prompt."""

    def __init__(self, model: ChatModel, splits: Splits, token: str):
        prompts = {(s, c): splits.get(s, c) for s in ("train", "val") for c in LABELS}
        chat = Chat.of(model.tokenizer, prompts=[p for some in prompts.values() for p in some])
        self.metric, self.runner = TokenMetric((chat.first_token(token),)), Runner(model)
        encoded = {key: [chat.encode(p) for p in some] for key, some in prompts.items()}
        kept = (lambda m: m > 0, lambda m: m < 0)
        means = [
            extract(self.runner, encoded["train", c], chat.positions, read=self.metric, keep=keep).stats.mean()
            for c, keep in zip(LABELS, kept, strict=True)
        ]
        candidates = (means[0] - means[1]).float()
        self.val = {c: encoded["val", c] for c in LABELS}
        scorer = Scorer(self.runner, self.metric)
        self.grid = ScoreGrid(scorer, candidates, chat.positions, self.val[LABELS[0]], self.val[LABELS[1]], ARDITI2024)
        self.rows = [row for row in self.grid.rows() if row.discarded is None]

    def estimates(self, name: ScoreName) -> torch.Tensor:
        """First-order estimates of bypass or induce, by candidate and prompt."""
        grid = self.grid
        directions = [
            Direction.from_vector(grid.candidates[list(grid.positions).index(r.position), r.layer], r.position, r.layer)
            for r in self.rows
        ]
        changes = first_order(self.runner, grid.sequences(name), self.metric, directions)
        return getattr(changes, ESTIMATED[name])

    def scores(self, name: ScoreName, start: int, n: int) -> torch.Tensor:
        """A score of the candidates start, ..., start + n - 1, by prompt."""
        return self.grid.by_prompt(name, [row.site for row in self.rows[start : start + n]])


def collect(a: argparse.Namespace) -> None:
    """Compute what the file lacks, for at most `a.seconds` of processor time."""
    started = time.process_time()
    model = load(a.model, device="cpu", dtype=a.dtype)
    splits = split_contrast(contrast_for(a.model, a.contrast, a.data_dir), Sizes(128, a.val, 4), a.seed, "lots")
    scored = Scored(model, splits, a.token)
    table: dict[str, Any] = json.loads(a.out.read_text()) if a.out.exists() else {}
    table |= {"model": Path(a.model).name, "contrast": a.contrast, "seed": a.seed, "n_layers": model.n_layers}
    table["sites"] = [[int(row.position), row.layer] for row in scored.rows]

    def save(name: str, values: torch.Tensor) -> None:
        table.setdefault(name, []).extend([[round(v, 3) for v in some] for some in values.tolist()])
        a.out.write_text(json.dumps(table))

    for name in ESTIMATED:
        if f"estimated_{name}" not in table:
            save(f"estimated_{name}", scored.estimates(name))
    for name in NAMES[:3]:
        while (start := len(table.get(name, []))) < len(scored.rows) and time.process_time() - started < a.seconds:
            save(name, scored.scores(name, start, AT_ONCE))


# -- models whose truth is known --------------------------------------------------------------------------------------


def known(a: argparse.Namespace) -> None:
    """One line for every planted model and every sample of an organism that the file lacks."""

    def name_of(case: tuple[str, int, Planted | None]) -> str:
        return f"{case[0]}/s{case[1]}"

    for kind, seed, spec in remaining(_known_models(), a.out, a.minutes, name_of):
        with tempfile.TemporaryDirectory() as scratch:
            folder = materialise(kind, Path(scratch)) if spec is None else build(spec, Path(scratch))
            model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
            # The file of an organism fixes the splits; here every seed draws its own.
            contrast = replace(contrast, prompts=tuple(replace(p, split=None) for p in contrast.prompts))
            scored = Scored(model, split_contrast(contrast, KNOWN_SIZES, seed, "lots"), "I")
        if any(not some for some in scored.val.values()) or not scored.rows:
            continue
        values = {k: scored.scores(k, 0, len(scored.rows)) for k in NAMES[:3]}
        values |= {f"estimated_{k}": scored.estimates(k) for k in ESTIMATED}
        line = {"name": name_of((kind, seed, spec)), "model": kind, "n_layers": model.n_layers}
        line["sites"] = [[int(row.position), row.layer] for row in scored.rows]
        line |= {k: [round(v, 4) for v in some.mean(1).tolist()] for k, some in values.items()}
        append(a.out, line)


def _known_models() -> Iterator[tuple[str, int, Planted | None]]:
    """Kind, seed and parameters; None: an organism by its name."""
    for seed in range(300_000, 300_030):
        shape = partial(Planted, n_layers=KNOWN_LAYERS, prompts=80, seed=seed)
        for noise in (1.0, 2.0):
            yield f"planted: one axis, noise {noise:g}", seed, shape(noise=noise, effect=1.2)
        cone = shape(axes=2, overlap=0.6, effect=1.1, noise=0.5, jitter=0.05)
        yield "planted: two axes, cosine 0.6", seed, cone
        if seed % 3 == 0:
            yield "refusal", seed, None


# -- tables -----------------------------------------------------------------------------------------------------------


def show(files: list[Path]) -> None:
    """The misses of screens of several sizes: of each sample as it is, and of resampled prompts."""
    tables = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    whole = [t for t in tables if all(len(t.get(name, [])) == len(t["sites"]) for name in NAMES)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for table in whole:
        groups.setdefault(", ".join(filter(None, [table["model"], table.get("contrast")])), []).append(table)
    groups["all"] = whole
    print(
        "| Model | Samples | Candidates | Screen | Selections | Missed | Resampled | Missed | Largest loss of bypass |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for group, some in groups.items():
        for n in SCREENS:
            own, again = (_sum(rows) for rows in ([missed(t, n) for t in some], [misses(t, n) for t in some]))
            low, high = exact_interval(own[1], own[0]) if own[0] else (0.0, 1.0)
            sites = sorted({len(t["sites"]) for t in some})
            cells = [group, len(some), "-".join(map(str, {sites[0]: 0, sites[-1]: 0})), n, own[0]]
            cells += [f"{own[1]} ({100 * own[1] / max(1, own[0]):.1f} %, [{100 * low:.1f}, {100 * high:.1f}])"]
            cells += [again[0] or "", again[1] if again[0] else "", max(own[2], again[2])]
            print("| " + " | ".join(str(c) for c in cells) + " |")


Count = tuple[int, int, float]
"""Selections, those that the screen misses, and the largest difference of their bypass scores."""


def _sum(counts: Sequence[Count]) -> Count:
    return sum(c[0] for c in counts), sum(c[1] for c in counts), max((c[2] for c in counts), default=0.0)


def missed(table: dict[str, Any], n: int) -> Count:
    """The selection of one sample by the rule of the paper."""
    values = {k: np.array(table[k]) for k in NAMES}
    return _missed(table, {k: v.mean(1) if v.ndim == 2 else v for k, v in values.items()}, n, ARDITI2024)


def misses(table: dict[str, Any], n: int) -> Count:
    """The selections of resampled prompts, with several bounds of the rule."""
    rng = np.random.default_rng(0)
    values = {k: np.array(table[k]) for k in NAMES}
    if values["bypass"].ndim == 1:
        return 0, 0, 0.0
    counts = []
    for _ in range(RESAMPLES):
        positive, negative = (rng.integers(values[k].shape[1], size=values[k].shape[1]) for k in ("bypass", "induce"))
        mean = {k: v[:, positive if "bypass" in k else negative].mean(1) for k, v in values.items()}
        rule = replace(ARDITI2024, max_kl=float(rng.choice(MAX_KL)), min_induce=float(rng.choice(MIN_INDUCE)))
        counts.append(_missed(table, mean, n, rule))
    return _sum(counts)


def _missed(table: dict[str, Any], mean: Mapping[str, np.ndarray], n: int, rule: SelectionRule) -> Count:
    rows = [
        Candidate(Position(p), layer, float(mean["bypass"][i]), float(mean["induce"][i]), float(mean["kl"][i]))
        for i, (p, layer) in enumerate(table["sites"])
    ]
    estimates = [Estimates(*pair) for pair in zip(mean["estimated_bypass"], mean["estimated_induce"], strict=True)]
    full = choose(rows, table["n_layers"], rule).selected
    among = choose([rows[i] for i in screened(estimates, n)], table["n_layers"], rule).selected
    if full is None:
        return 0, 0, 0.0
    if among is None or among.site == full.site:  # where none passes, all are scored
        return 1, 0, 0.0
    return 1, 1, round((among.bypass or 0) - (full.bypass or 0), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="action", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("model")
    for name, default in (("data-dir", None), ("contrast", "refusal"), ("token", "I"), ("dtype", "auto")):
        collecting.add_argument(f"--{name}", default=default)
    for name, number in (("seed", 0), ("val", 16), ("seconds", 240)):
        collecting.add_argument(f"--{name}", type=int, default=number)
    collecting.add_argument("--out", type=Path, required=True)
    of_known = commands.add_parser("known")
    of_known.add_argument("--out", type=Path, default=Path("docs/calibration/screen-known.jsonl"))
    of_known.add_argument("--minutes", type=float, default=1e9)
    commands.add_parser("show").add_argument("files", nargs="*", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    match a.action:
        case "collect":
            collect(a)
        case "known":
            known(a)
        case _:
            show(a.files or sorted(Path("docs/calibration").glob("screen-*.json*")))


if __name__ == "__main__":
    main()
