"""The client of an endpoint: replies in order, failures with their reasons, and errors that a retry cannot change."""

import asyncio
import gzip
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_judge import Endpoint, spec
from rhumbline.errors import InputError
from rhumbline.judging.judge_endpoint import LARGEST_BODY, LONGEST_WAIT, query, retry_after

QUESTIONS = [f"question {i}" + (" cannot" if i % 3 == 0 else "") for i in range(9)]


async def no_wait(seconds: float) -> None:
    assert seconds > 0


def test_replies_are_in_the_order_of_the_questions_and_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    two = threading.Barrier(2)

    def together(number: int, question: str) -> None:
        if number <= 2:
            two.wait(60)

    with Endpoint(together) as server:
        answers = query(spec(url=server.url, key_env="MY_KEY", concurrency=4), QUESTIONS)
    assert [a.text for a in answers] == ["Yes." if i % 3 == 0 else "No." for i in range(9)]
    assert server.keys == {"Bearer secret"}
    assert 2 <= server.most_at_once <= 4  # the first two wait for each other
    assert {s["path"] for s in server.seen} == {"/v1/chat/completions"}
    assert all(s["temperature"] == 0 and s["model"] == "m" for s in server.seen)


def test_a_question_to_a_busy_server_is_sent_again():
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    with Endpoint(lambda n, q: (503, b"busy") if n <= 2 else None) as server:
        answers = query(spec(url=server.url, concurrency=1), QUESTIONS[:1], wait)
    assert answers[0].text == "Yes."
    assert waited == [0.5, 1.0]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((500, b""), "HTTP 500"),
        ((200, b"not json"), "another form"),
        ((200, b'{"choices": []}'), "another form"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "without text"),
        ((200, b"[" * 100_000), "another form"),
        ((200, b" " * (LARGEST_BODY + 1)), "more than"),
        ((200, gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}), "another form"),
    ],
)
def test_a_question_without_a_reply_is_unscored_with_its_reason(reply, reason):
    with Endpoint(lambda n, q: reply) as server:
        answers = query(spec(url=server.url, retries=1), QUESTIONS[:1], no_wait)
    assert answers[0].text is None
    assert reason in answers[0].failure


def test_a_server_that_takes_too_long_leaves_the_question_unscored():
    answered = threading.Event()
    with Endpoint(lambda n, q: answered.wait(60) and None) as server:
        answers = query(spec(url=server.url, retries=1, timeout=0.1), QUESTIONS[:1], no_wait)
        answered.set()
    assert answers[0].text is None
    assert "no complete reply within 0.1 s" in answers[0].failure


@contextmanager
def dripping_server(start: bytes):
    """A server that sends `start` and then one byte every 10 ms without end; gives its address."""
    stop = threading.Event()

    class Drip(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            with suppress(OSError):
                self.request.sendall(start)
                while not stop.wait(0.01):
                    self.request.sendall(b"x")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stop.set()
            server.shutdown()


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "]
)
def test_a_server_that_sends_a_byte_at_a_time_is_left_after_the_time_limit(start):
    with dripping_server(start) as url:
        started = time.monotonic()
        (answer,) = query(spec(url=url, retries=0, timeout=0.3), QUESTIONS[:1])
        assert time.monotonic() - started < 30  # without a limit on the whole reply it would never end
    assert "no complete reply within 0.3 s" in answer.failure


def test_a_running_event_loop_does_not_hinder_a_query():
    async def notebook(url: str):
        return query(spec(url=url), QUESTIONS[:2])

    with Endpoint() as server:
        answers = asyncio.run(notebook(server.url))
    assert [a.text for a in answers] == ["Yes.", "No."]


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("7", 7), ("120", LONGEST_WAIT), ("9" * 400, LONGEST_WAIT),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9),
        ("Friday, 02-Jan-26 03:04:14 GMT", 9),
        ("Fri Jan  2 03:04:14 2026", 9),
        ("Fri, 02 Jan 2026 03:04:60 GMT", 54),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0),
        ("", 2.5), ("soon", 2.5), ("-3", 2.5), ("1.5", 2.5), ("\u00b2", 2.5), ("\u0663", 2.5),
        ("Fri, 99 Jan 9999999 0:0:0", 2.5),
    ],
)  # fmt: skip
def test_every_legal_form_of_retry_after_is_read_and_others_change_nothing(value, seconds):
    assert retry_after(value, NOW, 2.5) == seconds


@given(st.text(st.characters(max_codepoint=255)))
def test_no_retry_after_is_a_fault(value):
    assert retry_after(value, NOW, 2.5) >= 0


def test_an_address_without_a_server_leaves_the_question_unscored():
    with Endpoint() as server:
        url = server.url
    assert "ConnectError" in query(spec(url=url, retries=0), QUESTIONS[:1])[0].failure


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_an_error(status):
    with Endpoint(lambda n, q: (status, b"")) as server, pytest.raises(InputError, match=str(status)):
        query(spec(url=server.url), QUESTIONS)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_question_is_unscored_and_the_others_continue(status):
    with Endpoint(lambda n, q: (status, b"") if "5" in q else None) as server:
        answers = query(spec(url=server.url, concurrency=1), QUESTIONS, no_wait)
        requests = len(server.seen)
    assert [i for i, answer in enumerate(answers) if answer.text is None] == [5]
    assert answers[5].failure == f"endpoint: HTTP {status}"
    assert requests == len(QUESTIONS)  # no further try


def test_a_server_that_rejects_every_question_is_an_error():
    with Endpoint(lambda n, q: (400, b"")) as server, pytest.raises(InputError, match="refuses every question"):
        query(spec(url=server.url), QUESTIONS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_stays(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Endpoint() as other:
        elsewhere = f"{other.url}/chat/completions"
        with Endpoint(lambda n, q: (status, b"", {"Location": elsewhere})) as server:
            with pytest.raises(InputError, match=f"redirects to {elsewhere}.*Set `url`"):
                query(spec(url=server.url, key_env="MY_KEY"), QUESTIONS[:1], no_wait)
            assert server.keys == {"Bearer secret"}
        assert other.seen == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MY_KEY", "sec\nret", "the API key in MY_KEY"),
        ("MY_KEY", "s\u00e9cret", "the API key in MY_KEY"),
        ("ALL_PROXY", "banana://x", "the proxy or the certificates"),
        ("SSL_CERT_FILE", "/gone/certificates.pem", "the proxy or the certificates"),
    ],
)
def test_an_environment_without_a_usable_key_or_connection_is_an_error(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as error:
        query(spec(url="http://127.0.0.1:1", key_env="MY_KEY"), QUESTIONS[:1], no_wait)
    assert name != "MY_KEY" or value not in str(error.value)
