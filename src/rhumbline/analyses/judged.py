"""Classes of the completions of a run's prompts under arms, their rates and paired changes, and null directions.

Shared by the analyses that complete texts. The judge and the header are those of the run.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rhumbline.analyses.subject import Subject
from rhumbline.errors import ProtocolError
from rhumbline.evidence.class_rates import SHOWN, class_rate, degenerate_share
from rhumbline.evidence.statistics import difference_of_rates, paired_difference
from rhumbline.inference.interventions import Arm, Direction
from rhumbline.judging.score import score_of
from rhumbline.prompts.contrasts import Prompt
from rhumbline.protocol import Protocol
from rhumbline.records.analysis_files import MeanRate, Rate
from rhumbline.records.seed_files import MetricTokens, NullDirections
from rhumbline.records.shared import Class
from rhumbline.records.trajectory_file import Change, NullChange
from rhumbline.stages.common_start import header_text
from rhumbline.stages.completions import complete
from rhumbline.stages.null_families import generator, isotropic
from rhumbline.stages.seed_artefacts import SeedArtefacts

Classes = Sequence[Class]
"""Of one arm: the class of the completion of every prompt."""


def protocol_with_classes(subject: Subject) -> Protocol:
    """The protocol of the run; ProtocolError if its judge gives no classes."""
    protocol = Protocol.of(subject.directory.protocol)
    if protocol.is_continuous:
        raise ProtocolError(
            f"{subject.directory.path}: judge {protocol.judge} gives a continuous score, and this analysis counts "
            "classes of completions. Use a run of a behaviour with classes, such as refusal."
        )
    return protocol


def header_of(subject: Subject) -> str:
    """The header that is removed from the beginning of an answer."""
    return header_text(subject.chat, subject.directory.read_record(MetricTokens, subject.seed).start)


def classes_of(subject: Subject, prompts: Sequence[Prompt], arms: Sequence[Arm], length: int) -> list[Classes]:
    """The class of the completion of every prompt under every arm, by arm."""
    judge = protocol_with_classes(subject).class_judge()
    texts = complete(subject.runner, subject.chat, prompts, arms, length, header_of(subject))
    return [[score_of(judge, text).cls for text in of_arm] for of_arm in texts]


# -- rates and changes ------------------------------------------------------------------------------------------------


def rate_of(classes: Classes) -> Rate | None:
    """Share of the scored completions that shows the behaviour; None without any."""
    n, rate, low, high = class_rate(classes)
    return None if rate is None else Rate(rate, low, high, n)


def change_of(before: Classes, after: Classes, *, rises: bool = False) -> Change:
    """The rate after, and its decrease (`rises`: its increase) on the prompts that are scored in both."""
    pairs = [(a in SHOWN, b in SHOWN) for a, b in zip(before, after, strict=True) if "unscored" not in (a, b)]
    change = None
    if pairs:
        first, second = np.array(pairs).T
        change = MeanRate(*paired_difference(*((second, first) if rises else (first, second))))
    return Change(rate_of(after), change, degenerate_share(after))


def null_change(changes: Sequence[Change]) -> NullChange:
    """Mean and maximum of the changes under the draws of a family."""
    known = [c.change.mean for c in changes if c.change is not None]
    return NullChange(len(changes), float(np.mean(known)) if known else None, max(known, default=None))


def beyond(own: Change, nulls: Mapping[str, Sequence[Change]], *, rises: bool = False) -> MeanRate | None:
    """The difference of the direction's rate and the mean rate of the family with the largest mean change."""
    means = {family: [c for c in some if c.change is not None and c.rate is not None] for family, some in nulls.items()}
    means = {family: some for family, some in means.items() if some}
    if own.rate is None or not means:
        return None
    strongest = max(means.values(), key=lambda some: np.mean([c.change.mean for c in some if c.change]))
    other = float(np.mean([c.rate.rate for c in strongest if c.rate]))
    first, second = (own.rate.rate, other) if rises else (other, own.rate.rate)
    return MeanRate(*difference_of_rates(first, second, own.rate.n))


# -- null directions --------------------------------------------------------------------------------------------------


def null_directions(subject: Subject, like: Direction, draws: int) -> dict[str, list[Direction]]:
    """`draws` isotropic directions of the norm and site of `like`, and the first draw of every other family of the run.

    The isotropic ones are those of the run, as far as it has them.
    """
    nulls: dict[str, list[Direction]] = {"isotropic": []}
    for draw in range(draws):
        vector = isotropic(subject.model.d_model, generator(subject.seed, "isotropic", draw))
        nulls["isotropic"].append(Direction.from_vector(vector / vector.norm() * like.norm, like.position, like.layer))
    if subject.directory.has(NullDirections, subject.seed):
        for null in SeedArtefacts(subject.directory, subject.seed).nulls:
            if null.family not in nulls:
                nulls[null.family] = [null.direction]
    return nulls
