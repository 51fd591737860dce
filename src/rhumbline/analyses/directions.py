"""Is one direction enough? Suppression, induction and side effects as the rank grows, beside matched random subspaces.

Every source adds members to the run's own direction: S_1 is its span, S_2, S_3, ... hold one more each. Members are
found on training prompts; their order, and the rank that is asked about, are chosen on validation prompts; what is
reported is measured on test prompts, by the fast metric. Sources:

    candidates   the run's other differences in means, over layers and positions
    clusters     prototypes of the positives (k-means) minus the negatives' mean
    som          the same with a self-organising map (Piras et al. 2025)
    gradient     found one after the other by gradient, each orthogonal to what is there (Wollschlaeger et al. 2025)
    cone         a cone found by gradient, whose every direction should move the behaviour (ibid.)

The rule is written into the record before it is applied (`Rule`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.gradient import found_by_gradient
from rhumbline.analyses.spans import Basis, cone_samples, energy, prototypes, random_span, span_of
from rhumbline.analyses.subject import Subject, mean_record
from rhumbline.errors import InputError
from rhumbline.evidence.selection_rules import SelectionRule
from rhumbline.evidence.statistics import difference_of_rates, paired_difference, wilson, wilson_of_rate
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Add, Arm, Direction
from rhumbline.records.files import read_json, sha256

NAME = "directions"
SOURCES = ("candidates", "clusters", "som", "gradient", "cone")
FAMILIES = ("isotropic", "energy-matched")
Answer = Literal["ONE-IS-ENOUGH", "MORE-HELPS", "UNDETERMINED", "NO-BASELINE"]


@dataclass(frozen=True)
class Rule:
    """When one direction is enough and when more help; fixed before the test prompts are read."""

    min_baseline: float = 0.5
    """Share of positive test prompts on which the behaviour must be the likelier opening."""
    min_drop: float = 0.5
    """By how much the first direction must lower that share for it to be enough; the whole interval counts."""
    margin: float = 0.1
    """A further loss of the share that counts; the whole interval must lie above it, or below it."""
    max_kl: float = 0.2
    """Mean KL on negatives, in nats, beyond which a span damages rather than helps."""

    def __post_init__(self):
        if not (0 < self.margin < 1 and 0 <= self.min_baseline <= 1 and 0 <= self.min_drop <= 1 and self.max_kl > 0):
            raise InputError("directions: margin lies in (0, 1), min_baseline and min_drop in 0..1, max_kl above 0.")


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    sources: tuple[str, ...] = SOURCES
    max_rank: int = 4
    pool: int = 12
    """Other candidates that may be added: those with the lowest bypass."""
    members: int = 4
    """Prototypes of `clusters` and `som`, vectors of a `cone` at most `max_rank` of them."""
    draws: int = 3
    """Random subspaces of either family at each rank."""
    samples: int = 4
    """Directions drawn in the cone of the members at each rank."""
    prompts: int = 64
    """Test prompts per class, at most."""
    steps: int = 60
    """Of each gradient search."""

    def __post_init__(self):
        faults = []
        if unknown := sorted(set(self.sources) - set(SOURCES)):
            faults.append(f"unknown sources {', '.join(unknown)} (known: {', '.join(SOURCES)})")
        if not self.sources:
            faults.append("no source is given")
        if self.max_rank < 2:
            faults.append(f"max_rank is {self.max_rank}, give 2 or more")
        small = [n for n in ("pool", "members", "draws", "samples", "steps") if getattr(self, n) < 1]
        if small or self.prompts < 2:
            faults.append(f"{', '.join([*small, *(['prompts'] if self.prompts < 2 else [])])} too small")
        if faults:
            raise InputError(f"directions: {'; '.join(faults)}.")


def analyse(subject: Subject, plan: Plan | None = None, rule: Rule | None = None) -> dict[str, Any]:
    """Measure, decide and write whether one direction is enough. A killed analysis goes on after its last source."""
    plan, rule = plan or Plan(), rule or Rule()
    prompts = _Prompts(subject, plan)
    parameters = {"plan": asdict(plan), "rule": asdict(rule)}
    key = sha256({**parameters, "seed": subject.seed, "protocol": subject.directory.protocol_sha256})
    folder = subject.directory.path / "analyses" / "parts"
    sources, parts = {}, []
    for name in plan.sources:
        parts.append(folder / f"{NAME}-{name}-{key[:12]}.json")
        if not parts[-1].is_file():
            subject.directory.save(parts[-1], {"source": _Source(subject, prompts, plan, rule, name).record()})
        sources[name] = read_json(parts[-1])["source"]
    shown = prompts.metric([BASELINE])[0] > 0
    low, high = wilson(int(shown.sum()), len(shown))
    baseline = {"rate": float(shown.double().mean()), "low": low, "high": high, "n": len(shown)}
    record = {"baseline": baseline, "sources": sources, "verdict": verdict(baseline, sources, rule)}
    saved = subject.save(NAME, parameters, record)
    for part in parts:
        part.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return saved


# -- the rule ---------------------------------------------------------------------------------------------------------


def verdict(baseline: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]], rule: Rule) -> dict[str, Any]:
    """ONE-IS-ENOUGH, MORE-HELPS, UNDETERMINED or NO-BASELINE, with the reason; a pure function of the record.

    MORE-HELPS asks one source only, the one that validation prompts prefer, so that no choice is made on test prompts;
    ONE-IS-ENOUGH asks all of them.
    """

    def answer(name: Answer, reason: str, source: str | None = None) -> dict[str, Any]:
        return {"answer": name, "reason": reason, "source": source}

    if baseline["rate"] < rule.min_baseline:
        return answer("NO-BASELINE", f"the behaviour shows on {baseline['rate']:.2f} of the positives")
    first = next(iter(sources.values()))["ranks"][0]["suppression"]
    open_to_choice = {n: s for n, s in sources.items() if s["chosen"] is not None}
    if open_to_choice:
        best = min(
            open_to_choice, key=lambda n: tuple(open_to_choice[n]["chosen"][k] for k in ("val_rate", "val_metric"))
        )
        found = open_to_choice[best]["chosen"]
        gain = f"{_ci(found['gain'])} of the positives beyond the first direction, at rank {found['rank']} ({best})"
        beyond = all(gap["low"] > 0 for gap in found["beyond_random"].values())
        kl = found["kl"]["mean"]
        if found["gain"]["low"] >= rule.margin and beyond and kl <= rule.max_kl:
            return answer("MORE-HELPS", f"further directions take {gain}, beyond matched random subspaces", best)
    small = all(s["chosen"] is None or s["chosen"]["gain"]["high"] < rule.margin for s in sources.values())
    if first["drop"]["low"] >= rule.min_drop and small:
        tried = ", ".join(sources)
        return answer(
            "ONE-IS-ENOUGH",
            f"the first direction takes {_ci(first['drop'])}, and no source ({tried}) takes {rule.margin:g} more",
        )
    if first["drop"]["low"] < rule.min_drop and small:
        reason = f"the first direction takes {_ci(first['drop'])} only, but nothing found here takes more"
    elif not small:
        wide = max((s["chosen"] for s in sources.values() if s["chosen"]), key=lambda c: c["gain"]["high"])
        reason = f"a further loss is not excluded ({_ci(wide['gain'])}), nor shown beyond random subspaces and damage"
    else:
        reason = "the interval of the first direction holds the margin inside"
    return answer("UNDETERMINED", f"{reason}; n = {baseline['n']}")


def _ci(d: Mapping[str, Any]) -> str:
    return f"{d['mean']:.2f} [{d['low']:.2f}, {d['high']:.2f}]"


# -- prompts and readings ---------------------------------------------------------------------------------------------


class _Prompts:
    """The prompts of every split as token ids, and what the fast metric says on them."""

    def __init__(self, subject: Subject, plan: Plan):
        self.subject, self.scorer = subject, subject.scorer
        self.train = [subject.sequences("train", c) for c in ("positive", "negative")]
        self.val = [subject.sequences("val", c) for c in ("positive", "negative")]
        self.test = [subject.sequences("test", c)[: plan.prompts] for c in ("positive", "negative")]
        if not all(len(s) for s in (*self.train, *self.val, *self.test)):
            raise InputError(f"{subject.directory.path}: a class of a split has no prompt left to compare.")
        self.val_before, self.test_before = (self.scorer.baseline(s[1]) for s in (self.val, self.test))

    def metric(self, arms: Sequence[Arm], split: str = "test") -> Float[Tensor, "arm prompt"]:
        """Of the positives under ablations."""
        return self.scorer.read((self.val if split == "val" else self.test)[0], arms).metric

    def induced(self, arms: Sequence[Arm]) -> Float[Tensor, "arm prompt"]:
        """Of the test negatives under additions."""
        return self.scorer.read(self.test[1], arms).metric

    def kl(self, arms: Sequence[Arm], split: str = "test") -> Float[Tensor, "arm prompt"]:
        """How far ablations move the next token of the negatives."""
        before = self.val_before if split == "val" else self.test_before
        return self.scorer.read((self.val if split == "val" else self.test)[1], arms, before).kl


def _ablating(span: Basis) -> Arm:
    return Arm("span", (AblateSpan(span),))


# -- one source -------------------------------------------------------------------------------------------------------


class _Source:
    """One source of further directions: found, ordered, and measured at every rank."""

    def __init__(self, subject: Subject, prompts: _Prompts, plan: Plan, rule: Rule, name: str):
        self.subject, self.prompts, self.plan, self.rule, self.name = subject, prompts, plan, rule, name
        self.direction = subject.selected()
        at = self.direction.position, self.direction.layer
        self.h = [subject.runner.stream(s, *at) for s in prompts.train]
        self.seed = [subject.seed, SOURCES.index(name)]

    def record(self) -> dict[str, Any]:
        """Everything that is measured of this source."""
        first = self.direction.vector[None]
        found = self._found(first)
        members, spans, validation = self._ordered(found) if self.name != "gradient" else self._given(found)
        ranks = self._ranks(members, spans)
        harmless = [v for v in validation[1:] if v["kl"] <= self.rule.max_kl]
        chosen = min(harmless or validation[1:], key=lambda v: (v["rate"], v["rank"]), default=None)
        return {
            "members": [
                {"rank": k + 1, "cosine": float(m @ self.direction.vector), **self._alone(m)}
                for k, m in enumerate(members)
            ],
            "independence": self._independence(members),
            "validation": validation,
            "ranks": ranks,
            "gains": [self._gain(ranks[k - 1], ranks[k]) for k in range(1, len(ranks))],
            "chosen": None if chosen is None else self._chosen(chosen, ranks),
            "cone": [self._cone(self._in_cone(members, k)) for k in range(1, len(members) + 1)],
        }

    def _found(self, first: Basis) -> Float[Tensor, "member d_model"]:
        """Members from training prompts, unit vectors."""
        subject, plan, d = self.subject, self.plan, self.direction
        positive, negative = self.prompts.train
        match self.name:
            case "candidates":
                return self._other_candidates()
            case "clusters" | "som":
                return prototypes(self.h[0], self.h[1], self.name, plan.members, subject.seed)
            case "gradient":
                span = first
                for k in range(1, plan.max_rank):
                    u = found_by_gradient(
                        subject.model, positive, negative, subject.tokens, d, span, steps=plan.steps, seed=k
                    )
                    span = torch.cat([span, u])
                return span[1:]
            case _:
                none = first[:0]
                n = min(plan.max_rank, plan.members) - 1
                return found_by_gradient(
                    subject.model, positive, negative, subject.tokens, d, none, n=n, steps=plan.steps, seed=0
                )

    def _other_candidates(self) -> Float[Tensor, "member d_model"]:
        """The run's other candidates below the rule's layer cut with the lowest bypass on validation prompts."""
        # Scored here: a run scores only what can decide its choice.
        subject, cut = self.subject, self._first_cut_layer()
        here = (subject.positions.index(self.direction.position), self.direction.layer)
        cells = [(p, k) for p in range(len(subject.positions)) for k in range(cut) if (p, k) != here]
        rows = [subject.candidates[cell] for cell in cells]
        units = [v / v.norm() for v in rows if 0 < float(v.norm()) < math.inf]
        if not units:
            return self.direction.vector[None][:0]
        bypass = self.prompts.metric([_ablating(u[None]) for u in units], "val").mean(1)
        return torch.stack(units)[bypass.argsort()[: self.plan.pool]]

    def _first_cut_layer(self) -> int:
        rule = SelectionRule(**self.subject.directory.protocol["selection"])
        return rule.first_cut_layer(self.subject.model.n_layers)

    def _ordered(self, found: Tensor) -> tuple[Tensor, list[Tensor], list[dict[str, Any]]]:
        """Members one by one: at each rank the one under which validation positives lose most, if it does no damage."""
        members, spans = self.direction.vector[None], [self.direction.vector[None]]
        validation = [self._on_validation(spans[0])]
        left = list(found)
        while left and len(spans) < self.plan.max_rank:
            wider = [span_of(torch.cat([members, v[None]])) for v in left]
            grown = [i for i, s in enumerate(wider) if len(s) > len(spans[-1])]
            if not grown:
                break
            scores = self.prompts.metric([_ablating(wider[i]) for i in grown], "val").mean(1).tolist()
            order = [i for _, i in sorted(zip(scores, grown, strict=True))]
            best = next((i for i in order[:4] if self._on_validation(wider[i])["kl"] <= self.rule.max_kl), order[0])
            members = torch.cat([members, left[best][None]])
            spans.append(wider[best])
            validation.append(self._on_validation(wider[best]))
            left = [left[i] for i in grown if i != best]
        return members, spans, validation

    def _given(self, found: Tensor) -> tuple[Tensor, list[Tensor], list[dict[str, Any]]]:
        """The same for members that come in an order of their own."""
        members = torch.cat([self.direction.vector[None], found])
        spans = [span_of(members[: k + 1]) for k in range(len(members))]
        return members, spans, [self._on_validation(s) for s in spans]

    def _on_validation(self, span: Basis) -> dict[str, Any]:
        metric = self.prompts.metric([_ablating(span)], "val")[0]
        return {
            "rank": len(span),
            "rate": float((metric > 0).double().mean()),
            "metric": float(metric.mean()),
            "kl": float(self.prompts.kl([_ablating(span)], "val").mean()),
            "n": len(metric),
        }

    def _ranks(self, members: Tensor, spans: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Suppression, side effects and energy at every rank on test prompts, and those of random subspaces."""
        before = self.prompts.metric([BASELINE])[0]
        h = torch.cat(self.h)
        rows = []
        for k, span in enumerate(spans, 1):
            row: dict[str, Any] = {"rank": k, **self._measured(before, [span], "own"), "energy": energy(h, span)}
            row["random"] = {}
            for family in FAMILIES if k > 1 else ():
                match = row["energy"] if family == "energy-matched" else None
                rng = np.random.default_rng([*self.seed, k, FAMILIES.index(family)])
                drawn = [random_span(spans[0], k, self.h[1], rng, match, h) for _ in range(self.plan.draws)]
                row["random"][family] = {
                    **self._measured(before, drawn, family),
                    "energy": float(np.mean([energy(h, s) for s in drawn])),
                }
            rows.append(row)
        return rows

    def _measured(self, before: Tensor, spans: Sequence[Tensor], what: str) -> dict[str, Any]:
        """Suppression on positives and KL on negatives, over the draws of a family together."""
        arms = [_ablating(s) for s in spans]
        metric, kl = self.prompts.metric(arms), self.prompts.kl(arms).mean(0)
        shown, base = metric > 0, before > 0
        rate, n = float(shown.double().mean()), shown.shape[1]
        if what == "own":
            drop = paired_difference(base.numpy(), shown[0].numpy())
        else:
            drop = difference_of_rates(float(base.double().mean()), rate, n)
        found = {
            "suppression": {"rate": rate, "drop": drop._asdict(), "metric": mean_record(metric.mean(0))},
            "kl": mean_record(kl),
        }
        return found | ({"values": [round(v, 5) for v in metric[0].tolist()]} if what == "own" else {})

    def _gain(self, one: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
        """What a wider span takes beyond a narrower one, on the same prompts."""
        a, b = (np.array(r["values"]) for r in (one, more))
        return {
            "from": one["rank"],
            "to": more["rank"],
            **paired_difference(a > 0, b > 0)._asdict(),
            "metric": mean_record(a - b),
        }

    def _chosen(self, chosen: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The rank that validation prefers, on test prompts: its gain over rank 1, and over random subspaces."""
        row = ranks[chosen["rank"] - 1]
        rate, n = row["suppression"]["rate"], row["suppression"]["drop"]["n"]
        return {
            "rank": chosen["rank"],
            "val_rate": chosen["rate"],
            "val_metric": chosen["metric"],
            "gain": self._gain(ranks[0], row),
            "beyond_random": {
                f: difference_of_rates(r["suppression"]["rate"], rate, n)._asdict() for f, r in row["random"].items()
            },
            "kl": row["kl"],
        }

    def _as_direction(self, v: Tensor) -> Direction:
        """A member in the norm and at the site of the run's direction; on the side of it, where it has one."""
        d = self.direction
        return Direction.from_vector(v / v.norm() * d.norm, d.position, d.layer)

    def _alone(self, v: Tensor) -> dict[str, Any]:
        """What one member does by itself, ablated or added."""
        d = self._as_direction(v)
        found = {}
        for name, metric in (
            ("suppressed", self.prompts.metric([Arm("one", (Ablate(d),))])[0]),
            ("induced", self.prompts.induced([Arm("one", (Add(d),))])[0]),
        ):
            shown = int((metric > 0).sum())
            low, high = wilson(shown, len(metric))
            found[name] = {"rate": shown / len(metric), "low": low, "high": high, "n": len(metric)}
        return found

    def _in_cone(self, members: Tensor, k: int) -> Tensor:
        """Members whose cone is asked about at rank k: the first k, or of `cone` those that were trained to be one."""
        return members[1:k] if self.name == "cone" and k > 1 else members[:k]

    def _cone(self, members: Tensor) -> dict[str, Any]:
        """Directions drawn in the cone of the members, one by one: the mean and the worst of what they do.

        `random`: the same in the cone of the run's direction and random ones, as many as there are members.
        """
        rng = np.random.default_rng([*self.seed, len(members), 9])
        noise = torch.tensor(rng.standard_normal((len(members) - 1, members.shape[1])), dtype=torch.float32)
        control = torch.cat([self.direction.vector[None], torch.nn.functional.normalize(noise, dim=-1)])
        found: dict[str, Any] = {"members": len(members), "samples": self.plan.samples}
        return found | self._drawn(members, rng) | {"random": self._drawn(control, rng)}

    def _drawn(self, members: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        drawn = [self._as_direction(v) for v in cone_samples(members, self.plan.samples, rng)]
        ablated = (self.prompts.metric([Arm("drawn", (Ablate(d),)) for d in drawn]) > 0).double().mean(1)
        shown = self.prompts.induced([Arm("drawn", (Add(d),)) for d in drawn]) > 0
        added = shown.double().mean(1)
        low, high = wilson_of_rate(float(added.mean()), shown.shape[1])
        return {
            "suppressed": {"mean": float(ablated.mean()), "worst": float(ablated.max())},
            "induced": {"mean": float(added.mean()), "worst": float(added.min()), "low": low, "high": high},
        }

    def _independence(self, members: Tensor) -> list[dict[str, Any]]:
        """Representational independence: how far ablating one member turns the stream's cosine with another.

        Mean |change| of the cosine over validation positives and layers, at the direction's position (Wollschlaeger et
        al. 2025: two directions are independent where it is 0 both ways). Each pair once a way.
        """
        return [
            {"ablated": i + 1, "read": j + 1, "change": value}
            for i, row in enumerate(_turned(self.subject, members, self.prompts.val[0][:16], self.direction.position))
            for j, value in enumerate(row)
            if i != j and not math.isnan(value)
        ]


def _turned(subject: Subject, members: Tensor, sequences: Sequence[Sequence[int]], position: int) -> list[list[float]]:
    def cosines(arm: Arm) -> Tensor:
        found = torch.zeros(len(sequences), subject.model.n_layers, len(members))
        for prompt, h, _ in subject.runner.residuals(sequences, [position], arm):
            x = torch.nn.functional.normalize(h[:, 0].float().cpu(), dim=-1)
            found[prompt] = x @ members.T
        return found

    plain = cosines(BASELINE)
    unit = [Direction.from_vector(m, position, 0) for m in members]
    return [(cosines(Arm("one", (Ablate(u),))) - plain).abs().mean((0, 1)).tolist() for u in unit]
