"""The effect of an ablation through the think block, and with the block held fixed: completions of positives in parts.

A completion is divided after the token that closes its think block. Either part can be generated under an arm of its
own (arXiv 2605.26772; compare 2507.03167). Independent of windows.
"""

from collections.abc import Sequence
from typing import cast, get_args

from rhumbline.analyses.judged import Classes, change_of, header_of, null_change
from rhumbline.analyses.subject import Subject, protocol_with_classes
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.judging.score import score_of
from rhumbline.models.chat import Chat, ChatWithResponse
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.trajectory_file import BlockEffect, Carrier, NoBlock, ThinkBlock, TrajectoryPlan

CARRIERS: tuple[Carrier, ...] = get_args(Carrier)
LEAST_COMPLETED = 2
"""Baseline completions with a closed block below which nothing is compared."""


def closing_token(chat: Chat) -> int | NoBlock:
    """The token that closes a think block of the template, or why no token does."""
    forms = [*([chat.answers.opened] if chat.answers.opened else []), *chat.answers.own]
    if not forms:
        return "the template has no think block"
    ids = chat.tokenizer(forms[0].closes, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 else "the end of its think block is several tokens"


def through_block(
    subject: Subject, plan: TrajectoryPlan, direction: Direction, nulls: Sequence[Direction], token: int
) -> tuple[ThinkBlock, tuple[BlockEffect, ...]]:
    """The effects of the ablation of the direction, and of null directions, by what carries them.

    Of positives whose baseline completion closes its block; the second element is empty with fewer than two of them.
    """
    prompts = subject.prompts("test", "positive")[: plan.prompts]
    parts = _Parts(subject, plan.max_new_tokens, token)
    arms = [BASELINE, *(Arm(f"{i}", (Ablate(d, spared=subject.spared),)) for i, d in enumerate([direction, *nulls]))]
    blocks = parts.blocks(prompts, arms)
    kept = [i for i, block in enumerate(blocks[0]) if block is not None]
    form = subject.chat.answers.opened or subject.chat.answers.own[0]
    facts = ThinkBlock(form.closes, token, len(kept), len(prompts))
    if len(kept) < LEAST_COMPLETED:
        return facts, ()
    some = [prompts[i] for i in kept]
    fixed = [cast(list[int], blocks[0][i]) for i in kept]
    closed = subject.chat.tokenizer(form.closes, add_special_tokens=False)["input_ids"]
    is_open = subject.chat.answers.opened is not None
    opened = [] if is_open else subject.chat.tokenizer(form.opens, add_special_tokens=False)["input_ids"]
    empty = [[*opened, *closed]] * len(some)
    before, *direct = parts.classes(some, fixed, arms)
    bare, *without = parts.classes(some, empty, arms)
    # A block that is not closed under an arm has no answer there: it is unscored.
    regenerated, through = [], []
    for arm, of_arm in zip(arms[1:], blocks[1:], strict=True):
        own = [of_arm[i] for i in kept]
        regenerated.append(parts.classes(some, own, [arm])[0])
        through.append(parts.classes(some, own, [BASELINE])[0])
    measured = {
        "direct": (before, direct),
        "without block": (bare, without),
        "regenerated": (before, regenerated),
        "through": (before, through),
    }
    return facts, tuple(_effect(carrier, *measured[carrier]) for carrier in CARRIERS)


def _effect(carrier: Carrier, before: Classes, after: Sequence[Classes]) -> BlockEffect:
    own, *others = (change_of(before, classes) for classes in after)
    return BlockEffect(carrier, own, null_change(others))


class _Parts:
    """Generates think blocks, and answers after given blocks."""

    def __init__(self, subject: Subject, length: int, token: int):
        self.subject, self.length, self.token = subject, length, token
        self.judge, self.header = protocol_with_classes(subject.directory).class_judge(), header_of(subject)
        self.stop = stop_ids(subject.model, subject.chat)

    def blocks(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> list[list[list[int] | None]]:
        """The think block of every completion, its closing token included; None if it is not closed."""
        sequences = [self.subject.chat.encode(prompt) for prompt in prompts]
        stop = self.stop | {self.token}
        ids = self.subject.runner.completions(sequences, arms, max_new_tokens=self.length, stop=stop)
        # A completion that stops early ended with the closing token or with another stop token.
        following = [self._next(sequences, of_arm, arm) for of_arm, arm in zip(ids, arms, strict=True)]
        return [
            [[*block, self.token] if is_closed else None for block, is_closed in zip(of_arm, closed, strict=True)]
            for of_arm, closed in zip(ids, following, strict=True)
        ]

    def _next(self, sequences: Sequence[list[int]], blocks: Sequence[list[int]], arm: Arm) -> list[bool]:
        """Whether the closing token is the next one after each block."""
        texts = [ChatWithResponse(ids, block) for ids, block in zip(sequences, blocks, strict=True)]
        ids = self.subject.runner.completions(texts, [arm], max_new_tokens=1, stop=())
        return [tokens == [self.token] for tokens in ids[0]]

    def classes(
        self, prompts: Sequence[Prompt], blocks: Sequence[Sequence[int] | None], arms: Sequence[Arm]
    ) -> list[Classes]:
        """The class of the answer that follows the block of every prompt, by arm; unscored without a block."""
        chat, known = self.subject.chat, [i for i, block in enumerate(blocks) if block is not None]
        texts = [ChatWithResponse(chat.encode(prompts[i]), blocks[i] or ()) for i in known]
        ids = self.subject.runner.completions(texts, arms, max_new_tokens=self.length, stop=self.stop)
        table: list[Classes] = []
        for of_arm in ids:
            read = {}
            for i, tokens in zip(known, of_arm, strict=True):
                text = chat.answer([*(blocks[i] or ()), *tokens]).text
                read[i] = score_of(self.judge, text and text.removeprefix(self.header)).cls
            table.append([read.get(i, "unscored") for i in range(len(prompts))])
        return table
