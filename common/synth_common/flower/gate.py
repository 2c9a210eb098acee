"""What the coordinator's public port lets through, and to whom.

Three checks, outermost first:

1. ``Gate``: the path is one that a node needs, the key in the headers signed a fresh
   timestamp and its owner is enrolled now, and the body is of a bearable size. All of it
   before a byte of the body is read. Everything else that Flower's SuperLink serves, the
   Control API that starts runs and the Runtime API that hands out tokens, is not mounted.
2. Flower's own middlewares: protobuf, and that the node in the request is the key's.
3. ``DeskMiddleware``: the message, object or session in the request is the node's own.

Not public in Flower: its Fleet and health routers, their middlewares, the header names and
``authenticate_node``'s rules, which ``_signer`` applies to the headers alone.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import http_error_translator
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from google.protobuf.message import Message as Proto
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from synth_common.flower.desk import Desk
from synth_common.flower.trouble import CLOCK_DETAIL

HEALTH = "/health"
FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
"""All that a node needs. Not among them: registering a node is enrolment, and no code travels."""

_CLOSE = {"connection": "close"}  # whoever is turned away may still be sending a body
_BODY_SECONDS = 120.0  # a body of at most max_request_bytes comes in this time, or not at all


@dataclass(frozen=True)
class Verdict:
    """What the coordinator thinks of a key; exactly one field is set.

    Attributes:
        name: The enrolled site that the key belongs to.
        refusal: Why its owner is turned away, in words for the owner.
    """

    name: str | None
    refusal: str | None


class Judgement(Protocol):
    """Anything with the two fields of a :class:`Verdict`."""

    @property
    def name(self) -> str | None:
        """The enrolled site that the key belongs to."""

    @property
    def refusal(self) -> str | None:
        """Why its owner is turned away."""


class Judge(Protocol):
    """Knows who is enrolled."""

    def verdict(self, public_key: bytes) -> Judgement:
        """Judge a key (PEM, SubjectPublicKeyInfo); asked at every request."""
        ...


class _Turned(Exception):
    """A request that ends at the gate."""

    def __init__(self, status: int, reason: str, refusal: str | None = None) -> None:
        super().__init__(reason)
        content = {"detail": reason, "refusal": refusal}
        self.response = JSONResponse(content, status, headers=_CLOSE)


class Gate:
    """ASGI middleware: path, signature, enrolment and size, before the body is read.

    Args:
        app: What is behind the gate.
        doorkeeper: Knows who is enrolled.
        heard: Called with the site's name and key at each request that is let through.
        max_request_bytes: Largest body.
    """

    def __init__(
        self,
        app: ASGIApp,
        doorkeeper: Judge,
        heard: Callable[[str, bytes], None],
        max_request_bytes: int,
    ) -> None:
        self._app, self._doorkeeper, self._heard = app, doorkeeper, heard
        self._max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            self._admit(scope)
        except _Turned as turned:
            await turned.response(scope, receive, send)
            return
        body = _Body(receive, send, self._max_request_bytes)
        await self._app(scope, body.receive, body.send)
        if body.turned is not None:
            await body.turned.response(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        if path == HEALTH and method in ("GET", "HEAD"):
            # A site that only wants to know where it stands signs this request too.
            if FLEET_HTTP_PUBLIC_KEY_HEADER in headers:
                self._judge(headers)
        elif path in FLEET and method == "POST":
            name, key = self._judge(headers)
            self._heard(name, key)
        else:
            raise _Turned(404, "Not Found")
        length = headers.get("content-length")
        if length is not None and not length.isdigit():
            raise _Turned(400, "the content-length is no number")
        if length is not None and int(length) > self._max_request_bytes:
            raise _Turned(413, _too_large(self._max_request_bytes))

    def _judge(self, headers: dict[str, bytes]) -> tuple[str, bytes]:
        """The site and its key. Why somebody is turned away, only the key's owner learns."""
        key = _signer(headers)
        verdict = self._doorkeeper.verdict(key)
        if verdict.name is None:
            reason = verdict.refusal or "unknown key"
            raise _Turned(403, "turned away", reason)
        return verdict.name, key


def _too_large(most: int) -> str:
    return f"a request may have {most} bytes"


class _Body:
    """A request's body, which is given up when it is too large or too slow.

    To the app that looks as if the peer had hung up; what it answers then is not sent, and
    the gate answers with ``turned`` instead. (An exception would not get through the tasks
    that Starlette's middlewares run each other in.)
    """

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self.turned: _Turned | None = None
        self._receive, self._send, self._most = receive, send, most
        self._until = time.monotonic() + _BODY_SECONDS
        self._read = 0
        self._whole = False

    async def receive(self) -> Event:
        """See ASGI."""
        if self._whole:
            return await self._receive()  # only news of a disconnection is left
        left = max(0.0, self._until - time.monotonic())
        try:
            event = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            return self._give_up(408, "the body did not come in time")
        self._read += len(event.get("body", b""))
        if self._read > self._most:
            return self._give_up(413, _too_large(self._most))
        self._whole = not event.get("more_body", False)
        return event

    async def send(self, event: Event) -> None:
        """See ASGI."""
        if self.turned is None:
            await self._send(event)

    def _give_up(self, status: int, reason: str) -> Event:
        self.turned = _Turned(status, reason)
        return {"type": "http.disconnect"}


def _signer(headers: dict[str, bytes]) -> bytes:
    """The public key (PEM) that signed the headers just now.

    The same rules as Flower's ``authenticate_node``, which runs after the body is parsed.
    """
    try:
        key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        stamp = headers[TIMESTAMP_HEADER]
        signed_at = datetime.fromisoformat(stamp.decode("ascii"))
        age = (datetime.now(UTC) - signed_at).total_seconds()
        public = bytes_to_public_key(key)
        genuine = isinstance(public, ec.EllipticCurvePublicKey) and verify_signature(
            public, stamp, signature
        )
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error):
        genuine, age, key = False, 0.0, b""
    if not genuine:
        raise _Turned(401, "the request is not signed")
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        raise _Turned(401, CLOCK_DETAIL)
    return key


class DeskMiddleware(BaseHTTPMiddleware):
    """Asks the desk before a handler sees a request, and tells it what the handler did."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        super().__init__(app)
        self._desk = desk

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """See Starlette's middleware."""
        parsed = getattr(request.state, "protobuf_request", None)
        if not isinstance(parsed, Proto):
            return await call_next(request)
        node = _node_of(request, parsed)
        refusal = self._desk.admit(node, parsed)
        if refusal is not None:
            return JSONResponse({"detail": refusal.reason}, refusal.status)
        response = await call_next(request)
        answer = getattr(request.state, "protobuf_response", None)
        if isinstance(answer, Proto):
            self._desk.note(node, parsed, answer)
        return response


def _node_of(request: Request, parsed: Proto) -> int:
    """The node of the key that signed; Flower's check of the two is behind us."""
    key = b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    state: LinkState = request.app.state.linkstate_factory.state()
    return state.get_node_id_by_public_key(key) or 0


@dataclass(frozen=True)
class _Factory:
    """Flower's handlers ask a factory for the state."""

    linkstate: LinkState

    def state(self) -> LinkState:
        return self.linkstate


def make_app(state: LinkState, desk: Desk, gate: Callable[[ASGIApp], Gate]) -> Gate:
    """The whole of what the public port serves."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
            Middleware(DeskMiddleware, desk=desk),
        ],
    )
    app.state.linkstate_factory = _Factory(state)
    app.state.enable_supernode_auth = True
    app.include_router(health.router)
    app.include_router(fleet_router)
    return gate(app)
