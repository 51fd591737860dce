"""Classes of the completions of a run's prompts under arms, their rates and paired changes, and null directions.

Shared by the analyses that complete texts. The judge and the header are those of the run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rhumbline.analyses.subject import Subject, protocol_with_classes
from rhumbline.axes import TokenIds
from rhumbline.evidence.class_rates import (
    SHOWN,
    SHOWN_OR_DEGENERATE,
    class_rate,
    degenerate_share,
    indicators,
    measured_classes,
)
from rhumbline.evidence.statistics import difference_of_rates, paired_difference, wilson_of_rate
from rhumbline.inference.interventions import Arm, Direction
from rhumbline.judging.score import score_of
from rhumbline.prompts.contrasts import Prompt
from rhumbline.protocol import Protocol
from rhumbline.records.analysis_files import MeanRate, Rate
from rhumbline.records.seed_files import MetricTokens, NullDirections
from rhumbline.records.shared import Class
from rhumbline.records.trajectory_file import Change, NullChange
from rhumbline.records.verdict_rule import is_comparable
from rhumbline.stages.common_start import header_text
from rhumbline.stages.completions import answers
from rhumbline.stages.null_families import generator, isotropic
from rhumbline.stages.seed_artefacts import Null, SeedArtefacts

Classes = Sequence[Class]
"""Of one arm: the class of the completion of every prompt."""


def header_of(subject: Subject) -> str:
    """The header that is removed from the beginning of an answer."""
    return header_text(subject.chat, subject.directory.read_record(MetricTokens, subject.seed).start)


def classes_of(subject: Subject, prompts: Sequence[Prompt], arms: Sequence[Arm], length: int) -> list[Classes]:
    """The class of the completion of every prompt under every arm, by arm."""
    return answer_classes(subject, [subject.chat.encode(prompt) for prompt in prompts], arms, length)


def answer_classes(subject: Subject, sequences: Sequence[TokenIds], arms: Sequence[Arm], length: int) -> list[Classes]:
    """The same for token ids of any chats. If most completions of an arm are unscored, all are, as in a run."""
    judge = protocol_with_classes(subject.directory).class_judge()
    texts = answers(subject.runner, subject.chat, sequences, arms, length, header_of(subject))
    return [measured_classes([score_of(judge, text).cls for text in of_arm]) for of_arm in texts]


# -- rates and changes ------------------------------------------------------------------------------------------------


def rate_of(classes: Classes) -> Rate | None:
    """Share of the scored completions that shows the behaviour; None without any."""
    n, rate, low, high = class_rate(classes)
    return None if rate is None else Rate(rate, low, high, n)


def rate_over_draws(classes: Sequence[Sequence[str]], shown: frozenset[str] | set[str] = SHOWN) -> Rate | None:
    """Share of the scored completions in `shown`, with the interval of as many prompts as have a scored one."""
    scored = [cls in shown for of_draw in classes for cls in of_draw if cls != "unscored"]
    n = sum(any(cls != "unscored" for cls in of_prompt) for of_prompt in zip(*classes, strict=True))
    if not scored:
        return None
    rate = sum(scored) / len(scored)
    return Rate(rate, *wilson_of_rate(rate, n), n)


def change_of(before: Classes, after: Classes, *, rises: bool = False) -> Change:
    """The rate after, and its decrease (`rises`: its increase) on the prompts that are scored in both."""
    return Change(rate_of(after), change_over_draws(before, [after], rises=rises), degenerate_share(after))


def change_over_draws(before: Classes, draws: Sequence[Classes], *, rises: bool = False) -> MeanRate | None:
    """The paired change to the mean of several draws, on the prompts that are scored in both; None without any.

    A degenerate completion is no change: it counts as shown if the behaviour should be removed, otherwise as not shown.
    """
    first = indicators(before, SHOWN)
    each = np.stack([indicators(after, SHOWN if rises else SHOWN_OR_DEGENERATE) for after in draws])
    known = np.isfinite(each)
    scored = np.isfinite(first) & known.any(0)
    if not scored.any():
        return None
    second = np.where(known, each, 0).sum(0)[scored] / known.sum(0)[scored]
    pair = (second, first[scored]) if rises else (first[scored], second)
    return MeanRate(*paired_difference(*pair))


def null_change(changes: Sequence[Change]) -> NullChange:
    """Mean and maximum of the changes under the draws of a family."""
    known = [c.change.mean for c in changes if c.change is not None]
    broken = [c.degenerate for c in changes if c.degenerate is not None]
    mean, share = (float(np.mean(some)) if some else None for some in (known, broken))
    return NullChange(len(changes), mean, max(known, default=None), share)


def beyond(own: Classes, nulls: Mapping[str, Sequence[Classes]], *, rises: bool = False) -> MeanRate | None:
    """The effect of the direction minus the mean one of the null family with the largest; None if one is unknown.

    A degenerate completion is no effect, as in `change_over_draws`. The rates are treated as independent.
    """
    counted = SHOWN if rises else SHOWN_OR_DEGENERATE

    def rate(classes: Classes) -> float:
        """The rate after the effect; NaN without a scored completion."""
        shown = indicators(classes, counted)
        return float(shown[np.isfinite(shown)].mean()) if np.isfinite(shown).any() else math.nan

    known = ([r for r in map(rate, some) if math.isfinite(r)] for some in nulls.values())
    means = [sum(some) / len(some) for some in known if some]
    own_rate, n = rate(own), int(np.isfinite(indicators(own, counted)).sum())
    if n == 0 or not means:
        return None
    first, second = (own_rate, max(means)) if rises else (min(means), own_rate)
    return MeanRate(*difference_of_rates(first, second, n))


# -- null directions --------------------------------------------------------------------------------------------------


def null_directions(subject: Subject, like: Direction, draws: int) -> dict[str, list[Direction]]:
    """`draws` isotropic directions of the norm and site of `like`, and one draw of every other family of the run.

    It is the first draw that the rule of the run would compare with `like` and with the direction of the run: its
    |cosine| with either is not too large.
    """
    nulls: dict[str, list[Direction]] = {"isotropic": []}
    for draw in range(draws):
        vector = isotropic(subject.model.d_model, generator(subject.seed, "isotropic", draw))
        nulls["isotropic"].append(Direction.from_vector(vector / vector.norm() * like.norm, like.position, like.layer))
    if subject.directory.has(NullDirections, subject.seed):
        limit = Protocol.of(subject.directory.protocol).rule.same_cosine
        compared = [like] if subject.direction is None else [like, subject.direction]
        drawn = (n for n in SeedArtefacts(subject.directory, subject.seed).nulls if n.family not in nulls)
        nulls |= {family: [one] for family, one in first_comparable(drawn, compared, limit).items()}
    return nulls


def first_comparable(
    nulls: Iterable[Null], directions: Sequence[Direction], same_cosine: float | None
) -> dict[str, Direction]:
    """The first draw of each family that is aligned with none of the directions."""
    found: dict[str, Direction] = {}
    for null in nulls:
        cosines = (float(null.direction.vector @ d.vector) for d in directions)
        if null.family not in found and all(is_comparable(cosine, same_cosine) for cosine in cosines):
            found[null.family] = null.direction
    return found
