"""Dissociation: do two behaviours of one model have different directions? Two finished runs in, a record out.

Each run's direction is ablated on the positives of both runs. In a double dissociation (Teuber 1955) each direction
removes its own behaviour and leaves the other one unaffected. A null of each run is ablated as well, to detect
behaviours that any ablation removes. Broken text is neither a removal nor shows that a behaviour is unaffected.
Independent of the verdicts of the runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from rhumbline.axes import Vector
from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.class_rates import degenerate_share, is_measured
from rhumbline.evidence.statistics import LEAST_RESAMPLED, bootstrap_mean, finite_or_none, paired_difference
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.score import Score, TextJudge, score_of
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import ContrastSet, Prompt
from rhumbline.records.analysis_files import LayerCosine
from rhumbline.records.results import LevelUnit
from rhumbline.records.seed_files import MetricTokens, SplitIds, StyleJudges
from rhumbline.records.sheet_files import (
    DissociationCell,
    DissociationCosines,
    DissociationFinding,
    DissociationMargins,
    DissociationRecord,
    RunReference,
)
from rhumbline.records.verdict_rule import is_comparable
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
    contrast: ContrastSet
    prompts: tuple[Prompt, ...]
    """Its test positives."""
    behaviour: str
    unit: tuple[float, float] | None
    """Zero and one of its levels, in scores; None for a behaviour with classes, whose level is a rate."""
    template: str | None = None
    """The chat template that the run was given, if any."""

    @classmethod
    def open(
        cls, path: str | Path, contrast: ContrastSet, seed: int | None = None, template: str | None = None
    ) -> "BehaviourRun":
        """The run and the prompts that it tested; InputError of another contrast, or without a direction or a unit."""
        run = open_run(path)
        artefacts, contrast = run.artefacts(seed), run.contrast(contrast)
        if artefacts.direction is None:
            raise InputError(f"{path} selected no direction at seed {artefacts.seed}. Give a run with a direction.")
        if not artefacts.nulls:
            raise InputError(f"{path} was made without nulls, the controls of its direction. Give a run with nulls.")
        ids = set(artefacts.read(SplitIds).ids.test.positive)
        prompts = tuple(p for p in contrast.prompts if p.id in ids)
        unit = _unit(run, artefacts.seed)
        return cls(run, artefacts, artefacts.direction, contrast, prompts, run.protocol.behaviour, unit, template)

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

    def null(self, directions: Sequence[Direction]) -> Direction:
        """The first covariance draw that is comparable with all the directions, or else the first draw of any family.

        Comparable by the rule of this run: a draw that is aligned with a direction is no null of it. Raises
        ProtocolError if no draw is comparable.
        """
        limit = self.run.protocol.rule.same_cosine
        comparable = [
            null
            for null in self.artefacts.nulls
            if all(is_comparable(float(null.direction.vector @ d.vector), limit) for d in directions)
        ]
        if not comparable:
            raise ProtocolError(
                f"{self.run.path}: each of its {len(self.artefacts.nulls)} null draws at seed {self.artefacts.seed} is "
                f"aligned with the direction of one of the runs (|cosine| above {limit}), so none is a control. Repeat "
                "the run with more draws (--wide-nulls 19)."
            )
        # Isotropic draws remove next to nothing; a covariance draw removes what the stream has along a random axis.
        return next((n for n in comparable if n.family == "covariance"), comparable[0]).direction


def _unit(run: FinishedRun, seed: int) -> tuple[float, float] | None:
    """Mean scores of negatives and positives of a continuous score; None for a rate."""
    style = next(s for s in run.results.seeds if s.seed == seed).style
    return _ends(style.unit, f"{run.path}, seed {seed}") if style else None


def _ends(unit: LevelUnit, name: str) -> tuple[float, float]:
    """The scores of the levels 0 and 1; InputError if they are not known, or if there is no gap between them."""
    if unit.negative is None or unit.positive is None or unit.positive <= unit.negative:
        raise InputError(
            f"{name}: the mean score of the positives at baseline is not above that of the negatives, so levels have "
            "no unit. Give a run in which the score separates the classes."
        )
    return unit.negative, unit.positive


def dissociate(
    model: ChatModel, first: BehaviourRun, second: BehaviourRun, max_new_tokens: int = 64
) -> DissociationRecord:
    """Ablate the direction and a null of either run on the positives of both, and compare the candidates.

    Raises InputError if the runs have the same behaviour, if `model` is not the model of both runs, or if the baseline
    of a run is not measured; ProtocolError if a run has no comparable null.
    """
    if first.behaviour == second.behaviour:
        raise InputError(f"both runs are about {first.behaviour}: give runs of two behaviours (--behaviour WORD).")
    sides = (first, second)
    for side in sides:
        side.run.check_model(model)
    runner = Runner(model)
    directions = [side.direction for side in sides]
    arms = [
        BASELINE,
        *(Arm(s.behaviour, (Ablate(s.direction, spared=s.spared),)) for s in sides),
        *(Arm(f"null of {s.behaviour}", (Ablate(s.null(directions), spared=s.spared),)) for s in sides),
    ]
    table: list[DissociationCell] = []
    for side in sides:
        chat = side.run.chat(model, side.template, side.contrast.prompts)
        header = header_text(chat, side.artefacts.read(MetricTokens).start)
        completions = complete(runner, chat, side.prompts, arms, max_new_tokens, header)
        judges = [side.judge(prompt) for prompt in side.prompts]
        measured = [_Completions.of([*map(score_of, judges, texts)], side.unit) for texts in completions]
        if not np.isfinite(measured[0].levels).any():
            raise InputError(
                f"{side.behaviour}: most completions at baseline have no answer within {max_new_tokens} tokens, in a "
                "language that the judge of the run covers. Raise --max-new-tokens."
            )
        table += [_cell(side.behaviour, arm.name, measured[0], m) for arm, m in zip(arms, measured, strict=True)]
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


@dataclass(frozen=True)
class _Completions:
    """The completions of one arm."""

    levels: Levels
    """NaN for an unscored completion; all NaN if most are unscored."""
    broken: Bool[np.ndarray, " prompt"]
    """Which are degenerate."""
    degenerate: float | None
    """Their share of the scored ones."""
    is_rate: bool
    """Whether a level is 1 or 0: the behaviour is shown or not."""

    @classmethod
    def of(cls, scores: Sequence[Score], unit: tuple[float, float] | None) -> "_Completions":
        """The levels of scores, in a unit."""
        classes, (zero, one) = [score.cls for score in scores], unit or (0.0, 1.0)
        values = [np.nan if s.value is None else (s.value - zero) / (one - zero) for s in scores]
        levels = np.array(values if is_measured(classes) else [np.nan] * len(scores))
        broken = np.array([c == "degenerate" for c in classes])
        return cls(levels, broken, degenerate_share(classes), unit is None)

    def under_ablation(self, before: Levels, *, against: bool) -> Levels:
        """The levels, in which degenerate completions count against a removal, or as the largest one.

        Against: the behaviour is shown, or its level has not changed (evidence/rate_effects.py, level_effects.py).
        """
        no_removal = np.ones_like(before) if self.is_rate else before
        return np.where(self.broken, no_removal if against else np.minimum(before, 0.0), self.levels)


def _cell(behaviour: str, ablated: str, baseline: _Completions, arm: _Completions) -> DissociationCell:
    """The decrease of the level on the prompts that are scored in both; None if there are none."""
    before = baseline.levels
    scored = np.isfinite(before) & np.isfinite(arm.levels)
    n = int(scored.sum())
    if n == 0:
        return DissociationCell(behaviour, ablated, None, 0, None, None, None)
    if arm is baseline:
        against = in_favour = before
    else:
        against, in_favour = (arm.under_ablation(before, against=counted) for counted in (True, False))
    (drop, low, high), (_, _, most) = (
        _drop(before[scored], after[scored], baseline.is_rate) for after in (against, in_favour)
    )
    level = float(against[scored].mean())
    most = None if most == high else most
    return DissociationCell(behaviour, ablated, level, n, drop, low, high, most, arm.degenerate)


def _drop(before: Levels, after: Levels, is_rate: bool) -> tuple[float, float | None, float | None]:
    """The mean decrease with its interval, which is not known for levels of few prompts.

    The interval of a rate is that of `paired_difference`, because a bootstrap interval of 0 or 1 has no width.
    """
    if is_rate:
        drop, low, high, _ = paired_difference(before > 0, after > 0)
    else:
        rng = np.random.default_rng(0)
        drop, low, high, _ = bootstrap_mean(before - after, rng, draws=DRAWS, least=LEAST_RESAMPLED)
    return drop, finite_or_none(low), finite_or_none(high)


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
        if by_own.low is None:
            faults.append(f"{own} is not measured under its own direction")
        elif by_own.low < OWN:
            faults.append(f"{own} is not removed by its own direction")
        faults += _affected(by_other, f"the direction of {other}")
        nulls = [at[own, f"null of {behaviour}"] for behaviour in (first, second)]
        # A null that is not measured is skipped, if the other one is.
        nulls = [null for null in nulls if null.high is not None] or nulls[:1]
        faults += dict.fromkeys(fault for null in nulls for fault in _affected(null, "a null direction"))
    finding: DissociationFinding = "NOT-DISSOCIATED" if faults else "DOUBLE-DISSOCIATION"
    because = f" ({'; '.join(faults)})" if faults else ""
    return finding, f"{finding}{because}: {'; '.join(effects)}."


def _affected(cell: DissociationCell, by: str) -> list[str]:
    """Why it is not shown that a behaviour is unaffected by an ablation; empty if it is."""
    if cell.high is None:
        return [f"{cell.behaviour} is not measured under {by}"]
    if cell.high > CROSS:
        return [f"{cell.behaviour} is affected by {by}"]
    if cell.most is not None and cell.most > CROSS:
        return [f"{cell.behaviour} has too many degenerate completions under {by}"]
    return []


def _interval(cell: DissociationCell) -> str:
    if cell.drop is None:
        return "an amount that is not measured"
    low, high = ("unknown" if end is None else f"{end:.2f}" for end in (cell.low, cell.high))
    return f"{cell.drop:.2f} [{low}, {high}]"
