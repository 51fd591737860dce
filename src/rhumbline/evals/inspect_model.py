"""An arm of a run as a model of Inspect AI: `inspect eval task.py --model rhumbline/RUN -M arm=ablation`.

Registered by the entry point `inspect_ai`; needs the extra `inspect`. Greedy, text alone: what an arm does was measured
under greedy decoding, so a temperature, tools and several choices are refused, not ignored.
Knows Inspect's interface and run directories; does not know what a task asks.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
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

from rhumbline.errors import InputError, ModelError
from rhumbline.experiment import selected_direction
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load
from rhumbline.presets.published_models import published_models
from rhumbline.records.directory import RunDirectory

MAX_TOKENS = 512
"""Length of a completion where neither the task nor the run says one."""
GATHER = 0.02
"""Seconds that the first of several questions waits for the others, which are then one batch."""


def arm_of_run(path: str | Path, name: str, seed: int | None = None) -> Arm:
    """An arm by its name in outcomes.jsonl.

    baseline, ablation, addition, addition-all, addition-prompt, null:FAMILY:DRAW:ablation or null:FAMILY:DRAW:addition.
    """
    directory = RunDirectory.read(path)
    if name == "baseline":
        return BASELINE
    number = directory.protocol["seeds"][0] if seed is None else seed
    direction = selected_direction(path, number)
    if direction is None:
        raise InputError(f"{path}: seed {number} chose no direction, so there is only the arm baseline.")
    kind = name.rpartition(":")[2]
    if name.startswith("null:") and name.count(":") == 3:
        direction = _null(directory, number, name)
    elif name not in ("ablation", "addition", "addition-all", "addition-prompt"):
        raise InputError(
            f"arm {name!r} is unknown: baseline, ablation, addition, addition-prompt or null:FAMILY:DRAW:ablation."
        )
    if kind == "ablation":
        return Arm(name, (Ablate(direction),))
    selection = directory.load(directory.seed(number) / "selection.json")
    positions: Literal["all", "prompt"] = "prompt" if name == "addition-prompt" else "all"
    if not name.startswith("addition-"):
        positions = directory.protocol["addition"]["positions"]
    return Arm(name, (Add(direction, selection.get("coefficient") or 1.0, positions),))


def _null(directory: RunDirectory, seed: int, name: str) -> Direction:
    _, family, draw, kind = name.split(":")
    rows = directory.load(directory.seed(seed) / "nulls.json")["nulls"]
    found = [i for i, r in enumerate(rows) if (r["family"], str(r["draw"])) == (family, draw)]
    if not found or kind not in ("ablation", "addition"):
        known = sorted({r["family"] for r in rows})
        raise InputError(f"arm {name!r}: the run drew {', '.join(known)}, and an arm ends with ablation or addition.")
    row = rows[found[0]]
    vectors, _ = directory.load_tensors(directory.seed(seed) / "nulls.safetensors")
    return Direction.from_vector(vectors["nulls"][found[0]], row["position"], row["layer"])


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
        self.protocol = RunDirectory.read(run).protocol
        recorded = self.protocol["model"]
        source = given.get("model") or recorded["name"]
        model = load(source, device=given.get("device"), dtype=given.get("dtype") or recorded["dtype"])
        if fingerprint(model) != recorded["fingerprint"]:
            raise ModelError(f"{source} is not the model of {run}: its weights have another fingerprint.")
        self.template = _template(model, self.protocol["chat"]["template_sha256"])
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
        most = config.max_tokens or int(self.protocol.get("max_new_tokens") or MAX_TOKENS)
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
        chat = self.protocol["chat"]
        turns = [{"role": m.role, "content": m.text} for m in messages]
        if chat["system"] is not None and all(t["role"] != "system" for t in turns):
            turns.insert(0, {"role": "system", "content": chat["system"]})
        variables = dict(chat["template_kwargs"])
        if chat["enable_thinking"] is not None:
            variables["enable_thinking"] = chat["enable_thinking"]
        tokenizer = self.arm.runner.model.tokenizer
        text = tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=True, **variables
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)


def _template(model: ChatModel, wanted: str) -> str:
    """The chat template that the run was made with: the model's own, or that of a preset."""
    own = model.tokenizer.get_chat_template() if model.tokenizer.chat_template else None
    for text in (own, *(m.template for m in published_models().values())):
        if text is not None and hashlib.sha256(text.encode()).hexdigest() == wanted:
            return text
    raise ModelError(
        f"{model.name}: its chat template is not the run's, nor that of a preset. Save the run's template with the "
        "tokenizer (tokenizer.chat_template) and give that directory as model."
    )


@modelapi(name="rhumbline")
def rhumbline() -> type[ModelAPI]:
    """What Inspect calls when a model's name begins with `rhumbline/`."""
    return RhumblineAPI
