"""Run by torchrun: for each family, the model in parts against the same model whole. An assertion fails the rank."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from families import random_model
from make_tokenizer import CHATML, make_tokenizer
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.loading import fingerprint, load
from tolerances import tolerance

PROMPTS = [[3, 4, 5, 6, 7, 8], [3, 4, 9, 10, 7, 8], [3, 4, 5, 11, 12, 13, 7, 8]]


def compare(family: str, folder: Path, tokenizer) -> None:
    if ranks.rank() == 0:
        random_model(family, vocab_size=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    dist.barrier()
    whole = load(str(folder), device="cpu", dtype="float32")
    parts = load(str(folder), dtype="float32", tensor_parallel=True)
    held = [p for p in parts.model.parameters() if isinstance(p, DTensor)]
    assert held
    assert any(p.to_local().numel() < p.numel() for p in held)  # the matrices really are in parts
    assert fingerprint(parts) == fingerprint(whole)
    assert parts.writers == whole.writers
    assert parts.proof.mode == whole.proof.mode == "exact"

    torch.manual_seed(1)
    direction = Direction.from_vector(torch.randn(whole.d_model), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),)), Arm("addition", (Add(direction, 0.7),))]
    found = []
    for model in (whole, parts):
        runner = Runner(model)
        logits = torch.zeros(3, len(PROMPTS), len(tokenizer))
        for rows, values in runner.last_logits(PROMPTS, arms):
            logits[rows.arm, rows.prompt] = values.float()
        at = {1: arms[2:], 2: arms[2:]}
        late = runner.resumed_readings(PROMPTS, at, lambda x: x[:, 5].float())
        stream = [torch.zeros(0)] * len(PROMPTS)
        for prompt, h, _ in runner.residuals(PROMPTS, (-2, -1)):
            for p, values in zip(prompt.tolist(), h, strict=True):
                stream[p] = values
        texts, _ = runner.generate(PROMPTS, arms, max_new_tokens=6)
        found.append((logits, torch.stack([late[1], late[2]]), torch.stack(stream), texts))
    (a, late_a, stream_a, texts_a), (b, late_b, stream_b, texts_b) = found
    for one, two in ((a, b), (late_a, late_b), (stream_a, stream_b)):
        torch.testing.assert_close(one, two, **tolerance())
    assert texts_a == texts_b
    assert (a[0] - a[1]).abs().max() > 1e-3  # the arms do something
    assert (a[0] - a[2]).abs().max() > 1e-3


def main() -> None:
    torch.set_num_threads(1)
    ranks.join()
    tokenizer = make_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"])
    box = [tempfile.mkdtemp() if ranks.rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    for family in sys.argv[1:]:
        compare(family, Path(str(box[0])) / family, tokenizer)
        print(f"rank {ranks.rank()}: {family} equal", flush=True)
    assert ranks.minimum(5 + ranks.rank()) == 5
    ranks.leave()


if __name__ == "__main__":
    main()
