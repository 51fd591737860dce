"""The model class of lm-evaluation-harness, with the interventions of an arm. Needs the extra `eval`.

Without interventions and without a chat every response is that of the class of the harness. No request is computed
twice. Independent of tasks, runs and scores.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from rhumbline.evals.task_chats import TaskChat
from rhumbline.inference.applied import applied
from rhumbline.inference.interventions import Arm
from rhumbline.models.chat_model import ChatModel


class ResponseCache:
    """Responses by request. New ones are appended to a file, so that an interrupted evaluation resumes.

    Generated texts are written only if `keeps_texts`; otherwise a resumed evaluation generates them again. This class
    replaces the cache of the harness, which opens pickles from its directory.
    """

    def __init__(self, path: Path, *, keeps_texts: bool = False):
        self.path, self.keeps_texts = path, keeps_texts
        self.responses: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, response = json.loads(line)
                except ValueError:
                    continue  # an interrupted write
                self.responses[key] = response

    def add_partial(self, kind: str, request: Sequence[Any], response: Any) -> None:
        """Add one response; the model of the harness calls this for each response."""
        key = _key(kind, request)
        if key not in self.responses:
            self.responses[key] = response
            if kind == "generate_until" and not self.keeps_texts:
                return
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([key, response]) + "\n")

    def complete(self, kind: str, requests: Sequence[Any], compute: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """The responses to all requests; `compute` is called with the requests that are not cached."""
        is_sampled = [r for r in requests if kind == "generate_until" and r.args[1].get("do_sample")]
        if is_sampled:
            return compute(list(requests))  # two samples of one request differ
        missing = [r for r in requests if _key(kind, r.args) not in self.responses]
        for request, response in zip(missing, compute(missing) if missing else [], strict=True):
            self.add_partial(kind, request.args, response)
        responses = [self.responses[_key(kind, r.args)] for r in requests]
        return [tuple(r) if isinstance(r, list) else r for r in responses]


def _key(kind: str, request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *request], default=str).encode()).hexdigest()


@contextmanager
def _weights_not_tied(model: Any) -> Iterator[None]:
    """Within this context, `tie_weights` of the model does nothing.

    The constructor of the harness calls it. In a model with an adapter on the embedding or the head, the two are no
    longer the same weights: tying them changes the logits, or fails.
    """
    own = vars(model).get("tie_weights")
    model.tie_weights = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del model.tie_weights
        if own is not None:
            model.tie_weights = own


class ArmModel(HFLM):
    """The Hugging Face model of the harness under an arm. `chat` renders the messages of tasks."""

    def __init__(
        self,
        chat_model: ChatModel,
        arm: Arm,
        cache: ResponseCache,
        *,
        chat: TaskChat | None = None,
        batch_size: int = 16,
    ):
        self.chat_model, self.arm, self.responses, self.chat = chat_model, arm, cache, chat
        proof = chat_model.proof
        init: Any = super().__init__  # a decorator hides its signature
        with _weights_not_tied(chat_model.model):
            init(
                pretrained=chat_model.model,
                tokenizer=chat_model.tokenizer,
                backend="causal",
                batch_size=1 if proof.padding_changes_logits or proof.longest_proved else batch_size,
                device=str(chat_model.device),
                # A chat template contains the special tokens; the tokenizer would add the first one again.
                add_bos_token=None if chat is None else False,
            )
        self.cache_hook: Any = cache

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages of a task as text; without a generation prompt the last one begins the completion."""
        if self.chat is None:
            raise TypeError("ArmModel(chat=...) renders the messages of tasks, and it is None.")
        return self.chat.render(chat_history, is_continued=not add_generation_prompt)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation under the arm."""
        return self._under(super().loglikelihood, "loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text under the arm."""
        return self._under(super().loglikelihood_rolling, "loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The completion of each context under the arm."""
        return self._under(super().generate_until, "generate_until", requests, disable_tqdm)

    def _under(self, compute: Callable, kind: str, requests: list[Any], quiet: bool) -> list[Any]:
        with applied(self.chat_model, self.arm):
            return self.responses.complete(kind, requests, lambda some: compute(some, disable_tqdm=quiet))
