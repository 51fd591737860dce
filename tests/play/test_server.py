"""The server of `play`: events as lines of JSON; every request from elsewhere, and every faulty one, is refused."""

import http.client
import json
import sys
import threading
from dataclasses import replace
from functools import partial
from importlib.resources import files
from urllib.parse import quote

import pytest
from msgspec import to_builtins

from rhumbline.errors import InputError
from rhumbline.models import templates
from rhumbline.models.resource_limits import limited
from rhumbline.play.server import FILES, HOST, PlayServer

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(session):
    with PlayServer(session, settings=session.settings(max_new_tokens=6)) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.calls.stop()
        thread.join()


@pytest.fixture
def ask(server):
    """One request: status, headers and body."""

    def request(path, body=None, method=None, headers=None, token=None):
        connection = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
        target = f"/{server.token if token is None else token}/{path}"
        content = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        sent = {**(JSON if body is not None else {}), **(headers or {})}
        connection.request(method or ("GET" if body is None else "POST"), target, content, sent)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    return request


@pytest.fixture
def body(server, prompt):
    settings = {"direction": "direction", "layer": server.settings.layer, "max_new_tokens": 4}
    return lambda **changes: {"prompt": changes.pop("prompt", prompt), "settings": settings | changes}


def test_the_server_is_on_the_loopback_address_with_a_random_token(server, session):
    assert server.server_address[0] == HOST == "127.0.0.1"
    assert len(server.token) >= 32
    with PlayServer(session) as other:
        assert other.token != server.token
    with pytest.raises(InputError, match="cannot be used"):
        PlayServer(session, server.server_port)
    with pytest.raises(InputError, match="--port is 70000"):
        PlayServer(session, 70000)


@pytest.mark.parametrize("path", [*FILES, "facts"])
def test_pages_load_nothing_from_elsewhere(path, ask):
    status, headers, content = ask(path)
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"http://" not in content.replace(b"http://www.w3.org", b"")
    assert b"https://" not in content


def test_the_page_writes_texts_as_text_nodes():
    source = (files("rhumbline.play") / "play.js").read_text()
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in source


def test_both_columns_are_streamed(ask, body):
    status, headers, content = ask("stream", body())
    assert status == 200
    assert headers["Content-Type"] == "application/x-ndjson"
    events = [json.loads(line) for line in content.splitlines()]
    assert [e["event"] for e in events][:2] == ["probability", "prompt"]
    assert {e["column"] for e in events if e["event"] == "piece"} == {0, 1}, events
    status, _, content = ask("probability", body())
    assert (status, json.loads(content)) == (200, events[0])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["", "facts", "stream"])
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
def test_a_wrong_token_is_refused(token, path, method, ask, body):
    status, _, content = ask(path, body() if method == "POST" else None, method, token=quote(token))
    assert status == 403
    assert b"token" in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("is_post", [False, True])
def test_other_hosts_and_origins_are_refused(is_post, headers, ask, body):
    status, _, content = ask("stream" if is_post else "facts", body() if is_post else None, headers=headers)
    assert status == 403
    assert b"not allowed" in content


def test_the_own_origin_is_accepted(server, ask, body):
    for name in (HOST, "localhost"):
        host = f"{name}:{server.server_port}"
        assert ask("probability", body(), headers={"Host": host, "Origin": f"http://{host}"})[0] == 200


FAULTY = {
    "not JSON": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no prompt": b'{"settings": {"direction": "direction", "layer": 1}}',
    "a field too many": b'{"prompt": "a", "settings": {"direction": "direction", "layer": 1}, "x": 1}',
    "a text as number": b'{"prompt": "a", "settings": {"direction": "direction", "layer": "1"}}',
    "NaN": b'{"prompt": "a", "settings": {"direction": "direction", "layer": 1, "strength": NaN}}',
    "out of range": b'{"prompt": "a", "settings": {"direction": "direction", "layer": 1, "strength": 1e300}}',
    "layer": b'{"prompt": "a", "settings": {"direction": "direction", "layer": 1000}}',
    "empty prompt": b'{"prompt": " ", "settings": {"direction": "direction", "layer": 1}}',
    "not UTF-8": b'{"prompt": "\xff", "settings": {"direction": "direction", "layer": 1}}',
}


@pytest.mark.parametrize("path", ["stream", "probability"])
@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_request_has_a_message(name, path, ask):
    status, _, content = ask(path, FAULTY[name])
    assert status == 400
    assert json.loads(content)["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Length": "x"},
        {"Content-Length": "9" * 9},
        {"Content-Length": "9" * 5000},
    ],
)
def test_other_types_and_long_bodies_are_refused(headers, ask, body):
    assert ask("stream", body(), headers=headers)[0] == 400


def test_unknown_paths_are_refused(ask, body):
    for path in ("nothing", "../play.js", "play.py", "session.py", "%2e%2e/"):
        assert ask(path)[0] == 404
        assert ask(path, body())[0] == 404
    assert ask("", method="DELETE")[0] == 501


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
def test_a_template_without_end_is_an_error_on_the_page(session, prompt, monkeypatch):
    monkeypatch.setattr(templates, "limited", partial(limited, seconds=0.3))
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    endless = replace(session.chat.options, template="{% if messages[0].content != 'a' %}" + loops + "{% endif %}")
    chat = replace(session.chat, options=endless)
    with PlayServer(replace(session, chat=chat)) as server:
        answers = []

        def request():
            try:
                answers.append(
                    post(server, "probability", {"prompt": prompt, "settings": to_builtins(server.settings)})
                )
            finally:
                server.calls.stop()

        client = threading.Thread(target=request)
        client.start()
        server.serve()
        client.join()
    ((status, content),) = answers
    assert status == 400
    assert "chat template" in json.loads(content)["error"]


def post(server, path, body):
    """Status and body of one request."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
    connection.request("POST", f"/{server.token}/{path}", json.dumps(body), JSON)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_an_error_of_the_program_is_one_line_with_status_500(server, ask, body, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(server.session, "probabilities", fail, raising=False)
    status, _, content = ask("probability", body())
    assert (status, json.loads(content)) == (500, {"error": "RuntimeError: first second"})


def test_only_errors_of_a_connection_are_silent(server, capsys):
    for error in (BrokenPipeError(), TimeoutError()):
        try:
            raise error
        except OSError:
            server.handle_error(None, None)
    assert capsys.readouterr().err == ""
    try:
        raise RuntimeError("fault")
    except RuntimeError:
        server.handle_error(None, None)
    assert "fault" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(), TimeoutError()])
def test_a_page_that_no_longer_reads_ends_the_stream(error, server, ask, body, monkeypatch):
    closed = []

    def events(*arguments):
        try:
            raise error
            yield
        finally:
            closed.append(True)

    monkeypatch.setattr(server.session, "stream", events, raising=False)
    assert ask("stream", body())[2] == b""
    assert closed == [True]
