"""The client of an endpoint: replies in order, failures with their reasons, and errors that a retry cannot change."""

import threading

import pytest

from make_judge import Endpoint, spec
from rhumbline.errors import InputError
from rhumbline.judging.judge_endpoint import query

QUESTIONS = [f"question {i}" + (" cannot" if i % 3 == 0 else "") for i in range(9)]


def no_wait(seconds: float) -> None:
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
    with Endpoint(lambda n, q: (503, b"busy") if n <= 2 else None) as server:
        answers = query(spec(url=server.url, concurrency=1), QUESTIONS[:1], waited.append)
    assert answers[0].text == "Yes."
    assert waited == [0.5, 1.0]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((500, b""), "HTTP 500"),
        ((200, b"not json"), "another form"),
        ((200, b'{"choices": []}'), "another form"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "without text"),
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
    assert "TimeoutError" in answers[0].failure


def test_an_address_without_a_server_leaves_the_question_unscored():
    with Endpoint() as server:
        url = server.url
    assert "URLError" in query(spec(url=url, retries=0), QUESTIONS[:1])[0].failure


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
