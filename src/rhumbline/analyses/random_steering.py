"""Random steering: random vectors added to test positives, by their size, and what the completions become.

Adding a vector that has nothing to do with a behaviour can remove it (Korznikov et al. 2025, arXiv 2509.22067). The
vectors are isotropic and the same at every size, which is in norms of the residual stream at the layer of the run's
direction, or at the middle layer if no candidate was selected. They are added at all tokens of the block input,
generated ones too. Descriptive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rhumbline.analyses.judged import Classes, change_over_draws, header_of, rate_over_draws
from rhumbline.analyses.subject import Subject, protocol_with_classes
from rhumbline.errors import InputError
from rhumbline.evidence.class_rates import SHOWN, measured_classes
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.inference.residuals import at_site
from rhumbline.judging.judge_specs import JudgeSpec
from rhumbline.judging.judgements import JudgeCompletions
from rhumbline.judging.score import score_of
from rhumbline.records.positions import Position
from rhumbline.records.shared import Site
from rhumbline.records.steering_file import SteeredRates, SteeringPlan, SteeringRecord
from rhumbline.stages.completions import complete

DRAW_SEED = 17
"""Last entry of the seed of the random vectors."""


@dataclass(frozen=True)
class HarmJudge:
    """An external judge of harm, and the function that queries it."""

    spec: JudgeSpec
    judge: JudgeCompletions

    def __post_init__(self):
        check_harm(self.spec)


def check_harm(spec: JudgeSpec) -> None:
    """Raise InputError unless a judge classifies harm."""
    if spec.asks != "harm":
        raise InputError(
            f"judge {spec.name} judges {spec.asks}, and --harm needs a judge of harm. `rhumbline judge --list` shows "
            "the published ones."
        )


def analyse(subject: Subject, plan: SteeringPlan | None = None, harm: HarmJudge | None = None) -> SteeringRecord:
    """Complete the test positives under every random vector at every size, and write analyses/steering.json."""
    plan, site = plan or SteeringPlan(), subject.site or Site(Position(-1), subject.model.n_layers // 2)
    protocol = protocol_with_classes(subject.directory)
    prompts = subject.prompts("test", "positive")[: plan.prompts]
    sequences = [subject.chat.encode(prompt) for prompt in prompts]
    stream = at_site(subject.runner, sequences, site.position, site.layer)
    norm = float(stream.double().norm(dim=1).mean())
    arms = [arm for size in plan.sizes for arm in random_additions(subject, site, size * norm, plan.draws)]
    header = header_of(subject)
    texts = complete(subject.runner, subject.chat, prompts, [BASELINE, *arms], plan.max_new_tokens, header)
    asked = [prompt.text for prompt in prompts]
    judge = protocol.class_judge()
    classes: list[Classes] = [measured_classes([score_of(judge, text).cls for text in of_arm]) for of_arm in texts]
    rows = [_rates(0.0, texts[:1], classes[:1], asked, harm, None)]
    for k, size in enumerate(plan.sizes):
        own = slice(1 + k * plan.draws, 1 + (k + 1) * plan.draws)
        rows.append(_rates(size, texts[own], classes[own], asked, harm, classes[0]))
    record = SteeringRecord(
        seed=subject.seed,
        site=site,
        parameters=plan,
        norm=norm,
        judge=protocol.judge,
        harm_judge=None if harm is None else harm.spec.name,
        rows=tuple(rows),
    )
    return subject.save(record)


def random_additions(subject: Subject, site: Site, norm: float, draws: int) -> list[Arm]:
    """Additions of isotropic vectors of this norm at the layer of a site; the same vectors for every norm."""
    rng = np.random.default_rng([subject.seed, DRAW_SEED])
    vectors = rng.standard_normal((draws, subject.model.d_model))
    vectors *= norm / np.linalg.norm(vectors, axis=1, keepdims=True)
    steered = (Direction.from_vector(torch.from_numpy(v), site.position, site.layer) for v in vectors)
    return [Arm(f"random {draw}", (Add(one),)) for draw, one in enumerate(steered)]


def _rates(
    size: float,
    texts: Sequence[Sequence[str | None]],
    classes: Sequence[Classes],
    prompts: Sequence[str],
    harm: HarmJudge | None,
    before: Classes | None,
) -> SteeredRates:
    """The rates over the completions [draw][prompt] of one size."""
    return SteeredRates(
        size=size,
        refused=rate_over_draws(classes, SHOWN),
        complied=rate_over_draws(classes, {"complied"}),
        degenerate=rate_over_draws(classes, {"degenerate"}),
        harmful=None
        if harm is None
        else rate_over_draws([_harm(harm, prompts, of_draw) for of_draw in texts], {"unsafe"}),
        unscored=sum(cls == "unscored" for of_draw in classes for cls in of_draw),
        drop=None if before is None else change_over_draws(before, classes),
        by_draw=tuple(
            None if (rate := rate_over_draws([of_draw], SHOWN)) is None else rate.rate for of_draw in classes
        ),
    )


def _harm(harm: HarmJudge, prompts: Sequence[str], texts: Sequence[str | None]) -> list[str]:
    """The class of every completion by the judge of harm; one without an answer is unscored and is not read."""
    read = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text is not None]
    judged = iter(harm.judge([prompt for prompt, _ in read], [text for _, text in read]))
    return ["unscored" if text is None else next(judged).cls for text in texts]
