"""Rows that are decoded together, and rows that wait: `python benchmarks/decoding.py m24` prints both tables.

The first: seconds and memory of 3 arms x 64 prompts against how many rows are decoded together; no text ends early. The
second: texts that end at very different lengths, with the rows that wait taking the places of finished ones, and block
after block. Processor time, one thread, float32, once each.
"""

import argparse
import random
from collections.abc import Callable
from typing import Any

import torch

import shapes
from rhumbline.inference import runner as running
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from run import timed

ROWS = (32, 64, 96, 192)
ENDING = 0.04
"""Share of the vocabulary that ends a text, so that a text has some 25 tokens on average."""
LONGEST = 256


def generated(model: ChatModel, prompts: list[list[int]], new: int) -> list[list[list[int]]]:
    """Completions under three arms."""
    torch.manual_seed(0)
    direction = Direction.from_vector(torch.randn(model.d_model), -1, model.n_layers // 2)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),)), Arm("addition", (Add(direction),))]
    return Runner(model).generate(prompts, arms, max_new_tokens=new)[0]


def with_rows(rows: int, run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, MiB and the result with so many rows decoded together."""
    running.CPU_ROWS, running.SPARE_SHARE = rows, 0.0
    running.MOST_CPU_ROWS = max(rows, running.MOST_CPU_ROWS)
    return timed(run, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape", choices=sorted(shapes.SHAPES))
    options.add_argument("--new-tokens", type=int, default=64)
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    shape = shapes.SHAPES[given.shape]
    model = shapes.random_model(shape)
    prompts = shapes.prompts(64, shapes.SYSTEM, shape.vocab, 5)
    print(f"{given.shape}, {given.new_tokens} tokens\n\n| rows together | s | MiB |\n|---|---|---|")
    for rows in ROWS:
        seconds, mib, _ = with_rows(rows, lambda: generated(model, prompts, given.new_tokens))
        print(f"| {rows} | {seconds:.1f} | {mib:.0f} |", flush=True)

    prompts = shapes.prompts(96, shapes.SYSTEM, shape.vocab, 5)
    ending = random.Random(1).sample(range(shape.vocab), int(ENDING * shape.vocab))
    model.model.generation_config.eos_token_id = ending
    waited, _, texts = with_rows(64, lambda: generated(model, prompts, LONGEST))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    blocks = [order[first : first + 21] for first in range(0, len(order), 21)]

    def one_after_the_other() -> list[list[list[int]]]:
        found: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(3)]
        for block in blocks:
            for arm, some in enumerate(generated(model, [prompts[i] for i in block], LONGEST)):
                for i, text in zip(block, some, strict=True):
                    found[arm][i] = text
        return found

    apart, _, same = with_rows(64, one_after_the_other)
    assert same == texts
    lengths = [len(text) for arm in texts for text in arm]
    print(f"\ntexts of {sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most, 64 rows together:")
    print(f"with rows that wait {waited:.1f} s, block after block {apart:.1f} s ({apart / waited:.2f} times)")


if __name__ == "__main__":
    main()
