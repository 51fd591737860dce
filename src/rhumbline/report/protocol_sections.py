"""Sections on how the results were obtained: rule, data, environment and times, and how to verify and cite the run."""

from dataclasses import asdict

from msgspec import UNSET

from rhumbline.evidence.verdict_rules import Rule
from rhumbline.records.directory import JOB_LOG
from rhumbline.records.verdict_rule import VERSION
from rhumbline.report import page
from rhumbline.report.figures import printable
from rhumbline.report.page import Html, number
from rhumbline.report.run_record import RunRecord


def protocol(run: RunRecord) -> Html:
    """Return what was fixed before the run: rule, data, environment and times."""
    environment = [[k, v] for k, v in asdict(run.results.environment).items() if isinstance(v, str | int)]
    tables = {
        "Data": _data_table(run),
        "Tokens and duplicates": _tokens_table(run),
        "Decoding": _decoding_table(run),
        "Environment": page.table(["Field", "Value"], environment, left=2),
        "Time and memory": _timings(run),
    }
    boxes = page.join(page.tag("div", page.tag("h3", title), table) for title, table in tables.items())
    raw = page.fold(f"protocol.json, sha256 {run.results.protocol_sha256}", page.pretty(run.directory.protocol))
    rule = page.bullets([*rule_sentences(run.protocol.rule), ablation_sentence(run.protocol.ablation.spared)])
    return page.detail("Protocol", rule, page.tag("div", boxes, class_="grid"), raw)


def ablation_sentence(spared: int) -> str:
    """Return which tokens the ablations edit."""
    if not spared:
        return "Ablations edit every token."
    first = "the first token" if spared == 1 else f"the first {spared} tokens"
    return f"Ablations edit every token but {first} of a text; edits of weights act at every token."


# -- the rule ---------------------------------------------------------------------------------------------------------


def rule_sentences(rule: Rule) -> list[str]:
    """Return the conditions of a rule as sentences."""
    if rule.version < VERSION:
        return [f"Rule {rule.name}, version {rule.version}, fixed before the first forward pass; see protocol.json."]
    return [f"Rule {rule.name}, fixed before the first forward pass.", *_conditions(rule), *_bounds(rule)]


def _conditions(rule: Rule) -> list[str]:
    kind = "absolute" if rule.reads == "estimate" else "relative"
    sentences = [
        f"No baseline: fewer than {rule.min_baseline:.0%} of the positive prompts show the behaviour.",
    ]
    if rule.min_separation is not None:
        sentences[0] = (
            f"No baseline: the level of the positive prompts is below {rule.min_baseline:g}, or the AUROC of the score "
            f"between the classes is below {rule.min_separation:g}."
        )
    if rule.min_contrast is not None:
        sentences.append(
            "Not tested: at baseline the rate of the positives exceeds that of the negatives by less than "
            f"{rule.min_contrast:g} (lower end of the interval)."
        )
    sentences += [
        f"Suppresses and induces: the {kind} change is at least {number(rule.min_drop)}.",
        f"Beats its nulls: it exceeds the mean {kind} change by each null family by at least {number(rule.min_gap)}.",
        f"Null families: {', '.join(rule.families)}.",
    ]
    if rule.reads == "interval":
        sentences.append(
            "A claim is shown if the whole 95 % interval reaches the margin, and refuted if the whole interval misses "
            "it."
        )
    if rule.max_p is not None:
        sentences.append(f"The rank p among the comparable wide nulls of every family is at most {rule.max_p:g}.")
        if rule.same_cosine is not None:
            sentences.append(f"Comparable: draws with a |cosine| of at most {rule.same_cosine:g} with the direction.")
        if rule.min_draws:
            sentences.append(f"Every family needs {rule.min_draws} comparable draws.")
    if rule.max_negative is not None:
        sentences.append(
            f"Induction is tested only if at most {rule.max_negative:.0%} of the negatives show the behaviour at "
            "baseline; otherwise only suppression is tested."
        )
    if rule.min_cosine is not None:
        sentences.append(f"Stable: cosines with refits and between seeds of at least {rule.min_cosine:g}.")
    return sentences


def _bounds(rule: Rule) -> list[str]:
    names = {
        "degenerate completions": rule.max_degenerate,
        "KL on negatives": rule.max_kl,
        "loss of content" if rule.content_everywhere else "loss of right answers": rule.max_accuracy_loss,
        "more of the behaviour on negatives under ablation": rule.max_over_refusal,
    }
    bounds = [f"{name} at most {bound:g}" for name, bound in names.items() if bound is not None]
    return [f"Leaves the rest intact: {bound}." for bound in bounds]


# -- tables -----------------------------------------------------------------------------------------------------------


def _data_table(run: RunRecord) -> Html:
    rows = [
        [seed.seed, split, getattr(run.protocol.planned, split), seed.n[split].positive, seed.n[split].negative]
        for seed in run.seeds
        for split in ("train", "val", "test")
    ]
    return page.table(["Seed", "Split", "Requested per class", "Positive", "Negative"], rows, left=2)


def _tokens_table(run: RunRecord) -> Html:
    rows, source = [], _token_source(run)
    for seed in run.seeds:
        tokens = ", ".join(f'"{printable(token.text)}" ({token.id})' for token in seed.refusal_tokens)
        near = seed.near_duplicates
        start = "the prompt" if seed.start is None else f'"{printable(seed.start.text)}"'
        auroc, zero = number(seed.token_auroc, 3), number(0.0 if seed.threshold is UNSET else seed.threshold, 2)
        rows.append([seed.seed, tokens or "none", source, start, zero, auroc, near.found, near.dropped])
    head = [
        "Seed",
        "Refusal tokens (id)",
        "From",
        "Read after",
        "Zero (log-odds)",
        "AUROC on train",
        "Near-duplicates",
        "Dropped",
    ]
    return page.table(head, rows, left=3)


def _token_source(run: RunRecord) -> str:
    """Where the refusal tokens come from."""
    published = run.context.published_tokens
    if published is None:
        return "training prompts" if run.protocol.refusal_tokens == "auto" else "the protocol"
    if published.family is None:
        return "training prompts (none published for it)"
    return f"the paper, for {published.family}"


def _decoding_table(run: RunRecord) -> Html:
    """Return how completions were decoded; runs of older versions have no record of it."""
    facts = run.context.decoding
    if facts is None:
        return page.note("Greedy. The stop tokens were not recorded.")
    stops = [[f"stops at {printable(t.text)} ({t.id})", ", ".join(t.sources)] for t in facts.stop_tokens]
    ignored = [[f"{name} = {value}", "generation config, not applied"] for name, value in facts.ignored.items()]
    return page.table(["Greedy decoding", "From"], [*stops, *ignored], left=2)


def _timings(run: RunRecord) -> Html:
    timings = run.results.timings
    rows = [[s.stage, s.seed, number(s.seconds, 1), number(s.peak_memory_mb, 0)] for s in timings.stages]
    total = ["total", "", number(timings.total_seconds, 1), ""]
    table = page.table(["Stage", "Seed", "Seconds", "Peak memory, MB"], [*rows, total])
    if not (run.directory.path / JOB_LOG).exists():
        return table
    return page.join([table, page.note("Workers computed jobs of this run; their memory is not included.")])


# -- verify and cite --------------------------------------------------------------------------------------------------


def cite(run: RunRecord) -> Html:
    """Return how to verify the run and how to cite it."""
    results = run.results
    text = (
        f"{results.model.name}, {run.protocol.behaviour}: {results.verdict}. Seeds: {len(run.seeds)}. rhumbline "
        f"{results.environment.rhumbline}, preset {run.protocol.preset}, protocol sha256 {results.protocol_sha256}."
    )
    command = page.tag("code", f"rhumbline verify {run.directory.name}")
    verify = page.tag(
        "p",
        command,
        " recomputes the verdict from the rows of every prompt, and the hashes from the files. It exits with 0 if they "
        "agree.",
    )
    method = "Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction, arXiv 2406.11717"
    return page.section("Verify and cite", verify, page.tag("pre", text), page.note(f"Method: {method}."))
