"""Build the report of a run directory: one self-contained page, and its figures.

Reads the JSON files of the run directory. Every number on the page is a number of these files. The page loads nothing,
its scripts are allowed by their hashes, and every text from a model, a path or a prompt is escaped.

    build(run_dir)            results.json of `run`            -> RUN/report.html, RUN/figures/*
    build_discover(run_dir)   discover.json of `discover`      -> the same files, smaller

Independent of tensors, models and the network.
"""

from pathlib import Path

from rhumbline.evidence.statistics import auroc_interval
from rhumbline.records.results import SeedResult
from rhumbline.report import (
    arm_sections,
    candidate_sections,
    null_and_dose_sections,
    page,
    protocol_sections,
    reliability_sections,
    side_effect_sections,
    verdict_sections,
)
from rhumbline.report.analysis_sections import analyses
from rhumbline.report.continuous_score_section import continuous_score
from rhumbline.report.example_section import examples
from rhumbline.report.human_label_section import human_labels
from rhumbline.report.page import interval, number
from rhumbline.report.run_record import RunRecord, read_discovery, read_run


def build(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a finished run, and return the path of the page."""
    run, draw = read_run(run_dir), page.Canvas()
    first = [
        verdict_sections.header(run),
        verdict_sections.verdict(run),
        verdict_sections.meaning(run),
        verdict_sections.warnings(run),
        verdict_sections.next_steps(run),
    ]
    sections = [
        examples(run),
        verdict_sections.key_numbers(run),
        arm_sections.arms_figure(run, draw),
        arm_sections.null_draws(run, draw),
        null_and_dose_sections.wide_nulls(run, draw),
        null_and_dose_sections.dose_curves(run, draw),
        side_effect_sections.damage(run),
        side_effect_sections.side_effects(run, draw),
        candidate_sections.selection(run),
        reliability_sections.stability(run),
        reliability_sections.sample(run),
        *(_seed_in_detail(run, seed, draw) for seed in run.seeds),
        continuous_score(run),
        human_labels(run),
        reliability_sections.readouts(run),
        reliability_sections.external_judges(run),
        side_effect_sections.benchmarks(run, draw),
        reliability_sections.system_prompts(run),
        reliability_sections.which_prompts(run),
        reliability_sections.spread(run),
        *analyses(run, draw),
        arm_sections.arms_table(run),
        protocol_sections.protocol(run),
        protocol_sections.cite(run),
    ]
    body = [*first, page.contents(sections), *sections]
    return page.publish(run_dir, f"{run.results.model.name}: {run.protocol.behaviour}", body, draw.drawings)


def _seed_in_detail(run: RunRecord, seed: SeedResult, draw: page.Canvas) -> page.Html:
    """Return what only one seed has: its candidates, its separation, and its ranks and side effects in numbers."""
    return page.detail(
        f"Seed {seed.seed} in detail",
        candidate_sections.selection_detail(run, seed.seed, draw),
        candidate_sections.separation(run, seed, draw),
        null_and_dose_sections.family_table(seed),
        side_effect_sections.side_effect_detail(seed, draw),
    )


def build_discover(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a `discover` run, and return the path of the page."""
    run, draw = read_discovery(run_dir), page.Canvas()
    discovery, model, protocol = run.discovery, run.discovery.model, run.directory.protocol
    labels = candidate_sections.position_labels(run.context.chat)
    charts = candidate_sections.discover_charts(discovery.grid, labels) if discovery.grid else []
    facts = [
        ("Behaviour", run.protocol.behaviour),
        ("Contrast", run.context.contrast.name),
        ("Model", verdict_sections.model_line(model)),
        ("Protocol", f"sha256 {run.directory.protocol_sha256[:12]}"),
    ]
    caution = (
        "Extraction only: no text was generated, and there was no intervention. Separation of the classes is not "
        "evidence that a direction causes the behaviour."
    )
    explanation = page.note(
        f"AUROC of the projection of {discovery.split} prompts on the difference in means of train prompts. Layer 0 "
        "reads the token embeddings: a separation there is one of words."
    )
    n = discovery.n
    highest = [
        [
            labels.get(row.position, row.position),
            row.layer,
            interval(row.auroc, *auroc_interval(row.auroc or 0.0, n.positive, n.negative), digits=3),
            number(row.cosine, 3),
            number(row.norm),
        ]
        for row in discovery.ranked()[:8]
    ]
    ties = f"{discovery.ties()} of {len(discovery.grid)} sites have the largest AUROC."
    sizes = {"train": discovery.train, discovery.split: discovery.n}
    body = [
        page.header("rhumbline discover  ·  Where do the classes separate in the residual stream?", model.name, facts),
        page.verdict(page.tag("p", caution, class_="sentence")),
        page.section("Separation for each layer and position", draw(charts[:1]), draw(charts[1:]), explanation),
        page.section(
            "Highest AUROC",
            page.table(["Position", "Layer", "AUROC", "Cosine of means", "Norm"], highest),
            page.note(ties if discovery.ties() > 1 else ""),
        ),
        page.section(
            "Protocol",
            page.table(["Split", "Positive", "Negative"], ([k, n.positive, n.negative] for k, n in sizes.items())),
            page.fold("protocol.json", page.pretty(protocol)),
        ),
    ]
    return page.publish(run_dir, f"{model.name}: discover", body, draw.drawings)
