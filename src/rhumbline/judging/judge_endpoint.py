"""The client of an OpenAI-compatible endpoint: questions -> replies, with concurrent requests and retries.

Guarantees: a failed question has its reason, and the other questions continue. A rejected API key, an unknown address
or model, and a server that rejects every question raise InputError. No redirect is followed, so the key is sent to the
address of the judge only. Independent of the meaning of a reply.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, NamedTuple

from rhumbline.errors import InputError
from rhumbline.judging.judge_specs import JudgeSpec

FATAL = {401, 403, 404, 405}
"""Status codes that a retry does not change: the judge file or the key is wrong."""
REDIRECTS = {300, 301, 302, 303, 307, 308}
REJECTED = {400, 413, 422}
"""Status codes of a rejected question (such as one that is too long for the model)."""
LONGEST_WAIT = 30.0
"""Longest time between two requests, seconds."""


class Reply(NamedTuple):
    """The result of one question."""

    text: str | None
    failure: str = ""
    """Why there is no text."""
    is_rejected: bool = False
    """Whether the server rejected this question, so that a retry would fail too."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Reports a redirect as an HTTPError."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def query(spec: JudgeSpec, questions: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> list[Reply]:
    """The endpoint's replies, in the order of the questions. Raises InputError for faults that a retry cannot mend."""
    with ThreadPoolExecutor(spec.concurrency) as pool:
        replies = list(pool.map(lambda question: _query_one(spec, question, sleep), questions))
    if replies and all(reply.is_rejected for reply in replies):
        raise InputError(
            f"judge {spec.name}: {spec.url} refuses every question ({replies[0].failure}). Check model and "
            "max_new_tokens, and whether the model reads texts of this length."
        )
    return replies


def _query_one(spec: JudgeSpec, question: str, sleep: Callable[[float], None]) -> Reply:
    """One question, with retries."""
    failure = ""
    for attempt in range(spec.retries + 1):
        wait = 0.5 * 2**attempt
        try:
            return _content(_post(spec, question))
        except urllib.error.HTTPError as error:
            with error:
                _check_status(spec, error)
                failure = f"HTTP {error.code}"
                if error.code in REJECTED:
                    return Reply(None, f"endpoint: {failure}", is_rejected=True)
                requested = error.headers.get("Retry-After", "")
                wait = float(requested) if requested.isdigit() else wait
        except (urllib.error.URLError, HTTPException, OSError) as error:
            failure = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        if attempt < spec.retries:
            sleep(min(wait, LONGEST_WAIT))
    return Reply(None, f"endpoint: {failure}")


def _post(spec: JudgeSpec, question: str) -> bytes:
    """The body of the response to one request."""
    body = {
        "model": spec.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": spec.max_new_tokens,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(spec.key_env):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(_address(spec), json.dumps(body).encode(), headers)
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=spec.timeout) as response:
        return response.read()


def _address(spec: JudgeSpec) -> str:
    return spec.url.rstrip("/") + "/chat/completions"


def _check_status(spec: JudgeSpec, error: urllib.error.HTTPError) -> None:
    """Raise InputError for a status that a retry does not change."""
    if error.code in REDIRECTS:
        raise InputError(
            f"judge {spec.name}: {_address(spec)} redirects to {error.headers.get('Location')}, which is not followed. "
            "Set `url` to the final address."
        ) from None
    if error.code in FATAL:
        raise InputError(
            f"judge {spec.name}: {_address(spec)} returns {error.code} {error.reason}. Check url, model and the key in "
            f"{spec.key_env}."
        ) from None


def _content(data: bytes) -> Reply:
    """The text of a chat completion."""
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return Reply(None, "endpoint: an answer of another form")
    return Reply(text) if isinstance(text, str) else Reply(None, "endpoint: an answer without text")
