"""Measure batch sizes of decoding, and continuous batching: `python benchmarks/decoding.py m24` prints both.

First: seconds and memory of 3 arms x 64 prompts by the number of rows that are decoded together; no text ends early.
Second: texts that end at different lengths, with continuous batching and batch after batch. Processor time, one thread,
float32, one repeat.
"""

import argparse
import random
from collections.abc import Callable
from typing import Any

import torch

import shapes
from rhumbline.inference import generation
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from run import timed

ROWS = (32, 64, 96, 192)
ENDING = 0.04
"""Share of the vocabulary that ends a text; a text then has about 25 tokens."""
LONGEST = 256


def generated(model: ChatModel, prompts: list[list[int]], new: int) -> list[list[list[int]]]:
    """Completions under three arms."""
    torch.manual_seed(0)
    direction = Direction.from_vector(torch.randn(model.d_model), -1, model.n_layers // 2)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),)), Arm("addition", (Add(direction),))]
    return Runner(model).generate(prompts, arms, max_new_tokens=new)[0]


def with_rows(rows: int, run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, MiB and the result with this number of rows decoded together."""
    generation.CPU_ROWS, generation.SPARE_SHARE = rows, 0.0
    generation.MOST_CPU_ROWS = max(rows, generation.MOST_CPU_ROWS)
    return timed(run, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape", choices=sorted(shapes.SHAPES))
    options.add_argument("--new-tokens", type=int, default=64)
    a = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    shape = shapes.SHAPES[a.shape]
    model = shapes.random_model(shape)
    prompts = shapes.prompts(64, shapes.SYSTEM, shape.vocab, 5)
    print(f"{a.shape}, {a.new_tokens} tokens\n\n| rows together | s | MiB |\n|---|---|---|")
    for rows in ROWS:
        seconds, mib, _ = with_rows(rows, lambda: generated(model, prompts, a.new_tokens))
        print(f"| {rows} | {seconds:.1f} | {mib:.0f} |", flush=True)

    prompts = shapes.prompts(96, shapes.SYSTEM, shape.vocab, 5)
    ending = random.Random(1).sample(range(shape.vocab), int(ENDING * shape.vocab))
    model.model.generation_config.eos_token_id = ending
    continuous, _, texts = with_rows(64, lambda: generated(model, prompts, LONGEST))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    batches = [order[first : first + 21] for first in range(0, len(order), 21)]

    def batch_after_batch() -> list[list[list[int]]]:
        completions: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(3)]
        for batch in batches:
            for arm, parts in enumerate(generated(model, [prompts[i] for i in batch], LONGEST)):
                for i, text in zip(batch, parts, strict=True):
                    completions[arm][i] = text
        return completions

    separate, _, same = with_rows(64, batch_after_batch)
    assert same == texts
    lengths = [len(text) for arm in texts for text in arm]
    print(f"\ntexts of {sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most, 64 rows together:")
    ratio = separate / continuous
    print(f"continuous batching {continuous:.1f} s, batch after batch {separate:.1f} s ({ratio:.2f} times)")


if __name__ == "__main__":
    main()
