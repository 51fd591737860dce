"""Compare the plain implementation with the engine on the shapes of docs/benchmarks.md; `make bench` writes the page.

    python benchmarks/run.py [--full] [--models DIR] [--only NAME,...]

Processor time, one thread; medians of repeated runs, alternately in one process. If a plain stage would take many
minutes, a part of its candidates is timed, and the time is multiplied, because each has the same cost. The time of the
engine is multiplied too, although it shares work between more candidates in the full stage. Without `--full` there are
fewer prompts and tokens, and the growth of the cost is left out. Real models are the folders `smollm2-135m` and
`qwen2.5-coder-0.5b` of --models, or of the environment variable RHUMBLINE_MODELS; without it their rows are left out.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import growth
import plain
import shapes
from rhumbline import load, preset
from rhumbline import run as run_experiment
from rhumbline.evidence.selection_rules import ARDITI2024, choose
from rhumbline.inference.batching import MOST_CPU_ROWS, rectangles
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.memory import peak_memory, reset_peak_memory
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.processor import multiplies_bfloat16
from rhumbline.models.sources import own_contrast
from rhumbline.organisms.measured_texts import loss_texts
from rhumbline.presets.protocols import quick
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Candidate, Rounding
from rhumbline.stages.candidate_scores import FLOAT32_ROUNDING, PROBES, SCORES, ScoreGrid, Table, score_candidates

OUT = Path(__file__).parent.parent / "docs"
POSITIONS = (-5, -4, -3, -2, -1)
TOKENS = (5, 9)
SAMPLED_LAYERS = {"m8": None, "m24": (1, 4, 7, 10, 13, 16), "mv": None}
REAL = ("smollm2-135m", "qwen2.5-coder-0.5b")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Work:
    """How much is measured."""

    train: int
    """Prompts of each class for extraction."""
    val: int
    """Prompts of each class for selection."""
    test: int
    """Prompts that are completed under three arms."""
    new_tokens: int
    layers: int | None = None
    """Layers whose candidates are timed; None: those of `SAMPLED_LAYERS`."""


FULL, SHORT, OF_REAL = Work(128, 32, 64, 64), Work(64, 16, 64, 16), Work(16, 4, 16, 16, layers=2)
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
    block = dict(model.blocks[0].named_modules())
    weights = {name: m.weight for name, m in block.items() if isinstance(m, torch.nn.Linear)}
    head = model.model.get_output_embeddings().weight
    rows = {
        (n, w.shape[1]): torch.randn(n, w.shape[1]).to(w.dtype)
        for w in (*weights.values(), head)
        for n in (n_tokens, n_last or 0)
    }

    def product(w: torch.Tensor, n: int) -> None:
        torch.nn.functional.linear(rows[n, w.shape[1]], w)

    def run() -> None:
        for _ in range(model.n_layers - 1):
            for w in weights.values():
                product(w, n_tokens)
        if n_last is not None:
            for name, w in weights.items():
                product(w, n_tokens if name.endswith(("k_proj", "v_proj")) else n_last)
            product(head, n_last)

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


class FirstScores(ScoreGrid):
    """A grid that computes every score once.

    A selection measures the rounding of a few candidates, and repeats those that it could decide. Neither grows with
    the number of layers, so a time that contains them cannot be scaled.
    """

    @property
    def assumed_rounding(self) -> float:
        return FLOAT32_ROUNDING

    def rescore(self, table: Table, rounding: Rounding) -> Rounding:
        del table
        return rounding


def rounding_probes(grid: ScoreGrid, table: Sequence[Candidate]) -> float:
    """Seconds in which a selection in 16 bits measures the rounding of its scores; 0 in float32."""
    if grid.scorer.runner.model.dtype == torch.float32:
        return 0.0
    sites = [row.site for row in table if row.bypass is not None][:PROBES]
    return timed(lambda: [grid.rounding_of(name, sites) for name in SCORES], 1)[0]


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


def measure(name: str, model: ChatModel, prefix: int, work: Work, generation: bool = True) -> list[dict[str, Any]]:
    vocab, n_layers = model.model.config.vocab_size, model.n_layers
    train = [shapes.prompts(work.train, prefix, vocab, seed) for seed in (1, 2)]
    positive, negative = (shapes.prompts(work.val, prefix, vocab, seed) for seed in (3, 4))
    runner = Runner(model)
    rows = []

    def row(stage: str, plain_time: float, engine_time: float, plain_mb: float, engine_mb: float, **more: Any) -> None:
        bars = BARS[stage].get(name)
        bar = "" if bars is None else bars[0 if prefix == shapes.SYSTEM else 1]
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
    chosen = SAMPLED_LAYERS.get(name)
    if work.layers is not None:
        chosen = tuple(round((k + 0.5) * 0.8 * n_layers / work.layers) for k in range(work.layers))
    part, factor = sampled(candidates, chosen, n_layers)
    open_rule = replace(ARDITI2024, max_kl=1e9, min_induce=-1e9)
    positions = [Position(p) for p in POSITIONS]
    grid = FirstScores(Scorer(runner, metric), part, positions, positive, negative, open_rule)
    fast, fast_mb, table = timed(lambda: score_candidates(grid).table, 1)
    probes = rounding_probes(grid, table)
    layer = (chosen or (3,))[-1]
    one, slow_mb, scores = timed(
        lambda: plain.scores(model, candidates[-1:], (-1,), positive, negative, TOKENS, [layer])
    )
    slow = one * len(POSITIONS) * n_layers
    mine = next(r for r in table if (r.position, r.layer) == (Position(-1), layer))
    gap = max(abs(a - b) for a, b in zip(scores[-1, layer], (mine.bypass, mine.induce, mine.kl), strict=True))
    tokens = sum(len(p) for p in positive + negative) - (len(positive + negative) - 2) * prefix
    limit = gemm_seconds(model, tokens, len(positive + negative))
    scored = [r for r in table if r.bypass is not None]
    share = sum((n_layers - r.layer) / n_layers for r in scored) / len(scored)
    least = limit * (1 + share / 2) * len(scored) * factor
    row(
        "selection, full grid",
        slow,
        fast * factor + probes,
        slow_mb,
        fast_mb,
        difference=gap,
        gemm_share=least / (fast * factor + probes),
        limit=slow / least,
    )

    # Bounds between the scores of two candidates: 40 % pass the induce score, 60 % the KL score.
    rule = replace(
        ARDITI2024,
        min_induce=between([r.induce for r in scored], 0.6),
        max_kl=between([r.kl for r in scored], 0.6),
    )
    fast, fast_mb, lazy = timed(lambda: score_candidates(replace(grid, rule=rule), full_grid=False).table, 1)
    same = choose(lazy, n_layers, rule).selected
    full = choose(table, n_layers, rule).selected
    assert (same and same.site) == (full and full.site)
    row("selection, lazy", slow, fast * factor + probes, slow_mb, fast_mb)
    if generation:
        _generation(model, prefix, work, row)
    return rows


def _generation(model: ChatModel, prefix: int, work: Work, row: Callable[..., None]) -> None:
    prompts, new_tokens = shapes.prompts(work.test, prefix, model.model.config.vocab_size, 5), work.new_tokens
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


def of_shape(name: str, work: Work, *, both: bool) -> list[dict[str, Any]]:
    """The rows of a generated shape, with a system prompt and, if `both`, without."""
    model = shapes.random_model(shapes.SHAPES[name])
    rows = measure(name, model, shapes.SYSTEM, work)
    return rows + (measure(name, model, shapes.NO_SYSTEM, work, generation=False) if both else [])


def of_real(folder: Path, work: Work) -> list[dict[str, Any]]:
    """The rows of a real model in float32, and in bfloat16 if the processor multiplies it. The prompts are random."""
    rows = []
    for dtype in DTYPES if multiplies_bfloat16() else DTYPES[:1]:
        model = load(str(folder), device="cpu", dtype=dtype)
        rows += measure(f"{folder.name}, {dtype}", model, shapes.SYSTEM, work)
    return rows


def whole_run() -> dict[str, Any]:
    """Processor seconds of the default run and of the quick run of the organism `refusal`, by stage."""
    seconds = {}
    for name, protocol in (("default", preset("rhumbline")), ("quick", quick(preset("rhumbline")))):
        with tempfile.TemporaryDirectory() as out:
            start = time.process_time()
            model, contrast = load("organism:refusal", device="cpu"), own_contrast("organism:refusal")
            result = run_experiment(model, contrast, out, protocol, texts=loss_texts("refusal"))
            stages = result.results["timings"]["stages"]
            seconds[name] = {"all": time.process_time() - start}
            for stage in stages:
                seconds[name][stage["stage"]] = seconds[name].get(stage["stage"], 0.0) + stage["cpu_seconds"]
    print(json.dumps(seconds), flush=True)
    return seconds


def written_runs(seconds: dict[str, Any]) -> str:
    """The table of the whole runs."""
    lines = [
        "",
        "## A whole run",
        "",
        "Processor seconds of the organism `refusal`, two seeds by default and one with `--quick`, loading and the",
        "report included, imports not.",
        "",
        "| stage | default | quick |",
        "|---|---|---|",
    ]
    cells = ((stage, *(of.get(stage, 0.0) for of in seconds.values())) for stage in seconds["default"])
    return "\n".join([*lines, *(f"| {stage} | {a:.1f} | {b:.1f} |" for stage, a, b in cells)]) + "\n"


def written(rows: list[dict[str, Any]], work: Work) -> str:
    made = f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Benchmarks",
        "",
        "Generated by `make bench` (benchmarks/run.py), which overwrites this page.",
        "",
        f"One thread, {made}, a shared virtual machine of two x86-64 cores. Plain is benchmarks/plain.py;",
        "ratios are of processor time. m8: 8 layers, width 256, vocabulary 32k; m24: 24, 512, 32k; mv: 8, 512, 152k.",
        f"Chat prefix of {shapes.SYSTEM} tokens with a system prompt, {shapes.NO_SYSTEM} without; prompts of 8 to 40",
        f"tokens and five post-instruction tokens; {work.train} + {work.train} prompts for extraction, {work.val} +",
        f"{work.val} for selection over five positions, 3 arms x {work.test} prompts x {work.new_tokens} tokens for",
        f"generation. Real models: {OF_REAL.train} + {OF_REAL.train}, {OF_REAL.val} + {OF_REAL.val}, 3 arms x",
        f"{OF_REAL.test} x {OF_REAL.new_tokens}; the generated shapes are in float32.",
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
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="all prompts and tokens, and the growth of the cost")
    options.add_argument("--models", type=Path, default=os.environ.get("RHUMBLINE_MODELS"))
    options.add_argument("--only", help="names of shapes or real models, and run; the page is printed, not written")
    a = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    work, chosen = (FULL if a.full else SHORT), None if a.only is None else a.only.split(",")
    rows = []
    for name in shapes.SHAPES:
        if chosen is None or name in chosen:
            rows += of_shape(name, work if a.full or name != "m24" else replace(work, layers=2), both=a.full)
    for name in REAL:
        if a.models and (a.models / name).is_dir() and (chosen is None or name in chosen):
            rows += of_real(a.models / name, OF_REAL)
    page = written(rows, work)
    if chosen is None or "run" in chosen:
        torch.set_grad_enabled(True)  # a screen computes gradients
        page += written_runs(whole_run())
    if chosen is not None:
        print(page)
        return
    notes = OUT / "benchmarks-notes.md"
    page += (growth.written(OUT) if a.full else "") + (notes.read_text() if notes.exists() else "")
    (OUT / "benchmarks.md").write_text(page)


if __name__ == "__main__":
    main()
