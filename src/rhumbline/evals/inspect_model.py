"""An arm of a run as a model of Inspect AI: `inspect eval task.py --model rhumbline/RUN -M arm=ablation`.

Registered by the entry point `inspect_ai`; needs the extra `inspect`. Greedy, text alone: what an arm does was measured
under greedy decoding, so a temperature, tools and several choices are refused, not ignored.
Knows Inspect's interface and run directories; does not know what a task asks.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from rhumbline.errors import InputError
from rhumbline.inference.interventions import Arm
from rhumbline.inference.runner import Runner
from rhumbline.records.arms import ArmId
from rhumbline.stages.finished_run import RunInputs, open_run

GATHER = 0.02
"""Seconds that the first of several questions waits for the others, which are then one batch."""


def arm_of_run(path: str | Path, name: str, seed: int | None = None) -> Arm:
    """An arm by its name in outcomes.jsonl; InputError where the run has no such arm."""
    return open_run(path).arms(seed).arm(ArmId.parse(name))


@dataclass
class _Waiting:
    """One question of a batch that is being gathered."""

    ids: list[int]
    max_tokens: int
    answer: "asyncio.Future[list[int]]"


@dataclass
class _Arm:
    """A loaded model under one arm, asked in batches."""

    runner: Runner
    arm: Arm
    waiting: list[_Waiting] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, ids: list[int], max_tokens: int) -> list[int]:
        """The completion of one chat, computed with all that wait by then."""
        own = _Waiting(ids, max_tokens, asyncio.get_running_loop().create_future())
        self.waiting.append(own)
        await asyncio.sleep(GATHER)
        async with self.lock:
            batch, self.waiting = self.waiting, []
            if batch:
                await self._run(batch)
        return await own.answer

    async def _run(self, batch: list[_Waiting]) -> None:
        most = max(w.max_tokens for w in batch)
        try:
            found, _ = await asyncio.to_thread(
                self.runner.generate, [w.ids for w in batch], [self.arm], max_new_tokens=most
            )
        except Exception as error:
            for w in batch:
                w.answer.set_exception(error)
            return
        for w, ids in zip(batch, found[0], strict=True):
            w.answer.set_result(ids[: w.max_tokens])


class RhumblineAPI(ModelAPI):
    """`rhumbline/RUN` or `rhumbline/RUN?arm=ablation`; arguments (`-M`): arm, seed, model, device, dtype."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        run, _, query = model_name.partition("?")
        given = {**dict(parse_qsl(query)), **model_args}
        known = {"arm", "seed", "model", "device", "dtype"}
        if unknown := sorted(set(given) - known):
            raise InputError(
                f"rhumbline/{run}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known))}."
            )
        seed = None if given.get("seed") is None else int(given["seed"])
        arm = arm_of_run(run, str(given.get("arm", "baseline")), seed)
        opened = open_run(run)
        self.protocol = opened.protocol
        model = opened.model(RunInputs(given.get("model"), device=given.get("device"), dtype=given.get("dtype")))
        self.template = opened.template(model)
        self.arm = _Arm(Runner(model), arm)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The greedy completion of a chat under the arm."""
        del tool_choice
        refused = {
            "tools": bool(tools),
            "temperature": bool(config.temperature),
            "num_choices": (config.num_choices or 1) > 1,
        }
        if wrong := [what for what, there in refused.items() if there]:
            raise InputError(f"rhumbline answers greedily and in text alone: {', '.join(wrong)} cannot be used.")
        tokenizer = self.arm.runner.model.tokenizer
        ids = self._encode(input)
        most = config.max_tokens or self.protocol.max_new_tokens
        written = await self.arm.ask(ids, most)
        text = tokenizer.decode(written, skip_special_tokens=True)
        stopped = min((found for s in config.stop_seqs or () if (found := text.find(s)) >= 0), default=None)
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text[:stopped], source="generate"),
            stop_reason="max_tokens" if len(written) == most and stopped is None else "stop",
        )
        usage = ModelUsage(input_tokens=len(ids), output_tokens=len(written), total_tokens=len(ids) + len(written))
        return ModelOutput(model=f"{self.model_name}:{self.arm.arm.name}", choices=[choice], usage=usage)

    def _encode(self, messages: Iterable[ChatMessage]) -> list[int]:
        chat = self.protocol.chat
        turns = [{"role": m.role, "content": m.text} for m in messages]
        if chat.system is not None and all(t["role"] != "system" for t in turns):
            turns.insert(0, {"role": "system", "content": chat.system})
        variables = dict(chat.template_kwargs)
        if chat.enable_thinking is not None:
            variables["enable_thinking"] = chat.enable_thinking
        tokenizer = self.arm.runner.model.tokenizer
        text = tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=True, **variables
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)


@modelapi(name="rhumbline")
def rhumbline() -> type[ModelAPI]:
    """What Inspect calls when a model's name begins with `rhumbline/`."""
    return RhumblineAPI
