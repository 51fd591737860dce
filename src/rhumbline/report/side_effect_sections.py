"""Sections of the report on what the interventions cost, and where else they hold.

Reads what results.json holds; a run of an older version has less, and its page fewer sections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rhumbline.report import page
from rhumbline.report import side_effect_figures as side_effects_figures
from rhumbline.report.page import Html
from rhumbline.report.side_effect_figures import TITLES, arm_label

Rows = Mapping[str, Any]


def sections(results: Rows, evaluations: Sequence[Rows], draw: page.Canvas) -> list[Html]:
    """Every section that the run, or an evaluation of it, has numbers for."""
    seeds = results["seeds"]
    parts = [_side_effects(seeds, draw), _benchmarks(evaluations, draw), _conditions(seeds), _breakdowns(seeds)]
    return [part for part in parts if part]


def _section(title: str, items: Sequence[tuple[str, Any]], note: str) -> Html:
    """A section of one part for each seed or evaluation, folded where there are many; nothing where there is none."""
    if not items:
        return Html("")
    opened = len(items) if len(items) <= 2 else 1
    folded = page.join(
        page.tag("div", page.tag("h3", name), content) if k < opened else page.fold(name, content, class_="seed")
        for k, (name, content) in enumerate(items)
    )
    return page.section(title, folded, page.note(note))


def _spread(row: Rows, key: str, low: str, high: str, digits: int = 3, signed: bool = False) -> Html:
    """A number in bold, with its interval; a dash where there is none."""
    if row[key] is None:
        return Html("—")
    ends = f"[{page.number(row[low], digits)}, {page.number(row[high], digits)}]"
    return page.join([page.tag("b", page.number(row[key], digits, signed)), " ", page.tag("span", ends, class_="ci")])


def _rate_and_change(row: Rows) -> tuple[Html, Html]:
    change = _spread(row, "change", "change_low", "change_high", 2, signed=True)
    return _spread(row, "rate", "low", "high", 2), change


# -- side effects -----------------------------------------------------------------------------------------------------


def _side_effects(seeds: Sequence[Rows], draw: page.Canvas) -> Html:
    parts = []
    for seed in seeds:
        found = seed.get("side_effects") or {}
        if not found.get("losses"):
            continue
        charts = [draw(side_effects_figures.effect_and_cost(seed))]
        charts.append(draw(side_effects_figures.losses(seed["seed"], found["losses"])))
        tables = page.fold("Losses, divergences and negatives in numbers", *_tables(found))
        parts.append((f"Seed {seed['seed']}", page.join([_said(found), *charts, tables])))
    note = (
        "Cross-entropy of the next token in float32, the mean weighted by tokens; every arm reads the same documents, "
        "and the intervals are of the paired change, by a bootstrap of documents. Plain text: the documents given with "
        "--loss-text. Responses: answers to harmless prompts, given the prompt. Own completions: what the model wrote "
        "at baseline on negative test prompts that it did not refuse, with the KL of the prediction at every step. "
        "Subtraction: the addition with its sign turned, which is what the paper's table calls activation addition. A "
        "null of equal norm (isotropic) or equal share of the stream (covariance) says what any such edit costs."
    )
    return _section("Side effects", parts, note)


def _said(found: Rows) -> Html:
    kl = {row["arm"]: row for row in found["kl"]}
    negatives = {row["arm"]: row for row in found["negatives"]}
    loss = {(row["text"], row["arm"]): row for row in found["losses"]}
    said = []
    own, moved = loss.get(("completions", "ablation")), kl.get("ablation")
    if own and moved:
        said.append(
            page.join(
                [
                    "Ablation changes the cross-entropy of the model's own completions by ",
                    _spread(own, "change", "low", "high", signed=True),
                    " nats per token; along them it moves the next-token prediction by a mean KL of ",
                    _spread(moved, "mean", "low", "high"),
                    f" nats (95 % of the {moved['tokens']} steps lie below {page.number(moved['p95'], 3)}; the first "
                    f"step alone: {page.number(moved['first'], 3)}).",
                ]
            )
        )
    row = negatives.get("ablation")
    if row:
        text: list[Any] = [
            "Under ablation the behaviour shows on ",
            _spread(row, "rate", "low", "high", 2),
            f" of {row['n']} negatives (change ",
            _spread(row, "change", "change_low", "change_high", 2, signed=True),
            ")",
        ]
        if row["correct"] is not None:
            text += [
                f"; of {row['correct_n']} known answers it gives {page.number(row['correct'])} right (change ",
                _spread(row, "correct_change", "correct_low", "correct_high", 2, signed=True),
                ")",
            ]
        said.append(page.join([*text, "."]))
    if found.get("left_out"):
        said.append(f"Left out: {found['left_out']} completions that show the behaviour at baseline.")
    return page.bullets(said) if said else Html("")


def _tables(found: Rows) -> list[Html]:
    losses = page.table(
        ["Text", "Arm", "Documents", "Tokens", "Cross-entropy", "Perplexity", "Change [95 %]"],
        [
            [
                TITLES[r["text"]],
                arm_label(r["arm"]),
                r["documents"],
                r["tokens"],
                page.number(r["ce"], 4),
                page.number(r["perplexity"]),
                _spread(r, "change", "low", "high", 4, signed=True),
            ]
            for r in found["losses"]
        ],
        left=2,
    )
    kl = page.table(
        ["Arm", "Completions", "Steps", "Mean KL [95 %]", "95th percentile", "Largest", "First step"],
        [
            [
                arm_label(r["arm"]),
                r["documents"],
                r["tokens"],
                _spread(r, "mean", "low", "high", 4),
                *(page.number(r[k], 4) for k in ("p95", "max", "first")),
            ]
            for r in found["kl"]
        ],
    )
    negatives = page.table(
        [
            "Arm on negatives",
            "n",
            "Rate [95 %]",
            "Change",
            "Degenerate",
            "Right answers",
            "of",
            "Change of right answers",
        ],
        [
            [
                r["arm"],
                r["n"],
                *_rate_and_change(r),
                page.number(r["degenerate"]),
                page.number(r["correct"]),
                r["correct_n"] or None,
                _spread(r, "correct_change", "correct_low", "correct_high", 2, signed=True),
            ]
            for r in found["negatives"]
        ],
    )
    return [losses, kl, negatives]


# -- benchmarks -------------------------------------------------------------------------------------------------------


def _benchmarks(evaluations: Sequence[Rows], draw: page.Canvas) -> Html:
    parts = []
    for number, found in enumerate(evaluations):
        rows = [{**r, "name": _score_name(r)} for r in found["rows"]]
        if not rows:
            continue
        head = ["Task", "Score", "Arm", "Documents", "Mean", "Change [95 %]", "p (McNemar)"]
        body = [
            [
                r["task"],
                _score_name(r).removeprefix(r["task"]).strip(", "),
                arm_label(r["arm"]),
                r["n"],
                page.number(r["score"], 3),
                _spread(r, "change", "low", "high", 3, signed=True),
                "—" if r["p"] is None else f"{r['p']:.2g}",
            ]
            for r in rows
        ]
        changed = [{**r, "task": r["name"]} for r in rows if r["change"] is not None]
        settings = found["settings"]
        title = f"Benchmarks, seed {settings['seed']}"
        charts = draw([side_effects_figures.scores(f"benchmarks-{number}", title, changed)] if changed else [])
        limit = "all documents" if settings.get("limit") is None else f"the first {settings['limit']} documents"
        shots = "" if settings.get("fewshot") is None else f", {settings['fewshot']} examples in the prompt"
        asked = (
            f"Seed {settings['seed']}; {limit}{shots}{', through the chat template' if settings.get('chat') else ''}"
        )
        parts.append((asked, page.join([charts, page.table(head, body, left=3)])))
    note = (
        "Tasks of lm-evaluation-harness on the model under each arm. Changes are paired, on the same documents: "
        "Newcombe's interval and McNemar's exact p for scores of 0 and 1, a bootstrap of documents for others."
    )
    return _section("Benchmarks", parts, note)


def _score_name(row: Rows) -> str:
    kind = "" if row["filter"] == "none" else f" ({row['filter']})"
    return f"{row['task']}, {row['metric']}{kind}"


# -- conditions and breakdowns ----------------------------------------------------------------------------------------


def _conditions(seeds: Sequence[Rows]) -> Html:
    parts = []
    for seed in seeds:
        if rows := seed.get("conditions"):
            head = ["System prompt", "Arm", "Set", "n", "Rate [95 %]", "Change from the baseline"]
            body = [
                [
                    r["condition"],
                    r["arm"],
                    r["set"],
                    r["n"],
                    *_rate_and_change(r),
                ]
                for r in rows
            ]
            parts.append((f"Seed {seed['seed']}", page.table(head, body, left=3)))
    note = (
        "The direction that the run found with its own chat, tested again on the same test prompts under other system "
        "prompts; nothing was fitted or chosen again. Changes are paired, within the condition."
    )
    return _section("System prompts", parts, note)


def _breakdowns(seeds: Sequence[Rows]) -> Html:
    parts = []
    for seed in seeds:
        shown = []
        apart = [r for r in seed.get("by_baseline") or [] if r["n"]]
        if any(r["baseline"].startswith("not ") for r in apart):
            rows = [[r["baseline"], r["arm"], r["n"], _spread(r, "rate", "low", "high", 2)] for r in apart]
            shown.append(page.table(["Positives, at baseline", "Arm", "n", "Rate [95 %]"], rows, left=2))
        table = _by_category(seed.get("categories") or [])
        if table:
            shown.append(page.fold("Rates by category", *table))
        if shown:
            parts.append((f"Seed {seed['seed']}", page.join(shown)))
    note = (
        "Only positives that show the behaviour at baseline can lose it; those that do not are kept apart "
        "here. Categories are the contrast's own; n is small in each, so read the intervals."
    )
    return _section("Which prompts", parts, note)


def _by_category(rows: Sequence[Rows]) -> list[Html]:
    found = []
    for side in ("positive", "negative"):
        here = [r for r in rows if r["set"] == side]
        arms = list(dict.fromkeys(r["arm"] for r in here))
        cells = {(r["category"], r["arm"]): r for r in here}
        body = [
            [c, cells[c, arms[0]]["n"], *(_spread(cells[c, a], "rate", "low", "high", 2) for a in arms)]
            for c in sorted({r["category"] for r in here})
        ]
        if body:
            found.append(page.table([f"Category of {side}s", "n", *arms], body))
    return found
