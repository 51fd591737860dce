"""Compare the plain implementation with the engine on the shapes of docs/benchmarks.md; `make bench` writes the page.

Processor time, one thread, float32; medians of repeated runs, alternately in one process. If a plain stage would take
many minutes, a part of its candidates is timed, and the time is multiplied, because each has the same cost. The time of
the engine is multiplied too, although it shares work between more candidates in the full stage. `--quick`: m8 only.
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import growth
import plain
import shapes
from rhumbline.evidence.selection_rules import ARDITI2024, choose
from rhumbline.inference.batching import MOST_CPU_ROWS, rectangles
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.memory import peak_memory, reset_peak_memory
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.positions import Position
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates

OUT = Path(__file__).parent.parent / "docs"
POSITIONS = (-5, -4, -3, -2, -1)
TOKENS = (5, 9)
SAMPLED_LAYERS = {"m8": None, "m24": (1, 4, 7, 10, 13, 16), "mv": None}
BARS = {  # with the system prompt / without
    "extraction": {"m8": (10, 6.5), "m24": (4.5, 3.5), "mv": (20, 12)},
    "selection, full grid": {"m8": (11, 7.5), "m24": (5, 3.5), "mv": (16, 10)},
    "selection, lazy": {"m8": (23, 15), "m24": (11, 7.5), "mv": (24, 15)},
    "generation, plain at batch 8": {"m8": (4.5, 4.5), "m24": (3.5, 3.5), "mv": (3.5, 3.5)},
    "generation, plain at batch 64": {"m8": (1.7, 1.7), "m24": (1.4, 1.4), "mv": (1.4, 1.4)},
}


def metric(logits: torch.Tensor) -> torch.Tensor:
    return refusal_metric(logits, TOKENS)


def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[float, float, Any]:
    """Median processor seconds, peak memory in MiB above the start, and the last result."""
    times, result = [], None
    # The memory that earlier stages freed is returned to the system first, so that the peak is that of this stage.
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory(torch.device("cpu"))
    before = peak_memory(torch.device("cpu"))
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return statistics.median(times), (peak_memory(torch.device("cpu")) - before) / 2**20, result


def gemm_seconds(model: ChatModel, n_tokens: int, n_last: int | None) -> float:
    """The matrix products of one packed pass: all layers on all tokens (the last one, except its keys and values, on
    the last tokens of the prompts), and the unembedding on those. Without `n_last` the pass ends at the input of the
    last block."""
    config = model.model.config
    d, width = config.hidden_size, config.intermediate_size
    x, y, square = torch.randn(n_tokens, d), torch.randn(n_tokens, width), torch.randn(d, d)
    up, down, head = torch.randn(width, d), torch.randn(d, width), torch.randn(config.vocab_size, d)
    last, last_wide = torch.randn(n_last or 0, d), torch.randn(n_last or 0, width)
    linear = torch.nn.functional.linear

    def run() -> None:
        for _ in range(config.num_hidden_layers - 1):
            for w in (square, square, square, square, up, up):
                linear(x, w)
            linear(y, down)
        if n_last is not None:
            for _ in range(2):
                linear(x, square)
            for w in (square, square, up, up, head):
                linear(last, w)
            linear(last_wide, down)

    return timed(run)[0]


def gemm_seconds_generating(model: ChatModel, prompts: list[list[int]], arms: int, prefix: int, new: int) -> float:
    """The same for a prefill of all prompts under all arms and the decoding, with the largest batches."""
    total = 0.0
    for batch in rectangles([len(p) for p in prompts], arms, 10**9, extra=new, rows=MOST_CPU_ROWS):
        rows = len(batch.arms) * len(batch.prompts)
        own = prefix + sum(len(prompts[i]) - prefix for i in batch.prompts)
        total += gemm_seconds(model, len(batch.arms) * own, rows)
        # A step has one token per row, so its last block is computed in full.
        total += (new - 1) * gemm_seconds(model, rows, rows)
    return total


def between(values: list[float], share: float) -> float:
    """A bound with this share of the values below it, in the middle between two of them."""
    ordered = sorted(values)
    at = round(share * len(ordered))
    return (ordered[at - 1] + ordered[at]) / 2


def sampled(candidates: torch.Tensor, layers: tuple[int, ...] | None, n_layers: int) -> tuple[torch.Tensor, float]:
    """Candidates with the layers that are not timed set to zero, and the number of layers that each timed one counts
    for."""
    kept = range(int(0.8 * n_layers))
    if layers is None:
        return candidates, 1.0
    part = torch.zeros_like(candidates)
    part[:, list(layers)] = candidates[:, list(layers)]
    return part, len(kept) / len(layers)


def measure(name: str, prefix: int, new_tokens: int, generation: bool) -> list[dict[str, Any]]:
    shape = shapes.SHAPES[name]
    model = shapes.random_model(shape)
    train = [shapes.prompts(128, prefix, shape.vocab, seed) for seed in (1, 2)]
    positive, negative = (shapes.prompts(32, prefix, shape.vocab, seed) for seed in (3, 4))
    runner = Runner(model)
    rows = []

    def row(stage: str, plain_time: float, engine_time: float, plain_mb: float, engine_mb: float, **more: Any) -> None:
        bar = BARS[stage][name][0 if prefix == shapes.SYSTEM else 1]
        line = {"shape": name, "system": prefix == shapes.SYSTEM, "stage": stage, "plain": plain_time,
                 "engine": engine_time, "ratio": plain_time / engine_time, "bar": bar, "plain_mb": plain_mb,
                 "engine_mb": engine_mb, **more}  # fmt: skip
        print(json.dumps(line), flush=True)
        rows.append(line)

    slow, slow_mb, means = timed(lambda: [plain.mean_residuals(model, t, POSITIONS) for t in train], 1)
    fast, fast_mb, ours = timed(lambda: [extract(runner, t, POSITIONS).stats.mean() for t in train])
    gap = max(float((a - b).abs().max()) for a, b in zip(means, ours, strict=True))
    # Two sets, read one after the other in batches of the budget.
    own = [sum(len(p) - prefix for p in t) for t in train]
    batches = [(n, sum(1 for _ in runner.batches(t, 1))) for n, t in zip(own, train, strict=True)]
    least = sum(k * gemm_seconds(model, prefix + n // k, None) for n, k in batches)
    row("extraction", slow, fast, slow_mb, fast_mb, difference=gap, limit=slow / least)

    candidates = (means[0] - means[1]).float()
    part, factor = sampled(candidates, SAMPLED_LAYERS[name], shape.n_layers)
    open_rule = replace(ARDITI2024, max_kl=1e9, min_induce=-1e9)
    positions = [Position(p) for p in POSITIONS]
    grid = ScoreGrid(Scorer(runner, metric), part, positions, positive, negative, open_rule)
    fast, fast_mb, table = timed(lambda: score_candidates(grid).table, 1)
    layer = (SAMPLED_LAYERS[name] or (3,))[-1]
    one, slow_mb, scores = timed(
        lambda: plain.scores(model, candidates[-1:], (-1,), positive, negative, TOKENS, [layer])
    )
    slow = one * len(POSITIONS) * shape.n_layers
    mine = next(r for r in table if (r.position, r.layer) == (Position(-1), layer))
    gap = max(abs(a - b) for a, b in zip(scores[-1, layer], (mine.bypass, mine.induce, mine.kl), strict=True))
    tokens = sum(len(p) for p in positive + negative) - (len(positive + negative) - 2) * prefix
    limit = gemm_seconds(model, tokens, len(positive + negative))
    scored = [r for r in table if r.bypass is not None]
    share = sum((shape.n_layers - r.layer) / shape.n_layers for r in scored) / len(scored)
    least = limit * (1 + share / 2) * len(scored) * factor
    row(
        "selection, full grid",
        slow,
        fast * factor,
        slow_mb,
        fast_mb,
        difference=gap,
        gemm_share=least / (fast * factor),
        limit=slow / least,
    )

    # Bounds between the scores of two candidates: 40 % pass the induce score, 60 % the KL score.
    rule = replace(
        ARDITI2024,
        min_induce=between([r.induce for r in scored], 0.6),
        max_kl=between([r.kl for r in scored], 0.6),
    )
    fast, fast_mb, lazy = timed(lambda: score_candidates(replace(grid, rule=rule), full_grid=False).table, 1)
    same = choose(lazy, shape.n_layers, rule).selected
    full = choose(table, shape.n_layers, rule).selected
    assert (same is None) == (full is None)
    assert same is None or (same.position, same.layer) == (full.position, full.layer)
    row("selection, lazy", slow, fast * factor, slow_mb, fast_mb)
    if generation:
        rows += _generation(model, prefix, new_tokens, row)
    return rows


def _generation(model: ChatModel, prefix: int, new_tokens: int, row: Callable[..., None]) -> list[dict[str, Any]]:
    prompts = shapes.prompts(64, prefix, model.model.config.vocab_size, 5)
    direction = Direction.from_vector(torch.randn(model.d_model), -1, model.n_layers // 2)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),)), Arm("addition", (Add(direction),))]

    def slowly(batch: int) -> list[list[list[int]]]:
        found = [plain.generate(model, prompts, new_tokens, batch)]
        with plain.ablation(model, direction.vector):
            found.append(plain.generate(model, prompts, new_tokens, batch))
        with plain.addition(model, direction.difference, direction.layer):
            found.append(plain.generate(model, prompts, new_tokens, batch))
        return found

    fast, fast_mb, ours = timed(lambda: Runner(model).generate(prompts, arms, max_new_tokens=new_tokens)[0], 1)
    least = gemm_seconds_generating(model, prompts, len(arms), prefix, new_tokens)
    for batch in (8, 64):
        slow, slow_mb, theirs = timed(lambda batch=batch: slowly(batch), 1)
        same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
        row(
            f"generation, plain at batch {batch}",
            slow,
            fast,
            slow_mb,
            fast_mb,
            identical=f"{same} of {3 * len(prompts)}",
            limit=slow / least,
        )
    return []


def written(rows: list[dict[str, Any]], new_tokens: int) -> str:
    made = f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Benchmarks",
        "",
        "Generated by `make bench` (benchmarks/run.py), which overwrites this page.",
        "",
        f"One thread, float32, {made}, a shared virtual machine of two x86-64 cores. Plain is benchmarks/plain.py;",
        "ratios are of processor time. m8: 8 layers, width 256, vocabulary 32k; m24: 24, 512, 32k; mv: 8, 512, 152k.",
        f"Chat prefix of {shapes.SYSTEM} tokens with a system prompt, {shapes.NO_SYSTEM} without; prompts of 8 to 40",
        "tokens and five post-instruction tokens; 128 + 128 prompts for extraction, 32 + 32 for selection over five",
        f"positions, 3 arms x 64 prompts x {new_tokens} tokens for generation.",
        "",
        "Limit: the ratio if the engine computed its own matrix products only, timed alone in the same shapes.",
        "",
        "| stage | shape | system | plain s | engine s | ratio | bar | limit | peak MiB plain / engine | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        notes = []
        if "difference" in r:
            notes.append(f"largest difference {r['difference']:.1e}")
        if "gemm_share" in r:
            notes.append(f"{r['gemm_share']:.0%} of the GEMM limit")
        if "identical" in r:
            notes.append(f"identical completions: {r['identical']}")
        cells = [
            r["stage"],
            r["shape"],
            "yes" if r["system"] else "no",
            f"{r['plain']:.1f}",
            f"{r['engine']:.1f}",
            f"**{r['ratio']:.1f}**",
            str(r["bar"]),
            f"{r['limit']:.1f}" if "limit" in r else "",
            f"{r['plain_mb']:.0f} / {r['engine_mb']:.0f}",
            "; ".join(notes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--new-tokens", type=int, default=64)
    a = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = []
    for name in ("m8",) if a.quick else shapes.SHAPES:
        for prefix in (shapes.SYSTEM, shapes.NO_SYSTEM):
            rows += measure(name, prefix, a.new_tokens, generation=prefix == shapes.SYSTEM)
    notes = OUT / "benchmarks-notes.md"
    page = written(rows, a.new_tokens) + growth.written(OUT) + (notes.read_text() if notes.exists() else "")
    (OUT / "benchmarks.md").write_text(page)


if __name__ == "__main__":
    main()
