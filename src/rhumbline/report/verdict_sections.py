"""Sections on the verdict of a run: title block, verdict, meaning, and key numbers.

Every number comes from the files of the run.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from rhumbline.evidence.compared_arms import arms_of
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE
from rhumbline.records.effect_results import Effect
from rhumbline.records.next_steps import after_run, lines, prompt_options
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import ORGANISM, ModelFacts
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report import page
from rhumbline.report.claims_table import claims_table
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord, level_unit, measured_arm, site_text

_BADGES = {
    VerdictName.REPRODUCES: ("yes", "●"),
    VerdictName.NOT_SINGLE: ("no", "○"),
    VerdictName.DAMAGED: ("no", "✕"),
}
"""Verdict: class and sign of its badge. The other verdicts share one badge."""
MANY_FAMILIES = 3
"""Largest number of null families that have a column each in the key numbers."""


def badge(verdict: str, class_: str = "badge") -> Html:
    """Return a verdict with its sign."""
    kind, sign = _BADGES.get(VerdictName(verdict).headline, ("open", "◌"))
    return page.tag("span", page.tag("i", sign), " ", verdict, class_=f"{class_} {kind}")


# -- title block ------------------------------------------------------------------------------------------------------


def header(run: RunRecord) -> Html:
    """Return the title block of a run."""
    results, protocol = run.results, run.protocol
    facts = [
        ("Behaviour", protocol.behaviour),
        ("Contrast", run.context.contrast.name),
        ("Preset", protocol.preset),
        ("Judge", protocol.judge),
        ("Model", model_line(results.model)),
        ("Seeds", ", ".join(str(seed.seed) for seed in run.seeds)),
        ("Started", results.environment.started),
        ("Protocol", f"sha256 {results.protocol_sha256[:12]}"),
    ]
    question = f"rhumbline ·  Is {protocol.behaviour} mediated by a single direction in the residual stream?"
    return page.header(question, results.model.name, facts)


def model_line(model: ModelFacts) -> str:
    """Format class, depth, width and dtype of a model, and the stored format if it was dequantised."""
    dequantised = f", dequantised from {model.dequantised}" if model.dequantised else ""
    return f"{model.cls}, {model.n_layers} layers × {model.d_model}, {model.dtype}{dequantised}"


# -- verdict ----------------------------------------------------------------------------------------------------------


def verdict(run: RunRecord) -> Html:
    """Return the verdict with the table of claims. A run of a rule up to version 4 has a sentence for each seed."""
    results = run.results
    if results.claims:
        return page.verdict(badge(results.verdict), claims_table(run))
    sentences = [page.tag("p", f"Seed {seed.seed}: {seed.sentence}", class_="sentence long") for seed in run.seeds]
    reason = page.tag("p", results.reason, class_="reason") if results.reason else ""
    in_words = page.fold("The verdict of each seed in words", *sentences)
    return page.verdict(badge(results.verdict), reason, in_words)


def warnings(run: RunRecord) -> Html:
    """Return the warnings of the run, if there are any."""
    texts = run.results.warnings
    return page.tag("div", page.tag("h2", "Warnings"), page.bullets(texts), class_="warnings") if texts else Html()


def meaning(run: RunRecord) -> Html:
    """Return what the verdict shows and what it does not show."""
    columns = {"What this shows": [*_shown(run), _agreement(run)], "What it does not show": _limits(run)}
    boxes = (page.tag("div", page.tag("h2", title), page.bullets(items)) for title, items in columns.items())
    return page.tag("div", page.join(boxes), class_="meaning")


def next_steps(run: RunRecord) -> Html:
    """Return what to do next, by the verdict and its reasons."""
    steps, contrast = after_run(run.results, run.protocol.facts()), run.context.contrast
    # The path of a file is not recorded.
    name = None if contrast.name.startswith(ORGANISM) else contrast.name if contrast.pools is not None else "FILE"
    shown = lines(steps, run.directory.name, run.results.model.name, prompts=prompt_options(name))
    items = (page.join([page.tag("code", command), " ", why]) if command else why for command, why in shown)
    return page.tag("div", page.tag("h2", "Next"), page.bullets(items), class_="next")


def _shown(run: RunRecord) -> list[str]:
    verdict, behaviour = VerdictName(run.results.verdict), run.protocol.behaviour
    qualification = []
    if verdict is not verdict.headline:
        qualification = [
            "The rule of this run is weaker than the default rule, so the verdict names its criteria. The default rule "
            "(--preset rhumbline) tests intervals, several null families and damage."
        ]
    match verdict.headline:
        case VerdictName.REPRODUCES:
            return [
                f"One direction is sufficient to change {behaviour} on this model, contrast and judge: its ablation "
                "suppresses the behaviour, and its addition induces the behaviour.",
                "Both effects reach the margins that were fixed before the first forward pass, compared with the "
                "baseline and with the null families of the rule.",
                *qualification,
            ]
        case VerdictName.NO_BASELINE | VerdictName.NO_BASELINE_REFUSAL:
            return [
                "The model shows the behaviour on too few positive prompts to measure suppression.",
                "This is a statement about this combination of model, prompts and judge. It does not say whether a "
                "direction exists.",
            ]
        case VerdictName.NOT_TESTED:
            return ["No direction was tested. The run is evidence neither for nor against a single direction."]
        case VerdictName.NOT_SINGLE:
            missing = "the estimate" if run.protocol.rule.reads == "estimate" else "the whole interval"
            return [
                f"For the direction that this procedure selected, a claim about its effects is refuted: {missing} "
                "misses the margin of the rule.",
                "Another position, layer, extraction, coefficient or judge can give a direction that does. Not finding "
                "a direction does not prove that none exists.",
                *qualification,
            ]
        case VerdictName.DAMAGED:
            return [
                "The intervention damaged more than the behaviour: completions, or predictions on negative prompts. "
                f"Its effect on {behaviour} cannot be distinguished from this damage.",
                "A smaller coefficient, or addition at prompt positions only, may cause less damage.",
            ]
        case _:
            return [
                "The evidence decides neither for nor against one direction. The claims that are undecided or not "
                "tested state the number, its interval and the reason."
            ]


def _agreement(run: RunRecord) -> str:
    total = len(run.seeds)
    if total == 1:
        return "There is only one seed, so it is unknown how much the result depends on the sample of prompts."
    verdicts = Counter(seed.verdict for seed in run.seeds)
    sites = Counter(site_text(seed.selected) for seed in run.seeds if seed.selected)
    sentence = f"{'Both' if total == 2 else f'All {total}'} seeds reach this verdict."
    if len(verdicts) > 1:
        sentence = f"The seeds disagree: {', '.join(f'{n} of {total} {v}' for v, n in verdicts.most_common())}."
    if not sites:
        return sentence
    where = ", ".join(site if len(sites) == 1 else f"{site} × {n}" for site, n in sites.most_common())
    return f"{sentence} Selected site (position, layer): {where}."


def _limits(run: RunRecord) -> list[str]:
    protocol = run.protocol
    unit = "score" if run.measure == "level" else "class"
    coarse = (
        f"The readout is coarse: the judge {protocol.judge} assigns each completion of at most "
        f"{protocol.max_new_tokens} tokens a {unit}. Only large effects that exceed the nulls are reliable."
    )
    if not run.has_baseline:
        return ["Whether a direction mediates the behaviour in this model: this could not be tested.", coarse]
    limits = [
        "Whether the behaviour is one direction. Several distinct directions can have the same effect.",
        "Whether a second direction adds to the effect. "
        + (
            "The run tests one further direction, orthogonal to this one."
            if protocol.second.screen
            else "The run fits one direction by construction."
        ),
        coarse,
    ]
    draws = max(protocol.nulls.draws, protocol.nulls.wide)
    if draws and run.results.verdict.headline is VerdictName.REPRODUCES:
        limits.append(
            f"A rank p compares the direction with at most {page.count(draws, 'draw')} of a null family, so it cannot "
            f"be below {1 / (draws + 1):.3g}."
        )
    if run.results.model.mode == "coarse":
        limits.append(
            "Coarse mode: the residual writers of this model are not proved, so ablation edits block inputs and "
            "outputs only."
        )
    own = [row for seed in run.seeds for row in seed.arms if row.arm in (ABLATION, ADDITION)]
    degenerate = max((row.degenerate or 0 for row in own), default=0)
    if degenerate > 0:
        counted = "They count against both effects."
        if not run.protocol.rule.is_relative:
            counted = "The rule counts them as not showing the behaviour, so under ablation in favour of the direction."
        limits.append(f"Up to {degenerate:.0%} of the completions under an intervention were degenerate. {counted}")
    return limits


# -- key numbers ------------------------------------------------------------------------------------------------------


def key_numbers(run: RunRecord) -> Html:
    """Return the effects with their intervals, compared with the nulls."""
    families = list(dict.fromkeys(family for seed in run.seeds for effect in seed.effects for family in effect.p))
    many = len(families) > MANY_FAMILIES
    head: list[Any] = ["Seed", "Site", "Effect", "Norm"]
    head += [f"{run.measure.capitalize()}: baseline → direction", "Drop or rise [95 %]", "n"]
    head += ["Smallest gap", "Largest wide p"] if many else [_family_head(run, family) for family in families]
    rows = [row for seed in run.seeds for row in _seed_rows(run, seed, families)]
    site = f"Site: position and layer of the selected direction; the model has {run.results.model.n_layers} layers. "
    columns = (
        "Under each family: the gap, which is the effect minus the mean effect of the draws. Beside it the rank p of "
        "the direction among the draws, at least 1 / (draws + 1)."
    )
    if many:
        columns = (
            "Smallest gap: the effect minus the mean effect of the strongest null family. Largest wide p: the largest "
            "rank p on the metric over the families of the rule, among comparable draws. The sections below list every "
            "family."
        )
    level = page.note(f"A level is a continuous score in units of {level_unit(run.seeds)}.")
    table, unit = page.table(head, rows, left=3, key=True), level if run.measure == "level" else ""
    return page.section("Key numbers", table, page.how_to_read(site, columns), _without_effect(run), unit)


def _without_effect(run: RunRecord) -> Html:
    """Return which null draws count as no change; empty if all count as measured."""
    counts = [
        f"{null.ineffective} of {null.draws} of {family} ({effect.name}, seed {seed.seed})"
        for seed in run.seeds
        for effect in seed.effects
        for family, null in effect.null.items()
        if null.ineffective is not UNSET
    ]
    if not counts:
        return Html()
    return page.note(
        "Draws that count as no change in the gaps, because no candidate passed the selection in them, or because "
        "their ablation damages the model more than the rule permits and more than that of the direction: "
        f"{', '.join(counts)}. The section on arms shows their rates as measured."
    )


def _family_head(run: RunRecord, family: str) -> Html:
    draws = [effect.null[family].draws for seed in run.seeds for effect in seed.effects if family in effect.null]
    count = max(draws, default=0)
    detail = f"{page.count(count, 'draw')}, p ≥ {1 / (count + 1):.3g}" if count else "gap, p"
    return page.join([f"vs {family}", page.tag("small", detail)])


def _seed_rows(run: RunRecord, seed: SeedResult, families: Sequence[str]) -> list[list[Any]]:
    site, many = seed.selected, len(families) > MANY_FAMILIES
    disagree = len({other.verdict for other in run.seeds}) > 1
    start = [
        page.join([page.tag("b", seed.seed), " ", badge(seed.verdict, "mini") if disagree else ""]),
        site_text(site) if site else "none selected",
    ]
    norm = number(site.norm) if site else "—"
    rows = []
    for effect in seed.effects:
        nulls = _strongest(effect, run) if many else [_gap(effect, family) for family in families]
        name, *cells = _effect_cells(seed, effect)
        rows.append([*(start if not rows else ["", ""]), name, norm if not rows else "", *cells, *nulls])
    if not rows:
        baseline, dashes = measured_arm(seed, BASELINE, "positive"), ["—"] * (2 if many else len(families))
        rate, n = ("—", "—") if baseline is None else (page.join([page.rate(baseline), " → —"]), baseline.n)
        rows.append([*start, "baseline only", norm, rate, "—", n, *dashes])
    return rows


def _effect_cells(seed: SeedResult, effect: Effect) -> list[Any]:
    compared = arms_of(effect.name)
    arms = [measured_arm(seed, arm, compared.label) for arm in (BASELINE, compared.arm)]
    before, after = (number(row.rate if row else None) for row in arms)
    drop = interval(effect.drop, effect.low, effect.high)
    return [effect.name, f"{before} → {after}", drop, effect.n]


def _strongest(effect: Effect, run: RunRecord) -> list[Any]:
    """Return the smallest gap with its family, and the largest rank p among the wide nulls of the rule's families."""
    gaps = {family: gap for family, gap in effect.gap.items() if gap is not None}
    strongest = min(gaps, key=lambda family: gaps[family], default=None)
    wide = [effect.wide[family] for family in run.protocol.rule.families if family in effect.wide]
    ranks = [p for null in wide for p in [null.p if null.p_apart is UNSET else null.p_apart] if p is not None]
    gap = "—" if strongest is None else page.join([number(gaps[strongest], signed=True), " ", strongest])
    return [gap, number(max(ranks), 3) if ranks else "—"]


def _gap(effect: Effect, family: str) -> Html:
    p = effect.p.get(family)
    shown = "p —" if p is None else f"p {p:.3f}"
    return page.join([number(effect.gap.get(family), signed=True), " ", page.tag("span", shown, class_="ci")])
