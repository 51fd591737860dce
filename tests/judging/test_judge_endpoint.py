"""A judge at an endpoint: answers in order, failures that stay failures, and what ends the whole."""

import time

import pytest

from make_judge import Endpoint, spec
from rhumbline.errors import InputError
from rhumbline.judging.judge_endpoint import ask

QUESTIONS = [f"question {i}" + (" cannot" if i % 3 == 0 else "") for i in range(9)]


def no_wait(seconds: float) -> None:
    assert seconds > 0


def test_answers_come_back_in_order_and_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Endpoint(lambda n, q: time.sleep(0.01 * (n % 4))) as server:
        found = ask(spec(url=server.url, key_env="MY_KEY", concurrency=4), QUESTIONS)
    assert [a.text for a in found] == ["Yes." if i % 3 == 0 else "No." for i in range(9)]
    assert server.keys == {"Bearer secret"}
    assert 1 < server.most_at_once <= 4
    assert {s["path"] for s in server.seen} == {"/v1/chat/completions"}
    assert all(s["temperature"] == 0 and s["model"] == "m" for s in server.seen)


def test_a_busy_server_is_asked_again():
    waited: list[float] = []
    with Endpoint(lambda n, q: (503, b"busy") if n <= 2 else None) as server:
        found = ask(spec(url=server.url, concurrency=1), QUESTIONS[:1], waited.append)
    assert found[0].text == "Yes."
    assert waited == [0.5, 1.0]


@pytest.mark.parametrize(
    ("behave", "told"),
    [
        (lambda n, q: (500, b""), "HTTP 500"),
        (lambda n, q: (200, b"not json"), "another form"),
        (lambda n, q: (200, b'{"choices": []}'), "another form"),
        (lambda n, q: (200, b'{"choices": [{"message": {"content": null}}]}'), "without text"),
        (lambda n, q: time.sleep(0.5), "TimeoutError"),
    ],
)
def test_what_fails_is_unscored_with_its_reason(behave, told):
    with Endpoint(behave) as server:
        judge = spec(url=server.url, retries=1, timeout=0.1)
        answers = ask(judge, QUESTIONS[:1], no_wait)
    assert answers[0].text is None
    assert told in answers[0].failure


def test_nobody_at_the_address_is_unscored():
    with Endpoint() as server:
        url = server.url
    assert "URLError" in ask(spec(url=url, retries=0), QUESTIONS[:1])[0].failure


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_ends_the_whole(status):
    with Endpoint(lambda n, q: (status, b"")) as server, pytest.raises(InputError, match=str(status)):
        ask(spec(url=server.url), QUESTIONS)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_unscored_and_the_others_go_on(status):
    with Endpoint(lambda n, q: (status, b"") if "5" in q else None) as server:
        found = ask(spec(url=server.url, concurrency=1), QUESTIONS, no_wait)
        asked = len(server.seen)
    assert [i for i, answer in enumerate(found) if answer.text is None] == [5]
    assert found[5].failure == f"endpoint: HTTP {status}"
    assert asked == len(QUESTIONS)  # and it is not asked again


def test_a_server_that_refuses_every_question_ends_the_whole():
    with Endpoint(lambda n, q: (400, b"")) as server, pytest.raises(InputError, match="refuses every question"):
        ask(spec(url=server.url), QUESTIONS)
