"""A web page on this machine that shows an export's answers for a text as it is typed."""

import http.server
import importlib.resources
import json
import select
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from cocolm_tf.errors import UserError
from cocolm_tf.serving.client import Export, words_of

# Pages of text; more is a mistake.
_MAX_BYTES = 1 << 20
_HEADERS = {
    # The page is one file, and asks nobody but its own server.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    # And no other page shows it within itself, for its user to click there.
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer(http.server.ThreadingHTTPServer):
    """Serves a page for `correct` and `embed` on this machine; port 0 is any free one."""

    daemon_threads = True

    def __init__(self, export: Export, port: int) -> None:
        if not {"correct", "embed"} & set(export.signatures):
            raise UserError(f"{export.path} has neither correct nor embed for a page to show.")
        self.page = importlib.resources.files(__package__).joinpath("page.html").read_bytes()
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/signatures": lambda _: {"signatures": export.signatures},
            "/correct": lambda question: _correct(export, question["text"]),
            "/similarity": lambda question: _similarity(
                export, question["first"], question["second"]
            ),
        }
        # One question at a time; those that are taken back while they wait cost nothing.
        self.computing = threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"--port={port}: {error.strerror}.") from error

    @property
    def address(self) -> str:
        """The URL."""
        return f"http://localhost:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports defects; a browser that hangs up is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:  # noqa: N802
        """Sends the page."""
        if not self._is_local():
            self._send_error(403, "only this machine may ask")
        elif self.path.partition("?")[0] == "/":
            self._send(200, "text/html; charset=utf-8", self.server.page)
        else:
            self._send_error(404, "there is no such page")

    def do_POST(self) -> None:  # noqa: N802
        """Answers the page's requests."""
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if not 0 <= size <= _MAX_BYTES:
            self.close_connection = True
            self._send_error(413, f"a question has {_MAX_BYTES} bytes at most")
            return
        body = self.rfile.read(size)
        # Other sites may make a browser send forms, but not JSON, and not to a name of theirs.
        if not self._is_local() or self.headers.get("Content-Type") != "application/json":
            self._send_error(403, "only the page may ask")
            return
        if self.path not in self.server.answers:
            self._send_error(404, "there is no such question")
            return
        try:
            question = json.loads(body)
            with self.server.computing:
                if self._is_canceled():
                    self.close_connection = True
                    return
                answer = self.server.answers[self.path](question)
        except (ValueError, KeyError, TypeError, UserError) as error:
            self._send_error(400, f"{type(error).__name__}: {error}")
        else:
            self._send(200, "application/json", json.dumps(answer).encode())

    def _is_local(self) -> bool:
        """Whether the request is for this machine, and not for a name that resolves to it."""
        try:
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        return host in ("localhost", "127.0.0.1")

    def _is_canceled(self) -> bool:
        """Whether the browser has hung up, which it does when its user types on."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def _send_error(self, status: int, reason: str) -> None:
        self._send(status, "application/json", json.dumps({"error": reason}).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _correct(export: Export, text: str) -> dict[str, Any]:
    (answer,) = export.answers("correct", texts=[text])
    return {"text": text, "words": list(words_of(answer)), "truncated": answer["truncated"]}


def _similarity(export: Export, first: str, second: str) -> dict[str, Any]:
    found = export("embed", texts=[first, second])
    one, other = found["embeddings"]
    return {"cosine": float(one @ other), "truncated": bool(found["truncated"].any())}
