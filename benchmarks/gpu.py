"""One shape on one GPU: stages of the engine and of the plain code, their time, and model FLOP utilisation.

    python benchmarks/gpu.py 1.5B|8B|tiny [--device cuda] [--seconds 120] --out gpu.jsonl

bfloat16, random weights; 6 arms x 100 prompts x 128 tokens for generation. Candidates are mean residuals, whose
ablation changes the logits of a random model as much as that of a direction changes those of a trained one. Plain is
benchmarks/plain.py, one arm and one batch at a time; of its selection one candidate is timed and scaled, of its
generation one arm of one batch. Each measurement is written as soon as it ends; none begins after --seconds. MFU:
2 x parameters x tokens as if nothing were shared, divided by the time and by the peak of a product of square matrices,
which is measured here.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import plain
import shapes
from rhumbline.evidence.selection_rules import ARDITI2024
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner, measured_tokens
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.proving import prove
from rhumbline.records.positions import Position
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates

SHAPES = {  # layers, width, MLP, heads, heads of keys, vocabulary
    "tiny": (4, 64, 128, 4, 2, 1000),
    "1.5B": (28, 1536, 8960, 12, 2, 151_936),
    "8B": (32, 4096, 14_336, 32, 8, 128_256),
}
POSITIONS = (-5, -4, -3, -2, -1)


def random_model(name: str, device: str) -> ChatModel:
    """A random model of a shape, made on the device."""
    layers, width, mlp, heads, kv, vocab = SHAPES[name]
    config = Qwen2Config(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocab, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    return prove(model, shapes.NoText(), f"random {name}")


class Bench:
    """Times stages, and writes each as a line."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.end = a, time.monotonic() + a.seconds
        self.model = random_model(a.shape, a.device)
        weights = sum(p.numel() for p in self.model.model.parameters())
        self.parameters = weights - self.model.model.get_input_embeddings().weight.numel()
        self.peak = self._peak()

    def _peak(self) -> float:
        x = torch.randn(4096, 4096, dtype=torch.bfloat16, device=self.a.device)
        return 20 * 2 * 4096**3 / self._seconds(lambda: [x @ x for _ in range(20)])[0]

    def _seconds(self, run: Callable[[], Any]) -> tuple[float, Any]:
        wait = torch.cuda.synchronize if self.a.device.startswith("cuda") else lambda: None
        if self.a.warm:
            run()
        wait()
        start = time.perf_counter()
        result = run()
        wait()
        return time.perf_counter() - start, result

    def measure(self, stage: str, who: str, run: Callable[[], Any], tokens: float, factor: float = 1.0) -> Any:
        """Time a stage; `tokens` are the tokens that it computes, `factor` scales a part to the whole."""
        if time.monotonic() > self.end:
            return None
        seconds, result = self._seconds(run)
        flops = 2 * self.parameters * tokens / seconds
        row = {"shape": self.a.shape, "stage": stage, "who": who, "seconds": round(seconds * factor, 3),
               "tokens": round(tokens * factor), "mfu": round(flops / self.peak, 4),
               "peak_tflops": round(self.peak / 1e12, 1)}  # fmt: skip
        if self.a.device.startswith("cuda"):
            row["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            torch.cuda.reset_peak_memory_stats()
        with self.a.out.open("a") as f:
            f.write(json.dumps(row) + "\n")
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=tuple(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--warm", action="store_true", help="run each stage once before it is timed")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    torch.set_grad_enabled(False)
    bench, vocab = Bench(a), SHAPES[a.shape][-1]
    model = bench.model
    train, positive, negative = (shapes.prompts(n, shapes.SYSTEM, vocab, n + 1) for n in (256, 32, 33))
    runner = Runner(model, measured_tokens(model, train[0]))
    size = lambda some: sum(map(len, some))  # noqa: E731
    runner.generate(train[:8], max_new_tokens=4)  # loads the libraries, before any time is taken
    plain.scores(model, torch.randn(1, model.n_layers, model.d_model), (-1,), positive[:2], negative[:2], (5, 9), [3])
    bench.measure("extraction", "engine", lambda: extract(runner, train, POSITIONS), size(train))
    bench.measure("extraction", "plain", lambda: plain.mean_residuals(model, train, POSITIONS), size(train))
    candidates = plain.mean_residuals(model, train[:32], POSITIONS).float()
    rule = replace(ARDITI2024, max_kl=1e9, min_induce=-1e9)
    positions = [Position(p) for p in POSITIONS]
    grid = ScoreGrid(Scorer(runner, TokenMetric((5, 9))), candidates, positions, positive, negative, rule)
    cells = len(POSITIONS) * int(0.8 * model.n_layers)
    whole = size(positive) + 2 * size(negative)
    bench.measure("selection, screen", "engine", lambda: score_candidates(grid, full_grid=False, screen=24), 24 * whole)
    one = lambda: plain.scores(model, candidates[-1:], (-1,), positive, negative, (5, 9), [3])  # noqa: E731
    bench.measure("selection, full grid", "plain", one, whole, cells)
    bench.measure("selection, full grid", "engine", lambda: score_candidates(grid), cells * whole)
    r = [Direction.from_vector(torch.randn(model.d_model), -1, model.n_layers // 2) for _ in range(3)]
    arms = [
        BASELINE,
        *(Arm(f"a{i}", (Ablate(d),)) for i, d in enumerate(r)),
        *(Arm(f"b{i}", (Add(d),)) for i, d in enumerate(r[:2])),
    ]
    prompts, new = shapes.prompts(100, shapes.SYSTEM, vocab, 7), a.new_tokens
    tokens = len(arms) * (size(prompts) + len(prompts) * new)
    bench.measure("generation", "engine", lambda: runner.generate(prompts, arms, max_new_tokens=new), tokens)
    for batch in (8, 64):
        part = prompts[:batch]
        share = len(arms) * len(prompts) / len(part)
        some = size(part) + len(part) * new
        bench.measure(
            f"generation, batch {batch}", "plain", lambda p=part, b=batch: plain.generate(model, p, new, b), some, share
        )


if __name__ == "__main__":
    main()
