"""An arm of a run as a model of Inspect AI: `inspect eval task.py --model rhumbline/RUN -M arm=ablation`.

It completes chats greedily under the arm. The entry point `inspect_ai` registers it; needs the extra `inspect`.
Temperature, tools and several choices raise InputError, because arms were measured with greedy decoding of text.
Independent of tasks.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
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
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.records.arms import ArmId
from rhumbline.stages.finished_run import RunInputs, open_run

GATHER_SECONDS = 0.02
"""Delay of the first request of a batch, in which further requests join the batch."""
ARGUMENTS = ("arm", "seed", "model", "device", "dtype")
"""Arguments of a model name, or of `-M`."""


@dataclass
class _Request:
    """One chat, and its completion."""

    ids: list[int]
    max_tokens: int
    completion: "asyncio.Future[list[int]]"


@dataclass
class _BatchedArm:
    """A loaded model under one arm, which completes requests in batches."""

    runner: Runner
    arm: Arm
    stop: frozenset[int]
    """Ids that end a completion."""
    queue: list[_Request] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: set[asyncio.Task] = field(default_factory=set)
    """Batches that are not finished; the event loop itself keeps no reference to a task."""

    async def complete(self, ids: list[int], max_tokens: int) -> list[int]:
        """The completion of one chat, in one batch with all queued requests.

        A batch is a task of its own: a sample that is cancelled does not cancel the others of its batch.
        """
        request = _Request(ids, max_tokens, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        try:
            await asyncio.sleep(GATHER_SECONDS)
            task = asyncio.create_task(self._run_queued())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            await asyncio.shield(task)
            return await request.completion
        finally:
            request.completion.cancel()  # no effect on one that is done

    async def _run_queued(self) -> None:
        """Complete all queued requests, after the batch that is running."""
        async with self.lock:
            # The completion of a request that was cancelled is not read.
            batch, self.queue = [r for r in self.queue if not r.completion.done()], []
            if batch:
                await self._run(batch)

    async def _run(self, batch: list[_Request]) -> None:
        longest = max(request.max_tokens for request in batch)
        try:
            completions, _ = await asyncio.to_thread(
                self.runner.generate,
                [request.ids for request in batch],
                [self.arm],
                max_new_tokens=longest,
                stop=self.stop,
            )
        except Exception as error:
            for request in batch:
                if not request.completion.done():
                    request.completion.set_exception(error)
            return
        for request, ids in zip(batch, completions[0], strict=True):
            if not request.completion.done():
                request.completion.set_result(ids[: request.max_tokens])


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
        path, _, query = model_name.partition("?")
        arguments = {**dict(parse_qsl(query)), **model_args}
        if unknown := sorted(set(arguments) - set(ARGUMENTS)):
            raise InputError(
                f"rhumbline/{path}: unknown arguments {', '.join(unknown)}. Use some of {', '.join(ARGUMENTS)}."
            )
        seed = arguments.get("seed")
        if seed is not None and not str(seed).isdecimal():
            raise InputError(f"rhumbline/{path}: seed is {seed!r}. Use a seed of the run.")
        run = open_run(path)
        arm = run.arms(None if seed is None else int(seed)).arm(ArmId.parse(str(arguments.get("arm", "baseline"))))
        self.protocol = run.protocol
        inputs = RunInputs(arguments.get("model"), device=arguments.get("device"), dtype=arguments.get("dtype"))
        model = run.model(inputs)
        self.chat = run.chat(model)
        self.arm = _BatchedArm(Runner(model), arm, stop_ids(model, self.chat))

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The greedy completion of a chat under the arm."""
        del tool_choice
        used = {"tools": tools, "temperature": config.temperature, "num_choices": (config.num_choices or 1) > 1}
        if unsupported := [name for name, is_used in used.items() if is_used]:
            raise InputError(
                f"rhumbline decodes text greedily and does not support {', '.join(unsupported)}. Leave them out."
            )
        ids = self._encode(input)
        max_tokens = config.max_tokens or self.protocol.max_new_tokens
        completion = await self.arm.complete(ids, max_tokens)
        text = self.chat.answer(completion).text or ""
        stop = min((at for sequence in config.stop_seqs or () if (at := text.find(sequence)) >= 0), default=None)
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text[:stop], source="generate"),
            stop_reason="max_tokens" if len(completion) == max_tokens and stop is None else "stop",
        )
        usage = ModelUsage(
            input_tokens=len(ids), output_tokens=len(completion), total_tokens=len(ids) + len(completion)
        )
        return ModelOutput(model=f"{self.model_name}:{self.arm.arm.name}", choices=[choice], usage=usage)

    def _encode(self, messages: Iterable[ChatMessage]) -> list[int]:
        """Token ids of the messages, with the system prompt of the run unless the messages have one."""
        chat = self.protocol.chat
        turns = [{"role": m.role, "content": m.text} for m in messages]
        if chat.system is not None and all(t["role"] != "system" for t in turns):
            turns.insert(0, {"role": "system", "content": chat.system})
        return self.chat.encode_messages(turns, "the messages")


@modelapi(name="rhumbline")
def rhumbline() -> type[ModelAPI]:
    """The model class of names that begin with `rhumbline/`."""
    return RhumblineAPI
