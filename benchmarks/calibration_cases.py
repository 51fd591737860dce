"""The runs of the calibration study: models, labels and seeds.

The studies depend on the first seed only, so that a rule is tuned on other seeds than those that are reported. Nothing
runs here.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from rhumbline.organisms.planted import Planted

SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    group: str
    """null, power, several, full (power with the default number of draws), cone, fragile or narrow."""
    kind: str
    n: int
    """Train prompts, and test prompts, per class; validation has half of them, and at least 8."""
    seed: int
    planted: Planted | None = None
    """None: a trained organism, named by `kind`."""
    labels: str = "true"
    """true, permuted (at random), mixed (three quarters of each class are refused), or category (irrelevant to the
    behaviour)."""

    @property
    def name(self) -> str:
        """Key of the run in the file."""
        return f"{self.group}/{self.kind}/n{self.n}/s{self.seed}"


def first_study(first: int) -> Iterator[Case]:
    """The runs that were reported first, in an order that mixes the groups in proportion."""
    rng = random.Random(first)
    yield from interleaved([list(make(first, rng)) for make in (_nulls, _power, _several, _wide)])
    yield from _full(first, random.Random(first))


def interleaved(groups: Sequence[Sequence[Case]]) -> Iterator[Case]:
    """All groups mixed in proportion, so that a stopped study is a smaller study of the same mixture."""
    longest = max(len(g) for g in groups)
    keyed = [((i + 1) / len(g) * longest, k, case) for k, g in enumerate(groups) for i, case in enumerate(g)]
    yield from (case for _, _, case in sorted(keyed, key=lambda item: item[:2]))


def _nulls(first: int, rng: random.Random) -> Iterator[Case]:
    """Models whose refusals do not depend on the labels."""
    seed = first
    for repeat in range(9):
        for n in SIZES if repeat < 1 else SIZES[:-1]:
            prompts = 3 * n + 16
            for rate in (0.5, 0.75):
                one = Planted(positive_rate=rate, negative_rate=rate, prompts=prompts, seed=seed)
                yield Case("null", f"planted axis, rate {rate}", n, seed, one)
                several = replace(one, axes=rng.choice((2, 4, 6)), effect=1.5, jitter=0.05)
                yield Case("null", f"planted axes at random, rate {rate}", n, seed + 1, several)
            yield Case("null", "planted, labels permuted", n, seed + 2, Planted(prompts=prompts, seed=seed), "permuted")
            seed += 5
        if repeat % 2 == 0:
            yield Case("null", "planted, never refuses", SIZES[repeat // 2 % 4], seed, Planted(effect=0.0, prompts=200))
    for n in (8, 16):
        for _ in range(4):
            yield Case("null", "trained, labels permuted", n, seed, None, "permuted")
            yield Case("null", "trained, labels irrelevant", n, seed + 1, None, "category")
            seed += 2


def _power(first: int, rng: random.Random) -> Iterator[Case]:
    """Models with one axis: effect, noise, width and number of prompts vary."""
    for i in range(198):
        seed, n = first + 3000 + i, rng.choice((8, 8, 16, 16, 32, 32, 64))
        spec = Planted(
            effect=rng.choice((0.7, 0.85, 1.0, 1.2, 1.5, 2.0)),
            noise=rng.choice((0.5, 1.0, 2.0, 4.0)),
            d_model=rng.choice((16, 32, 64, 256)),
            prompts=3 * n + 16,
            seed=seed,
        )
        yield Case("power", "planted", n, seed, spec)


def _several(first: int, rng: random.Random) -> Iterator[Case]:
    """Models that refuse along any of several axes."""
    for i in range(36):
        seed, n = first + 5000 + i, rng.choice((16, 16, 32, 64))
        axes, effect = rng.choice((2, 3, 4, 6)), rng.choice((1.0, 1.1, 1.2, 1.5, 2.0, 2.5))
        spec = Planted(axes=axes, effect=effect, jitter=rng.choice((0.05, 0.15)), prompts=3 * n + 16, seed=seed)
        yield Case("several", f"{axes} planted axes", n, seed, spec)


def _full(first: int, rng: random.Random) -> Iterator[Case]:
    """The default number of draws with a clear effect and moderate noise; the correct verdict is SINGLE."""
    for i in range(40):
        seed, n = first + 8000 + i, (32, 64)[i % 2]
        spec = Planted(effect=rng.choice((1.0, 1.2, 1.5)), d_model=rng.choice((64, 128)), prompts=3 * n + 16, seed=seed)
        yield Case("full", "planted, default draws", n, seed, spec)


def _wide(first: int, rng: random.Random) -> Iterator[Case]:
    """A few runs with the largest widths."""
    for i in range(4):
        yield Case("several", "trained, extended refusals", (16, 32)[i % 2], first + 7000 + i, None)
    for i, width in enumerate((1024, 1024, 4096)):
        seed = first + 6000 + i
        spec = Planted(effect=rng.choice((0.9, 1.2)), noise=1.0, d_model=width, n_layers=4, prompts=64, seed=seed)
        yield Case("power", "planted", 16, seed, spec)


def more_nulls(first: int) -> Iterator[Case]:
    """Further runs without a direction: if none of them returns SINGLE, the rate is below 1 %."""
    rng = random.Random(first)
    yield from interleaved([list(make(first, rng)) for make in (_more_planted, _more_trained, _more_wide)])


def _more_planted(first: int, rng: random.Random) -> Iterator[Case]:
    seed = first
    for repeat in range(13):
        for n in SIZES if repeat == 0 else SIZES[:-1]:
            prompts = 3 * n + 16
            for rate in (0.5, 0.6, 0.75):
                one = Planted(positive_rate=rate, negative_rate=rate, prompts=prompts, seed=seed)
                yield Case("null", f"planted axis, rate {rate}", n, seed, one)
                seed += 1
            for rate in (0.5, 0.75):
                several = Planted(
                    axes=rng.choice((2, 4, 6)), effect=1.5, jitter=0.05, positive_rate=rate, negative_rate=rate,
                    prompts=prompts, seed=seed,
                )  # fmt: skip
                yield Case("null", f"planted axes at random, rate {rate}", n, seed, several)
                seed += 1
            yield Case("null", "planted, labels permuted", n, seed, Planted(prompts=prompts, seed=seed), "permuted")
            seed += 1


def _more_trained(first: int, rng: random.Random) -> Iterator[Case]:
    for i in range(72):
        n, seed = (8, 16, 8, 16, 32)[i % 5], first + 3000 + i
        kind, labels = (
            ("trained, refusals at random, rate 0.75", "mixed"),
            ("trained, labels permuted", "permuted"),
            ("trained, labels irrelevant", "category"),
        )[i % 3]
        yield Case("null", kind, n, seed, None, labels)


def _more_wide(first: int, rng: random.Random) -> Iterator[Case]:
    for i, width in enumerate((1024, 1024, 1024, 1024, 4096, 4096)):
        seed = first + 4000 + i
        spec = Planted(d_model=width, n_layers=4, positive_rate=0.6, negative_rate=0.6, prompts=64, seed=seed)
        yield Case("null", f"planted axis, rate 0.6, width {width}", 16, seed, spec)


def spread(first: int) -> Iterator[Case]:
    """Models for which a candidate passes and SINGLE is wrong: cones of axes, and fragile models."""
    yield from interleaved([list(make(first, random.Random(first))) for make in (_cones, _fragile)])


def _cones(first: int, rng: random.Random) -> Iterator[Case]:
    """Axes at an angle: their mean suppresses and induces the behaviour, but each prompt is on one axis only."""
    shapes = ((2, 0.2), (2, 0.3), (2, 0.4), (3, 0.4), (4, 0.4), (2, 0.6), (2, 0.8))
    for i in range(42):
        (axes, overlap), n, seed = shapes[i % 7], rng.choice((16, 32, 64)), first + i
        effect, noise = rng.choice((1.05, 1.1, 1.15)), rng.choice((0.5, 1.0))
        sizes = {"jitter": 0.05, "prompts": 3 * n + 16, "seed": seed}
        spec = Planted(axes=axes, overlap=overlap, effect=effect, noise=noise, **sizes)
        yield Case("cone", f"{axes} axes, cosine {overlap}", n, seed, spec)


def _fragile(first: int, rng: random.Random) -> Iterator[Case]:
    """Models whose behaviour depends on the norm of the residual stream."""
    for i in range(32):
        n, seed = (16, 32)[i % 2], first + 1000 + i
        spec = Planted(effect=3.0, fragile=2.5, noise=0.5, d_model=rng.choice((64, 128)), prompts=3 * n + 16, seed=seed)
        yield Case("fragile", "any vector moves it", n, seed, spec)


def narrow(first: int) -> Iterator[Case]:
    """Narrow cones, and single axes with the same sizes: the boundary between several directions and one."""
    rng = random.Random(first)
    shapes = ((1, 0.0), (2, 0.6), (2, 0.7), (2, 0.8), (3, 0.8), (2, 0.9))
    for i in range(90):
        axes, overlap = shapes[i % 6]
        n, seed = rng.choice((16, 32, 64)), first + i
        effect, noise = rng.choice((1.05, 1.1, 1.15)), rng.choice((0.5, 1.0))
        spec = Planted(
            axes=axes, overlap=overlap, effect=effect, noise=noise, jitter=0.05, prompts=3 * n + 16, seed=seed
        )
        kind = f"{axes} axes, cosine {overlap}" if axes > 1 else "one axis"
        yield Case("narrow", kind, n, seed, spec)
    yield from (
        replace(case, seed=case.seed + 1, planted=case.planted and replace(case.planted, seed=case.seed + 1))
        for case in _full(first, rng)
    )


STUDIES: Mapping[str, Callable[[int], Iterator[Case]]] = MappingProxyType(
    {"first": first_study, "nulls": more_nulls, "spread": spread, "narrow": narrow}
)
