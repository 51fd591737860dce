"""What a run fixes before the first forward pass: splits, chats, and the record that becomes protocol.json.

The command and every worker build the same plan from the same inputs. Independent of stages and of results.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from rhumbline.errors import ProtocolError
from rhumbline.evidence.detectable_effects import detectable
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import decoding_facts
from rhumbline.models.loading import fingerprint
from rhumbline.models.sequence_limits import check_sequences
from rhumbline.presets.published_tokens import published_tokens
from rhumbline.prompts.contrasts import SPLITS, ContrastSet, Prompt, Splits, split_contrast
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.records.codec import JsonObject, convert, to_json
from rhumbline.records.directory import SCHEMA, RunDirectory
from rhumbline.records.protocol_file import ProtocolContext, PublishedTokens, SplitPlan, Versions
from rhumbline.records.shared import ByLabel, BySplit, ModelFacts
from rhumbline.records.source_hash import code_sha256
from rhumbline.records.verdict_rule import VERSION
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.system_prompts import chats_of
from rhumbline.stages.timings import Timings


@dataclass(frozen=True)
class RunPlan:
    """The inputs of a run and everything that follows from them without a forward pass."""

    model: ChatModel
    contrast: ContrastSet
    protocol: Protocol
    """The protocol, with the positions that `auto` and the refusal tokens that `published` stand for."""
    texts: LossTexts
    splits: Mapping[int, Splits]
    """The splits of every seed."""
    chat: Chat
    chats: Mapping[str, Chat]
    """The chat of every condition."""
    published: PublishedTokens | None = None
    """What `published` stands for; None if the protocol does not ask for it."""

    @classmethod
    def of(cls, model: ChatModel, contrast: ContrastSet, protocol: Protocol, texts: LossTexts = NO_TEXTS) -> "RunPlan":
        """Sample the splits of every seed and check the chat template on the prompts of the run."""
        if protocol.rule.version < VERSION:
            raise ProtocolError(
                f"rule {protocol.rule.name} has version {protocol.rule.version}, by which finished runs are verified: "
                f"new runs need version {VERSION}. Change a named rule, or set version = {VERSION}."
            )
        protocol, published = resolved(protocol, contrast), None
        if protocol.refusal_tokens == "published":
            published = _published_tokens(model, protocol.behaviour)
            protocol = replace(protocol, refusal_tokens=published.tokens or "auto")
        splits = {seed: splits_of(contrast, protocol, seed) for seed in protocol.seeds}
        prompts = (*prompts_of(contrast, splits.values()), *contrast.neutral)
        chat = Chat.of(model.tokenizer, protocol.chat, prompts)
        chats = chats_of(model.tokenizer, protocol.chat, protocol.conditions, prompts)
        return cls(model, contrast, protocol, texts, splits, chat, chats, published)

    def check(self, new_tokens: int) -> None:
        """Check everything that the run reads, before the first forward pass, with `new_tokens` generated.

        Raises InputError for texts that spell control tokens and for prompts beyond the positions of the model, and
        ModelError for token ids beyond its embedding.
        """
        prompts = (*prompts_of(self.contrast, self.splits.values()), *self.contrast.neutral)
        for chat in (self.chat, *self.chats.values()):
            check_sequences(self.model, {p.id: chat.encode(p) for p in prompts}, new_tokens)
        if self.protocol.extraction.response_position is not None or self.protocol.is_continuous:
            responses = [(p, r) for p in prompts for r in (p.response, p.other_response) if r is not None]
            self.chat.check_texts(((p.id, response) for p, response in responses), "responses")
            whole = {p.id: self.chat.encode_with_response(p, response) for p, response in responses}
            check_sequences(self.model, whole, what="prompts with their responses")
        limit = self.protocol.side_effects.documents
        documents, exchanges = self.texts.documents[:limit], self.texts.exchanges[:limit]
        texts = [(f"document {i}", text) for i, text in enumerate(documents)]
        texts += [(f"exchange {i}", text) for i, e in enumerate(exchanges) for text in (e.prompt, e.response)]
        self.chat.check_texts(texts, "texts of losses")

    def record(self, mode: Literal["discover"] | None = None) -> dict[str, Any]:
        """The JSON value of protocol.json: the decisions, and hashes of what they depend on."""
        facts = {**to_json(self.model.record()), "fingerprint": fingerprint(self.model)}
        context = ProtocolContext(
            schema=SCHEMA,
            model=convert(facts, ModelFacts),
            chat=self.chat.record(),
            contrast=self.contrast.record(),
            splits={seed: self._split_plan(splits) for seed, splits in self.splits.items()},
            versions=Versions(version("rhumbline"), version("torch"), version("transformers"), code_sha256()),
            texts=self.texts.record() if mode is None else None,
            decoding=decoding_facts(self.model, self.chat) if mode is None else None,
            published_tokens=self.published,
            mode=mode,
        )
        return {**self.protocol.record(), **to_json(context)}

    def _split_plan(self, splits: Splits) -> SplitPlan:
        sizes = splits.sizes()
        by_split = BySplit(*(ByLabel(**sizes[split]) for split in SPLITS))
        rule, nulls = self.protocol.rule, self.protocol.nulls
        draws = min((nulls.total(f) for f in rule.families), default=nulls.wide) if nulls.wide else 0
        return SplitPlan(
            sizes=by_split,
            near_duplicates=splits.record(),
            fixed=tuple(sorted(splits.fixed)),
            detectable=detectable(by_split.test, rule.min_drop, draws),
        )

    def seed_run(self, directory: RunDirectory, timings: Timings, seed: int, tokens: int) -> SeedRun:
        """One seed of the run; `tokens` is the number of tokens of a forward pass."""
        return SeedRun(
            directory,
            timings,
            self.model,
            self.chat,
            self.splits[seed],
            self.protocol,
            seed,
            tokens,
            self.texts,
            self.chats,
            self.contrast.neutral,
        )


def known_without_model(
    contrast: ContrastSet, protocol: Protocol, mode: Literal["discover"] | None = None
) -> JsonObject:
    """The fields of protocol.json that do not depend on the model."""
    record = {**resolved(protocol, contrast).record(), "contrast": to_json(contrast.record()), "mode": mode}
    depends = {"chat", *(["refusal_tokens"] if protocol.refusal_tokens == "published" else [])}
    return {name: value for name, value in record.items() if name not in depends}


def splits_of(contrast: ContrastSet, protocol: Protocol, seed: int) -> Splits:
    """The prompts that one seed of a run reads."""
    splits = split_contrast(contrast, protocol.sizes, seed, protocol.sampling)
    return splits if protocol.reads is None else splits.first(protocol.reads)


def resolved(protocol: Protocol, contrast: ContrastSet) -> Protocol:
    """The protocol with the positions that `auto` stands for with this contrast."""
    if protocol.extraction.positions != "auto":
        return protocol
    positions = "response-mean" if contrast.is_of_texts else "post-instruction"
    return replace(protocol, extraction=replace(protocol.extraction, positions=positions))


def _published_tokens(model: ChatModel, behaviour: str) -> PublishedTokens:
    """The published refusal tokens of the family of a model, which its name or the name in its config states."""
    if behaviour != "refusal":
        return PublishedTokens(family=None, tokens=())
    config = model.model.config
    return published_tokens(model.record().model_type, model.name, getattr(config, "_name_or_path", None) or "")


def prompts_of(contrast: ContrastSet, splits: Iterable[Splits]) -> tuple[Prompt, ...]:
    """The prompts of a run: the whole file, or the prompts sampled from the pools of a named contrast."""
    if contrast.pools is None:
        return contrast.prompts
    return tuple(
        dict.fromkeys(p for s in splits for part in s.parts.values() for prompts in part.values() for p in prompts)
    )
