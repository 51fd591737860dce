"""Sections on side effects: damage compared with the bounds of the rule, losses on whole texts, and benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.verdict_rules import Rule
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.evaluation_files import ComparedScore, Comparison
from rhumbline.records.results import Divergence, Loss, NegativeRate, SeedResult, SideEffects
from rhumbline.records.shared import Label
from rhumbline.report import page
from rhumbline.report.basic_charts import Bar, ChartText, bars
from rhumbline.report.figures import LIGHT, Chart, ChartRow, finished, scale_of, tips
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord, measure, measured_arm

# -- damage -----------------------------------------------------------------------------------------------------------

ACCURACY_NOT_MEASURED = "not measured"
"""The negatives of the contrast carry no response."""


def damage(run: RunRecord) -> Html:
    """Return what the interventions damage, compared with the bounds of the rule."""
    measured = {seed.seed: rows for seed in run.seeds if (rows := _damage_rows(seed, run.protocol.rule))}
    if not measured:
        return Html()
    # Every seed has the same measurements, in the same order.
    rows = []
    for together in zip(*measured.values(), strict=True):
        name, _, _, bound = together[0]
        n = ", ".join(str(n) for n in dict.fromkeys(row[2] for row in together))
        rows.append([name, *(row[1] for row in together), n, bound])
    note = page.how_to_read(
        "The claim that the rest stays intact compares the intervals of these changes with the bounds of the rule. "
        "Degenerate: an empty or repetitive completion; from baseline to intervention. KL: on negatives that rarely "
        "show the behaviour at baseline. Accuracy: share of negatives whose completion contains the `response` that "
        "the contrast gives for the prompt. It is not measured if the negatives of the contrast carry no response."
    )
    head = ["Measurement", *(f"Seed {seed}" for seed in measured), "n", "Bound of the rule"]
    return page.section("Damage", page.table(head, rows), note)


def _damage_rows(seed: SeedResult, rule: Rule) -> list[list[Any]]:
    arms = {(row.arm, row.side): row for row in seed.arms}
    if (ABLATION, "negative") not in arms:
        return []
    shift = seed.shift
    kl, low, high = (number(value, 4) for value in (shift.kl, shift.low, shift.high))
    name = "KL divergence of the next token in nats, negatives, ablation"
    divergence = f"not finite on {shift.not_finite} of {shift.n}" if shift.not_finite else f"{kl} [{low}, {high}]"
    rows: list[list[Any]] = [[name, divergence, shift.n, _bound(rule.max_kl)]]
    measured: tuple[tuple[ArmId, Label], ...] = (
        (ABLATION, "positive"), (ABLATION, "negative"), (ADDITION, "negative"),
    )  # fmt: skip
    for arm, side in measured:
        before, after = arms.get((BASELINE, side)), arms.get((arm, side))
        change = " to ".join(number(row.degenerate if row else None) for row in (before, after))
        name = f"degenerate completions, {side}s, {arm}"
        rows.append([name, change, after.n if after else 0, _bound(rule.max_degenerate, "more")])
    return [*rows, _accuracy_row(arms.get((BASELINE, "negative")), arms[ABLATION, "negative"], rule)]


def _accuracy_row(before: ArmRate | None, after: ArmRate, rule: Rule) -> list[Any]:
    known = before is not None and before.correct is not None and after.correct is not None
    change = f"{number(before.correct)} to {number(after.correct)}" if before and known else ACCURACY_NOT_MEASURED
    name = "accuracy on harmless prompts (known answers), negatives, ablation"
    return [name, change, after.n if known else 0, _bound(rule.max_accuracy_loss, "less")]


def _bound(value: float | None, how: str = "") -> str:
    return "none" if value is None else f"{value:g} {how}".strip()


# -- losses -----------------------------------------------------------------------------------------------------------

TEXT_NAMES = {"text": "plain text", "responses": "responses", "completions": "own completions"}
"""Names of the texts that losses are measured on."""


def side_effects(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the side effects of the interventions on losses, predictions and negatives."""
    explanation = (
        "Cross-entropy of the next token in float32, as a mean weighted by tokens. Every arm reads the same documents. "
        "In a row the seeds are one below the other. The intervals are those of the paired change, by a bootstrap over "
        "documents. Plain text: the documents of --loss-text. Responses: answers to harmless prompts, given the "
        "prompt. Own completions: baseline completions of the model on negative test prompts that it did not refuse. "
        "Subtraction: addition with the negative coefficient, which the paper's table calls activation addition. A "
        "null of equal norm (isotropic) or equal energy (covariance) shows the side effects of any such edit."
    )
    measured = _with_losses(run.seeds)
    if not measured:
        return Html()
    sentences = [page.join([f"Seed {seed}: ", text]) for seed, e in measured.items() for text in _side_effect_texts(e)]
    charts = draw(_loss_chart(text, measured) for text in TEXT_NAMES)
    return page.section("Side effects", charts, page.bullets(sentences), page.how_to_read(explanation))


def _with_losses(seeds: Sequence[SeedResult]) -> dict[int, SideEffects]:
    """Return the side effects of the seeds in which losses were measured."""
    return {seed.seed: seed.side_effects for seed in seeds if seed.side_effects and seed.side_effects.losses}


def side_effect_detail(seed: SeedResult, draw: page.Canvas) -> Html:
    """Return the side effects of one seed over its effects, and in numbers; empty if they were not measured."""
    effects = seed.side_effects
    if effects is None or not effects.losses:
        return Html()
    charts = draw(_effect_chart(seed, effect, effects.losses) for effect in EFFECTS)
    tables = [_loss_table(effects.losses), _kl_table(effects.kl), _negatives_table(effects.negatives)]
    return page.join([page.tag("h3", "Side effects"), charts, *tables])


def _side_effect_texts(effects: SideEffects) -> list[Any]:
    loss = next((row for row in effects.losses if row.text == "completions" and row.arm == ABLATION), None)
    kl = next((row for row in effects.kl if row.arm == ABLATION), None)
    negatives = next((row for row in effects.negatives if row.arm == ABLATION), None)
    sentences: list[Any] = []
    if loss is not None and kl is not None:
        sentences.append(_divergence_sentence(loss, kl))
    if negatives is not None:
        sentences.append(_negatives_sentence(negatives))
    if effects.left_out:
        sentences.append(f"{effects.left_out} completions that show the behaviour at baseline are excluded.")
    return sentences


def _divergence_sentence(loss: Loss, kl: Divergence) -> Html:
    return page.join(
        [
            "ablation changes the cross-entropy of own completions by ",
            interval(loss.change, loss.low, loss.high, 3, signed=True),
            " nats per token. Along them the mean KL divergence of the next token is ",
            page.mean(kl, 3),
            f" nats; at 95 % of {kl.tokens} steps it is below {number(kl.p95, 3)}.",
        ]
    )


def _negatives_sentence(row: NegativeRate) -> Html:
    rate, n = page.rate(row), f" (n = {row.n}, change "
    parts: list[Any] = ["under ablation, the rate of the behaviour on negatives is ", rate, n, page.change(row), ")."]
    if row.correct is not None:
        parts += [f" The share of right answers is {number(row.correct)} (n = {row.correct_n}, change "]
        parts += [interval(row.correct_change, row.correct_low, row.correct_high, signed=True), ")."]
    return page.join(parts)


def _loss_table(losses: Sequence[Loss]) -> Html:
    head = ["Text", "Arm", "Documents", "Tokens", "Cross-entropy", "Perplexity", "Change [95 %]"]
    rows = []
    for row in losses:
        change = interval(row.change, row.low, row.high, 4, signed=True)
        values = row.documents, row.tokens, number(row.ce, 4), number(row.perplexity)
        rows.append([TEXT_NAMES[row.text], row.arm.label, *values, change])
    return page.table(head, rows, left=2)


def _kl_table(divergences: Sequence[Divergence]) -> Html:
    head = ["Arm", "Completions", "Steps", "Mean KL [95 %]", "95th percentile", "Largest", "First step"]
    rows = [
        [r.arm.label, r.documents, r.tokens, page.mean(r, 4), *(number(v, 4) for v in (r.p95, r.max, r.first))]
        for r in divergences
    ]
    return page.table(head, rows)


def _negatives_table(negatives: Sequence[NegativeRate]) -> Html:
    head = ["Arm on negatives", "n", "Rate [95 %]", "Change", "Degenerate", "Right answers", "of"]
    rows = []
    for row in negatives:
        answers = interval(row.correct_change, row.correct_low, row.correct_high, signed=True)
        shares = number(row.degenerate), number(row.correct), row.correct_n or None
        rows.append([row.arm, row.n, page.rate(row), page.change(row), *shares, answers])
    return page.table([*head, "Change of right answers"], rows)


def _loss_chart(text: str, measured: Mapping[int, SideEffects]) -> Chart | None:
    """Draw the change of cross-entropy on one kind of text under every arm; the seeds share the rows."""
    title = f"Cross-entropy on {TEXT_NAMES[text]}"
    summary = f"{title}: change from the baseline under every arm, with 95 % intervals"
    rows = [
        Bar(
            loss.arm.label,
            loss.arm.family or "direction",
            loss.change,
            loss.low,
            loss.high,
            seed=seed,
            more={"ce": loss.ce, "perplexity": loss.perplexity, "documents": loss.documents},
        )
        for seed, effects in measured.items()
        for loss in effects.losses
        if loss.text == text and loss.change is not None
    ]
    return bars(ChartText(f"losses-{text}", title, "change, nats per token", summary=summary), rows)


def _effect_chart(seed: SeedResult, effect: ComparedArms, losses: Sequence[Loss]) -> Chart | None:
    """Draw the loss on the model's own completions over the effect on the behaviour, one point for each arm."""
    baseline = measured_arm(seed, BASELINE, effect.label)
    if baseline is None or baseline.rate is None:
        return None
    rows = []
    for loss in losses:
        arm = measured_arm(seed, loss.arm, effect.label)
        if loss.text == "completions" and (loss.arm == effect.arm or effect.has_null(loss.arm)) and arm is not None:
            rows.append(_effect_row(loss, arm, baseline.rate, effect.sign))
    if not rows or any(row["change"] is None for row in rows):
        return None
    title = f"{effect.name.capitalize()} and cross-entropy, seed {seed.seed}"
    shown = f"change of the {measure([seed])}"
    summary = f"{title}: {shown}, and change of cross-entropy on the model's own completions"
    body = _scatter(rows, f"{effect.name}: {shown}")
    return finished(f"cost-seed-{seed.seed}-{effect.name}", summary, body, title, rows)


def _effect_row(loss: Loss, arm: ArmRate, before: float, sign: int) -> ChartRow:
    changes = [None if end is None else sign * (before - end) for end in (arm.rate, arm.low, arm.high)]
    low, high = changes[1:] if sign < 0 else reversed(changes[1:])
    numbers = {"effect": changes[0], "effect_low": low, "effect_high": high}
    series = loss.arm.family or "direction"
    return numbers | {
        "arm": loss.arm.label,
        "series": series,
        "change": loss.change,
        "low": loss.low,
        "high": loss.high,
    }


def _scatter(rows: Sequence[ChartRow], x_title: str) -> Any:
    order = list(dict.fromkeys(row["series"] for row in rows))
    legend = alt.Legend(title=None, orient="bottom", columns=2, symbolOpacity=1)
    domain = alt.Scale(domain=[-0.1, 1.05], nice=False)
    x = alt.X("effect:Q", scale=domain, axis=alt.Axis(title=x_title, grid=False, tickCount=6))
    y = alt.Y("change:Q", axis=alt.Axis(title="change of cross-entropy, nats per token", tickCount=5))
    base = alt.Chart().encode(color=alt.Color("series:N", scale=scale_of(order, "colour"), legend=legend))
    tip = tips("arm", effect=".3f", change=".4f", low=".4f", high=".4f")
    shape = alt.Shape("series:N", scale=scale_of(order, "shape"), legend=legend)
    return alt.layer(
        alt.Chart().mark_rule(color=LIGHT["muted"], strokeDash=[4, 3]).encode(y=alt.YDatum(0)),
        base.mark_rule(strokeWidth=1.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_rule(strokeWidth=1.6).encode(x=alt.X("effect_low:Q"), x2="effect_high:Q", y=y),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, shape=shape, tooltip=tip),
    ).properties(width=300, height=220)


# -- benchmarks -------------------------------------------------------------------------------------------------------


def benchmarks(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the scores of every evaluation of the run with lm-evaluation-harness, compared with the baseline."""
    parts = [
        (_settings_text(evaluation), _evaluation(number, evaluation, draw))
        for number, evaluation in enumerate(run.evaluations)
        if evaluation.rows
    ]
    return page.parts(
        "Benchmarks",
        parts,
        "Tasks of lm-evaluation-harness on the model under each arm. Changes are paired, on the same documents. Scores "
        "of 0 and 1 have Newcombe's interval and McNemar's exact p; other scores have a bootstrap over documents.",
    )


def _settings_text(evaluation: Comparison) -> str:
    settings = evaluation.settings
    limit = "all documents" if settings.limit is None else f"the first {settings.limit} documents"
    shots = "" if settings.fewshot is None else f", {settings.fewshot} examples in the prompt"
    chat = ""
    if settings.chat:
        chat = ", with the chat of the run" if settings.chat_of == "run" else ", with the template of the tokenizer"
    return f"Seed {settings.seed}; {limit}{shots}{chat}"


def _evaluation(k: int, evaluation: Comparison, draw: page.Canvas) -> Html:
    head = ["Task", "Score", "Arm", "Documents", "Mean", "Change [95 %]", "p (McNemar)"]
    rows = []
    for row in evaluation.rows:
        change = interval(row.change, row.low, row.high, 3, signed=True)
        p = "—" if row.p is None else f"{row.p:.2g}"
        rows.append([row.task, _metric_name(row), row.arm.label, row.n, number(row.score, 3), change, p])
    title = f"Benchmarks, seed {evaluation.settings.seed}"
    summary = f"{title}: change of each score under every arm, with 95 % intervals"
    text = ChartText(f"benchmarks-{k}", title, "change of the score from the baseline", summary=summary)
    marks = [
        Bar(
            f"{row.task}, {_metric_name(row)}",
            row.arm.label,
            row.change,
            row.low,
            row.high,
            more={"score": row.score, "n": row.n},
        )
        for row in evaluation.rows
        if row.change is not None
    ]
    return page.join([draw([bars(text, marks)]), page.table(head, rows, left=3)])


def _metric_name(row: ComparedScore) -> str:
    return row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
