"""The web server behind the coordinator's public port: uvicorn over TLS, in a thread.

Not documented in asyncio: ``SSLProtocol.max_size``, the size of what a connection reads into.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from synth_common.errors import ConfigError, FederationError
from synth_common.flower.gate import Gate

_START_SECONDS = 30.0
_STOP_SECONDS = 1
_MAX_CONNECTIONS = 512
_BUFFER = 16 * 2**10  # bytes that a connection holds on the way in, and on the way out
_HANDSHAKE_SECONDS = 20.0  # a connection speaks TLS in this time, or ends; asyncio gives it 60
_HEAD_SECONDS = 20.0  # the head of a request comes in this time, or the connection ends


@dataclass(frozen=True)
class Listener:
    """The public port, and what may come through it.

    Attributes:
        host: Address to bind.
        port: Port to bind; 0 takes a free one (see :attr:`LinkGrid.port`).
        certificate: PEM file of the server's certificate and its chain.
        key: PEM file of its private key.
        max_request_bytes: Largest request body. Tensors travel in pieces of 1 MiB.
        max_reply_bytes: Largest answer of a site, all pieces together.
        spool: Folder of what is in transit, or None for the system's folder for temporary
            files. The files have no names and vanish with the process.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    max_request_bytes: int = 8 * 2**20
    max_reply_bytes: int = 2**30
    spool: Path | None = None


@contextmanager
def bound(listener: Listener) -> Iterator[socket.socket]:
    """The listener's port, taken. Raises ConfigError when it cannot be."""
    try:
        family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
        port = socket.create_server((listener.host, listener.port), family=family, backlog=128)
    except OSError as err:
        raise ConfigError(
            f"server.bind = {listener.host}:{listener.port} cannot be used ({err.strerror}); "
            "name another address or port, or stop who has it"
        ) from err
    with port:
        yield port


class _Protocol(H11Protocol):
    """Ends connections on which no request comes; uvicorn waits for the first one for ever.

    Whoever reaches the port could hold all connections that there are, and no site got one.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(_BUFFER)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()
        elif self._deadline is None and self.cycle.response_complete:
            self._arm()  # part of the head of a further request

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """Waits for no handshake for long, and closes its connections for good when it ends."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which does not pass a time for the handshake on."""
        loop: Any = asyncio.get_running_loop()
        loop.create_server = partial(loop.create_server, ssl_handshake_timeout=_HANDSHAKE_SECONDS)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn. TLS waits for the peer's farewell; a peer that is cut off sends none."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # the loop closes what was aborted in its next turn


@contextmanager
def serving(listener: Listener, app: Gate, port: socket.socket) -> Iterator[None]:
    """Run the web server on a port in a thread.

    Raises:
        ConfigError: The certificate or its key cannot be used.
        FederationError: The server did not start.
    """
    try:
        config = uvicorn.Config(
            app,
            ssl_certfile=listener.certificate,
            ssl_keyfile=listener.key,
            loop="asyncio",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        config.load()
    except OSError as err:  # ssl.SSLError is one
        raise ConfigError(
            f"certificate {listener.certificate} with key {listener.key} cannot be used: {err}"
        ) from err
    # Every connection has such a buffer, and OpenSSL another one; 256 KiB if it is not named.
    asyncio.sslproto.SSLProtocol.max_size = _BUFFER
    server = _Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [port]}, name="link", daemon=True
    )
    thread.start()
    try:
        until = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise FederationError("the coordinator's web server did not start")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(10 * _STOP_SECONDS)
