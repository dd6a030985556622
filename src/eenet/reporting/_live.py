"""The server of `eenet ui`: watched results as a page that follows them; for this machine only, and read-only."""

from __future__ import annotations

import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from eenet._version import __version__
from eenet.errors import InvalidInputError
from eenet.reporting._watch import Watched

HOST = "127.0.0.1"
_TIMEOUT = 10.0  # seconds in which a request must be there
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_LIVE_POLICY = f"{_POLICY}; connect-src 'self'"


def make_server(watched: Watched, port: int = 0) -> ThreadingHTTPServer:
    """A server on loopback; `serve_forever` serves. Raises `InvalidInputError` where nothing can listen at the port."""

    class Handler(_Handler):
        results = watched

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    try:
        return Server((HOST, port), Handler)
    except OSError as error:
        raise InvalidInputError(
            f"cannot listen on {HOST}, port {port}: {error.strerror or error}; choose another --port; 0 is a free one"
        ) from error


def follow(watched: Watched, server: ThreadingHTTPServer) -> None:
    """Watch and serve until the process is interrupted."""
    ended = threading.Event()
    following = threading.Thread(target=watched.watch, args=(ended, ended.wait), daemon=True, name="eenet-watch")
    following.start()
    try:
        server.serve_forever()
    finally:
        ended.set()
        server.server_close()


def live_page(page: bytes) -> bytes:
    """The page of a report with what lets it follow: a script, and leave to ask this server."""
    html = page.decode("utf-8")
    if _POLICY not in html or "</body>" not in html:
        raise InvalidInputError("the page of a report has a policy that eenet ui does not know; reinstall eenet")
    head, _, tail = html.replace(_POLICY, _LIVE_POLICY, 1).rpartition("</body>")
    return f"{head}<script>\n{_text('live.js')}</script>\n</body>{tail}".encode()


def _text(name: str) -> str:
    return (resources.files("eenet.reporting") / "page" / name).read_text(encoding="utf-8")


class _Handler(BaseHTTPRequestHandler):
    """`/` and `/status`, nothing to be changed; another name in Host is that of a page from elsewhere, led here."""

    results: Watched
    server_version, sys_version = f"eenet/{__version__}", ""
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        host = self.headers.get("Host", "")
        if not re.fullmatch(rf"(127\.0\.0\.1|localhost):{port}", host):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"the address is http://{HOST}:{port}".encode())
        elif self.path == "/":
            page = self.results.page
            self._send(HTTPStatus.OK, "text/html", _text("run.html").encode() if page is None else live_page(page))
        elif self.path == "/status":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self.results.status()).encode())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /status")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"{_LIVE_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing of single requests."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the browser went away
