"""A contrast made by a model: its answers to the same prompts under two system prompts -> a contrast file.

The two answers to a prompt are cut to similar lengths, so neither content nor length separates the classes. Answers are
stored beside the file as they are generated, so a stopped command resumes. Independent of what the systems ask for.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from msgspec import ValidationError
from msgspec.structs import asdict

from rhumbline.errors import InputError, OutputError
from rhumbline.inference.runner import Runner
from rhumbline.inference.token_sampling import TokenSampling
from rhumbline.judging.matched_answers import AnswerPair, Match, check_match, match_lengths
from rhumbline.judging.text_style import words
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.models.loading import fingerprint
from rhumbline.prompts.chat_options import DEFAULT_OPTIONS, ChatOptions
from rhumbline.prompts.contrast_files import MADE, with_ids
from rhumbline.prompts.contrasts import LABELS, SPLITS, Prompt, Sizes, Split, content_sha256, shares_of
from rhumbline.records.codec import JsonObject, convert, to_json
from rhumbline.records.directory import check_writable
from rhumbline.records.files import read_rows, write_bytes
from rhumbline.records.made_contrast import MadeBy, MadeContrast, MadeLosses, StoredAnswers
from rhumbline.records.shared import ByLabel
from rhumbline.records.user_files import control_character
from rhumbline.stages.timings import Progress

AT_ONCE = 32
"""Prompts whose answers are generated together, and then stored."""
LEAST_PAIRS = len(SPLITS)
GROUPS = 8
"""Categories at random of prompts without one: the style classifier scores a text by a model of other categories."""
STAGE = "answers under both system prompts"
"""Name of the progress."""


@dataclass(frozen=True)
class MakePlan:
    """How a contrast is made."""

    systems: ByLabel[str]
    """System prompt of either class; an empty one is the default of the chat template."""
    max_new_tokens: int = 64
    temperature: float = 0.7
    """0: greedy decoding, which gives equal answers under equal system prompts."""
    seed: int = 0
    match: Match = "sentences"
    with_systems: bool = True
    """Whether the rows have the system prompts, so that the classes of prompts differ."""

    def __post_init__(self):
        check_match(self.match)
        for system in (self.systems.positive, self.systems.negative):
            if (control := control_character(system)) is not None:
                raise InputError(f"a system prompt contains the control character {control}. Remove it.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; use a number of at least 0.")
        if self.temperature == 0 and self.systems.positive.strip() == self.systems.negative.strip():
            raise InputError(
                "the two system prompts are equal and the temperature is 0, so all answers would be equal. Pass two "
                "different system prompts, or a temperature above 0 for a contrast without a difference."
            )


def answers_file(out: Path) -> Path:
    """Where the answers are stored until the contrast is written."""
    return out.with_name(f"{out.name}.answers")


def check_new(out: str | Path) -> Path:
    """The path of a contrast file that does not exist yet and can be written. Raises OutputError or InputError."""
    path = Path(out)
    if os.path.lexists(path):
        raise OutputError(f"--out {path} exists already. Pass another --out, or remove it.")
    check_writable(path)
    if path.suffix != ".jsonl":
        raise InputError(f"--out {path} is not named .jsonl, and a contrast is written as JSON Lines. Rename it.")
    return path


def make_contrast(
    model: ChatModel,
    prompts: Sequence[Prompt],
    name: str,
    plan: MakePlan,
    out: str | Path,
    *,
    chat: ChatOptions = DEFAULT_OPTIONS,
    progress: Progress = lambda stage, rows: None,
) -> MadeContrast:
    """Generate both answers to every prompt, match their lengths, and write the contrast.

    `name` is that of the prompts. Raises InputError if fewer than three pairs are left; the answers are kept then.
    """
    path = check_new(out)
    named = with_ids(prompts)
    asked = ByLabel(*([replace(p, label=c, system=plan.systems[c] or None) for p in named] for c in LABELS))
    rendered = Chat.of(model.tokenizer, chat, [*asked.positive, *asked.negative])
    made_by = MadeBy(
        model=model.name,
        fingerprint=fingerprint(model),
        revision=getattr(model.model.config, "_commit_hash", None),
        template_sha256=rendered.record().template_sha256,
        systems=plan.systems,
        prompts=name,
        prompts_sha256=content_sha256(tuple(named)),
        n_prompts=len(named),
        max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
        seed=plan.seed,
        rhumbline=version("rhumbline"),
    )
    progress(STAGE, None)
    writer = _Answering(Runner(model, tick=lambda rows: progress(STAGE, rows)), rendered, plan)
    answers = _stored_answers(writer, asked, made_by, answers_file(path))
    matched = [match_lengths(answers[p.id].positive, answers[p.id].negative, plan.match) for p in named]
    pairs = {p.id: m for p, m in zip(named, matched, strict=True) if isinstance(m, AnswerPair)}
    left_out = sum((m for m in matched if isinstance(m, MadeLosses)), MadeLosses())
    if len(pairs) < LEAST_PAIRS:
        raise InputError(
            f"{len(pairs)} of {len(named)} prompts have two answers of similar length (left out: {left_out}), and a "
            f"contrast needs at least {LEAST_PAIRS}. Pass --match words, more prompts, more --max-new-tokens, or other "
            f"system prompts. The answers are kept in {answers_file(path)}."
        )
    lengths = (sum(len(words(getattr(pair, c))) for pair in pairs.values()) / len(pairs) for c in LABELS)
    made = MadeContrast(
        **asdict(made_by),
        match=plan.match,
        with_systems=plan.with_systems,
        pairs=len(pairs),
        left_out=left_out,
        words=ByLabel(*lengths),
    )
    rows = [{MADE: to_json(made)}, *_rows([p for p in named if p.id in pairs], pairs, plan)]
    write_bytes(path, _lines(rows))
    answers_file(path).unlink(missing_ok=True)
    return made


@dataclass(frozen=True)
class _Answering:
    """Generates the answers to prompts."""

    runner: Runner
    chat: Chat
    plan: MakePlan

    def __call__(self, prompts: Sequence[Prompt]) -> list[str | None]:
        sampling = None
        if self.plan.temperature > 0:
            sampling = TokenSampling(self.plan.temperature, [self._seed(p) for p in prompts])
        ids, _ = self.runner.generate(
            [self.chat.encode(p) for p in prompts],
            max_new_tokens=self.plan.max_new_tokens,
            stop=stop_ids(self.runner.model, self.chat),
            sampling=sampling,
        )
        return [self.chat.answer(tokens).text for tokens in ids[0]]

    def _seed(self, prompt: Prompt) -> tuple[int, ...]:
        """A seed of the answer to a prompt in one class, which depends on no other prompt."""
        return (LABELS.index(prompt.label), _hash(prompt, self.plan.seed))


def _stored_answers(
    write: _Answering, asked: ByLabel[list[Prompt]], made_by: MadeBy, stored: Path
) -> Mapping[str, StoredAnswers]:
    """Both answers to every prompt: those that are stored, and new ones, which are stored in turn."""
    rows = read_rows(stored) if stored.exists() else []
    head = {MADE: to_json(made_by)}
    if rows and rows[0] != head:
        raise OutputError(
            f"{stored} has answers of another model, other prompts or other settings. Pass the options that it was "
            "made with, another --out, or remove it."
        )
    try:
        answers = {row.id: row for row in convert(rows[1:], list[StoredAnswers])}
    except ValidationError as error:
        raise OutputError(f"{stored} is not what `contrast make` stores: {error}. Remove it.") from error
    left = [i for i, prompt in enumerate(asked.positive) if prompt.id not in answers]
    write.runner.tick(2 * len(answers))
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        texts = write([side[i] for side in (asked.positive, asked.negative) for i in some])
        for n, i in enumerate(some):
            name = asked.positive[i].id
            answers[name] = StoredAnswers(name, texts[n], texts[n + len(some)])
        write_bytes(stored, _lines([head, *map(to_json, answers.values())]))
    return answers


def _rows(prompts: Sequence[Prompt], pairs: Mapping[str, AnswerPair], plan: MakePlan) -> Iterator[dict[str, str]]:
    """The rows of the contrast: one for each prompt and class, both in the same split."""
    splits = _splits(prompts, plan.seed)
    for prompt in prompts:
        pair = pairs[prompt.id]
        for label, own, other in zip(LABELS, pair, pair[::-1], strict=True):
            row = {
                "prompt": prompt.text,
                "label": label,
                "split": splits[prompt.id],
                "system": plan.systems[label] if plan.with_systems else None,
                "response": own,
                "other_response": other if plan.with_systems else None,
                "category": prompt.category or f"group {_hash(prompt, plan.seed) % GROUPS + 1}",
                "answer": prompt.answer,
                "id": f"{prompt.id}-{label}",
            }
            yield {column: value for column, value in row.items() if value}


def _splits(prompts: Sequence[Prompt], seed: int) -> dict[str, Split]:
    """The split of every prompt, at random in the proportions of the default sizes; what is left is for training."""
    sizes = vars(Sizes())
    ordered = sorted(prompts, key=lambda p: _hash(p, seed))
    shares = shares_of(len(prompts), {split: sizes[split] for split in SPLITS})
    first_val, first_train = shares["test"], shares["test"] + shares["val"]

    def split_of(i: int) -> Split:
        return "test" if i < first_val else "val" if i < first_train else "train"

    return {prompt.id: split_of(i) for i, prompt in enumerate(ordered)}


def _hash(prompt: Prompt, seed: int) -> int:
    """A random number that depends on the seed and the text of the prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt.text}".encode()).digest()[:8])


def _lines(rows: Iterable[JsonObject]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
