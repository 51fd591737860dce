"""lm-evaluation-harness on an arm: its own Hugging Face model, whose forward passes run under our interventions.

Needs the extra `eval`; imported only where an evaluation begins. Promises: without interventions every answer is the
one that the harness's own class gives, and an answer that was given once is never asked for again. Knows requests and
answers; does not know tasks, runs or what the scores mean.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from rhumbline.inference.applied import applied
from rhumbline.inference.interventions import Arm
from rhumbline.models.chat_model import ChatModel


class Answers:
    """What was answered so far, by request; new answers are appended to a file, so that a killed evaluation goes on.

    In the place of the harness's own cache, which would open whatever pickles lie in a run directory.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the process was killed
                self.known[key] = answer

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        """Called by the harness's model with each answer as it comes."""
        key = _key(kind, request)
        if key not in self.known:
            self.known[key] = answer
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([key, answer]) + "\n")

    def complete(self, kind: str, requests: Sequence[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """Answers of all requests, of which only the unknown ones are asked."""
        drawn = [r for r in requests if kind == "generate_until" and r.args[1].get("do_sample")]
        if drawn:
            return ask(list(requests))  # two draws of one request differ
        missing = [r for r in requests if _key(kind, r.args) not in self.known]
        for request, answer in zip(missing, ask(missing) if missing else [], strict=True):
            self.add_partial(kind, request.args, answer)
        found = [self.known[_key(kind, r.args)] for r in requests]
        return [tuple(a) if isinstance(a, list) else a for a in found]


def _key(kind: str, request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *request], default=str).encode()).hexdigest()


class ArmModel(HFLM):
    """The harness's Hugging Face model under an arm."""

    def __init__(self, chat_model: ChatModel, arm: Arm, answers: Answers, *, batch_size: int = 16):
        self.chat_model, self.arm, self.answers = chat_model, arm, answers
        make: Any = super().__init__  # a decorator hides its signature
        make(
            pretrained=chat_model.model,
            tokenizer=chat_model.tokenizer,
            backend="causal",
            # Where padding changes a row, a batch holds one.
            batch_size=1 if chat_model.proof.padding_changes_logits else batch_size,
            device=str(chat_model.device),
        )
        self.cache_hook: Any = answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation under the arm."""
        return self._under(super().loglikelihood, "loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text under the arm."""
        return self._under(super().loglikelihood_rolling, "loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What each context is continued with under the arm."""
        return self._under(super().generate_until, "generate_until", requests, disable_tqdm)

    def _under(self, ask: Callable, kind: str, requests: list[Any], quiet: bool) -> list[Any]:
        with applied(self.chat_model, self.arm):
            return self.answers.complete(kind, requests, lambda some: ask(some, disable_tqdm=quiet))
