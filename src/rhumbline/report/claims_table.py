"""The table of claims of a run: each with its state, a chart, its number and its reasons.

Every number comes from the files of the run.
"""

from collections.abc import Sequence

from msgspec import UNSET

from rhumbline.evidence.compared_arms import arms_of
from rhumbline.records.claims import Claim, ClaimKind, beyond_one, claim_of, reasons_once
from rhumbline.records.results import SeedResult
from rhumbline.records.verdict_reasons import reason_texts
from rhumbline.records.verdict_rule import is_number
from rhumbline.report import page
from rhumbline.report.page import Html, interval, number
from rhumbline.report.run_record import RunRecord

CHART = (190, 22)
"""Width and height of the chart of a claim, in pixels."""


def claims_table(run: RunRecord) -> Html:
    """Return every claim with its state, a chart of its number in the run and in every seed, and its reasons."""
    head = ["Claim", "State", "Chart", "Number [95 %]", "n", "Margin", "Reason"]
    rows = [
        [
            page.tag("b", claim.kind.text),
            _state(claim, run.seeds),
            claim_chart(claim, [claim_of(claim.kind, seed.claims) for seed in run.seeds]),
            interval(claim.value, claim.low, claim.high),
            claim.n or "—",
            "—" if claim.bound is None else f"{claim.bound:g}",
            _reasons(claim) if reason else "",
        ]
        for claim, reason in zip(run.results.claims, reasons_once(run.results.claims), strict=True)
    ]
    return page.join([page.table(head, rows, left=3, key=True, reasons=True), _claims_note(run)])


def _claims_note(run: RunRecord) -> Html:
    notes = [_numbers(run), *([beyond] if (beyond := beyond_one(run.results.claims)) else []), *_shared_prompts(run)]
    chart = "Chart: ● the number of the run with its 95 % interval, ○ each seed, dashed the margin. "
    return page.how_to_read(chart, " ".join(notes))


def _numbers(run: RunRecord) -> str:
    """What the numbers of the effects are, and which claims the verdict needs."""
    if run.protocol.rule.reads == "estimate":
        return (
            f"Suppresses: the fall of the {run.measure} on positives under ablation. Induces: its rise on negatives "
            "under addition. Both are absolute changes, and their estimates decide. A degenerate completion does not "
            "show the behaviour. The verdict follows from those of the first four claims for which the rule has a "
            "bound: all of them must be shown."
        )
    return (
        "Suppresses: the share of the behaviour on positives that ablation removes. Induces: the share of its absence "
        "on negatives that addition removes. Degenerate completions count against both. The verdict follows from the "
        "first four claims: all of them must be shown."
    )


def _state(claim: Claim, seeds: Sequence[SeedResult]) -> Html:
    """Return the state of a claim, and those of the seeds if they differ from it."""
    states = {seed.seed: claim_of(claim.kind, seed.claims).state for seed in seeds}
    shown = [page.tag("b", claim.state.text)]
    if set(states.values()) != {claim.state}:
        shown += [page.tag("span", f"seed {seed}: {state.text}", class_="mini") for seed, state in states.items()]
    return page.join(shown)


def _reasons(claim: Claim) -> Html | str:
    """Return the reasons of a claim, each on its own line."""
    texts = reason_texts(claim.reasons)
    return page.bullets(texts) if len(texts) > 1 else claim.reason


def claim_chart(claim: Claim, seeds: Sequence[Claim]) -> Html:
    """Return a line with the number of a claim, its interval, its margin, and the numbers of the seeds."""
    # A share is at most 1, where its interval ends in the chart; a level can exceed 1.
    is_share = claim.kind in (ClaimKind.SUPPRESSES, ClaimKind.INDUCES) and is_number(claim.value) and claim.value <= 1
    ends = [claim.low, min(claim.high, 1.0) if is_share and is_number(claim.high) else claim.high]
    values = [claim.value, *ends, claim.bound, *(seed.value for seed in seeds)]
    known = [value for value in values if is_number(value)]
    if not is_number(claim.value):
        return Html("—")
    width, height = CHART
    low, high = min(0.0, *known), max(known)
    # Shares and cosines end at 1. Damage is far below it, so its scale ends above its bound.
    high = max(high, 1.0) if claim.kind is not ClaimKind.LEAVES_INTACT else 1.25 * high
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(6 + (width - 12) * (value - low) / span, 1)

    middle = height / 2
    parts = [f'<line class="axis" x1="0" x2="{width}" y1="{height - 1}" y2="{height - 1}"/>']
    if is_number(claim.bound):
        parts.append(f'<line class="margin" x1="{x(claim.bound)}" x2="{x(claim.bound)}" y1="0" y2="{height - 1}"/>')
    if is_number(claim.low) and is_number(claim.high):
        end = x(min(claim.high, high))
        parts.append(f'<line class="range" x1="{x(claim.low)}" x2="{end}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="all" cx="{x(claim.value)}" cy="{middle}" r="4"/>')
    for k, seed in enumerate(seeds if len(seeds) > 1 else ()):
        if is_number(seed.value):
            y = round(2 + (height - 5) * (k + 0.5) / len(seeds), 1)
            parts.append(f'<circle class="seed" cx="{x(seed.value)}" cy="{y}" r="2.6"/>')
    label = f"{claim.kind.text}: {claim.number}, margin {number(claim.bound)}"
    each = ", ".join(number(seed.value) for seed in seeds)
    drawn = Html("".join(parts))
    return page.tag(
        "svg", drawn, class_="claim", role="img", viewBox=f"0 0 {width} {height}", width=width, height=height,
        aria_label=f"{label}; seeds: {each}",
    )  # fmt: skip


def _shared_prompts(run: RunRecord) -> list[str]:
    """How many test prompts the seeds share."""
    shared = [e for e in run.results.pooled if e.shared is not UNSET]
    if len(run.seeds) < 2 or not shared:
        return []
    listed = ", ".join(f"{e.shared} of {e.n} {arms_of(e.name).label} test prompts" for e in shared)
    return [f"The seeds share {listed}; over all seeds a prompt counts once, with its mean."]
