"""Dissociation: do two behaviours of one model have different directions? Two finished runs in, a record out.

Each run's direction is ablated on the positives of both runs. In a double dissociation (Teuber 1955) each direction
removes its own behaviour and leaves the other one unaffected. A null of each run is ablated as well, to detect
behaviours that any ablation removes. Independent of the verdicts of the runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rhumbline.axes import Vector
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import paired_difference
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import ContrastSet, Prompt
from rhumbline.records.analysis_files import LayerCosine
from rhumbline.records.seed_files import MetricTokens, SplitIds, StyleJudges
from rhumbline.records.sheet_files import (
    DissociationCell,
    DissociationCosines,
    DissociationFinding,
    DissociationMargins,
    DissociationRecord,
    RunReference,
)
from rhumbline.stages.common_start import header_text
from rhumbline.stages.completions import complete
from rhumbline.stages.finished_run import FinishedRun, open_run
from rhumbline.stages.fitted_style import FittedStyle
from rhumbline.stages.seed_artefacts import SeedArtefacts

OWN, CROSS = 0.5, 0.25
"""A behaviour is removed if the interval of its drop lies above the first, and unaffected below the second."""
DRAWS = 2000
"""Bootstrap draws of an interval."""

Levels = Float[np.ndarray, " prompt"]
"""Levels of completions: 0 is the mean of the negatives of the run at baseline, 1 that of its positives."""


@dataclass(frozen=True)
class BehaviourRun:
    """One finished run, opened with its contrast."""

    run: FinishedRun
    artefacts: SeedArtefacts
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
    ) -> "BehaviourRun":
        """The run and the prompts that it tested; InputError of another contrast, or of no direction."""
        run = open_run(path)
        artefacts, contrast = run.artefacts(seed), run.contrast(contrast)
        if artefacts.direction is None:
            raise InputError(f"{path} selected no direction at seed {artefacts.seed}. Give a run with a direction.")
        if not artefacts.nulls:
            raise InputError(f"{path} was made without nulls, the controls of its direction. Give a run with nulls.")
        # Isotropic draws remove next to nothing; a covariance draw removes what the stream has along a random axis.
        null = next((n for n in artefacts.nulls if n.family == "covariance"), artefacts.nulls[0]).direction
        ids = set(artefacts.read(SplitIds).ids.test.positive)
        prompts = tuple(p for p in contrast.prompts if p.id in ids)
        return cls(run, artefacts, artefacts.direction, null, contrast, prompts, run.protocol.behaviour, template)

    @property
    def spared(self) -> int:
        """Tokens at the start of a text that the ablations of the run spare."""
        return self.run.protocol.ablation.spared

    def judge(self, prompt: Prompt) -> TextJudge:
        """Who reads a completion of this prompt in that run."""
        name = self.run.protocol.judge
        if not self.run.directory.has(StyleJudges, self.artefacts.seed):
            return self.run.protocol.class_judge()
        record = self.artefacts.read(StyleJudges)
        tensors = self.artefacts.tensors("classifier.safetensors") if record.classifier else {}
        return FittedStyle.of(record, tensors, name).judge(prompt.category)

    def unit(self) -> tuple[float, float]:
        """Zero and one of its levels, in scores: of a rate they are 0 and 1."""
        seed = next(s for s in self.run.results.seeds if s.seed == self.artefacts.seed)
        if not seed.style:
            return 0.0, 1.0
        unit = seed.style.unit
        assert unit.negative is not None
        assert unit.positive is not None
        return unit.negative, unit.positive


def dissociate(
    model: ChatModel, first: BehaviourRun, second: BehaviourRun, max_new_tokens: int = 64
) -> DissociationRecord:
    """Ablate the direction and a null of either run on the positives of both, and compare the candidates.

    Raises InputError if the runs have the same behaviour, or if `model` is not the model of both runs.
    """
    if first.behaviour == second.behaviour:
        raise InputError(f"both runs are about {first.behaviour}: give runs of two behaviours (--behaviour WORD).")
    sides = (first, second)
    for side in sides:
        side.run.check_model(model)
    runner = Runner(model)
    arms = [
        BASELINE,
        *(Arm(s.behaviour, (Ablate(s.direction, spared=s.spared),)) for s in sides),
        *(Arm(f"null of {s.behaviour}", (Ablate(s.null, spared=s.spared),)) for s in sides),
    ]
    table: list[DissociationCell] = []
    for side in sides:
        chat = side.run.chat(model, side.template, side.contrast.prompts)
        header = header_text(chat, side.artefacts.read(MetricTokens).start)
        completions = complete(runner, chat, side.prompts, arms, max_new_tokens, header)
        judges = [side.judge(prompt) for prompt in side.prompts]
        zero, one = side.unit()
        levels = np.array(
            [[(score - zero) / (one - zero) for score in map(_score, judges, texts)] for texts in completions]
        )
        table += [_cell(side.behaviour, arm.name, levels[0], level) for arm, level in zip(arms, levels, strict=True)]
    finding, sentence = _finding(table, first.behaviour, second.behaviour)
    return DissociationRecord(
        model=model.name,
        runs=(_reference(first), _reference(second)),
        behaviours=(first.behaviour, second.behaviour),
        margins=DissociationMargins(taken=OWN, left=CROSS),
        table=tuple(table),
        cosine=_cosines(first, second),
        finding=finding,
        sentence=sentence,
    )


def _reference(side: BehaviourRun) -> RunReference:
    return RunReference(side.run.directory.protocol_sha256, side.artefacts.seed)


def _score(judge: TextJudge, text: str | None) -> float:
    """The score of an answer; NaN for a completion that is unscored."""
    value = score_of(judge, text).value
    return float("nan") if value is None else value


def _cell(behaviour: str, ablated: str, before: Levels, after: Levels) -> DissociationCell:
    """The decrease of the level on the same prompts.

    The interval of a rate is that of `paired_difference`, because a bootstrap interval of 0 or 1 has no width.
    """
    scored = np.isfinite(before) & np.isfinite(after)
    before, after = before[scored], after[scored]
    if not len(before):
        raise InputError(
            f"{behaviour}: no prompt has an answer both at baseline and under ablation of {ablated}. Raise "
            "--max-new-tokens."
        )
    if set(before) | set(after) <= {0.0, 1.0}:
        drop, low, high, n = paired_difference(before > 0, after > 0)
    else:
        change, rng = before - after, np.random.default_rng(0)
        means = change[rng.integers(len(change), size=(DRAWS, len(change)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975]).tolist()
        drop, n = float(change.mean()), len(change)
    return DissociationCell(behaviour, ablated, float(after.mean()), n, drop, low, high)


def _cosines(first: BehaviourRun, second: BehaviourRun) -> DissociationCosines:
    """Cosine of the two selected directions, and of the candidates of every layer at the first run's position."""
    (a, at), (b, other) = ((s.artefacts.candidates, s.artefacts.positions) for s in (first, second))
    selected, position = float(first.direction.vector @ second.direction.vector), first.direction.position
    by_layer: tuple[LayerCosine, ...] = ()
    if position in at and position in other:
        x, y = a[at.index(position)].float(), b[other.index(position)].float()
        by_layer = tuple(LayerCosine(layer, _cosine(x[layer], y[layer])) for layer in range(x.shape[0]))
    return DissociationCosines(selected, by_layer, position)


def _cosine(x: Vector, y: Vector) -> float | None:
    """Cosine of two vectors; None if one is zero."""
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms > 1e-12 else None


def _finding(table: Sequence[DissociationCell], first: str, second: str) -> tuple[DissociationFinding, str]:
    """DOUBLE-DISSOCIATION if each direction removes its own behaviour and leaves the other; else the reasons."""
    at = {(cell.behaviour, cell.ablated): cell for cell in table}
    faults, effects = [], []
    for own, other in ((first, second), (second, first)):
        by_own, by_other = at[own, own], at[own, other]
        effects.append(f"ablating {own} lowers {own} by {_interval(by_own)}, ablating {other} by {_interval(by_other)}")
        if by_own.low < OWN:
            faults.append(f"{own} is not removed by its own direction")
        if by_other.high > CROSS:
            faults.append(f"{own} is affected by the direction of {other}")
        if any(at[own, f"null of {behaviour}"].high > CROSS for behaviour in (first, second)):
            faults.append(f"{own} is affected by a null direction")
    finding: DissociationFinding = "NOT-DISSOCIATED" if faults else "DOUBLE-DISSOCIATION"
    because = f" ({'; '.join(faults)})" if faults else ""
    return finding, f"{finding}{because}: {'; '.join(effects)}."


def _interval(cell: DissociationCell) -> str:
    return f"{cell.drop:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
