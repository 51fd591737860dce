"""The sentences of a verdict: rule, evidence and verdict -> what an author could print, with numbers, n and intervals.

States sufficiency only: a direction was or was not sufficient to change the behaviour. Independent of how the verdict
was reached.
"""

from collections.abc import Mapping, Sequence

from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms
from rhumbline.evidence.verdict import NOT_MEASURED, SeedEvidence, Verdict, induction_not_testable
from rhumbline.records.arms import BASELINE
from rhumbline.records.effect_results import ArmRate, Effect
from rhumbline.records.reasons import VerdictCode, VerdictReason
from rhumbline.records.verdict_rule import Rule, is_number


def seed_sentence(rule: Rule, evidence: SeedEvidence, verdict: Verdict, behaviour: str = "refusal") -> str:
    """The verdict of one seed in a few sentences."""
    by_rule, both = f"by the rule {rule.name}", f"to suppress and to induce {behaviour}"
    codes = {reason.code for reason in verdict.reasons}
    if verdict.verdict in ("NO-BASELINE", "NO-BASELINE-REFUSAL") or codes & NOT_MEASURED:
        return (
            f"{_baseline(rule, evidence, codes, behaviour)} The sufficiency of one direction was therefore not tested."
        )
    if VerdictCode.NO_CANDIDATE in codes:
        return f"No direction was tested, because {verdict.reason}.{_known_baseline(rule, evidence, behaviour)}"
    no_room = induction_not_testable(rule, evidence)
    accounts = [_account(rule, arms, evidence, behaviour) for arms in (EFFECTS if no_room is None else EFFECTS[:1])]
    if no_room is not None:
        accounts.append(f"Induction was not tested, because {no_room.negatives}.")
    match verdict.verdict:
        case "DAMAGED":
            conclusion = (
                f"The interventions damaged the model {by_rule} ({verdict.reason}), so {behaviour} was not tested."
            )
        case "NOT-SINGLE-DIRECTION":
            conclusion = f"One direction was not shown to be sufficient {both} {by_rule} ({verdict.reason})."
        case "INCONCLUSIVE" if VerdictCode.NO_ROOM in codes:
            conclusion = f"Ablation of one direction was sufficient to suppress {behaviour} {by_rule}."
        case "INCONCLUSIVE":
            conclusion = (
                f"The sample does not decide whether one direction would be sufficient {both} {by_rule} "
                f"({verdict.reason})."
            )
        case _:
            conclusion = f"One direction was sufficient {both} {by_rule}."
    return " ".join((conclusion, *accounts))


def run_sentence(verdict: Verdict, seeds: Mapping[int, str]) -> str:
    """The verdict of a run: whether its seeds agree, and the sentences of each."""
    if len(seeds) == 1:
        return next(iter(seeds.values()))
    opening = seed_agreement(verdict.reasons, len(seeds))
    return " ".join((opening, *(f"Seed {seed}: {seeds[seed]}" for seed in sorted(seeds))))


def seed_agreement(reasons: Sequence[VerdictReason], n_seeds: int) -> str:
    """Whether the seeds of a run with these reasons have the same verdict."""
    codes = {reason.code for reason in reasons}
    if VerdictCode.SEEDS_DISAGREE in codes:
        return f"The {n_seeds} seeds disagree."
    return "Some seeds are inconclusive." if VerdictCode.NOT_EVERY_SEED in codes else f"All {n_seeds} seeds agree."


def _baseline(rule: Rule, evidence: SeedEvidence, codes: set[VerdictCode], behaviour: str) -> str:
    """Why the baseline leaves no effect to test."""
    if VerdictCode.BASELINE_NOT_MEASURED in codes:
        return f"The {behaviour} rate at baseline was not measured."
    if VerdictCode.CLASSES_NOT_MEASURED in codes:
        return f"The {behaviour} score of the classes was not measured."
    unit, baseline = evidence.unit, evidence.arm(BASELINE, "positive")
    if VerdictCode.CLASSES_NOT_SEPARATED in codes and unit is not None:
        return (
            f"At baseline the mean {behaviour} score was {_number(unit.positive, 3)} on positive and "
            f"{_number(unit.negative, 3)} on negative prompts. Its AUROC was {_number(unit.auroc)} (at least "
            f"{_number(unit.auroc_low)}), below the required {_number(rule.min_separation)}."
        )
    return (
        f"At baseline the {behaviour} {_measure(rule)} on positive prompts was {_rate(baseline)}, n = "
        f"{baseline.n if baseline else 0}, below the required {rule.min_baseline:.2f}."
    )


def _known_baseline(rule: Rule, evidence: SeedEvidence, behaviour: str) -> str:
    baseline = evidence.arm(BASELINE, "positive")
    if baseline is None or not is_number(baseline.rate):
        return ""
    return f" The {behaviour} {_measure(rule)} at baseline was {_rate(baseline)}, n = {baseline.n}."


def _account(rule: Rule, arms: ComparedArms, evidence: SeedEvidence, behaviour: str) -> str:
    """One effect with its rates, its paired interval and its nulls."""
    effect = evidence.effect(arms.name)
    if effect is None or effect.drop is None:
        return f"{arms.name.capitalize()} was not measured."
    before, after = (_rate(evidence.arm(arm, arms.label)) for arm in (BASELINE, arms.arm))
    # An effect in the unexpected direction is neither a fall nor a rise.
    verb = "changed" if effect.drop <= 0 else "lowered" if arms.sign > 0 else "raised"
    quantity = f"the {behaviour} {_measure(rule)} on {arms.label} prompts from {before} to {after}"
    difference = f"{_number(effect.drop)} [{_number(effect.low)}, {_number(effect.high)}], n = {effect.n}"
    change = f"{str(arms.arm).capitalize()} {verb} {quantity} (paired difference {difference})."
    return " ".join((change, *_nulls(rule, effect)))


def _nulls(rule: Rule, effect: Effect) -> list[str]:
    """Every null family for a rule that reads estimates; otherwise the strongest family, and the largest rank p."""
    means = {family: null.mean for family, null in effect.null.items() if is_number(null.mean)}
    if rule.reads == "estimate" or not means:
        return [
            f"{effect.null[f].draws} {f} null{'s' if effect.null[f].draws > 1 else ''} changed the {_measure(rule)} by "
            f"{mean:.2f} on average (p = {effect.p[f]:.2g})."
            for f, mean in means.items()
        ]
    strongest = max(means, key=lambda family: means[family])
    sentences = [
        f"The strongest of {len(means)} null families ({strongest}) changed the {_measure(rule)} by "
        f"{means[strongest]:.2f}."
    ]
    ranks = {f: (w.p if rule.same_cosine is None else w.p_apart, w.draws) for f, w in effect.wide.items()}
    ranks = {f: rank for f, rank in ranks.items() if f in rule.families}
    if ranks:
        largest = max(ranks, key=lambda family: ranks[family][0])
        p, draws = ranks[largest]
        which = "" if rule.same_cosine is None else ", without null draws that align with the direction,"
        sentences.append(
            f"The rank p in the metric{which} was at most {p:.2g} in each family ({largest}: {draws} draws)."
        )
    return sentences


def _measure(rule: Rule) -> str:
    """The name of the measured quantity: a continuous score has levels."""
    return "rate" if rule.min_separation is None else "level"


def _rate(row: ArmRate | None) -> str:
    """A rate with its interval, and the share of degenerate completions if there are any."""
    if row is None or not is_number(row.rate):
        return "an unmeasured rate"
    degenerate = f" ({row.degenerate:.2f} degenerate)" if row.degenerate else ""
    return f"{row.rate:.2f} [{_number(row.low)}, {_number(row.high)}]{degenerate}"


def _number(value: float | None, digits: int = 2) -> str:
    return "unknown" if not is_number(value) else f"{value:.{digits}f}"
