"""Dissociation: do two behaviours of one model hang on different directions? Two finished runs in, a table out.

Each run's direction is ablated on the positives of both runs. A double dissociation (Teuber 1955) is what one wants to
see: each direction takes its own behaviour and leaves the other. Beside them stands a null of each run, so that a
behaviour which any ablation takes is not taken for one. Knows runs, arms and judges. Decides nothing about either run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rhumbline.analyses.subject import chat_of
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import paired_difference
from rhumbline.experiment import selected_direction
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.keyword_judges import judge
from rhumbline.judging.score import TextJudge
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint
from rhumbline.prompts.contrasts import ContrastSet, Prompt
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_json, sha256
from rhumbline.stages.style_judge import complete, read_styling

OWN, CROSS = 0.5, 0.25
"""A behaviour is taken if the interval of its drop lies above the first, and left if it lies below the second."""
DRAWS = 2000

Drops = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Side:
    """One finished run, opened with its contrast."""

    directory: RunDirectory
    seed: int
    direction: Direction
    null: Direction
    """The first covariance draw of the run, or its first draw of any family."""
    contrast: ContrastSet
    prompts: tuple[Prompt, ...]
    """Its test positives."""
    behaviour: str
    template: str | None = None
    """The chat template that the run was given, if any."""

    @classmethod
    def open(
        cls, path: str | Path, contrast: ContrastSet, seed: int | None = None, template: str | None = None
    ) -> "Side":
        """The run and the prompts that it tested; InputError of another contrast, or of no direction."""
        directory = RunDirectory.read(path)
        chosen = directory.protocol["seeds"][0] if seed is None else seed
        if directory.protocol["contrast"]["sha256"] != contrast.sha256:
            raise InputError(f"{path} was made with another contrast than {contrast.name}; give the file of that run.")
        direction = selected_direction(path, chosen)
        if direction is None:
            raise InputError(f"{path} chose no direction at seed {chosen}, so there is none to dissociate.")
        folder = directory.seed(chosen)
        rows = directory.load(folder / "nulls.json")["nulls"]
        if not rows:
            raise InputError(f"{path} was made without nulls, and a behaviour that any ablation takes looks like one.")
        # Isotropic draws remove next to nothing; a covariance draw removes what the stream has along a random axis.
        which = next((i for i, r in enumerate(rows) if r["family"] == "covariance"), 0)
        row = rows[which]
        vector = directory.load_tensors(folder / "nulls.safetensors")[0]["nulls"][which]
        ids = set(directory.load(folder / "splits.json")["ids"]["test"]["positive"])
        prompts = tuple(p for p in contrast.prompts if p.id in ids)
        null = Direction.from_vector(vector, row["position"], row["layer"])
        behaviour = directory.protocol["behaviour"]
        return cls(directory, chosen, direction, null, contrast, prompts, behaviour, template)

    def judge(self, prompt: Prompt) -> TextJudge:
        """Who reads a completion of this prompt in that run."""
        name = self.directory.protocol["judge"]
        folder = self.directory.seed(self.seed)
        if not (folder / "style.json").is_file():
            return judge(name)
        record = self.directory.load(folder / "style.json")
        tensors = self.directory.load_tensors(folder / "classifier.safetensors")[0] if record["classifier"] else {}
        return read_styling(record, tensors, name).judge(prompt.category)

    def unit(self) -> tuple[float, float]:
        """Zero and one of its levels, in scores: of a rate they are 0 and 1."""
        results = read_json(self.directory.path / "results.json")
        seed = next(s for s in results["seeds"] if s["seed"] == self.seed)
        unit = (seed.get("style") or {}).get("unit")
        return (0.0, 1.0) if unit is None else (unit["negative"], unit["positive"])

    def candidates(self) -> tuple[torch.Tensor, list[int]]:
        """The un-normalised candidates [position, layer, d_model] and their positions."""
        tensors, _ = self.directory.load_tensors(self.directory.seed(self.seed) / "directions.safetensors")
        return tensors["candidates"], self.directory.load(self.directory.seed(self.seed) / "extraction.json")[
            "positions"
        ]


def dissociate(model: ChatModel, first: Side, second: Side, max_new_tokens: int = 64) -> dict[str, Any]:
    """Ablate either direction, and a null of either run, on the positives of both; and the cosine of the candidates.

    {"analysis", "model", "behaviours", "table": [{"behaviour", "ablated", "n", "level", "drop", "low", "high"}],
    "cosine": {"selected", "by_layer": [{"layer", "cosine"}]}, "finding", "sentence"}: `drop` the paired fall of the
    level below the baseline with its interval. InputError of another model than that of both runs.
    """
    if first.behaviour == second.behaviour:
        raise InputError(f"both runs are about {first.behaviour}: give runs of two behaviours (--behaviour WORD).")
    sides = (first, second)
    found = fingerprint(model)
    for side in sides:
        if side.directory.protocol["model"]["fingerprint"] != found:
            raise InputError(
                f"{model.name} is not the model of {side.directory.path}: the weights differ (fingerprint). Give the "
                "model of both runs, in the dtype of the runs (--dtype)."
            )
    runner = Runner(model)
    arms = [
        BASELINE,
        *(Arm(s.behaviour, (Ablate(s.direction),)) for s in sides),
        *(Arm(f"null of {s.behaviour}", (Ablate(s.null),)) for s in sides),
    ]
    table = []
    for side in sides:
        chat = chat_of(side.directory, model, side.contrast, side.template)
        said = complete(runner, chat, side.prompts, arms, max_new_tokens)
        judges = [side.judge(prompt) for prompt in side.prompts]
        zero, one = side.unit()
        levels = np.array(
            [[((j(t).value or 0.0) - zero) / (one - zero) for j, t in zip(judges, arm, strict=True)] for arm in said]
        )
        for arm, level in zip(arms, levels, strict=True):
            table.append(
                {
                    "behaviour": side.behaviour,
                    "ablated": arm.name,
                    "level": float(level.mean()),
                    **_drop(levels[0], level),
                }
            )
    finding = _finding(table, first.behaviour, second.behaviour)
    return {
        "analysis": "dissociation",
        "model": model.name,
        "runs": [{"sha256": s.directory.protocol_sha256, "seed": s.seed} for s in sides],
        "behaviours": [s.behaviour for s in sides],
        "margins": {"taken": OWN, "left": CROSS},
        "table": table,
        "cosine": _cosines(first, second),
        **finding,
    }


def _drop(before: Drops, after: Drops) -> dict[str, Any]:
    """The paired fall; of a rate the interval is the one of `paired_difference`, a bootstrap of 0 or 1 has no width."""
    if set(before) | set(after) <= {0.0, 1.0}:
        d = paired_difference(before > 0, after > 0)
        return {"n": d.n, "drop": d.mean, "low": d.low, "high": d.high}
    change, rng = before - after, np.random.default_rng(0)
    means = change[rng.integers(len(change), size=(DRAWS, len(change)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"n": len(change), "drop": float(change.mean()), "low": float(low), "high": float(high)}


def _cosines(first: Side, second: Side) -> dict[str, Any]:
    """Cosine of the two selected directions, and of the candidates of every layer at the first run's position."""
    (a, at), (b, other) = first.candidates(), second.candidates()
    found: dict[str, Any] = {"selected": float(first.direction.vector @ second.direction.vector), "by_layer": []}
    position = first.direction.position
    found["position"] = position
    if position in at and position in other:
        x, y = a[at.index(position)].float(), b[other.index(position)].float()
        for layer in range(x.shape[0]):
            norms = float(x[layer].norm() * y[layer].norm())
            value = float(x[layer] @ y[layer]) / norms if norms > 1e-12 else None
            found["by_layer"].append({"layer": layer, "cosine": value})
    return found


def _finding(table: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, str]:
    """DOUBLE-DISSOCIATION if each is taken by its own direction and left by the other; else what is in the way."""
    at = {(row["behaviour"], row["ablated"]): row for row in table}
    faults, told = [], []
    for own, other in ((first, second), (second, first)):
        mine, theirs = at[own, own], at[own, other]
        told.append(
            f"ablating {own} took {mine['drop']:.2f} [{mine['low']:.2f}, {mine['high']:.2f}] of {own} and ablating "
            f"{other} took {theirs['drop']:.2f} [{theirs['low']:.2f}, {theirs['high']:.2f}] of it"
        )
        if mine["low"] < OWN:
            faults.append(f"{own} is not taken by its own direction")
        if theirs["high"] > CROSS:
            faults.append(f"{own} is not left by the direction of {other}")
        for null in (first, second):
            if at[own, f"null of {null}"]["high"] > CROSS:
                faults.append(f"{own} is not left by a null direction")
    name = "NOT-DISSOCIATED" if faults else "DOUBLE-DISSOCIATION"
    because = f" ({'; '.join(dict.fromkeys(faults))})" if faults else ""
    return {"finding": name, "sentence": f"{name}{because}: {'; '.join(told)}."}


def record_key(record: Mapping[str, Any]) -> str:
    """The name of a record's file: the two runs that it is about."""
    return f"dissociation-{sha256(record['runs'])[:12]}"
