"""A judge behind an OpenAI-compatible address: many questions at once, tried again while the server is busy.

Promises: a question that gets no answer is told as a failure with its reason, and the others go on; a wrong key,
address or model ends the whole, and so does a server that refuses every question. Knows HTTP; does not know what an
answer means.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import NamedTuple

from rhumbline.errors import InputError
from rhumbline.judging.judge_specs import JudgeSpec

FATAL = {401, 403, 404, 405}
"""Answers that a further try does not change: the judge file is wrong, or the key."""
REFUSED = {400, 413, 422}
"""The same of one question (too long for the model, say), unless every question is answered so."""
LONGEST_WAIT = 30.0
"""Seconds between two tries, at most."""


class Answer(NamedTuple):
    """What came back for one question."""

    text: str | None
    failure: str = ""
    """Why there is no text."""
    is_refused: bool = False
    """Whether the server refused this question, so that a further try would fail too."""


def ask(spec: JudgeSpec, questions: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> list[Answer]:
    """The endpoint's answers, in the order of the questions. Raises InputError for what no further try would mend."""
    with ThreadPoolExecutor(spec.concurrency) as pool:
        answers = list(pool.map(lambda question: _ask_one(spec, question, sleep), questions))
    if answers and all(answer.is_refused for answer in answers):
        raise InputError(
            f"judge {spec.name}: {spec.url} refuses every question ({answers[0].failure}). Check model and "
            "max_new_tokens, and whether the model reads texts of this length."
        )
    return answers


def _ask_one(spec: JudgeSpec, question: str, sleep: Callable[[float], None]) -> Answer:
    body = {
        "model": spec.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": spec.max_new_tokens,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(spec.key_env):
        headers["Authorization"] = f"Bearer {key}"
    address = spec.url.rstrip("/") + "/chat/completions"
    failure = ""
    for attempt in range(spec.retries + 1):
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        wait = 0.5 * 2**attempt
        try:
            with urllib.request.urlopen(request, timeout=spec.timeout) as reply:
                return _content(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                if error.code in FATAL:
                    raise InputError(
                        f"judge {spec.name}: {address} answers {error.code} {error.reason}. Check url, model and the "
                        f"key in {spec.key_env}."
                    ) from None
                failure = f"HTTP {error.code}"
                if error.code in REFUSED:
                    return Answer(None, f"endpoint: {failure}", is_refused=True)
                told = error.headers.get("Retry-After", "")
                wait = float(told) if told.isdigit() else wait
        except (urllib.error.URLError, HTTPException, OSError) as error:
            failure = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        if attempt < spec.retries:
            sleep(min(wait, LONGEST_WAIT))
    return Answer(None, f"endpoint: {failure}")


def _content(data: bytes) -> Answer:
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return Answer(None, "endpoint: an answer of another form")
    return Answer(text) if isinstance(text, str) else Answer(None, "endpoint: an answer without text")
