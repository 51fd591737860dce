"""How often the screen of the default protocol misses the selection of the full grid, on a real model.

    python benchmarks/screening.py collect MODEL --data-dir DIR --contrast NAME [--seed 0] [--val 16] --out FILE.json
    python benchmarks/screening.py show FILE.json ...

`collect` computes bypass, induce and KL of every candidate on every validation prompt, beside their first-order
estimates; it stops after --seconds and resumes. `show` resamples the prompts and varies the bounds of the rule, and
counts how often the selection among the screened candidates differs from that of all. The files hold numbers only.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhumbline import load
from rhumbline.evidence.selection_rules import ARDITI2024, choose, screened
from rhumbline.inference.first_order import first_order
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.sources import contrast_for
from rhumbline.prompts.contrasts import LABELS, Sizes, split_contrast
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Candidate, Estimates
from rhumbline.stages.candidate_scores import ScoreGrid

AT_ONCE = 19
"""Candidates whose scores are computed before the file is written."""
RESAMPLES = 400
MAX_KL, MIN_INDUCE = (0.05, 0.1, 0.15, 0.2, 0.4), (-4.0, -3.0, -1.0, -0.5, -0.2, 0.0)


def collect(a: argparse.Namespace) -> None:
    """Compute what the file lacks, for at most `a.seconds` of processor time."""
    torch.set_num_threads(1)
    started = time.process_time()
    model = load(a.model, device="cpu", dtype=a.dtype)
    splits = split_contrast(contrast_for(a.model, a.contrast, a.data_dir), Sizes(128, a.val, 4), a.seed, "lots")
    prompts = {(s, c): splits.get(s, c) for s in ("train", "val") for c in LABELS}
    chat = Chat.of(model.tokenizer, prompts=[p for some in prompts.values() for p in some])
    metric, runner = TokenMetric((chat.first_token(a.token),)), Runner(model)
    encoded = {key: [chat.encode(p) for p in some] for key, some in prompts.items()}
    kept = (lambda m: m > 0, lambda m: m < 0)
    means = [
        extract(runner, encoded["train", c], chat.positions, read=metric, keep=keep).stats.mean()
        for c, keep in zip(LABELS, kept, strict=True)
    ]
    candidates = (means[0] - means[1]).float()
    val = [encoded["val", c] for c in LABELS]
    grid = ScoreGrid(Scorer(runner, metric), candidates, chat.positions, *val, ARDITI2024)
    rows = [row for row in grid.rows() if row.discarded is None]
    table: dict[str, Any] = json.loads(a.out.read_text()) if a.out.exists() else {}
    table |= {"model": Path(a.model).name, "contrast": a.contrast, "n_layers": model.n_layers}
    table["sites"] = [[int(row.position), row.layer] for row in rows]

    def save(name: str, values: torch.Tensor) -> None:
        table.setdefault(name, []).extend([[round(v, 3) for v in some] for some in values.tolist()])
        a.out.write_text(json.dumps(table))

    if "estimated_bypass" not in table:
        directions = [
            Direction.from_vector(candidates[list(chat.positions).index(r.position), r.layer], r.position, r.layer)
            for r in rows
        ]
        save("estimated_bypass", first_order(runner, val[0], metric, directions).ablation)
        save("estimated_induce", first_order(runner, val[1], metric, directions).addition)
    for name in ("bypass", "induce", "kl"):
        while (start := len(table.get(name, []))) < len(rows) and time.process_time() - started < a.seconds:
            save(name, grid.by_prompt(name, [row.site for row in rows[start : start + AT_ONCE]]))


def show(files: list[Path]) -> None:
    """The misses of screens of several sizes."""
    print("| Model | Contrast | Candidates | Screen | Selections | Missed | Largest loss of bypass |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file in files:
        table = json.loads(file.read_text())
        for n in (8, 12, 16, 24, 32):
            cells = [table["model"], table["contrast"], len(table["sites"]), n, *misses(table, n)]
            print("| " + " | ".join(str(c) for c in cells) + " |")


def misses(table: dict[str, Any], n: int) -> tuple[int, int, float]:
    """Selections, those that the screen misses, and the largest difference of their bypass scores."""
    rng = np.random.default_rng(0)
    values = {k: np.array(table[k]) for k in ("bypass", "induce", "kl", "estimated_bypass", "estimated_induce")}
    total, missed, loss = 0, 0, 0.0
    for _ in range(RESAMPLES):
        positive, negative = (rng.integers(values[k].shape[1], size=values[k].shape[1]) for k in ("bypass", "induce"))
        mean = {k: v[:, positive if "bypass" in k else negative].mean(1) for k, v in values.items()}
        rule = replace(ARDITI2024, max_kl=float(rng.choice(MAX_KL)), min_induce=float(rng.choice(MIN_INDUCE)))
        rows = [
            Candidate(Position(p), layer, *(float(mean[k][i]) for k in ("bypass", "induce", "kl")))
            for i, (p, layer) in enumerate(table["sites"])
        ]
        estimates = [Estimates(*pair) for pair in zip(mean["estimated_bypass"], mean["estimated_induce"], strict=True)]
        full = choose(rows, table["n_layers"], rule).selected
        among = choose([rows[i] for i in screened(estimates, n)], table["n_layers"], rule).selected
        if full is None:
            continue
        total += 1
        if among is not None and among.site != full.site:  # where none passes, all are scored
            missed, loss = missed + 1, max(loss, (among.bypass or 0) - (full.bypass or 0))
    return total, missed, round(loss, 2)


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
    commands.add_parser("show").add_argument("files", nargs="+", type=Path)
    a = parser.parse_args()
    collect(a) if a.action == "collect" else show(a.files)


if __name__ == "__main__":
    main()
