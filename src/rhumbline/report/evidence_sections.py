"""Sections of the report on how sure one may be: wide nulls, doses, readouts, stability, and what the sample can show.

Reads what results.json and protocol.json hold; a run of an older version has less, and its page fewer sections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rhumbline.report import arm_figures, page
from rhumbline.report import null_and_dose_figures as evidence_figures
from rhumbline.report.page import Html

Rows = Mapping[str, Any]


def sections(protocol: Rows, results: Rows, draw: page.Canvas) -> list[Html]:
    """Every section that the run has numbers for."""
    seeds = results["seeds"]
    parts = [
        _sample(protocol, results),
        _damage(protocol.get("rule") or {}, seeds),
        _wide(seeds, draw),
        _doses(seeds, draw),
        _readouts(protocol, seeds),
        _stability(seeds, results.get("agreement") or []),
    ]
    return [part for part in parts if part]


def _per_seed(items: Sequence[tuple[str, Any]]) -> Html:
    opened = len(items) if len(items) <= 2 else 1
    shown = (
        page.tag("div", page.tag("h3", title), content) if k < opened else page.fold(title, content, class_="seed")
        for k, (title, content) in enumerate(items)
    )
    return page.join(shown)


# -- the sample and the claims ----------------------------------------------------------------------------------------


def _sample(protocol: Rows, results: Rows) -> Html:
    """What the prompts could show at all, and the effects over all seeds."""
    plans = [s.get("detectable") for s in protocol.get("splits", {}).values()]
    known = next((p for p in plans if p), None)
    pooled = results.get("pooled") or []
    if known is None and not pooled:
        return Html("")
    said = []
    if known:
        n = results["seeds"][0]["n"]["test"]
        for label, effect in (("positive", "suppression"), ("negative", "induction")):
            any_, rule = known["any"].get(label), known["rule"].get(label)
            least = f"{any_:.2f}" if any_ is not None else "nothing"
            passing = f"{rule:.2f}" if rule is not None else "no effect at all"
            said.append(
                f"With {n.get(label)} {label} test prompts, {effect} is told from nothing with {known['power']:.0%} "
                f"power from a true change of {least} on, and passes the rule's margin with that power from {passing}."
            )
        if known.get("rank_floor"):
            said.append(f"No rank among the wide nulls can be below p = {known['rank_floor']:.3g}.")
    shows = arm_figures.measure(results["seeds"])
    head = ["Effect, all seeds", f"Change of the {shows} [95 %]", "Distinct prompts", "Range over seeds"]
    counted = (
        "All seeds: a prompt that several seeds tested counts once; the interval takes before and after as "
        "independent, so it is on the wide side."
    )
    if shows == "level":
        # Levels of several seeds are in units of their own: they are averaged, and their range stands for no interval.
        head[1:3] = ["Mean change of the level [least, most]", "Seeds"]
        counted = "All seeds: the mean over the seeds and their range, which is no interval."
    rows = [
        [e["name"], page.interval(e["drop"], e["low"], e["high"]), e["n"], page.number(e["spread"])] for e in pooled
    ]
    note = page.note(
        "Fixed before the run: the smallest true change, from a rate of 1 or to one from 0, that so many prompts can "
        f"show. {counted}"
    )
    return page.section("What the sample can show", page.bullets(said), page.table(head, rows) if rows else "", note)


# -- damage -----------------------------------------------------------------------------------------------------------


def _damage(rule: Rows, seeds: Sequence[Rows]) -> Html:
    """What the interventions break, each reading beside the bound beyond which the rule says DAMAGED."""
    rows = []
    for seed in seeds:
        arms = {(row["arm"], row["set"]): row for row in seed["arms"]}
        if ("ablation", "negative") not in arms:
            continue
        moved = seed.get("shift") or {}
        kl, low, high = (page.number(moved.get(key), 4) for key in ("kl", "low", "high"))
        name = "KL of the next token in nats, quiet negatives, ablation"
        rows.append([seed["seed"], name, f"{kl} [{low}, {high}]", moved.get("n", 0), _bound(rule.get("max_kl"))])
        for arm, side in (("ablation", "positive"), ("ablation", "negative"), ("addition", "negative")):
            before, after = arms.get(("baseline", side), {}), arms.get((arm, side), {})
            read = f"{page.number(before.get('degenerate'))} to {page.number(after.get('degenerate'))}"
            name = f"degenerate completions, {side}s, {arm}"
            rows.append([seed["seed"], name, read, after.get("n", 0), _bound(rule.get("max_degenerate"), "more")])
        before, after = arms.get(("baseline", "negative"), {}), arms["ablation", "negative"]
        known = before.get("correct") is not None and after.get("correct") is not None
        read = f"{page.number(before['correct'])} to {page.number(after['correct'])}" if known else UNREAD
        rows.append([seed["seed"], "harmless accuracy (known answers), negatives, ablation", read,
                     after.get("n", 0) if known else 0, _bound(rule.get("max_accuracy_loss"), "less")])  # fmt: skip
    if not rows:
        return Html("")
    note = page.note(
        "Beyond a bound of the rule the verdict is DAMAGED, since the effect of a broken model cannot be read. "
        "Degenerate: empty or repeating itself; baseline to intervention. Quiet negatives: those that hardly show the "
        "behaviour at baseline. Harmless accuracy: share of negatives whose answer holds the `response` that the "
        "contrast gives for it."
    )
    head = ["Seed", "Reading", "Measured", "n", "Bound of the rule"]
    return page.section("Damage", page.table(head, rows, left=3), note)


UNREAD = "not measured: the negatives of this contrast carry no response"
"""What stands where the contrast does not know right answers."""


def _bound(value: Any, how: str = "") -> str:
    return "none" if value is None else f"{value:g} {how}".strip()


# -- wide nulls -------------------------------------------------------------------------------------------------------


def _wide(seeds: Sequence[Rows], draw: page.Canvas) -> Html:
    """The direction's rank among many draws of every family."""
    parts = []
    for seed in seeds:
        effects = seed.get("wide") or []
        if not any(e["families"] for e in effects):
            continue
        head = [
            "Effect",
            "Family",
            "Draws",
            "Mean",
            "Largest",
            "p",
            "p apart",
            "Floor",
            "Holm",
            "|cosine| as far",
            "Energy",
        ]
        rows = [
            [
                e["name"],
                family,
                r["draws"],
                *(page.number(r[k]) for k in ("mean", "max")),
                *(page.number(r.get(k), 3) for k in ("p", "p_apart", "floor", "p_holm", "cosine", "energy")),
            ]
            for e in effects
            for family, r in e["families"].items()
        ]
        own = page.number(seed.get("energy"), 3)
        moved = seed.get("shift") or {}
        said = (
            f"The direction's own share of the stream's energy, at its site: {own}. KL that its ablation causes on "
            f"negative test prompts: {page.number(moved.get('kl'), 4)} nats (n = {moved.get('n', 0)}). Cosine between "
            f"the directions of the two groups into which the positives fall: {page.number(seed.get('groups'))}."
        )
        fold = page.fold("Every family in numbers", page.table(head, rows, left=2))
        charts = draw(evidence_figures.wide(seed["seed"], effects))
        parts.append((f"Seed {seed['seed']}", page.join([charts, page.tag("p", said), fold])))
    if not parts:
        return Html("")
    note = page.note(
        "Each tick is one null draw, read by the fast metric at the last prompt position; the line is the "
        "direction, shaded with its interval. p: its rank among the draws, never below the floor 1 / (draws + 1). p "
        "apart: the same when draws nearer to it than the rule's |cosine| do not count, being the direction again; "
        "the rule reads this one. Holm: adjusted over every claim of the run, for a reader who picks one; the rule "
        "needs all of them at once, which needs no adjustment. |cosine| as far: of the draws that moved the metric "
        "as far as it did, the nearest to it. Energy: share of the stream's squared norm that a draw's ablation "
        "removes; isotropic ones remove about 1 / d of it and can hardly do anything."
    )
    return page.section("Wide nulls", _per_seed(parts), note)


# -- doses ------------------------------------------------------------------------------------------------------------


def _doses(seeds: Sequence[Rows], draw: page.Canvas) -> Html:
    parts = []
    for seed in seeds:
        dose = seed.get("dose") or {}
        if not dose.get("curves"):
            continue
        f = dose["fragility"]
        said = "Fragility was not measured."
        if f["fragility"] is not None:
            half = "never within the strengths tried" if f["half"] is None else f"at strength {f['half']:.2f}"
            nulls = ", ".join(f"{family} {value:.2g}" for family, value in f["nulls"].items())
            said = (
                f"Fragility {f['fragility']:.3g}: full ablation loses {f['lost']:.0%} of the behaviour for "
                f"{f['energy']:.2%} of the stream's energy; half of the behaviour is lost {half}."
            ) + (f" The same ratio for the nulls: {nulls}." if nulls else "")
        charts = draw(evidence_figures.doses(seed["seed"], dose["curves"]))
        parts.append((f"Seed {seed['seed']}", page.join([charts, page.tag("p", said)])))
    if not parts:
        return Html("")
    note = page.note(
        "Ablation by x - a r r^T x (a = 1 removes the direction, a > 1 reflects it) on positive test prompts, addition "
        "of c times the difference in means on negative ones; rate: share of prompts on which the behaviour is the "
        "likelier opening. Band: 95 % interval of the direction. Fragility: share of the behaviour lost over the share "
        "of energy removed, a figure to compare models by."
    )
    return page.section("Dose", _per_seed(parts), note)


# -- readouts ---------------------------------------------------------------------------------------------------------


def _readouts(protocol: Rows, seeds: Sequence[Rows]) -> Html:
    parts = []
    for seed in seeds:
        found = seed.get("readouts") or {}
        if not found.get("judges"):
            continue
        names = list(dict.fromkeys(r["judge"] for r in found["judges"]))
        lengths = list(dict.fromkeys(r["length"] for r in found["lengths"]))
        cells = list(dict.fromkeys((r["arm"], r["set"]) for r in found["judges"]))
        rate = {(r["arm"], r["set"], r["judge"]): r for r in found["judges"]}
        rate |= {(r["arm"], r["set"], r["length"]): r for r in found["lengths"]}
        head = ["Arm", "Set", *names, *(n if n == "full" else f"{n} tokens" for n in lengths), "Degenerate"]
        rows = [
            [
                arm,
                side,
                *(page.number(rate[arm, side, key]["rate"]) for key in (*names, *lengths)),
                page.number(rate[arm, side, lengths[-1]]["degenerate"]),
            ]
            for arm, side in cells
        ]
        kappas = "; ".join(
            f"{' and '.join(k['judges'])} {page.number(k['kappa'])} (agree on {k['agreement']:.0%} of {k['n']})"
            for k in found["kappa"]
        )
        content = page.join(
            [page.table(head, rows, left=2), page.tag("p", f"Cohen's kappa: {kappas}.") if kappas else ""]
        )
        parts.append((f"Seed {seed['seed']}", content))
    if not parts:
        return Html("")
    note = page.note(
        "Rates of the direction's own arms as other judges read them, and as the run's judge "
        f"({protocol.get('judge')}) reads the first tokens only. A rate that depends on the judge or on the length is "
        "not yet a finding."
    )
    return page.section("Readouts", _per_seed(parts), note)


# -- stability --------------------------------------------------------------------------------------------------------


def _stability(seeds: Sequence[Rows], pairs: Sequence[Rows]) -> Html:
    rows = []
    for seed in seeds:
        found = seed.get("stability") or {}
        if not found.get("refits"):
            continue
        chosen = ", ".join(f"({c['position']}, {c['layer']}) {c['share']:.0%}" for c in found["chosen"])
        cosine = found["cosine"]
        rows.append(
            [
                seed["seed"],
                found["refits"],
                chosen or "none",
                f"{found['none']:.0%}",
                page.interval(cosine["mean"], cosine["low"], cosine["high"]),
                page.number(found["between"]),
                len(seed.get("tied") or []),
            ]
        )
    if not rows:
        return Html("")
    head = ["Seed", "Refits", "Chosen (position, layer)", "None passed", "Cosine with the direction", "Between refits"]
    said = [
        f"Seeds {p['seeds'][0]} and {p['seeds'][1]}: cosine {p['cosine']:.2f}, "
        f"{'the same site' if p['same_site'] else 'different sites'}."
        for p in pairs
    ]
    note = page.note(
        "Bootstrap: training and validation prompts drawn anew with replacement, the means refitted, and the rule "
        "applied again among the best surviving sites. Not done again: the refusal tokens, the filter, and candidates "
        "that failed at first. Tied: other candidates within the rule's tie margin."
    )
    table = page.table([*head, "Tied"], rows, left=3)
    return page.section("Stability of the choice", table, page.bullets(said) if said else "", note)
