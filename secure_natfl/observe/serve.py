"""`/metrics` and `/health` of a federation's folder over HTTP, for this machine alone."""

from __future__ import annotations

import ipaddress
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from protocols.errors import ConfigError, NatflError
from secure_natfl.observe.metrics import CONTENT_TYPE, ailments, metrics
from secure_natfl.observe.state import look


def endpoint(folder: Path, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A server that answers GET from the folder as it is then; `serve_forever` runs it.

    port: 0 for any free one, which `server_port` then says. The figures are no secrets of
    patients, but say who takes part and when: another host than a loopback address is refused,
    and a proxy that knows who asks belongs in front. ConfigError also for a port in use.
    """
    if not _is_loopback(host):
        raise ConfigError(
            "metrics are served on this machine alone",
            where=host,
            why="whoever reaches the port learns who takes part",
            fix="name a loopback address, and put a proxy with authentication in front",
        )

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                status, kind, text = _answer(folder, self.path)
            except NatflError:
                status, kind, text = HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", "no folder\n"
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Who asked is nobody's concern."""

    try:
        return ThreadingHTTPServer((host, port), Answers)
    except OSError as error:
        raise ConfigError(
            "the port cannot be opened", where=f"{host}:{port}", why=error.strerror or str(error)
        ) from error


def _answer(folder: Path, path: str) -> tuple[HTTPStatus, str, str]:
    """Status, content type and text of one request."""
    if path == "/metrics":
        return HTTPStatus.OK, CONTENT_TYPE, metrics(look(folder))
    if path == "/health":
        found = ailments(look(folder))
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        return status, "application/json", json.dumps({"healthy": not found, "why": found}) + "\n"
    return HTTPStatus.NOT_FOUND, "text/plain", "/metrics or /health\n"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
