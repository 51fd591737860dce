"""The presets: protocols by name (the default, the paper, the blog, styles), and the quick version of a protocol.

Every difference between presets is a named field. Independent of models and of execution.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rhumbline.arguments import checked
from rhumbline.errors import ProtocolError
from rhumbline.evidence.selection_rules import BLOG2026, RHUMBLINE, STYLE
from rhumbline.evidence.verdict_rules import rule as named_rule
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.settings import (
    AblationSettings,
    AdditionSettings,
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    SecondSettings,
    SideEffectSettings,
    StabilitySettings,
)

PRESETS: Mapping[str, Protocol] = {
    # Draws and prompts of the ranks by measurement: docs/calibration-planted.md, "The cost of a run". Ten draws
    # with five prompts: the spread between draws decides a gap, and a run generates fewer than 100,000 tokens per seed
    # (docs/log.md).
    "rhumbline": Protocol(
        "rhumbline",
        metric_threshold="judged",
        selection=RHUMBLINE,
        # The stream of the first token is the same in every text. Where attention rests on it, an edit there breaks
        # the model for any direction, null directions included (docs/log.md).
        ablation=AblationSettings(spared=1),
        nulls=NullSettings(draws=10, wide=39, prompts=8, completed=5, interim=20, screen=12),
        screen=24,
        dose=DoseSettings(draws=1, prompts=8),
        stability=StabilitySettings(prompts=8),
    ),
    # The paper has neither nulls nor a rule: this preset uses one isotropic draw and the margins of the blog.
    "arditi2024": Protocol(
        "arditi2024",
        seeds=(42,),
        sampling="reference",
        refusal_tokens="published",
        nulls=NullSettings(("isotropic",), 1, wide=0),
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        second=SecondSettings(0),
        judge="refusal-anywhere-literal",
        full_grid=True,
        max_new_tokens=512,
        # 256 batches of 16. The model's own completions are limited by the number of test prompts.
        side_effects=SideEffectSettings(documents=4096, controls=("isotropic",)),
        rule=named_rule("arditi2024"),
    ),
    "blog2026": Protocol(
        "blog2026",
        # The blog's "final instruction token": this reading gives its figures, the last token of the user's text does
        # not (docs/log.md).
        extraction=ExtractionSettings("last-token", filter=False),
        selection=BLOG2026,
        nulls=NullSettings(("isotropic",), 1, wide=0),
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        second=SecondSettings(0),
        judge="refusal-opening",
        rule=named_rule("blog2026"),
    ),
    "style": Protocol(
        "style",
        behaviour="style",
        ablation=AblationSettings(spared=1),
        extraction=ExtractionSettings("auto", filter=False),
        selection=STYLE,
        addition=AdditionSettings(1.0, "prompt"),
        # A metric of responses has no first-order estimates, so every candidate would be scored.
        second=SecondSettings(0),
        judge="markers",
        rule=named_rule("style"),
    ),
}


@checked
def preset(name: str, **changes: Any) -> Protocol:
    """A preset by name, with fields replaced; ProtocolError lists the known names and fields."""
    if name not in PRESETS:
        raise ProtocolError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}.")
    known = {f.name for f in dataclasses.fields(Protocol)} - {"preset"}
    if unknown := sorted(set(changes) - known):
        raise ProtocolError(f"unknown protocol fields {', '.join(unknown)}; use {', '.join(sorted(known))}.")
    return replace(PRESETS[name], **changes)


@checked
def quick(protocol: Protocol) -> Protocol:
    """A protocol for a first answer: the same rule with one seed, fewer prompts and the fewest draws that it permits.

    More results are undecided. No bound of the rule changes. The prompts are the first ones of the whole sample. Six
    null draws complete two prompts each: one draw would leave the spread between draws unknown.
    """
    reads, nulls = protocol.reads or Sizes(32, 8, 24), protocol.nulls
    draws = min(nulls.wide, protocol.rule.needed_draws)
    return replace(
        protocol,
        quick=True,
        seeds=protocol.seeds[:1],
        reads=Sizes(min(reads.train, 32), min(reads.val, 8), min(reads.test, 24)),
        screen=min(protocol.screen or 8, 8),
        nulls=replace(
            nulls,
            families=protocol.rule.families,
            # A continuous score always reads all prompts, so there two draws are the fewest whose spread is known.
            draws=2 if protocol.is_continuous else 6,
            wide=draws,
            procedure=min(nulls.procedure, max(1, draws)),
            prompts=min(nulls.prompts, 3),
            procedure_prompts=min(nulls.procedure_prompts, 2),
            completed=2,
            interim=0,
            screen=4,
        ),
        dose=DoseSettings((), ()),
        stability=StabilitySettings(refits=0),
        second=SecondSettings(0),
        side_effects=replace(protocol.side_effects, documents=0),
        conditions={},
        max_new_tokens=min(protocol.max_new_tokens, 24),
    )
