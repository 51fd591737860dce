"""The runs of the calibration study: what is built, how its prompts are labelled, and with which seed.

`first_study` depends on the first seed alone, and so do `more_nulls` and `spread`: a rule is tuned on other seeds than
it is reported on. Knows planted models and labels. Does not run anything.
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
    """null, power, several, or full (power with the default number of draws)."""
    kind: str
    n: int
    """Train and test prompts per class; validation has half of it, at least 8."""
    seed: int
    planted: Planted | None = None
    """None: the embedded trained organism, or one that `kind` names."""
    labels: str = "true"
    """true, permuted (by chance), or the category that is irrelevant to the behaviour."""

    @property
    def name(self) -> str:
        """Its key in the file."""
        return f"{self.group}/{self.kind}/n{self.n}/s{self.seed}"


def first_study(first: int) -> Iterator[Case]:
    """The runs reported first, in an order that gives each group its share early on."""
    rng = random.Random(first)
    yield from interleaved([list(make(first, rng)) for make in (_nulls, _power, _several, _wide)])
    yield from _full(first, random.Random(first))


def interleaved(groups: Sequence[Sequence[Case]]) -> Iterator[Case]:
    """All groups, mixed in proportion, so that a study cut short is a smaller study of the same mixture."""
    longest = max(len(g) for g in groups)
    keyed = [((i + 1) / len(g) * longest, k, case) for k, g in enumerate(groups) for i, case in enumerate(g)]
    yield from (case for _, _, case in sorted(keyed, key=lambda item: item[:2]))


def _nulls(first: int, rng: random.Random) -> Iterator[Case]:
    """Nothing that the labels say is what the model refuses."""
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
    """One axis carries it: effect, noise, width and prompts vary."""
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
    """Several axes, any of which suffices."""
    for i in range(36):
        seed, n = first + 5000 + i, rng.choice((16, 16, 32, 64))
        axes, effect = rng.choice((2, 3, 4, 6)), rng.choice((1.0, 1.1, 1.2, 1.5, 2.0, 2.5))
        spec = Planted(axes=axes, effect=effect, jitter=rng.choice((0.05, 0.15)), prompts=3 * n + 16, seed=seed)
        yield Case("several", f"{axes} planted axes", n, seed, spec)


def _full(first: int, rng: random.Random) -> Iterator[Case]:
    """The default number of draws, at a clear effect and moderate noise: where the rule should say SINGLE."""
    for i in range(40):
        seed, n = first + 8000 + i, (32, 64)[i % 2]
        spec = Planted(effect=rng.choice((1.0, 1.2, 1.5)), d_model=rng.choice((64, 128)), prompts=3 * n + 16, seed=seed)
        yield Case("full", "planted, default draws", n, seed, spec)


def _wide(first: int, rng: random.Random) -> Iterator[Case]:
    """The largest widths, a few."""
    for i in range(4):
        yield Case("several", "trained, extended refusals", (16, 32)[i % 2], first + 7000 + i, None)
    for i, width in enumerate((1024, 1024, 4096)):
        seed = first + 6000 + i
        spec = Planted(effect=rng.choice((0.9, 1.2)), noise=1.0, d_model=width, n_layers=4, prompts=64, seed=seed)
        yield Case("power", "planted", 16, seed, spec)


def more_nulls(first: int) -> Iterator[Case]:
    """Enough further runs in which nothing is there that none of them SINGLE bounds the rate at 1 %."""
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
    """Models in which a candidate passes and SINGLE is wrong: cones of axes, and models that any vector moves."""
    yield from interleaved([list(make(first, random.Random(first))) for make in (_cones, _fragile)])


def _cones(first: int, rng: random.Random) -> Iterator[Case]:
    """Axes at an angle: their mean moves the behaviour both ways, and a prompt stands on one of them only."""
    shapes = ((2, 0.2), (2, 0.3), (2, 0.4), (3, 0.4), (4, 0.4), (2, 0.6), (2, 0.8))
    for i in range(42):
        (axes, overlap), n, seed = shapes[i % 7], rng.choice((16, 32, 64)), first + i
        effect, noise = rng.choice((1.05, 1.1, 1.15)), rng.choice((0.5, 1.0))
        sizes = {"jitter": 0.05, "prompts": 3 * n + 16, "seed": seed}
        spec = Planted(axes=axes, overlap=overlap, effect=effect, noise=noise, **sizes)
        yield Case("cone", f"{axes} axes, cosine {overlap}", n, seed, spec)


def _fragile(first: int, rng: random.Random) -> Iterator[Case]:
    """The behaviour follows the length of the stream."""
    for i in range(32):
        n, seed = (16, 32)[i % 2], first + 1000 + i
        spec = Planted(effect=3.0, fragile=2.5, noise=0.5, d_model=rng.choice((64, 128)), prompts=3 * n + 16, seed=seed)
        yield Case("fragile", "any vector moves it", n, seed, spec)


def narrow(first: int) -> Iterator[Case]:
    """Narrow cones, whose mean moves every axis, beside one axis with the same sizes: where one direction ends."""
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
