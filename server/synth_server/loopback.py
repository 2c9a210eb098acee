"""A read-only web server for this machine's own users, without a framework."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from synth_common.errors import ConfigError

HOST = "127.0.0.1"
Page = Callable[[], tuple[str, bytes]]
"""Content type and body, made at each request."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of known pages, to who asks for this machine by its own name."""

    pages: Mapping[str, Page]
    protocol_version = "HTTP/1.0"
    server_version, sys_version = "synthward", ""
    timeout = 10.0

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        # A web site that points its own name at this machine would be let in by the browser.
        _, port = self.connection.getsockname()
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(403)
            return
        page = self.pages.get(self.path.split("?")[0])
        if page is None:
            self.send_error(404)
            return
        kind, content = page()
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Who looks is nobody's business."""


@contextmanager
def served(option: str, port: int, pages: Mapping[str, Page]) -> Iterator[int]:
    """Serve pages on 127.0.0.1 while the context lasts; yields the port.

    Args:
        option: The option that names the port, for the error.
        port: 0 takes a free one.
        pages: Content by path.

    Raises:
        ConfigError: The port cannot be used.
    """
    handler = type("Handler", (_Handler,), {"pages": pages})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as err:
        raise ConfigError(
            f"{option} {port}: {HOST}:{port} cannot be used ({err}); choose another port"
        ) from err
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name=option, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
