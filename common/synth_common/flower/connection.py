"""A site's connection to the coordinator: one authority, signed requests, signs of life.

Not public in Flower: ``FleetHttpClient`` (with the attributes of ``ProtobufClient`` that
``FleetClient`` sets) and ``NodeAuthHttpInterceptor``.
"""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import HEARTBEAT_CALL_TIMEOUT
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from synth_common.errors import ConfigError, RefusedError, UnreachableError
from synth_common.flower.trouble import clock_offset, detail_of, explain

_HEARTBEATS_PER_LEASE = 4  # three may be lost
_MOST_ANSWER = 16 * 2**20  # bytes of one answer; tensors come in pieces of 1 MiB
INTERVALS_PER_LEASE = 2
"""Flower's HEARTBEAT_PATIENCE: a lease is so many times the stated interval."""


@dataclass(frozen=True)
class Coordinator:
    """Where the coordinator is, and how to know that it is the one.

    Attributes:
        host: Name or address, as in its certificate.
        port: Its public port.
        ca_certificate: PEM of the only authority whose certificates are accepted.
        proxy: "http://host:port" of a proxy to go through, or None. Proxies that the
            environment names are not used.
    """

    host: str
    port: int
    ca_certificate: bytes
    proxy: str | None = None

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def knock(
    coordinator: Coordinator, key: ec.EllipticCurvePrivateKey, timeout_seconds: float = 10.0
) -> float | None:
    """Try the whole way to the coordinator without taking part.

    Returns:
        Seconds by which this machine's clock is ahead of the coordinator's, to a second, or
        None when the coordinator does not tell.

    Raises:
        UnreachableError: The coordinator cannot be reached, is not the one that the kit
            names, or the clocks differ too much; says which.
        RefusedError: The coordinator turns this site away by name.
        ConfigError: The authority's certificate cannot be used.
    """
    with FleetClient(coordinator, key, timeout_seconds) as client:
        try:
            return clock_offset(client.health())
        except httpx.HTTPError as err:
            raise_refusal(err)
            raise UnreachableError(
                str(explain(err, coordinator.address, coordinator.proxy))
            ) from err


def raise_refusal(err: Exception) -> None:
    """Raise RefusedError if this is the coordinator turning the site away by name."""
    if not isinstance(err, httpx.HTTPStatusError) or err.response.status_code != 403:
        return
    refusal = detail_of(err.response, "refusal")
    if refusal:
        raise RefusedError(f"the coordinator turns this site away: {refusal}") from err


class FleetClient(FleetHttpClient):
    """Flower's client for the Fleet API that trusts one authority and obeys no environment."""

    def __init__(
        self, coordinator: Coordinator, key: ec.EllipticCurvePrivateKey, timeout: float
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=coordinator.ca_certificate.decode("ascii"))
        except (ssl.SSLError, ValueError) as err:
            raise ConfigError(
                "ca.crt is no certificate in PEM form; accept the coordinator's kit again"
            ) from err
        self._base_url = f"https://{coordinator.address}"
        self._interceptors = (NodeAuthHttpInterceptor(key, key.public_key()),)
        self._retry_invoker = None
        self.public_key = public_key_to_bytes(key.public_key())
        self._client = httpx.Client(
            verify=context,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            proxy=coordinator.proxy,
            trust_env=False,
            event_hooks={"response": [_require_bearable]},
        )

    def _unary_unary(self, **call: Any) -> Any:
        """See Flower's client; an answer that is no protobuf is a fault of the connection."""
        try:
            return super()._unary_unary(**call)
        except ValueError as err:
            raise httpx.RemoteProtocolError("the answer is not of the Fleet API") from err

    def health(self) -> httpx.Response:
        """Ask for the server's health, signed: it says whether this key would be let in."""
        request = self._client.build_request("GET", f"{self._base_url}/health")
        # Signing looks at the request's headers alone; there is no protobuf message here.
        response = self._send(ProtobufRequestContext("", None, request))
        return response.raise_for_status()


def _require_bearable(response: httpx.Response) -> None:
    """Refuse an answer before its body is read: one that is large, or may become so."""
    length = response.headers.get("content-length", "")
    packed = response.headers.get("content-encoding", "identity") != "identity"
    if packed or not length.isdecimal() or int(length) > _MOST_ANSWER:
        raise httpx.RemoteProtocolError(
            f"the answer has no length of at most {_MOST_ANSWER} bytes", request=response.request
        )


class Heartbeats:
    """Signs of life from a thread of its own, whatever the node is doing.

    A heartbeat that fails is not repeated: the next one follows, and the work goes on
    whether or not the coordinator can be heard.
    """

    def __init__(self, client: FleetClient, node: Node, lease_seconds: float) -> None:
        self._client, self._lease = client, lease_seconds
        self._request = SendNodeHeartbeatRequest(
            node=node, heartbeat_interval=lease_seconds / INTERVALS_PER_LEASE
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._done.set()

    def join(self) -> None:
        """Wait for one that is on its way."""
        self._thread.join(HEARTBEAT_CALL_TIMEOUT + 1)

    def _beat(self) -> None:
        while not self._done.wait(self._lease / _HEARTBEATS_PER_LEASE):
            with suppress(httpx.HTTPError, RuntimeError):  # RuntimeError: the client was closed
                self._client.SendNodeHeartbeat(self._request)
