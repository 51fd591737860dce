"""Blocks: what is dear in a stage, cut into jobs that depend on artefacts and on nothing else.

A block's bounds are the protocol's, never the engine's: every engine runs the same forward passes. Blocks run here or
on the workers of a pool (replicas.py); their answers lie in `.answers` until the stage's artefact stands. Does not know
what any block computes.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhumbline.engines.jobs import Job, Log, Pool, answered
from rhumbline.engines.local import LocalPool
from rhumbline.records.files import file_sha256
from rhumbline.stages.seed_run import SeedRun

ROWS_PER_BLOCK = 512
"""Completions of one block: what a killed run loses at most, and the same for every batch size and engine."""
CANDIDATES_PER_BLOCK, NULLS_PER_BLOCK, DRAWS_PER_BLOCK, REFITS_PER_BLOCK = 32, 128, 3, 4
"""Of the other stages (docs/scale.md: a block should last seconds, and a stage have several)."""
ANSWERS = ".answers"
"""Where the answers of blocks wait, beside the artefacts of a seed."""
INPUTS = ("style.json", "classifier.safetensors", "metric.json", "extraction.json", "selection.json", "nulls.json",
          "directions.safetensors", "nulls.safetensors")  # fmt: skip
"""Artefacts that a block may read; those that are there when it runs go with it."""

Block = Callable[..., Any]
"""Arguments in, an answer out, both as JSON."""
Ask = Callable[[str, Sequence[Mapping[str, Any]]], list[Any]]
"""(kind of block, arguments of each) -> their answers, in order."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one seed: asked for by its stages, answered here or wherever the pool's workers are."""

    run: SeedRun
    makers: Mapping[str, Callable[[SeedRun], Block]]
    """What a block is called, and what makes it; made once for all blocks of its kind, it keeps what they share."""
    pool: Pool | None = None
    """Workers; None: blocks run here."""
    made: dict[str, Block] = field(default_factory=dict)

    def answer(self, kind: str, arguments: Mapping[str, Any]) -> Any:
        """What one block gives, from the artefacts that are there."""
        if kind not in self.made:
            self.made[kind] = self.makers[kind](self.run)
        return self.made[kind](**arguments)

    def ask(self, kind: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The answers of several blocks, in order; those that are on disk already are not computed again."""
        run = self.run
        artefacts = {f"{run.folder.name}/{name}": run.folder / name for name in INPUTS}
        inputs = {name: path for name, path in artefacts.items() if path.is_file()}
        depends = {
            "protocol": run.directory.protocol_sha256,
            "seed": run.seed,
            "tokens": run.tokens,
            "inputs": {name: file_sha256(path) for name, path in inputs.items()},
        }
        if self.pool is None:
            jobs = [Job(kind, a, depends) for a in arguments]
            return answered(LocalPool(lambda kind, a, shared: self.answer(kind, a)), jobs, run.folder / ANSWERS)
        jobs = [
            Job(kind, {"seed": run.seed, "tokens": run.tokens, "arguments": a}, depends, name=f"{kind} {i}")
            for i, a in enumerate(arguments)
        ]
        inputs["protocol.json"] = run.directory.path / "protocol.json"
        shared = {name: path.read_bytes() for name, path in inputs.items()}
        return answered(
            self.pool,
            jobs,
            run.folder / ANSWERS,
            shared,
            log=Log(run.directory.path / "jobs.log"),
            told=lambda job, answer: run.timings.tick(job.kind, len(answer.value)),
        )


def forget_answers(run: SeedRun) -> None:
    """The artefact of the stage stands: its blocks need not be kept."""
    shutil.rmtree(run.folder / ANSWERS, ignore_errors=True)


def cuts(n: int, size: int) -> list[tuple[int, int]]:
    """0..n in spans of `size`: (first, end)."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def spans(n: int, size: int) -> list[dict[str, int]]:
    """The same as arguments of blocks."""
    return [{"first": first, "end": end} for first, end in cuts(n, size)]
