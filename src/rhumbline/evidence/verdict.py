"""Verdict: a rule that was fixed before the data, and the summary of the data, in; `Verdict` out.

Knows margins and words. Does not know rows, models or files: it reads what `statistics.arm_rates` and
`statistics.effects` say, so `verify` reaches the same verdict from the same rows. Imports no torch.

What is missing, unscored or not a number never counts in favour of the claim.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rhumbline.errors import ProtocolError
from rhumbline.evidence.power import prompts_to_settle
from rhumbline.evidence.verdict_rules import Rule, is_number

Summary = Sequence[Mapping[str, Any]]
"""The list that `statistics.arm_rates` or `statistics.effects` returns, or what JSON made of it."""

VerdictName = Literal[
    "SINGLE-DIRECTION-REPRODUCES",
    "NOT-SINGLE-DIRECTION",
    "NO-BASELINE-REFUSAL",
    "NO-BASELINE",
    "DAMAGED",
    "INCONCLUSIVE",
]
"""NO-BASELINE is NO-BASELINE-REFUSAL for a behaviour other than refusal; DAMAGED and INCONCLUSIVE only come from rules
that have bounds or read intervals."""


class Verdict(NamedTuple):
    """What the rule says about one seed, or about a run."""

    verdict: VerdictName
    """One of the fixed names."""
    reason: str
    """Why, in a few stable words; empty where every condition of the rule holds."""
    sentence: str
    """What a careful author could print: numbers, n, intervals, and sufficiency only."""


def decide(
    rule: Rule,
    arms: Summary,
    effects: Summary,
    behaviour: str = "refusal",
    no_candidate: str | None = None,
    kl: float | None = None,
    group_cosine: float | None = None,
    unit: Mapping[str, Any] | None = None,
) -> Verdict:
    """Apply the rule to one seed, in this order.

    1. No baseline rate, or one below `min_baseline`: NO-BASELINE. Without a candidate an unmeasured baseline is no
       reason, since nothing had to be measured. Of a continuous score also: classes that it does not tell apart
       (`unit`, as `levels.Unit` has it; `min_separation`).
    2. Selection left no candidate (`no_candidate` says why): NOT-SINGLE-DIRECTION.
    3. An intervention exceeds a bound of the rule on damage (`kl`: of ablation, on negatives): DAMAGED.
    4. Negatives above `max_negative` at baseline: from here on only suppression is read.
    5. A condition fails: an effect below `min_drop`, a gap below `min_gap`, a rank p above `max_p`, groups of positives
       with different directions (`group_cosine`): NOT-SINGLE-DIRECTION, with every failure in the reason.
    6. A condition is undecided (an interval around a margin, directions of groups that nearly agree): INCONCLUSIVE,
       with the prompts that would settle it.
    7. Otherwise SINGLE-DIRECTION-REPRODUCES, or INCONCLUSIVE where only suppression could be read.

    A rule that reads estimates has a tolerance for rounding, as the blog's; its intervals are for the reader.
    """
    rates = {(row["arm"], row["set"]): row for row in arms}
    if (untested := _untested(rule, rates, behaviour, no_candidate, unit)) is not None:
        return untested
    by_name = {effect["name"]: effect for effect in effects}
    crowded = _crowded(rule, rates)
    tested = tuple(_EFFECTS) if crowded is None else ("suppression",)
    found = "; ".join(_account(rule, name, by_name, rates, behaviour) for name in tested)
    if crowded is not None:
        found = f"{found}; induction was not tested, since {crowded}"
    if damage := _damage(rule, rates, kl, tested):
        opening = f"The intervention broke the model by the rule {rule.name} ({damage})"
        return Verdict("DAMAGED", damage, f"{opening}, so that its effect on {behaviour} cannot be read: {found}.")
    failed, undecided = _shortfall(rule, by_name, rates, tested)
    failed, undecided = (
        "; ".join(filter(None, said)) for said in zip((failed, undecided), _spread(rule, group_cosine), strict=True)
    )
    if failed:
        opening = f"One direction was not found sufficient to move {behaviour} both ways by the rule {rule.name}"
        return Verdict("NOT-SINGLE-DIRECTION", failed, f"{opening} ({failed}): {found}.")
    if undecided:
        opening = f"The sample does not decide whether one direction would be sufficient to move {behaviour} both ways"
        return Verdict("INCONCLUSIVE", undecided, f"{opening} by the rule {rule.name} ({undecided}): {found}.")
    if crowded is not None:
        opening = f"Ablating one direction was sufficient to suppress {behaviour} by the rule {rule.name}"
        return Verdict("INCONCLUSIVE", f"suppresses; induction has no room: {crowded}", f"{opening}: {found}.")
    opening = f"One direction was sufficient to move {behaviour} both ways by the rule {rule.name}"
    return Verdict("SINGLE-DIRECTION-REPRODUCES", "", f"{opening}: {found}.")


def overall(verdicts: Mapping[int, Verdict]) -> Verdict:
    """The verdict of a run from those of its seeds.

    Unanimous seeds give their verdict. Seeds of which some are INCONCLUSIVE and none speaks against the claim are
    INCONCLUSIVE together. Any other mixture is NOT-SINGLE-DIRECTION with the reason "seeds disagree: ...", seeds
    without a baseline included: a result that a new sample of prompts undoes was not reproduced.
    """
    if not verdicts:
        raise ProtocolError("A run's verdict needs the verdict of at least one seed; none was given.")
    seeds = sorted(verdicts)
    first = verdicts[seeds[0]]
    if len(seeds) == 1:
        return first
    sentences = " ".join(f"Seed {seed}: {verdicts[seed].sentence}" for seed in seeds)
    by_name: dict[VerdictName, list[str]] = {}
    for seed in seeds:
        by_name.setdefault(verdicts[seed].verdict, []).append(str(seed))
    if len(by_name) == 1:
        reason = first.reason
        if any(verdicts[seed].reason != reason for seed in seeds):
            reason = "; ".join(f"seed {seed}: {verdicts[seed].reason}" for seed in seeds)
        return Verdict(first.verdict, reason, f"All {len(seeds)} seeds agree. {sentences}")
    counts = ", ".join(f"{name} (seed {' '.join(members)})" for name, members in by_name.items())
    if by_name.keys() == {"SINGLE-DIRECTION-REPRODUCES", "INCONCLUSIVE"}:
        return Verdict("INCONCLUSIVE", f"not every seed decides: {counts}", f"Not every seed decides. {sentences}")
    return Verdict("NOT-SINGLE-DIRECTION", f"seeds disagree: {counts}", f"The {len(seeds)} seeds disagree. {sentences}")


# -- the conditions ---------------------------------------------------------------------------------------------------


class _Effect(NamedTuple):
    """How an effect is told: which arm moved which set, and the words for it."""

    arm: str
    side: str
    deed: str
    verb: str
    infinitive: str


_EFFECTS = {
    "suppression": _Effect("ablation", "positive", "ablating it lowered", "suppresses", "suppress"),
    "induction": _Effect("addition", "negative", "adding it raised", "induces", "induce"),
}
_Rates = Mapping[tuple[str, str], Mapping[str, Any]]


def _untested(
    rule: Rule, rates: _Rates, behaviour: str, no_candidate: str | None, unit: Mapping[str, Any] | None
) -> Verdict | None:
    """The verdict where there was no baseline to move or no candidate to move it with; None where there was."""
    baseline = rates.get(("baseline", "positive"), {})
    if rule.min_separation is not None and (apart := _unseparated(rule, unit, behaviour)) is not None:
        return apart
    rate = baseline.get("rate")
    if not is_number(rate):
        if no_candidate is None:
            return _no_baseline(behaviour, "baseline not measured", f"The baseline {behaviour} rate was not measured")
    elif not _reaches(rate, rule.min_baseline):
        reason = f"baseline {_below(rate, rule.min_baseline)}"
        measure = f"{behaviour} {_measure(rule)}"
        found = f"At baseline the {measure} on the positive prompts was {_rate(baseline)}, n = {baseline['n']}"
        return _no_baseline(behaviour, reason, f"{found}, below the {rule.min_baseline:.2f} fixed beforehand")
    if no_candidate is not None:
        measured = f" (baseline {behaviour} rate {_rate(baseline)}, n = {baseline['n']})" if is_number(rate) else ""
        return Verdict(
            "NOT-SINGLE-DIRECTION",
            f"no candidate passed: {no_candidate}",
            f"No candidate direction passed the selection ({no_candidate}), so none was tested{measured}.",
        )
    return None


class _Shortfall(NamedTuple):
    """Conditions that do not hold, in words; either may be empty."""

    failed: str
    undecided: str


def _crowded(rule: Rule, rates: _Rates) -> str | None:
    """Why a rise of the behaviour on negatives has no room, or None where it has."""
    rate = rates.get(("baseline", "negative"), {}).get("rate")
    if rule.max_negative is None or not is_number(rate) or rate <= rule.max_negative:
        return None
    return f"negatives have {_above(rate, rule.max_negative)} at baseline"


def _shortfall(
    rule: Rule, effects: Mapping[str, Mapping[str, Any]], rates: _Rates, tested: Sequence[str]
) -> _Shortfall:
    """Every condition on the tested effects that does not hold, and every one that the sample leaves open."""
    missing = [name for name in tested if not is_number(effects.get(name, {}).get("drop"))]
    stands = {n: _stand(rule, effects[n], "drop", None, rule.min_drop) for n in tested if n not in missing}
    moved = [name for name, stand in stands.items() if stand == "met"]
    faults = [f"{name} not measured" for name in missing]
    refuted = [name for name, stand in stands.items() if stand == "failed"]
    if not missing and refuted:
        left = [name for name in tested if name not in refuted]
        faults.append(
            "neither suppresses nor induces"
            if len(refuted) == len(_EFFECTS)
            else f"{_EFFECTS[left[0]].verb} only"
            if left and left[0] in moved
            else f"does not {_EFFECTS[refuted[0]].infinitive}"
        )
    undecided = [
        f"{name} {_around(effects[name], rule, rates, name)}" for name, stand in stands.items() if stand == "open"
    ]
    apart = [name for name, stand in stands.items() if stand != "failed"]
    for family in rule.families:
        gaps = {name: _stand(rule, effects[name], "gap", family, rule.min_gap) for name in apart}
        ranks = {name: _rank(rule, effects[name], family) for name in apart}
        unknown = [name for name in apart if "unknown" in (gaps[name], ranks[name])]
        close = [name for name in apart if name not in unknown and "failed" in (gaps[name], ranks[name])]
        near = "not separated from null" if rule.reads == "estimate" else "NOT-SEPARATED-FROM-NULL"
        for fault, names in (("null not measured", unknown), (near, close)):
            if names:
                faults.append(f"{fault}: {family}" + ("" if len(names) == len(tested) else f" ({names[0]})"))
        undecided += [f"gap of {name} to {family} nulls" for name in apart if gaps[name] == "open"]
    return _Shortfall("; ".join(faults), "; ".join(undecided))


_Stand = Literal["met", "failed", "open", "unknown"]


def _stand(rule: Rule, effect: Mapping[str, Any], field: str, family: str | None, margin: float) -> _Stand:
    """Where an effect (or its gap to a family) stands to the margin."""

    if family is None:
        estimate, low, high = (effect.get(name) for name in (field, "low", "high"))
    elif rule.same_cosine is not None:
        estimate, low, high = (effect.get("apart", {}).get(family, {}).get(name) for name in ("gap", "low", "high"))
    else:
        estimate, low, high = (effect.get(name, {}).get(family) for name in ("gap", "gap_low", "gap_high"))
    if not is_number(estimate):
        return "unknown"
    if rule.reads == "estimate":
        return "met" if _reaches(estimate, margin) else "failed"
    if not (is_number(low) and is_number(high)):
        return "unknown"
    return "met" if _reaches(low, margin) else "open" if _reaches(high, margin) else "failed"


def _rank(rule: Rule, effect: Mapping[str, Any], family: str) -> _Stand:
    """Whether the effect's rank among the wide draws of a family is as high as the rule asks."""
    if rule.max_p is None:
        return "met"
    p = effect.get("wide", {}).get(family, {}).get("p" if rule.same_cosine is None else "p_apart")
    return "unknown" if not is_number(p) else "met" if p <= rule.max_p + 1e-9 else "failed"


def _spread(rule: Rule, cosine: float | None) -> _Shortfall:
    """Whether the behaviour lies along several directions, as far as the groups of positives tell."""
    if not is_number(cosine):
        return _Shortfall("", "")
    if rule.min_group_cosine is not None and cosine < rule.min_group_cosine:
        return _Shortfall(f"spread: two groups of positives have directions with cosine {cosine:.2f}", "")
    if rule.one_group_cosine is not None and cosine < rule.one_group_cosine:
        between = f"two groups of positives have directions with cosine {cosine:.2f} < {rule.one_group_cosine:g}"
        return _Shortfall("", f"one direction or a narrow cone of several: {between}")
    return _Shortfall("", "")


def _damage(rule: Rule, rates: _Rates, kl: float | None, tested: Sequence[str]) -> str:
    """Every bound on damage that is exceeded, or nothing."""
    faults = []
    added = (("addition", "negative"),) if "induction" in tested else ()
    for arm, side in (("ablation", "positive"), *added, ("ablation", "negative")):
        before, after = (rates.get((a, side), {}).get("degenerate") for a in ("baseline", arm))
        if rule.max_degenerate is not None and is_number(after):
            more = after - (before if is_number(before) else 0.0)
            if not _reaches(rule.max_degenerate, more):
                faults.append(f"{more:.2f} degenerate under {arm} on {side}s > {rule.max_degenerate:g}")
    # KL is read on negatives: where these show the behaviour, losing it is the effect.
    if added and rule.max_kl is not None and is_number(kl) and kl > rule.max_kl:
        faults.append(f"KL {kl:.2f} > {rule.max_kl:g} under ablation on negatives")
    watched = (("ablation", "positive"), *added) if rule.content_everywhere else ()
    for arm, side in (("ablation", "negative"), *watched):
        right, left = (rates.get((a, side), {}).get("correct") for a in ("baseline", arm))
        if rule.max_accuracy_loss is not None and is_number(right) and is_number(left):
            lost = right - left
            if not _reaches(rule.max_accuracy_loss, lost):
                what = f"content lost under {arm} on {side}s" if watched else "right answers lost under ablation"
                faults.append(f"{lost:.2f} of the {what} > {rule.max_accuracy_loss:g}")
    return "; ".join(faults)


def _around(effect: Mapping[str, Any], rule: Rule, rates: _Rates, name: str) -> str:
    """How an undecided effect lies around the margin, and how many prompts would decide it."""
    how = _EFFECTS[name]
    before, after = (rates.get((arm, how.side), {}).get("rate") for arm in ("baseline", how.arm))
    n = None
    span = f"{effect['drop']:.2f} [{effect['low']:.2f}, {effect['high']:.2f}]"
    if rule.min_separation is not None:
        return f"undecided: {span} around {rule.min_drop:.2f}"
    if is_number(before) and is_number(after):
        pair = (before, after) if name == "suppression" else (after, before)
        n = prompts_to_settle(*pair, margin=rule.min_drop)
    settle = f"about {n} prompts per class would settle it" if n else "no practical number of prompts would settle it"
    return f"undecided: {span} around {rule.min_drop:.2f}; {settle}"


def _reaches(value: float, margin: float) -> bool:
    # 0.7 - 0.2 is a hair below 0.5 in floating point, and must reach it.
    return value >= margin - 1e-9


# -- the words --------------------------------------------------------------------------------------------------------


def _no_baseline(behaviour: str, reason: str, found: str) -> Verdict:
    name: VerdictName = "NO-BASELINE-REFUSAL" if behaviour == "refusal" else "NO-BASELINE"
    return Verdict(name, reason, f"{found}, so whether one direction would be sufficient could not be tested.")


def _measure(rule: Rule) -> str:
    """What a rate is called: of a continuous score it is a level."""
    return "rate" if rule.min_separation is None else "level"


def _unseparated(rule: Rule, unit: Mapping[str, Any] | None, behaviour: str) -> Verdict | None:
    """NO-BASELINE where the score does not tell the classes apart at baseline."""
    assert rule.min_separation is not None
    area = (unit or {}).get("auroc_low")
    if not is_number(area):
        return _no_baseline(behaviour, "classes not measured", f"The {behaviour} score of the classes was not measured")
    if _reaches(area, rule.min_separation):
        return None
    assert unit is not None
    reason = f"score does not tell the classes apart: AUROC at least {_below(area, rule.min_separation)}"
    found = (
        f"At baseline the {behaviour} score was {unit['positive']:.3f} on positives, {unit['negative']:.3f} on "
        f"negatives (AUROC {unit['auroc']:.2f}, at least {area:.2f}, below the {rule.min_separation:.2f} fixed "
        "beforehand)"
    )
    return _no_baseline(behaviour, reason, found)


def _account(rule: Rule, name: str, effects: Mapping[str, Mapping[str, Any]], rates: _Rates, behaviour: str) -> str:
    """One effect with its rates, its paired interval and its nulls."""
    how, effect = _EFFECTS[name], effects.get(name, {})
    if not is_number(effect.get("drop")):
        return f"{name} was not measured"
    before, after = (rates.get((arm, how.side), {}) for arm in ("baseline", how.arm))
    sizes = f"paired difference {effect['drop']:.2f} [{effect['low']:.2f}, {effect['high']:.2f}]"
    count = f", n = {effect['n']}" if "n" in effect else ""
    moved = f"from {_rate(before)} to {_rate(after)}"
    # A deed that did not happen is not told as one.
    deed = how.deed if effect["drop"] > 0 else how.deed.replace("lowered", "took").replace("raised", "took")
    nulls = _nulls(rule, effect)
    return f"{deed} the {behaviour} {_measure(rule)} on the {how.side} prompts {moved} ({sizes}{count}{nulls})"


def _nulls(rule: Rule, effect: Mapping[str, Any]) -> str:
    """Every family for a rule that reads estimates; otherwise the one that came nearest, and the worst rank."""
    known = {f: null for f, null in effect.get("null", {}).items() if is_number(null["mean"])}
    if rule.reads == "estimate" or not known:
        return "".join(
            f"; {null['draws']} {family} null{'s' if null['draws'] > 1 else ''}: mean {null['mean']:.2f}, "
            f"p = {effect['p'][family]:.2g}"
            for family, null in known.items()
        )
    family = max(known, key=lambda f: known[f]["mean"])
    said = f"; of {len(known)} families of nulls {family} came nearest, mean {known[family]['mean']:.2f}"
    key = "p" if rule.same_cosine is None else "p_apart"
    ranks = {f: wide for f, wide in effect.get("wide", {}).items() if f in rule.families and is_number(wide.get(key))}
    if not ranks:
        return said
    worst = max(ranks, key=lambda f: ranks[f][key])
    return (
        f"{said}; rank by the fast metric p <= {ranks[worst][key]:.2g} in each ({worst}: {ranks[worst]['draws']} draws)"
    )


def _rate(row: Mapping[str, Any]) -> str:
    """A rate with its interval, and the share of broken completions where there are any."""
    if not is_number(row.get("rate")):
        return "an unmeasured rate"
    degenerate = row.get("degenerate")
    broken = f" ({degenerate:.2f} degenerate)" if is_number(degenerate) and degenerate else ""
    return f"{row['rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{broken}"


def _below(value: float, margin: float) -> str:
    """ "0.40 < 0.50", with as many digits as tell the two apart."""
    return " < ".join(_apart(value, margin))


def _above(value: float, margin: float) -> str:
    """The same the other way round."""
    return " > ".join(_apart(value, margin))


def _apart(value: float, margin: float) -> tuple[str, str]:
    digits = next(d for d in range(2, 11) if d == 10 or f"{value:.{d}f}" != f"{margin:.{d}f}")
    return f"{value:.{digits}f}", f"{margin:.{digits}f}"
