"""The coordinator's public port: what it lets through, and to whom.

All before a byte of the body is read: the path is one that a node needs, the key in the
headers signed a fresh timestamp, its owner is enrolled now, and the body is of a bearable
size. Everything else that Flower's SuperLink serves, the Control API that starts runs and
the Runtime API that hands out tokens, is not here.

Not public in Flower: the names of its headers, and the rules of its ``authenticate_node``,
which ``_signer`` applies to the headers alone.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import logging
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    verify_signature,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from synth_common.enrolment import Verdict
from synth_common.flower.bodies import Incoming, outgoing, parts
from synth_common.flower.desk import Refusal
from synth_common.flower.fleet import ROUTES, Fleet
from synth_common.flower.spool import Piece, Spool
from synth_common.flower.trouble import CLOCK_DETAIL

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_LOG = logging.getLogger(__name__)
HEALTH = "/health"
_JSON = "application/json"
_NOTHING = Piece(b"", None, 0, 0)
_BODY_SECONDS = 120.0  # a body of at most max_request_bytes comes in this time, or not at all
_HANDLERS = 2  # threads that answer: so many whole bodies are in memory
_IN_FLIGHT = 16  # requests of one key at a time


class Judge(Protocol):
    """Knows who is enrolled."""

    def verdict(self, public_key: bytes) -> Verdict:
        """Judge a key (PEM, SubjectPublicKeyInfo); asked at every request."""
        ...


@dataclass(frozen=True)
class _Response:
    status: int
    body: Piece = _NOTHING
    media_type: str = _JSON
    close: bool = False


class _Turned(Exception):
    """A request that ends at the gate; whoever sent it may still be sending a body."""

    def __init__(self, status: int, reason: str, refusal: str | None = None) -> None:
        super().__init__(reason)
        self.response = _Response(status, _json(detail=reason, refusal=refusal), close=True)


class Gate:
    """The ASGI application of the public port.

    Args:
        fleet: Answers what is let through.
        doorkeeper: Knows who is enrolled.
        heard: Called with the site's name and key at each request that is let through.
        max_request_bytes: Largest body.
        spool: Takes bodies on their way.
    """

    def __init__(
        self,
        fleet: Fleet,
        doorkeeper: Judge,
        heard: Callable[[str, bytes], None],
        max_request_bytes: int,
        spool: Spool,
    ) -> None:
        self._fleet, self._doorkeeper, self._heard = fleet, doorkeeper, heard
        self._max_request_bytes, self._spool = max_request_bytes, spool
        self._in_flight: Counter[bytes] = Counter()  # by key; of the event loop alone
        self._threads = ThreadPoolExecutor(_HANDLERS, thread_name_prefix="fleet")

    def close(self) -> None:
        """Answer nothing more."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        try:
            response = await self._respond(scope, receive)
        except _Turned as turned:
            response = turned.response
        except _HungUpError:
            return
        except Exception:  # a fault of ours; a peer learns nothing of it
            _LOG.exception("request to %s failed", scope["path"])
            response = _Response(500, _json(detail="internal error"), close=True)
        headers = [
            (b"content-type", response.media_type.encode()),
            (b"content-length", str(response.body.length).encode()),
        ]
        if response.close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        for part in parts(response.body):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async def _respond(self, scope: Scope, receive: Receive) -> _Response:
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        if path == HEALTH and method in ("GET", "HEAD"):
            # A site that only wants to know where it stands signs this request too.
            if FLEET_HTTP_PUBLIC_KEY_HEADER in headers:
                self._judge(headers)
                return _Response(200)
            return _Response(200, close=True)  # a stranger keeps no connection
        if path not in ROUTES or method != "POST":
            raise _Turned(404, "not found")
        name, key = self._judge(headers)
        if headers.get("content-type", b"").partition(b";")[0].strip().lower() != _PROTOBUF:
            raise _Turned(415, f"a body of type {PROTOBUF_MEDIA_TYPE} is expected")
        self._bear(headers)
        self._heard(name, key)
        with self._admitted(key):
            return await self._answered(path, key, receive)

    @contextmanager
    def _admitted(self, key: bytes) -> Iterator[None]:
        """Count a request of a key for as long as it is in memory."""
        # 503: a node drops an answer that is refused with 4xx, and brings it again after 5xx.
        if self._in_flight[key] >= _IN_FLIGHT:
            raise _Turned(503, f"a site may have {_IN_FLIGHT} requests at a time")
        self._in_flight[key] += 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]

    async def _answered(self, path: str, key: bytes, receive: Receive) -> _Response:
        """Read the body and have a thread answer it."""
        body = await self._read(receive)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._answer, path, key, body)

    def _answer(self, path: str, key: bytes, body: Incoming) -> _Response:
        """In a thread: the whole body, and the whole answer, in memory."""
        answer = self._fleet.answer(path, key, body.read())
        if isinstance(answer, Refusal):
            return _Response(answer.status, _json(detail=answer.reason))
        return _Response(200, outgoing(answer, self._spool), PROTOBUF_MEDIA_TYPE)

    def _judge(self, headers: dict[str, bytes]) -> tuple[str, bytes]:
        """The site and its key. Why somebody is turned away, only the key's owner learns."""
        key = _signer(headers)
        verdict = self._doorkeeper.verdict(key)
        if verdict.name is None:
            raise _Turned(403, "turned away", verdict.refusal or "unknown key")
        return verdict.name, key

    def _bear(self, headers: dict[str, bytes]) -> None:
        """Refuse a body that says that it is too large."""
        length = headers.get("content-length", b"0")
        if not length.isdigit():
            raise _Turned(400, "the content-length is no number")
        if int(length) > self._max_request_bytes:
            raise self._too_large()

    def _too_large(self) -> _Turned:
        return _Turned(413, f"a request may have {self._max_request_bytes} bytes")

    async def _read(self, receive: Receive) -> Incoming:
        """The body, which is given up when it is too large or too slow."""
        until = time.monotonic() + _BODY_SECONDS
        body = Incoming(self._spool)
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                event = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                raise _Turned(408, "the body did not come in time") from None
            if event["type"] == "http.disconnect":
                raise _HungUpError
            body.add(event.get("body", b""))
            if body.length > self._max_request_bytes:
                raise self._too_large()
            if not event.get("more_body", False):
                return body


class _HungUpError(Exception):
    """The peer is gone; there is nobody to answer."""


_PROTOBUF = PROTOBUF_MEDIA_TYPE.encode()


def _json(**fields: str | None) -> Piece:
    """A body in JSON."""
    body = json.dumps(fields).encode()
    return Piece(body, None, 0, len(body))


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
        key = public_key_to_bytes(public)  # one spelling per key: each would get a node
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm, binascii.Error):
        genuine, age, key = False, 0.0, b""
    if not genuine:
        raise _Turned(401, "the request is not signed")
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        raise _Turned(401, CLOCK_DETAIL)
    return key
