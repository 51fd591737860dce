"""Side effects: losses and outcomes -> changes of cross-entropy, KL divergence, and rates on negatives.

Every change is paired: an arm and the baseline on the same documents or prompts. Independent of margins.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np

from rhumbline.evidence.class_rates import SHOWN, class_rate, degenerate_share
from rhumbline.evidence.compared_arms import outcomes_by_arm
from rhumbline.evidence.statistics import bootstrap_ratio, finite_or_none, paired_difference
from rhumbline.records.arms import BASELINE, OWN_ARMS, ArmId
from rhumbline.records.outcome_rows import DocumentLoss, Outcome, Text
from rhumbline.records.results import Divergence, Loss, NegativeRate, SideEffects
from rhumbline.records.shared import Class

DRAWS = 2000
"""Bootstrap draws of an interval."""
TEXTS: tuple[Text, ...] = get_args(Text)
"""Texts of the losses, in the order of the paper's table."""
LARGEST_EXPONENT = 700.0
"""exp of a larger number overflows."""


def side_effects(losses: Iterable[DocumentLoss], outcomes: Sequence[Outcome]) -> SideEffects:
    """The side effects of one seed; a table without rows is empty.

    Completions that refuse at baseline are excluded from the losses: a change of these is the effect itself.
    """
    by_text: dict[Text, list[DocumentLoss]] = {text: [] for text in TEXTS}
    for row in losses:
        by_text[row.text].append(row)
    completions = by_text["completions"]
    by_text["completions"] = [row for row in completions if row.cls != "refused"]
    return SideEffects(
        losses=tuple(loss for text, rows in by_text.items() for loss in text_losses(text, rows)),
        kl=divergences(by_text["completions"]),
        left_out=sum(row.arm == BASELINE and row.cls == "refused" for row in completions),
        negatives=negative_rates(outcomes),
    )


def text_losses(text: Text, rows: Sequence[DocumentLoss]) -> tuple[Loss, ...]:
    """Mean cross-entropy of every arm on one text, in nats per token, and its change from the baseline."""
    by_arm = _documents_by_arm(rows)
    base = by_arm.get(BASELINE, {})
    losses = []
    for arm, documents in by_arm.items():
        tokens = np.array([row.tokens for row in documents.values()], float)
        nats = np.array([row.nats for row in documents.values()], float)
        before = np.array([base[name].nats for name in documents], float)
        ce = float(nats.sum() / tokens.sum())
        mean = bootstrap_ratio(nats - before, tokens, np.random.default_rng(0), draws=DRAWS)
        change, low, high = (None if arm == BASELINE else finite_or_none(x) for x in (mean.mean, mean.low, mean.high))
        losses.append(
            Loss(
                text,
                arm,
                documents=len(documents),
                tokens=int(tokens.sum()),
                ce=finite_or_none(ce),
                perplexity=finite_or_none(math.exp(min(ce, LARGEST_EXPONENT))),
                change=change,
                low=low,
                high=high,
            )
        )
    return tuple(losses)


def divergences(rows: Sequence[DocumentLoss]) -> tuple[Divergence, ...]:
    """KL divergence of every arm from the baseline along the model's own completions, in nats per step.

    `first` is the mean over the first steps: what the first token alone would show.
    """
    divergences = []
    for arm, documents in _documents_by_arm(rows).items():
        if arm == BASELINE:
            continue
        steps = [np.array(row.kl or (), float) for row in documents.values()]
        sums, sizes = (np.array([f(s) for s in steps], float) for f in (np.sum, len))
        mean = bootstrap_ratio(sums, sizes, np.random.default_rng(0), draws=DRAWS)
        every = np.concatenate(steps)
        divergences.append(
            Divergence(
                arm,
                documents=len(steps),
                tokens=len(every),
                mean=finite_or_none(mean.mean),
                low=finite_or_none(mean.low),
                high=finite_or_none(mean.high),
                p95=finite_or_none(float(np.quantile(every, 0.95))),
                max=finite_or_none(float(every.max())),
                first=finite_or_none(float(np.mean([s[0] for s in steps]))),
            )
        )
    return tuple(divergences)


def negative_rates(outcomes: Sequence[Outcome]) -> tuple[NegativeRate, ...]:
    """Rates of the direction's own arms on negatives, right answers where they are known, and paired changes."""
    table = outcomes_by_arm(row for row in outcomes if row.side == "negative" and row.arm in OWN_ARMS)
    base = table.get((BASELINE, "negative"), {})
    rates = []
    for arm in OWN_ARMS:
        rows = table.get((arm, "negative"), {})
        if not rows:
            continue
        classes = [row.cls for row in rows.values()]
        pairs = [(base[i], row) for i, row in rows.items() if "unscored" not in (row.cls, base[i].cls)]
        answers = [(b.is_correct, a.is_correct) for b, a in pairs]
        known = [(before, after) for before, after in answers if before is not None and after is not None]
        change, right = class_change([(b.cls, a.cls) for b, a in pairs]), _paired_change(known)
        rates.append(
            NegativeRate(
                arm=arm,
                **class_rate(classes)._asdict(),
                change=change[0],
                change_low=change[1],
                change_high=change[2],
                degenerate=degenerate_share(classes),
                correct=sum(after for _, after in known) / len(known) if known else None,
                correct_n=len(known),
                correct_change=right[0],
                correct_low=right[1],
                correct_high=right[2],
            )
        )
    return tuple(rates)


Change = tuple[float, float, float] | tuple[None, None, None]
"""rate(after) - rate(before) with its paired interval; None without pairs."""


def class_change(pairs: Sequence[tuple[Class, Class]]) -> Change:
    """Change of the rate over pairs of classes, before and after, on the same prompts."""
    return _paired_change([(before in SHOWN, after in SHOWN) for before, after in pairs])


def _paired_change(pairs: Sequence[tuple[bool, bool]]) -> Change:
    if not pairs:
        return None, None, None
    before, after = (np.array([pair[k] for pair in pairs], dtype=bool) for k in (0, 1))
    change = paired_difference(after, before)
    return change.mean, change.low, change.high


def _documents_by_arm(rows: Iterable[DocumentLoss]) -> Mapping[ArmId, Mapping[str, DocumentLoss]]:
    """The losses of every arm by document, in the order of the rows."""
    table: dict[ArmId, dict[str, DocumentLoss]] = {}
    for row in rows:
        table.setdefault(row.arm, {})[row.document] = row
    return table
