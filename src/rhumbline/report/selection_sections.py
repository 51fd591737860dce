"""Sections on candidates: their scores on validation prompts, and how they separate the classes on test prompts."""

from collections import Counter
from dataclasses import asdict

from rhumbline.records.reasons import NoCandidate
from rhumbline.records.results import SeedResult
from rhumbline.records.seed_files import Selection
from rhumbline.records.shared import ByLabel, Site
from rhumbline.report import page, site_figures
from rhumbline.report.run_record import RunRecord, site_text

_NO_CANDIDATE = {
    NoCandidate.ALL_DISCARDED: "Every candidate was discarded.",
    NoCandidate.NO_TOKENS: "The token metric has no tokens, so no candidate was scored.",
    NoCandidate.NO_PROMPTS: "The filter kept no prompt of some class, so no candidate was scored.",
}
_MOST_TIED = 8
"""Tied candidates that are listed."""


def selection(run: RunRecord, draw: page.Canvas) -> page.Html:
    """Return the scores of every candidate, and why it was discarded."""
    rule = run.protocol.selection
    labels = site_figures.position_labels(run.context.chat)
    parts = []
    for seed, selection in run.selections.items():
        charts = draw(site_figures.selection(seed, selection, labels, rule.max_kl))
        title = (
            f"Seed {seed}: {site_text(selection.selected)} selected; {selection.survivors} of "
            f"{len(selection.candidates)} candidates survive"
        )
        parts.append((title, page.join([_sentences(selection), charts])))
    settings = ", ".join(
        f"{key} = {value}" for key, value in asdict(rule).items() if key != "name" and value is not None
    )
    note = page.note(
        f"Rule {rule.name}: {settings}. bypass: mean metric on positive validation prompts under ablation of the "
        "candidate. induce: mean metric on negative validation prompts under its addition. KL: change of the "
        "next-token distribution on negative validation prompts under its ablation. Full cells survive, small cells "
        "are discarded, empty cells are not scored, and the framed cell is selected. Point at a cell to see its scores "
        "and the reason."
    )
    return page.section("Selection on validation prompts", page.per_seed(parts), note)


def _sentences(selection: Selection) -> page.Html:
    sentences = []
    if selection.reason is not None:
        sentences.append(_NO_CANDIDATE[selection.reason])
    counts = Counter(row.discarded for row in selection.candidates if row.discarded)
    if counts:
        listed = "; ".join(f"{reason.text} ({count})" for reason, count in counts.most_common(6))
        sentences.append(f"Discarded: {listed}.")
    selected = selection.selected
    others = [cell for cell in selection.tied if selected is None or cell.site != selected.site]
    if others:
        near = ", ".join(f"{site_text(cell)} {page.number(cell.bypass, signed=True)}" for cell in others[:_MOST_TIED])
        more = f" and {len(others) - _MOST_TIED} more" if len(others) > _MOST_TIED else ""
        sentences.append(
            f"Tied with the selected candidate (bypass): {near}{more}. The selection among them is not robust."
        )
    if selection.baseline is not None:
        positive, negative = (
            page.number(value, signed=True) for value in (selection.baseline.positive, selection.baseline.negative)
        )
        sentences.append(
            f"Metric without intervention: {positive} on positive, {negative} on negative prompts{_count(selection.n)}."
        )
    return page.tag("p", " ".join(sentences))


def separation(run: RunRecord, draw: page.Canvas) -> page.Html:
    """Return how well each candidate separates the classes on test prompts."""
    parts = [_separation_part(run, seed, draw) for seed in run.seeds]
    note = page.note(
        "AUROC of the projection on each candidate, on test prompts without intervention. Separation of the classes is "
        "not evidence that a direction causes the behaviour. That evidence comes from the arms."
    )
    return page.section("Separation on test prompts", page.per_seed(parts), note)


def _separation_part(run: RunRecord, seed: SeedResult, draw: page.Canvas) -> tuple[str, page.Html]:
    separation, selected = run.separations[seed.seed], seed.selected
    name = f"separation-seed-{seed.seed}"
    aurocs = {Site(row.position, row.layer): row.auroc for row in separation.grid}
    auroc = None if selected is None else aurocs.get(selected.site)
    charts = [site_figures.projections(f"{name}-projections", separation.projections)]
    if separation.grid:
        labels = site_figures.position_labels(run.context.chat)
        charts.insert(0, site_figures.auroc_map(f"{name}-auroc", separation.grid, labels, selected))
    best = "no direction selected" if selected is None else f"AUROC {page.number(auroc, 3)} at {site_text(selected)}"
    title = f"Seed {seed.seed}: {best}{_count(separation.n)}"
    return title, draw(charts)


def _count(n: ByLabel[int]) -> str:
    return f" (n = {n.positive} and {n.negative})"
