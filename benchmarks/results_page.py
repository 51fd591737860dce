"""Write docs/results.md: what finished runs on real models measured.

    python benchmarks/results_page.py RUN... --notes benchmarks/results_notes.md > docs/results.md

Numbers of the tables are read from the run directories. `--notes` is Markdown that follows them, with its own numbers.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import UNSET

from rhumbline.presets.protocols import PRESETS
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, SUBTRACTION, ArmId
from rhumbline.records.claims import Claim, ClaimKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.results import SeedResult
from rhumbline.records.shared import EffectName, Label
from rhumbline.report.run_record import RunFiles, read_summary

NOT_MEASURED = "not measured"
EFFECTS = (
    "model",
    "contrast",
    "spared",
    "seed",
    "site",
    "positives: baseline",
    "ablation",
    "subtraction",
    "negatives: baseline",
    "addition",
    "verdict",
)
CONTROLS = (
    "model", "contrast", "spared", "seed", "strongest null of the ablation", "strongest null of the addition",
    "degenerate: ablation", "degenerate: addition", "KL", "processor time",
)  # fmt: skip
CLAIMS = ("model", "contrast", "spared", "seed", *(kind.text for kind in ClaimKind))
SETTINGS_TEXT = """
## Settings

Models and contrasts are local directories and files. `python benchmarks/taught_models.py merge --model DIR --kind one
--out taught-one` writes the taught model, and `python benchmarks/taught_models.py contrast --out taught.jsonl` its
prompts; `advbench` is 300 prompts each of AdvBench and Alpaca, sampled from the authors' repository with seed 0.
"""
SETTINGS = (
    "model",
    "preset",
    "prompts (train / val / test per class)",
    "judge",
    "tokens",
    "spared",
    "dtype",
    "command",
)
HEADER = """\
# Results on real models

Written by `benchmarks/results_page.py` from finished runs: the numbers of the tables were read from their
run directories.
Rates are shares of the test prompts that show the behaviour, with 95 % intervals. *Spared*: first tokens of a text that
ablations do not edit.
"""
CLAIMS_TEXT = """
## Claims

State of every claim, with its number and 95 % interval; docs/guide/evidence.md explains them.
"""
CONTROLS_TEXT = """
## Controls

*Strongest null*: mean fall (ablation) or rise (addition) of the rate by the null family that changed it most. Draws
without a candidate, or with an ablation that damages the model, count as no change. *Degenerate*: share of broken
completions. *KL*: mean divergence of the next-token distributions on negatives under ablation, in nats.
"""


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--notes", type=Path, default=None, help="Markdown that follows the tables")
    a = parser.parse_args()
    summaries = [read_summary(RunDirectory.read(run)) for run in a.runs]
    sys.stdout.write(page(summaries, "" if a.notes is None else a.notes.read_text(encoding="utf-8")))


def page(summaries: Sequence[RunFiles], notes: str) -> str:
    """The page as Markdown."""
    seeds = [(summary, seed) for summary in summaries for seed in summary.results.seeds]
    return "\n".join(
        [
            HEADER,
            *table(EFFECTS, (effects(summary, seed) for summary, seed in seeds)),
            CLAIMS_TEXT,
            *table(CLAIMS, (claims(summary, seed) for summary, seed in seeds)),
            CONTROLS_TEXT,
            *table(CONTROLS, (controls(summary, seed) for summary, seed in seeds)),
            SETTINGS_TEXT,
            *table(SETTINGS, (setting(summary) for summary in summaries)),
            "",
            notes.strip(),
            "",
        ]
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]


def key(summary: RunFiles, seed: SeedResult) -> tuple[str, ...]:
    """Cells that name one seed of one run."""
    context, spared = summary.context, summary.protocol.ablation.spared
    return Path(context.model.name).name, context.contrast.name, str(spared), str(seed.seed)


def effects(summary: RunFiles, seed: SeedResult) -> tuple[str, ...]:
    """Cells of the effects of one seed."""
    cell, n_layers = seed.selected, summary.context.model.n_layers
    return (
        *key(summary, seed),
        "no candidate passed" if cell is None else f"({cell.position}, {cell.layer} of {n_layers})",
        rate(seed, BASELINE, "positive"),
        rate(seed, ABLATION, "positive"),
        rate(seed, SUBTRACTION, "positive"),
        rate(seed, BASELINE, "negative"),
        rate(seed, ADDITION, "negative"),
        seed.verdict,
    )


def claims(summary: RunFiles, seed: SeedResult) -> tuple[str, ...]:
    """Cells of the claims of one seed."""
    found = {claim.kind: claim for claim in seed.claims}
    return (*key(summary, seed), *(claim_cell(found.get(kind)) for kind in ClaimKind))


def claim_cell(claim: Claim | None) -> str:
    """State, number and interval of a claim."""
    if claim is None:
        return NOT_MEASURED
    if claim.value is None:
        return str(claim.state)
    if claim.kind is ClaimKind.LEAVES_INTACT:  # its number has the unit of the condition
        return f"{claim.state}: {claim.reason}"
    interval = "" if claim.low is None or claim.high is None else f" [{claim.low:.2f}, {claim.high:.2f}]"
    return f"{claim.state}: {claim.value:.2f}{interval}"


def controls(summary: RunFiles, seed: SeedResult) -> tuple[str, ...]:
    """Cells of the nulls, the damage and the cost of one seed."""
    stages = [stage for stage in summary.results.timings.stages if stage.seed == seed.seed]
    return (
        *key(summary, seed),
        strongest(seed, "suppression"),
        strongest(seed, "induction"),
        degenerate(seed, ABLATION, "positive"),
        degenerate(seed, ADDITION, "negative"),
        NOT_MEASURED if seed.shift.kl is None else f"{seed.shift.kl:.3f} (n = {seed.shift.n})",
        f"{sum(stage.cpu_seconds or 0.0 for stage in stages) / 60:.1f} min",  # these runs have no workers
    )


def arm_rate(seed: SeedResult, arm: ArmId, side: Label) -> ArmRate | None:
    """The rate of an arm on one class; None if the arm was not run."""
    return next((row for row in seed.arms if row.arm == arm and row.side == side), None)


def rate(seed: SeedResult, arm: ArmId, side: Label) -> str:
    """A rate with its interval and n."""
    found = arm_rate(seed, arm, side)
    if found is None or found.rate is None:
        return NOT_MEASURED
    return f"{found.rate:.2f} [{found.low:.2f}, {found.high:.2f}], n = {found.n}"


def degenerate(seed: SeedResult, arm: ArmId, side: Label) -> str:
    """Share of degenerate completions of an arm and of the baseline."""
    found, baseline = arm_rate(seed, arm, side), arm_rate(seed, BASELINE, side)
    if found is None or found.degenerate is None or baseline is None or baseline.degenerate is None:
        return NOT_MEASURED
    return f"{found.degenerate:.2f} (baseline {baseline.degenerate:.2f})"


def strongest(seed: SeedResult, effect: EffectName) -> str:
    """Mean change of the rate by the null family that changed it most, in the direction of the effect."""
    nulls = next((e.null for e in seed.effects if e.name == effect), {})
    means = {family: null.mean for family, null in nulls.items() if null.mean is not None}
    if not means:
        return NOT_MEASURED
    family = max(means, key=lambda name: means[name])
    without = nulls[family].ineffective
    counted = "" if without is UNSET else f", {without} of them as no change"
    return f"{means[family]:.2f} ({family}, {nulls[family].draws} draws{counted})"


def setting(summary: RunFiles) -> tuple[str, ...]:
    """Cells of the settings of one run."""
    protocol, model = summary.protocol, summary.context.model
    sizes = protocol.sizes
    command = f"rhumbline run {Path(model.name).name} --contrast {summary.context.contrast.name}"
    if protocol.preset != "rhumbline":
        command += f" --preset {protocol.preset}"
    seeds = ",".join(map(str, protocol.seeds))
    command += f" --sizes {sizes.train},{sizes.val},{sizes.test} --seeds {seeds}"
    if protocol.ablation.spared != PRESETS[protocol.preset].ablation.spared:
        command += f" --spare-tokens {protocol.ablation.spared}"
    command += f" --max-new-tokens {protocol.max_new_tokens} --out RUN"
    return (
        Path(model.name).name,
        protocol.preset,
        f"{sizes.train} / {sizes.val} / {sizes.test}",
        protocol.judge,
        str(protocol.max_new_tokens),
        str(protocol.ablation.spared),
        model.dtype,
        f"`{command}`",
    )


if __name__ == "__main__":
    main()
