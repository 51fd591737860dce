"""The sections of the report that say how it was found: the rule, the data, the environment, and how to verify."""

import json
from collections.abc import Sequence

from rhumbline.report import page
from rhumbline.report.figures import Row, printable
from rhumbline.report.run_record import Run


def _rule_sentence(rule: Row, families: Sequence[str]) -> str:
    least, drop, gap = (rule.get(key) for key in ("min_baseline", "min_drop", "min_gap"))
    against = " and ".join(families) or "none"
    said = [f"Rule {rule.get('name', '')}, fixed before the first forward pass:"]
    if least is not None:
        said.append(f"no baseline if fewer than {least:.0%} of the positive prompts show the behaviour;")
    if drop is not None:
        said.append(
            "otherwise a single direction reproduces if ablation lowers the rate on positive prompts and addition"
        )
        said.append(f"raises it on negative ones, both by at least {page.number(drop)} against the baseline")
    if gap is not None:
        said.append(f"and by at least {page.number(gap)} more than the null families ({against});")
    if rule.get("reads") == "interval":
        said.append("with the whole 95 % interval (an interval with a margin inside is inconclusive);")
    if rule.get("max_p") is not None:
        said.append(f"and if the direction ranks among the wide nulls of every family with p <= {rule['max_p']:g}")
        near = rule.get("same_cosine")
        said.append("" if near is None else f"(draws with a |cosine| above {near:g} are the direction again);")
    if rule.get("min_group_cosine") is not None:
        one = rule.get("one_group_cosine")
        band = "" if one is None else f" (inconclusive below {one:g})"
        said.append(
            f"and if two groups of positives have directions of a cosine >= {rule['min_group_cosine']:g}{band};"
        )
    bounds = {
        "max_degenerate": "degenerate completions",
        "max_kl": "KL on negatives",
        "max_accuracy_loss": "lost answers",
    }
    limits = [f"{text} up to {rule[key]:g}" for key, text in bounds.items() if rule.get(key) is not None]
    if limits:
        said.append(f"damaged beyond {', '.join(limits)};")
    said.append("otherwise not.")
    told = {
        "name",
        "min_baseline",
        "min_drop",
        "min_gap",
        "families",
        "reads",
        "max_p",
        "same_cosine",
        "min_group_cosine",
        "one_group_cosine",
        *bounds,
    }
    others = {k: v for k, v in rule.items() if k not in told and v is not None}
    if others:
        said.append("Also: " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in others.items()) + ".")
    return " ".join(said)


def _data_table(run: Run) -> page.Html:
    requested, rows = run.protocol["sizes"], []
    for seed in run.seeds:
        for split, n in seed["n"].items():
            rows.append([seed["seed"], split, requested.get(split), n.get("positive"), n.get("negative")])
    return page.table(["Seed", "Split", "Requested per class", "Positive", "Negative"], rows, left=2)


def _tokens_table(run: Run) -> page.Html:
    rows = []
    for seed in run.seeds:
        tokens = ", ".join(f'"{printable(t["text"])}" ({t["id"]})' for t in seed.get("refusal_tokens") or [])
        near = seed.get("near_duplicates") or {}
        rows.append(
            [
                seed["seed"],
                tokens or "none",
                page.number(seed.get("token_auroc"), 3),
                near.get("found"),
                near.get("dropped"),
            ]
        )
    return page.table(["Seed", "Refusal tokens (id)", "AUROC on train", "Near-duplicates", "Dropped"], rows, left=2)


def _timings(run: Run) -> page.Html:
    timings = run.results["timings"]
    rows = [
        [s.get("stage"), s.get("seed"), page.number(s.get("seconds"), 1), page.number(s.get("peak_memory_mb"), 0)]
        for s in timings.get("stages", [])
    ]
    rows.append(["total", "", page.number(timings.get("total_seconds"), 1), ""])
    return page.table(["Stage", "Seed", "Seconds", "Peak memory, MB"], rows)


def protocol(run: Run) -> page.Html:
    """What was fixed beforehand: rule, data, environment, times."""
    results = run.results
    environment = [[key, value] for key, value in results["environment"].items()]
    families = results["rule"].get("families", [])
    pairs = (
        ("Data", _data_table(run)),
        ("Tokens and duplicates", _tokens_table(run)),
        ("Environment", page.table(["", ""], environment, left=2)),
        ("Time and memory", _timings(run)),
    )
    boxes = page.tag(
        "div", page.join(page.tag("div", page.tag("h3", title), body) for title, body in pairs), class_="grid"
    )
    fold = page.fold(f"protocol.json, sha256 {results['protocol_sha256']}", page.pretty(run.protocol))
    return page.section("Protocol", page.tag("p", _rule_sentence(results["rule"], families)), boxes, fold)


def cite(run: Run) -> page.Html:
    """How to verify the run and how to cite it."""
    results = run.results
    version = results["environment"].get("rhumbline", "")
    text = (
        f"{results['model']['name']}, {run.protocol['behaviour']}: {results['verdict']}. Seeds: {len(run.seeds)}. "
        f"rhumbline {version}, preset {run.protocol['preset']}, protocol sha256 {results['protocol_sha256']}."
    )
    command = f"rhumbline verify {run.path.name}"
    said = (
        "recomputes the verdict from the per-prompt rows and the hashes from the files; it exits with 0 if they hold."
    )
    method = (
        "Method: Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction, arXiv 2406.11717."
    )
    return page.section(
        "Verify and cite", page.tag("p", page.tag("code", command), " ", said), page.tag("pre", text), page.note(method)
    )
