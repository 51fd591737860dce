"""The client of an OpenAI-compatible endpoint: questions -> replies, with concurrent requests and retries.

Guarantees: a failed question has its reason, and the other questions continue. Every try ends within the time limit of
the judge, and no body is read beyond `LARGEST_BODY`. A rejected API key, an unknown address or model, and a server that
rejects every question raise InputError. No redirect is followed, so the key is sent to the address of the judge only.
Independent of the meaning of a reply.
"""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx

from rhumbline.errors import InputError
from rhumbline.judging.judge_specs import JudgeSpec

FATAL = {401, 403, 404, 405}
"""Status codes that a retry does not change: the judge file or the key is wrong."""
REJECTED = {400, 413, 422}
"""Status codes of a rejected question (such as one that is too long for the model)."""
LONGEST_WAIT = 30.0
"""Longest time between two requests, seconds."""
LARGEST_BODY = 2**20
"""Bytes of a reply that are read."""

Sleep = Callable[[float], Awaitable[None]]


class Reply(NamedTuple):
    """The result of one question."""

    text: str | None
    failure: str = ""
    """Why there is no text."""
    is_rejected: bool = False
    """Whether the server rejected this question, so that a retry would fail too."""


def query(spec: JudgeSpec, questions: Sequence[str], sleep: Sleep = asyncio.sleep) -> list[Reply]:
    """The endpoint's replies, in the order of the questions. Raises InputError for faults that a retry cannot mend."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        replies = asyncio.run(_query_all(spec, questions, sleep))
    else:  # in a notebook, whose own event loop is running
        with ThreadPoolExecutor(1) as thread:
            replies = thread.submit(asyncio.run, _query_all(spec, questions, sleep)).result()
    if replies and all(reply.is_rejected for reply in replies):
        raise InputError(
            f"judge {spec.name}: {spec.url} refuses every question ({replies[0].failure}). Check model and "
            "max_new_tokens, and whether the model reads texts of this length."
        )
    return replies


async def _query_all(spec: JudgeSpec, questions: Sequence[str], sleep: Sleep) -> list[Reply]:
    places = asyncio.Semaphore(spec.concurrency)

    async def reply_to(question: str) -> Reply:
        async with places:
            return await _query_one(client, spec, question, sleep)

    async with _client(spec) as client:
        tasks = [asyncio.create_task(reply_to(question)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


def _client(spec: JudgeSpec) -> httpx.AsyncClient:
    """A client with the key, proxies and certificates of the environment."""
    # A compressed body could grow beyond the limit in one step.
    headers = {"Accept-Encoding": "identity"}
    if key := os.environ.get(spec.key_env):
        if not re.fullmatch(r"[!-~]+", key):  # the key itself is not printed
            raise InputError(
                f"judge {spec.name}: the API key in {spec.key_env} has a space, a line break or a character that is "
                "not ASCII. Set it to the key alone."
            )
        headers["Authorization"] = f"Bearer {key}"
    try:
        return httpx.AsyncClient(follow_redirects=False, timeout=None, headers=headers)
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"judge {spec.name}: the proxy or the certificates of the environment cannot be used: {error} Correct "
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR, or unset them."
        ) from error


async def _query_one(client: httpx.AsyncClient, spec: JudgeSpec, question: str, sleep: Sleep) -> Reply:
    """One question, with retries."""
    failure = ""
    for attempt in range(spec.retries + 1):
        wait = 0.5 * 2**attempt
        try:
            async with asyncio.timeout(spec.timeout):
                status, headers, body = await _post(client, spec, question)
        except TimeoutError:
            failure = f"no complete reply within {spec.timeout:g} s"
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__}: {error}"
        else:
            if 200 <= status < 300:
                return _content(body)
            _check_status(spec, status, headers)
            failure = f"HTTP {status}"
            if status in REJECTED:
                return Reply(None, f"endpoint: {failure}", is_rejected=True)
            wait = retry_after(headers.get("Retry-After", ""), datetime.now(UTC), wait)
        if attempt < spec.retries:
            await sleep(min(wait, LONGEST_WAIT))
    return Reply(None, f"endpoint: {failure}")


async def _post(
    client: httpx.AsyncClient, spec: JudgeSpec, question: str
) -> tuple[int, Mapping[str, str], bytes | None]:
    """Status, headers and body of one request; None instead of a body that is too large."""
    body = {
        "model": spec.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": spec.max_new_tokens,
    }
    received = bytearray()
    async with client.stream("POST", _address(spec), json=body) as response:
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > LARGEST_BODY:
                return response.status_code, response.headers, None
    return response.status_code, response.headers, bytes(received)


def retry_after(value: str, now: datetime, default: float) -> float:
    """Seconds of a Retry-After header, given as seconds or as a date (RFC 9110, section 10.2.3); else the default."""
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(value.replace(":60 ", ":59 "))  # a leap second is legal
    except (ValueError, TypeError, OverflowError):
        return default
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _address(spec: JudgeSpec) -> str:
    return spec.url.rstrip("/") + "/chat/completions"


def _check_status(spec: JudgeSpec, status: int, headers: Mapping[str, str]) -> None:
    """Raise InputError for a status that a retry does not change."""
    if 300 <= status < 400:
        raise InputError(
            f"judge {spec.name}: {_address(spec)} redirects to {headers.get('Location')}, which is not followed. "
            "Set `url` to the final address."
        )
    if status in FATAL:
        raise InputError(
            f"judge {spec.name}: {_address(spec)} returns {status} {httpx.codes.get_reason_phrase(status)}. Check "
            f"url, model and the key in {spec.key_env}."
        )


def _content(body: bytes | None) -> Reply:
    """The text of a chat completion."""
    if body is None:
        return Reply(None, f"endpoint: an answer of more than {LARGEST_BODY:,} bytes")
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return Reply(None, "endpoint: an answer of another form")
    return Reply(text) if isinstance(text, str) else Reply(None, "endpoint: an answer without text")
