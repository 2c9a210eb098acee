"""What is wrong with the connection to the coordinator, in words an operator can act on."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import httpx

from synth_common.certificates import distrust


class Kind(StrEnum):
    """The part that fails."""

    DNS = "dns"
    PROXY = "proxy"
    PORT = "port"
    SILENCE = "silence"
    CERTIFICATE_NAME = "certificate name"
    AUTHORITY = "certificate authority"
    EXPIRED = "certificate expired"
    CLOCK = "clock"
    RESTARTED = "restarted"
    PROTOCOL = "protocol"


CLOCK_DETAIL = "clock"
"""What the coordinator's gate says of a timestamp that is too old or of the future."""


@dataclass(frozen=True)
class Trouble:
    """What fails, and one sentence on what it is and how to fix it."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"


def explain(err: Exception, address: str, proxy: str | None) -> Trouble:
    """Say what an error of the HTTP client means.

    Args:
        err: What the client raised.
        address: The coordinator's "host:port".
        proxy: The proxy that was used, or None.
    """
    causes = list(_causes(err))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause, address)
    if isinstance(err, httpx.ProxyError):
        return Trouble(Kind.PROXY, f"the proxy {proxy} refuses to connect to {address}: {err}")
    if proxy is not None and isinstance(err, httpx.ConnectError | httpx.ConnectTimeout):
        return Trouble(Kind.PROXY, f"the proxy {proxy} cannot be reached; check its address")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Trouble(Kind.DNS, f"the name in {address} is not known to this machine's DNS")
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Trouble(Kind.PROTOCOL, f"what listens at {address} does not speak TLS as expected")
    if isinstance(err, httpx.ConnectError):
        return Trouble(
            Kind.PORT,
            f"nothing accepts connections at {address}: the coordinator is not running, or a "
            "firewall rejects this port",
        )
    if isinstance(err, httpx.ConnectTimeout):
        return Trouble(
            Kind.PORT, f"{address} does not answer: a firewall drops this port, or the host is off"
        )
    if isinstance(err, httpx.TimeoutException):
        return Trouble(Kind.SILENCE, f"{address} stopped answering; the network may be cut")
    if isinstance(err, httpx.HTTPStatusError):
        return _status(err.response, address)
    return Trouble(Kind.PROTOCOL, f"the connection to {address} broke off ({type(err).__name__})")


def clock_offset(response: httpx.Response) -> float | None:
    """Seconds by which this machine's clock is ahead of the coordinator's, to a second."""
    try:
        theirs = parsedate_to_datetime(response.headers["date"])
        return (datetime.now(UTC) - theirs).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _certificate(err: ssl.SSLCertVerificationError, address: str) -> Trouble:
    found = distrust(err)
    if found == "name":
        return Trouble(
            Kind.CERTIFICATE_NAME,
            f"the certificate at {address} names another host; the kit's address and the names "
            "in the server's certificate must agree",
        )
    if found == "expired":
        return Trouble(
            Kind.EXPIRED,
            f"the certificate at {address} has expired, or this machine's clock is wrong; the "
            "coordinator renews it",
        )
    if found == "not yet valid":
        return Trouble(
            Kind.CLOCK,
            f"the certificate at {address} is not valid yet: this machine's clock is slow",
        )
    return Trouble(
        Kind.AUTHORITY,
        f"the certificate at {address} is not of the authority in the kit ({err.verify_message}): "
        "something else answers there, a proxy opens the encryption, or the kit is of another "
        "coordinator",
    )


def _status(response: httpx.Response, address: str) -> Trouble:
    detail = detail_of(response)
    if response.status_code == httpx.codes.UNAUTHORIZED and detail == CLOCK_DETAIL:
        offset = clock_offset(response)
        told = "" if offset is None else f" by {offset:+.0f} s"
        return Trouble(
            Kind.CLOCK,
            f"the clocks of this machine and of {address} differ{told}, by more than is allowed; "
            "set this machine's clock (NTP)",
        )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return Trouble(
            Kind.RESTARTED, f"{address} was restarted; this node introduces itself again"
        )
    return Trouble(
        Kind.PROTOCOL, f"{address} answered with status {response.status_code}: {detail}"
    )


def detail_of(response: httpx.Response, field: str = "detail") -> str:
    """A sentence in an error response, made fit for one line; empty where there is none."""
    try:
        value = response.json().get(field)
    except (ValueError, AttributeError):
        return ""
    # The text is a peer's.
    return "".join(c if c.isprintable() else " " for c in str(value or "")[:300])
