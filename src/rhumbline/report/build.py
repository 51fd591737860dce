"""The report: a run directory in, one self-contained page and its figures out.

Reads the JSON files of schema 1 and nothing else: no tensors, no models, no network. It decides nothing; every number
on the page is a number of the files, and the modules `*figures.py` draw them. The page loads nothing from anywhere, its
scripts are admitted by hash, and every text that came from a model, a path or a prompt is escaped.

    build(run_dir)            results.json of `run`            -> RUN/report.html, RUN/figures/*
    build_discover(run_dir)   discover.json of `discover`      -> the same, smaller
"""

from pathlib import Path

from rhumbline.report import analysis_sections as analyses_report
from rhumbline.report import evidence_sections as evidence_report
from rhumbline.report import figures, page, site_figures
from rhumbline.report import finding_sections as report_sections
from rhumbline.report import judge_section as judges_report
from rhumbline.report import protocol_sections as report_protocol
from rhumbline.report import side_effect_sections as side_effects_report
from rhumbline.report import style_section as style_report
from rhumbline.report.figures import Row
from rhumbline.report.run_record import read_checked, read_run


def build(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a finished run, and return the page's path."""
    run, draw = read_run(run_dir), page.Canvas()
    warnings = run.results.get("warnings") or []
    body = [
        report_sections.header(run),
        report_sections.verdict(run),
        page.tag("div", page.tag("h3", "Warnings"), page.bullets(warnings), class_="warnings") if warnings else "",
        report_sections.meaning(run),
        report_sections.key_numbers(run),
        report_sections.arms_figure(run, draw),
        report_sections.selection(run, draw),
        report_sections.separation(run, draw),
        report_sections.nulls(run, draw),
        *evidence_report.sections(run.protocol, run.results, draw),
        style_report.section(run.protocol, run.results["seeds"]),
        judges_report.section(run_dir),
        *side_effects_report.sections(run.results, _evaluations(run_dir), draw),
        *analyses_report.sections(run_dir, run.protocol, run.results["protocol_sha256"], draw),
        report_sections.arms_table(run),
        report_protocol.protocol(run),
        report_protocol.cite(run),
    ]
    return page.publish(run_dir, f"{run.results['model']['name']}: {run.protocol['behaviour']}", body, draw.drawings)


def _evaluations(run_dir: Path) -> list[Row]:
    """What `evaluate` found, one record for each setting."""
    return [read_checked(path) for path in sorted(run_dir.glob("evaluations/*/comparison.json"))]


def build_discover(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a `discover` run, and return the page's path."""
    protocol, found = read_checked(run_dir / "protocol.json"), read_checked(run_dir / "discover.json")
    draw, model, chat = page.Canvas(), found["model"], protocol["chat"]
    labels = figures.position_labels(chat["positions"], chat["suffix_tokens"])
    facts = [
        ("Behaviour", protocol["behaviour"]),
        ("Contrast", protocol["contrast"]["name"]),
        ("Model", report_sections.model_line(model)),
        ("Protocol", f"sha256 {found['protocol_sha256'][:12]}"),
    ]
    caution = (
        "Extraction only: nothing was generated and nothing was intervened on. Classes that separate are no evidence "
        "that a direction moves the behaviour."
    )
    known = sorted((row for row in found["grid"] if row["auroc"] is not None), key=lambda row: -row["auroc"])
    best = [
        [
            labels.get(r["position"], r["position"]),
            r["layer"],
            page.number(r["auroc"], 3),
            page.number(r["cosine"], 3),
            page.number(r["norm"]),
        ]
        for r in known[:8]
    ]
    splits = [("train", found["train"]), (found["split"], found["n"])]
    sizes = [[split, n.get("positive"), n.get("negative")] for split, n in splits]
    note = page.note(
        f"AUROC of the projection of {found['split']} prompts on the difference in means of train prompts."
    )
    charts = site_figures.discover(found["grid"], labels) if found["grid"] else []
    sizes_table = page.table(["Split", "Positive", "Negative"], sizes)
    body = [
        report_sections.heading("discover  ·  Where do the classes separate in the residual stream?", model, facts),
        page.tag("div", page.tag("p", caution, class_="sentence"), class_="verdict"),
        page.section("Separation per layer and position", draw(charts[:1]), draw(charts[1:]), note),
        page.section("Highest AUROC", page.table(["Position", "Layer", "AUROC", "Cosine of means", "Norm"], best)),
        page.section("Protocol", sizes_table, page.fold("protocol.json", page.pretty(protocol))),
    ]
    return page.publish(run_dir, f"{model['name']}: discover", body, draw.drawings)
