"""Sections on side effects: damage compared with the bounds of the rule, and losses on whole texts."""

from collections.abc import Iterable
from typing import Any

from rhumbline.evidence.verdict_rules import Rule
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.results import Divergence, Loss, NegativeRate, SeedResult, SideEffects
from rhumbline.records.shared import Label
from rhumbline.report import page, side_effect_figures
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord

# -- damage -----------------------------------------------------------------------------------------------------------

NOT_MEASURED = "not measured: the negatives of this contrast carry no response"
"""Accuracy of a contrast without known answers."""


def damage(run: RunRecord) -> Html:
    """Return what the interventions damage, compared with the bounds of the rule."""
    rows = [row for seed in run.seeds for row in _damage_rows(seed, run.protocol.rule)]
    if not rows:
        return Html()
    note = page.note(
        "The claim that the rest stays intact compares the intervals of these changes with the bounds of the rule. "
        "Degenerate: an empty or repetitive completion; from baseline to intervention. KL: on negatives that rarely "
        "show the behaviour at baseline. Accuracy: share of negatives whose completion contains the `response` that "
        "the contrast gives for the prompt."
    )
    head = ["Seed", "Measurement", "Value", "n", "Bound of the rule"]
    return page.section("Damage", page.table(head, rows, left=3), note)


def _damage_rows(seed: SeedResult, rule: Rule) -> list[list[Any]]:
    arms = {(row.arm, row.side): row for row in seed.arms}
    if (ABLATION, "negative") not in arms:
        return []
    shift = seed.shift
    kl, low, high = (page.number(value, 4) for value in (shift.kl, shift.low, shift.high))
    name = "KL divergence of the next token in nats, negatives, ablation"
    rows: list[list[Any]] = [[seed.seed, name, f"{kl} [{low}, {high}]", shift.n, _bound(rule.max_kl)]]
    measured: tuple[tuple[ArmId, Label], ...] = (
        (ABLATION, "positive"), (ABLATION, "negative"), (ADDITION, "negative"),
    )  # fmt: skip
    for arm, side in measured:
        before, after = arms.get((BASELINE, side)), arms.get((arm, side))
        change = " to ".join(page.number(row.degenerate if row else None) for row in (before, after))
        name = f"degenerate completions, {side}s, {arm}"
        rows.append([seed.seed, name, change, after.n if after else 0, _bound(rule.max_degenerate, "more")])
    rows.append(_accuracy_row(seed, arms.get((BASELINE, "negative")), arms[ABLATION, "negative"], rule))
    return rows


def _accuracy_row(seed: SeedResult, before: ArmRate | None, after: ArmRate, rule: Rule) -> list[Any]:
    known = before is not None and before.correct is not None and after.correct is not None
    change = f"{page.number(before.correct)} to {page.number(after.correct)}" if before and known else NOT_MEASURED
    name = "accuracy on harmless prompts (known answers), negatives, ablation"
    return [seed.seed, name, change, after.n if known else 0, _bound(rule.max_accuracy_loss, "less")]


def _bound(value: float | None, how: str = "") -> str:
    return "none" if value is None else f"{value:g} {how}".strip()


# -- losses -----------------------------------------------------------------------------------------------------------


def side_effects(run: RunRecord, draw: page.Canvas) -> Html:
    """Return the side effects of the interventions on losses, predictions and negatives."""
    parts = [
        (f"Seed {seed.seed}", _side_effects(seed, seed.side_effects, draw))
        for seed in run.seeds
        if seed.side_effects is not None and seed.side_effects.losses
    ]
    return page.optional_section(
        "Side effects",
        parts,
        "Cross-entropy of the next token in float32, as a mean weighted by tokens. Every arm reads the same documents. "
        "The intervals are those of the paired change, by a bootstrap over documents. Plain text: the documents of "
        "--loss-text. Responses: answers to harmless prompts, given the prompt. Own completions: baseline completions "
        "of the model on negative test prompts that it did not refuse, with the KL divergence of the prediction at "
        "every step. Subtraction: addition with the negative coefficient, which the paper's table calls activation "
        "addition. A null of equal norm (isotropic) or equal energy (covariance) shows the side effects of any such "
        "edit.",
    )


def _side_effects(seed: SeedResult, effects: SideEffects, draw: page.Canvas) -> Html:
    charts = [
        draw(side_effect_figures.effects_and_losses(seed, effects.losses)),
        draw(side_effect_figures.losses(seed.seed, effects.losses)),
    ]
    tables = [_loss_table(effects.losses), _kl_table(effects.kl), _negatives_table(effects.negatives)]
    fold = page.fold("Losses, divergences and negatives in numbers", *tables)
    return page.join([_side_effect_text(effects), *charts, fold])


def _side_effect_text(effects: SideEffects) -> Html:
    loss = next((row for row in effects.losses if row.text == "completions" and row.arm == ABLATION), None)
    kl = next((row for row in effects.kl if row.arm == ABLATION), None)
    negatives = next((row for row in effects.negatives if row.arm == ABLATION), None)
    sentences: list[Any] = []
    if loss is not None and kl is not None:
        sentences.append(_divergence_sentence(loss, kl))
    if negatives is not None:
        sentences.append(_negatives_sentence(negatives))
    if effects.left_out:
        sentences.append(f"Excluded: {effects.left_out} completions that show the behaviour at baseline.")
    return page.bullets(sentences) if sentences else Html()


def _divergence_sentence(loss: Loss, kl: Divergence) -> Html:
    return page.join(
        [
            "Ablation changes the cross-entropy of the model's own completions by ",
            page.interval(loss.change, loss.low, loss.high, 3, signed=True),
            " nats per token. Along them it changes the next-token distribution by a mean KL divergence of ",
            page.interval(kl.mean, kl.low, kl.high, 3),
            f" nats (95 % of the {kl.tokens} steps are below {page.number(kl.p95, 3)}; the first step alone: "
            f"{page.number(kl.first, 3)}).",
        ]
    )


def _negatives_sentence(row: NegativeRate) -> Html:
    parts: list[Any] = [
        "Under ablation, the rate of the behaviour on negatives is ",
        page.interval(row.rate, row.low, row.high),
        f" (n = {row.n}, change ",
        page.interval(row.change, row.change_low, row.change_high, signed=True),
        ").",
    ]
    if row.correct is not None:
        parts += [
            f" The share of right answers is {page.number(row.correct)} (n = {row.correct_n}, change ",
            page.interval(row.correct_change, row.correct_low, row.correct_high, signed=True),
            ").",
        ]
    return page.join(parts)


def _loss_table(losses: Iterable[Loss]) -> Html:
    rows = [
        [
            side_effect_figures.TEXT_NAMES[row.text],
            row.arm.label,
            row.documents,
            row.tokens,
            page.number(row.ce, 4),
            page.number(row.perplexity),
            page.interval(row.change, row.low, row.high, 4, signed=True),
        ]
        for row in losses
    ]
    return page.table(
        ["Text", "Arm", "Documents", "Tokens", "Cross-entropy", "Perplexity", "Change [95 %]"], rows, left=2
    )


def _kl_table(divergences: Iterable[Divergence]) -> Html:
    rows = [
        [
            row.arm.label,
            row.documents,
            row.tokens,
            page.interval(row.mean, row.low, row.high, 4),
            *(page.number(value, 4) for value in (row.p95, row.max, row.first)),
        ]
        for row in divergences
    ]
    head = ["Arm", "Completions", "Steps", "Mean KL [95 %]", "95th percentile", "Largest", "First step"]
    return page.table(head, rows)


def _negatives_table(negatives: Iterable[NegativeRate]) -> Html:
    rows = [
        [
            row.arm,
            row.n,
            page.interval(row.rate, row.low, row.high),
            page.interval(row.change, row.change_low, row.change_high, signed=True),
            page.number(row.degenerate),
            page.number(row.correct),
            row.correct_n or None,
            page.interval(row.correct_change, row.correct_low, row.correct_high, signed=True),
        ]
        for row in negatives
    ]
    head = ["Arm on negatives", "n", "Rate [95 %]", "Change", "Degenerate", "Right answers", "of"]
    return page.table([*head, "Change of right answers"], rows)
