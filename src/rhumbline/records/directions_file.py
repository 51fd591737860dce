"""analyses/directions.json of a run, and its parts while the analysis is unfinished, as records."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from msgspec import Struct, field

from rhumbline.records.analysis_files import Mean, MeanRate, Rate
from rhumbline.records.plan_checks import not_a_share, outside, refuse, too_small, unknown
from rhumbline.records.shared import Site

SourceName = Literal["candidates", "clusters", "som", "gradient", "cone"]
"""Source of further directions."""
SOURCES: tuple[SourceName, ...] = get_args(SourceName)
SpanFamily = Literal["isotropic", "energy-matched"]
"""Family of random spans."""
SPAN_FAMILIES: tuple[SpanFamily, ...] = get_args(SpanFamily)


@dataclass(frozen=True)
class DirectionsPlan:
    """What is measured."""

    sources: tuple[str, ...] = SOURCES
    max_rank: int = 4
    """Largest rank of a span."""
    pool: int = 12
    """Other candidates that can be added: those with the lowest bypass scores."""
    members: int = 4
    """Prototypes of `clusters` and `som`; with `max_rank`, bounds the vectors of a `cone`."""
    draws: int = 3
    """Random spans of each family at each rank."""
    samples: int = 4
    """Directions drawn in the cone of the members at each rank."""
    prompts: int = 64
    """Test prompts per class, at most."""
    steps: int = 60
    """Steps of each gradient search."""

    def __post_init__(self):
        refuse(
            "directions",
            unknown("sources", self.sources, SOURCES),
            too_small(self, max_rank=2, pool=1, members=1, draws=1, samples=1, prompts=2, steps=1),
        )

    @property
    def source_names(self) -> tuple[SourceName, ...]:
        """The sources, which are checked."""
        return cast(tuple[SourceName, ...], self.sources)


QUICK = DirectionsPlan(max_rank=3, pool=6, members=3, draws=2, samples=2, prompts=40, steps=20)
"""The plan of `--quick`; with fewer than 35 prompts the rule could not answer ONE-IS-ENOUGH."""


@dataclass(frozen=True)
class DirectionsRule:
    """When one direction is enough and when more help; fixed before the test prompts are read."""

    min_baseline: float = 0.5
    """Smallest rate of the behaviour on test positives at baseline."""
    min_drop: float = 0.5
    """Smallest decrease of the rate by the first direction; the whole interval must reach it."""
    margin: float = 0.1
    """Smallest further decrease of the rate; the whole interval must lie above it, or below it."""
    max_kl: float = 0.2
    """Largest mean KL divergence on negatives, nats; a larger one is damage."""

    def __post_init__(self):
        refuse(
            "directions",
            outside("margin", self.margin, lambda x: 0 < x < 1, "a number between 0 and 1"),
            not_a_share("min_baseline", self.min_baseline),
            not_a_share("min_drop", self.min_drop),
            outside("max_kl", self.max_kl, lambda x: x > 0, "a number above 0"),
        )


@dataclass(frozen=True)
class DirectionsParameters:
    """Arguments of the analysis."""

    plan: DirectionsPlan
    rule: DirectionsRule


@dataclass(frozen=True)
class Member:
    """One member of a span by itself: rate on positives under its ablation, and on negatives under its addition."""

    rank: int
    """That of the first span that contains it; 1 is the run's direction."""
    cosine: float
    suppressed: Rate
    induced: Rate


@dataclass(frozen=True)
class CosineChange:
    """Change of the residual stream's cosine with member `read` under ablation of member `ablated`."""

    ablated: int
    """From 1, as `read`."""
    read: int
    change: float
    """Mean |change| of the cosine over validation positives and layers."""


@dataclass(frozen=True)
class ValidationRank:
    """One rank on validation prompts: rate and mean metric (log-odds) of positives, mean KL (nats) of negatives."""

    rank: int
    rate: float
    metric: float | None
    kl: float | None
    n: int


@dataclass(frozen=True)
class Suppression:
    """Effect of the ablation of a span on test positives; `metric` in log-odds."""

    rate: float
    """Remaining rate; for random spans the mean over the draws."""
    drop: MeanRate
    """Rate at baseline minus the remaining rate."""
    metric: Mean


@dataclass(frozen=True)
class RandomSpans:
    """Random spans of one family and rank; `kl` on test negatives, nats."""

    suppression: Suppression
    kl: Mean
    energy: float
    """Mean share of the squared norm of the residual stream."""


@dataclass(frozen=True)
class RankedSpan:
    """The span of one rank on test prompts; `kl` on negatives, nats."""

    rank: int
    suppression: Suppression
    kl: Mean
    values: tuple[float | None, ...]
    """Token metric of every test positive, log-odds, to five decimals."""
    energy: float
    random: dict[SpanFamily, RandomSpans]
    """Random spans of the same rank; empty at rank 1."""


class Gain(Struct, frozen=True, kw_only=True):
    """Further decrease of rate and metric of test positives by a span, compared with a narrower one."""

    lower: int = field(name="from")
    higher: int = field(name="to")
    mean: float
    """-1 to 1, with Newcombe's interval."""
    low: float
    high: float
    n: int
    metric: Mean


@dataclass(frozen=True)
class ChosenRank:
    """The best rank on validation positives, measured on test prompts; `gain` compared with rank 1, `kl` in nats."""

    rank: int
    val_rate: float
    val_metric: float | None
    gain: Gain
    beyond_random: dict[SpanFamily, MeanRate]
    """Decrease of the rate minus that by random spans of the same rank."""
    kl: Mean


@dataclass(frozen=True)
class ConeSuppression:
    """Rates on positives under ablation of single directions of a cone: their mean, and the largest."""

    mean: float
    worst: float


@dataclass(frozen=True)
class ConeInduction:
    """Rates on negatives under addition of single directions of a cone: their mean (Wilson), and the smallest."""

    mean: float
    worst: float
    low: float
    high: float


@dataclass(frozen=True)
class ConeEffects:
    """Effects of directions that are drawn in one cone."""

    suppressed: ConeSuppression
    induced: ConeInduction


@dataclass(frozen=True)
class Cone:
    """Effects of directions that are drawn in the cone of some members, and in a random cone."""

    members: int
    samples: int
    suppressed: ConeSuppression
    induced: ConeInduction
    random: ConeEffects
    """In the cone of the run's direction and random vectors, of the same number."""


@dataclass(frozen=True)
class SourceRecord:
    """Results for one source of further directions."""

    members: tuple[Member, ...]
    """The run's direction, then the further members in order."""
    independence: tuple[CosineChange, ...]
    """Every ordered pair of members."""
    validation: tuple[ValidationRank, ...]
    ranks: tuple[RankedSpan, ...]
    gains: tuple[Gain, ...]
    """Every rank compared with the rank below."""
    chosen: ChosenRank | None
    """None if no member could be added."""
    cone: tuple[Cone, ...]
    """The cone of the members at every rank."""


@dataclass(frozen=True)
class DirectionsVerdict:
    """Whether one direction is enough, and the numbers that the answer follows from."""

    answer: Literal["ONE-IS-ENOUGH", "MORE-HELPS", "UNDETERMINED", "NO-BASELINE"]
    reason: str
    source: SourceName | None = None
    """The source whose further directions decrease the rate; None unless more directions help."""


@dataclass(frozen=True, kw_only=True)
class DirectionsRecord:
    """analyses/directions.json: suppression, induction and side effects by rank."""

    analysis: Literal["directions"] = "directions"
    seed: int
    site: Site
    parameters: DirectionsParameters
    baseline: Rate
    """Rate on test positives at baseline: the share with a token metric above 0."""
    sources: dict[SourceName, SourceRecord]
    """Results by source, in the order of the plan."""
    verdict: DirectionsVerdict
