"""The local web server of `rhumbline play`: a static page, and a session as lines of JSON.

Listens on the loopback address only. Every path begins with a random token. Requests with another Host or Origin are
refused, so that no other site can reach the model through the browser. Independent of models.
"""

import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, cast

import msgspec
from msgspec import Struct

from rhumbline.errors import InputError, RhumblineError
from rhumbline.play.main_thread import Calls
from rhumbline.play.session import COLUMNS, MOST_COEFFICIENT, MOST_STRENGTH, MOST_TOKENS, Session, Settings

HOST = "127.0.0.1"
FILES = {
    "": ("play.html", "text/html; charset=utf-8"),
    "play.js": ("play.js", "text/javascript; charset=utf-8"),
    "play.css": ("play.css", "text/css; charset=utf-8"),
}
"""Path after the token: file and type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MOST_BYTES = 256 * 1024
"""Of the body of a request."""
SECONDS = 30
"""A client that sends nothing for so long is disconnected."""


class PlayRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request."""

    prompt: str
    settings: Settings


class Facts(Struct, frozen=True):
    """What the page needs to know of the session."""

    model: str
    directions: tuple[str, ...]
    layers: tuple[int, ...]
    settings: Settings
    most_strength: float = MOST_STRENGTH
    most_coefficient: float = MOST_COEFFICIENT
    most_tokens: int = MOST_TOKENS
    columns: tuple[str, ...] = COLUMNS


class PlayServer(ThreadingHTTPServer):
    """A server of one session on a free port, or on `port`. The address with its token is `url`."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, session: Session, port: int = 0, settings: Settings | None = None) -> None:
        check_port(port)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}. Pass another --port.") from error
        self.calls = Calls()
        self.session = replace(session, call=self.calls.call)
        self.token = secrets.token_urlsafe(32)
        self.settings = settings or session.settings()
        names = (HOST, "localhost")
        self.hosts = frozenset(f"{name}:{self.server_port}" for name in names)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def facts(self) -> Facts:
        """The facts of the session."""
        choices = self.session.choices
        return Facts(self.session.model.name, choices.names, tuple(sorted(choices.norms)), self.settings)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def serve(self) -> None:
        """Answer requests until `calls.stop`. Prompts are rendered in the thread of the caller, the main one.

        Requests have threads of their own, and the limits of chat templates act in the main thread only.
        """
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            self.calls.execute()
        finally:
            self.shutdown()
            thread.join()


def check_port(port: int) -> None:
    """Raise InputError unless a port is 0 to 65535."""
    if not 0 <= port < 65536:
        raise InputError(f"--port is {port}; use 1 to 65535, or 0 for a free one.")


def _line(error: Exception) -> str:
    """An error as one line."""
    text = str(error) if isinstance(error, RhumblineError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


class _Handler(BaseHTTPRequestHandler):
    timeout = SECONDS
    server_version, sys_version = "rhumbline", ""

    @property
    def play(self) -> PlayServer:
        """The server."""
        return cast(PlayServer, self.server)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Callable[[], None]) -> None:
        """Call the method of a request; an error of the program is one line with the status 500."""
        try:
            method()
        except OSError:
            raise
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, _line(error))

    def _get(self) -> None:
        path = self._path()
        if path == "facts":
            self._send(HTTPStatus.OK, "application/json", msgspec.json.encode(self.play.facts()))
        elif path in FILES:
            name, kind = FILES[path]
            self._send(HTTPStatus.OK, kind, (files("rhumbline.play") / name).read_bytes())
        elif path is not None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _post(self) -> None:
        path = self._path()
        if path is None:
            return
        if path not in ("stream", "probability"):
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return
        session = self.play.session
        try:
            request = self._body()
            if path == "probability":
                values = session.probabilities(request.prompt, request.settings)
                self._send(HTTPStatus.OK, "application/json", msgspec.json.encode(values))
            else:
                self._stream(session.stream(request.prompt, request.settings))
        except RhumblineError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _path(self) -> str | None:
        """The path after the token; None if the request was refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self.play.hosts or origin not in (None, f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN, "This host or origin is not allowed.")
            return None
        _, token, *rest = (*self.path.split("?")[0].split("/"), "", "")
        if not secrets.compare_digest(token.encode(), self.play.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "The token of the address is missing or wrong. Use the printed address.")
            return None
        return "/".join(rest).strip("/")

    def _body(self) -> PlayRequest:
        """The request. Raises InputError."""
        if self.headers.get_content_type() != "application/json":
            raise InputError("the body must have the type application/json.")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MOST_BYTES:
            raise InputError(f"Content-Length is {length[:20]!r}, expected at most {MOST_BYTES} bytes.")
        try:
            return msgspec.json.decode(self.rfile.read(int(length)), type=PlayRequest)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InputError(f"the body is not a request: {error}.") from None

    def _stream(self, events: Iterable[Any]) -> None:
        """One line of JSON for each event. The end of the connection is the end of the stream."""
        self.send_response(HTTPStatus.OK)
        self._headers("application/x-ndjson")
        try:
            for event in events:
                self.wfile.write(msgspec.json.encode(event) + b"\n")
                self.wfile.flush()
        except (ConnectionError, TimeoutError):
            pass  # The page has asked for something else, or no longer reads.
        except Exception as error:
            # The status is sent already, so the page learns of a failure by an event.
            self.wfile.write(msgspec.json.encode({"event": "error", "message": _line(error)}) + b"\n")
        finally:
            if close := getattr(events, "close", None):
                close()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self._headers(kind, len(body))
        self.wfile.write(body)

    def _headers(self, kind: str, length: int | None = None) -> None:
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "application/json", msgspec.json.encode({"error": message}))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: paths contain the token."""
