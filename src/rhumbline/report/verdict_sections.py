"""Sections on the verdict of a run: title block, verdict, meaning, and key numbers.

Every number comes from the files of the run.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rhumbline.evidence.compared_arms import EFFECTS
from rhumbline.evidence.verdict import NOT_MEASURED
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE
from rhumbline.records.effect_results import Effect
from rhumbline.records.reasons import VerdictCode
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import ModelFacts
from rhumbline.report import page
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord, measured_arm, site_text

_BADGES = {
    "SINGLE-DIRECTION-REPRODUCES": ("yes", "●"),
    "NOT-SINGLE-DIRECTION": ("no", "○"),
    "DAMAGED": ("no", "✕"),
}
"""Verdict: class and sign of its badge. The other verdicts share one badge."""
MANY_FAMILIES = 3
"""Largest number of null families that have a column each in the key numbers."""


def badge(verdict: str, class_: str = "badge") -> Html:
    """Return a verdict with its sign."""
    kind, sign = _BADGES.get(verdict, ("open", "◌"))
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
    """Return the verdict with the sentence of each seed, the reason, and the warnings."""
    results = run.results
    paragraphs = [results.sentence]
    if len(run.seeds) > 1:
        paragraphs = [_seeds_agree(run), *(f"Seed {seed.seed}: {seed.sentence}" for seed in run.seeds)]
    sentences = [page.tag("p", text, class_="sentence" if len(text) < 160 else "sentence long") for text in paragraphs]
    reason = page.tag("p", results.reason, class_="reason") if results.reason else ""
    return page.verdict(badge(results.verdict), *sentences, reason)


def _seeds_agree(run: RunRecord) -> str:
    if len({seed.verdict for seed in run.seeds}) == 1:
        return f"All {len(run.seeds)} seeds agree."
    if run.results.verdict == "INCONCLUSIVE":
        return "Not every seed decides."
    return f"The {len(run.seeds)} seeds disagree."


def warnings(run: RunRecord) -> Html:
    """Return the warnings of the run, if there are any."""
    texts = run.results.warnings
    return page.tag("div", page.tag("h3", "Warnings"), page.bullets(texts), class_="warnings") if texts else Html()


def meaning(run: RunRecord) -> Html:
    """Return what the verdict shows and what it does not show."""
    columns = {"What this shows": [*_shown(run), _agreement(run)], "What it does not show": _limits(run)}
    boxes = (page.tag("div", page.tag("h3", title), page.bullets(items)) for title, items in columns.items())
    return page.tag("div", page.join(boxes), class_="meaning")


def _shown(run: RunRecord) -> list[str]:
    verdict, behaviour = run.results.verdict, run.protocol.behaviour
    if len({seed.verdict for seed in run.seeds}) > 1:
        if verdict == "INCONCLUSIVE":
            return [
                "Some seeds reproduce the direction, and some do not decide. More prompts or more seeds can decide."
            ]
        return ["The result changes with the sample of prompts: it was not reproduced."]
    match verdict:
        case "SINGLE-DIRECTION-REPRODUCES":
            return [
                f"One direction is sufficient to change {behaviour} on this model, contrast and judge: its ablation "
                "suppresses the behaviour, and its addition induces the behaviour.",
                "Both effects reach the margins that were fixed before the first forward pass, compared with the "
                "baseline and with the null families of the rule.",
            ]
        case "NO-BASELINE" | "NO-BASELINE-REFUSAL":
            return [
                "The model shows the behaviour on too few positive prompts to measure suppression.",
                "This is a statement about this combination of model, prompts and judge. It does not say whether a "
                "direction exists.",
            ]
        case "NOT-SINGLE-DIRECTION":
            return [
                f"No direction that this procedure can select changed {behaviour} both ways by the margins of the "
                "rule.",
                "Another position, layer, extraction, coefficient or judge can give a direction that does. Not finding "
                "a direction does not prove that none exists.",
            ]
        case "DAMAGED":
            return [
                "The intervention damaged more than the behaviour: completions, or predictions on negative prompts. "
                f"Its effect on {behaviour} cannot be distinguished from this damage.",
                "A smaller coefficient, or addition at prompt positions only, may cause less damage.",
            ]
        case "INCONCLUSIVE":
            return _undecided(run)


def _undecided(run: RunRecord) -> list[str]:
    behaviour = run.protocol.behaviour
    codes = [{reason.code for reason in seed.reasons} for seed in run.seeds]
    undecided = {VerdictCode.EFFECT_UNDECIDED, VerdictCode.LEVEL_UNDECIDED, VerdictCode.GAP_UNDECIDED}
    if all(some & {VerdictCode.NO_CANDIDATE, VerdictCode.METRIC_NOT_SEPARATING} for some in codes):
        advice = (reason.advice for seed in run.seeds for reason in seed.reasons)
        return [
            "The run has no usable metric, so no direction could be selected by it. This is no statement about the "
            "model.",
            *dict.fromkeys(text for text in advice if text is not None),
        ]
    if all(some & NOT_MEASURED for some in codes):
        return [
            f"The {behaviour} of the model at baseline is not known, so no effect was tested. This is no statement "
            "about the model.",
            "Completions without an answer are unscored. Raise --max-new-tokens, or turn off thinking (--thinking "
            "off). So are those in a language that the judge does not cover: the warnings name it.",
        ]
    if all(VerdictCode.NO_ROOM in some for some in codes):
        return [
            f"Ablation of one direction suppresses {behaviour} on this model and contrast.",
            f"Whether its addition induces {behaviour} was not tested, because the negatives already show it at "
            "baseline. The test needs negatives that do not.",
        ]
    if all(some & undecided for some in codes):
        return [
            "The intervals of this sample contain a margin of the rule, so the sample decides neither for nor against "
            "one direction. The reason states how many prompts would decide it."
        ]
    return ["The evidence decides neither for nor against one direction. The reason is stated above."]


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
        "Whether a second direction adds to the effect. The run fits one direction by construction.",
        coarse,
    ]
    draws = max(protocol.nulls.draws, protocol.nulls.wide)
    if draws and run.results.verdict == "SINGLE-DIRECTION-REPRODUCES":
        limits.append(
            f"A rank p compares the direction with {page.count(draws, 'draw')} per null family, so it cannot be below "
            f"{1 / (draws + 1):.3g}."
        )
    if run.results.model.mode == "coarse":
        limits.append(
            "Coarse mode: the residual writers of this model are not proved, so ablation edits block inputs and "
            "outputs only."
        )
    own = [row for seed in run.seeds for row in seed.arms if row.arm in (ABLATION, ADDITION)]
    degenerate = max((row.degenerate or 0 for row in own), default=0)
    if degenerate > 0:
        limits.append(
            f"Up to {degenerate:.0%} of the completions under an intervention were degenerate. They count neither as "
            "the behaviour nor as its absence."
        )
    return limits


# -- key numbers ------------------------------------------------------------------------------------------------------


def key_numbers(run: RunRecord) -> Html:
    """Return the effects with their intervals, compared with the nulls."""
    families = list(dict.fromkeys(family for seed in run.seeds for effect in seed.effects for family in effect.p))
    many = len(families) > MANY_FAMILIES
    head: list[Any] = ["Seed", "Site", "Norm", "Survivors", "Effect"]
    head += [f"{run.measure.capitalize()}: baseline → direction", "Drop or rise [95 %]", "n"]
    head += ["Smallest gap", "Largest wide p"] if many else [_family_head(run, family) for family in families]
    rows = [row for seed in run.seeds for row in _seed_rows(run, seed, families)]
    site = f"Site: position and layer of the selected direction; the model has {run.results.model.n_layers} layers. "
    columns = (
        "Under each family: the gap (the effect minus the mean effect of the draws) and the rank p of the direction "
        "among the draws, at least 1 / (draws + 1)."
    )
    if many:
        columns = (
            "Smallest gap: the effect minus the mean effect of the strongest null family. Largest wide p: the largest "
            "rank p on the metric over the families of the rule, without aligned draws. The sections below list every "
            "family."
        )
    level = page.note(
        "A level is a continuous score in units of the gap between the classes at baseline: 0 is the mean of the "
        "negatives, 1 that of the positives."
    )
    table, unit = page.table(head, rows, left=2, key=True), level if run.measure == "level" else ""
    return page.section("Key numbers", table, page.note(site, columns), unit)


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
        number(site.norm) if site else "—",
        seed.survivors,
    ]
    rows = []
    for effect in seed.effects:
        nulls = _strongest(effect, run) if many else [_gap(effect, family) for family in families]
        rows.append([*(start if not rows else [""] * 4), *_effect_cells(seed, effect), *nulls])
    if not rows:
        baseline, dashes = measured_arm(seed, BASELINE, "positive"), ["—"] * (2 if many else len(families))
        rate, n = ("—", "—") if baseline is None else (page.join([page.rate(baseline), " → —"]), baseline.n)
        rows.append([*start, "baseline only", rate, "—", n, *dashes])
    return rows


def _effect_cells(seed: SeedResult, effect: Effect) -> list[Any]:
    compared = next(arms for arms in EFFECTS if arms.name == effect.name)
    arms = [measured_arm(seed, arm, compared.label) for arm in (BASELINE, compared.arm)]
    before, after = (number(row.rate if row else None) for row in arms)
    drop = interval(effect.drop, effect.low, effect.high)
    return [effect.name, f"{before} → {after}", drop, effect.n]


def _strongest(effect: Effect, run: RunRecord) -> list[Any]:
    """Return the smallest gap with its family, and the largest rank p among the wide nulls of the rule's families."""
    gaps = {family: gap for family, gap in effect.gap.items() if gap is not None}
    strongest = min(gaps, key=lambda family: gaps[family], default=None)
    ranks = [effect.wide[family].p_apart for family in run.protocol.rule.families if family in effect.wide]
    gap = "—" if strongest is None else page.join([number(gaps[strongest], signed=True), " ", strongest])
    return [gap, number(max(ranks), 3) if ranks else "—"]


def _gap(effect: Effect, family: str) -> Html:
    p = effect.p.get(family)
    shown = "p —" if p is None else f"p {p:.3f}"
    return page.join([number(effect.gap.get(family), signed=True), " ", page.tag("span", shown, class_="ci")])
