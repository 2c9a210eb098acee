"""The doctor's checks of the way to the coordinator, one layer after the other.

Nothing is changed at the coordinator, and nothing of the site is sent but its signed
timestamp, in the last check. TLS is spoken with Python's own ``ssl``.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography import x509

from synth_client.findings import Examination, Finding, Symptom
from synth_common.certificates import WARN_DAYS, days_left, distrust

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from synth_common.flower.node import Coordinator

CHECKS = ("DNS", "proxy", "port", "certificate", "clock", "coordinator")
_SECONDS = 10.0
_MOST_HEADER = 64 * 1024

# What a coordinator takes of signed timestamps (Flower's TIMESTAMP_TOLERANCE and
# SYSTEM_TIME_TOLERANCE): from 305 seconds behind its clock to 5 seconds ahead of it.
_AHEAD, _BEHIND = 5.0, 305.0


@dataclass(frozen=True)
class _Way:
    """From here to the coordinator."""

    coordinator: Coordinator

    @property
    def proxy(self) -> tuple[str, int] | None:
        """Host and port of the proxy, or None."""
        if self.coordinator.proxy is None:
            return None
        parts = urlsplit(self.coordinator.proxy)
        return parts.hostname or "", parts.port or 0

    @property
    def first(self) -> tuple[str, int]:
        """What this machine itself dials."""
        return self.proxy or (self.coordinator.host, self.coordinator.port)


def examine_network(
    examination: Examination, coordinator: Coordinator, key: ec.EllipticCurvePrivateKey
) -> None:
    """Add the checks of the network to an examination."""
    way = _Way(coordinator)
    check = examination.check
    check("DNS", lambda: _dns(way))
    check("proxy", lambda: _proxy(way), needs=["DNS"])
    check("port", lambda: _port(way), needs=["proxy"])
    check("certificate", lambda: _certificate(way), needs=["port"])
    check("clock", lambda: _clock(way), needs=["certificate"])
    check("coordinator", lambda: _knock(coordinator, key), needs=["certificate"])


def skip_network(examination: Examination, why: str) -> None:
    """Write down that the network was not looked at."""
    for name in CHECKS:
        examination.add(Finding(name, "not run", why))


def _dns(way: _Way) -> str:
    host, port = way.first
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise Symptom(
            f"{host} has no address: {err.strerror or err}",
            "check the name with the coordinator's IT, this machine's DNS (/etc/resolv.conf), and "
            "that it is online; a hospital's network may need [server] proxy in site.toml",
        ) from err
    addresses = sorted({str(item[4][0]) for item in found})
    return f"{host} is {', '.join(addresses)}"


def _proxy(way: _Way) -> str:
    if way.proxy is None:
        return "none is set; this machine dials the coordinator itself"
    with _connected(way):
        return f"{way.coordinator.proxy} lets {way.coordinator.address} through"


def _port(way: _Way) -> str:
    with _connected(way):
        return f"{way.coordinator.address} accepts connections"


@contextmanager
def _connected(way: _Way) -> Iterator[socket.socket]:
    """A connection to the coordinator's port, through the proxy if there is one."""
    host, port = way.first
    what = "the proxy" if way.proxy else "the coordinator"
    try:
        line = socket.create_connection((host, port), timeout=_SECONDS)
    except TimeoutError as err:
        raise Symptom(
            f"{what} at {host}:{port} does not answer within {_SECONDS:.0f} s",
            "a firewall drops the packets: have the hospital's IT open outgoing TCP to this "
            "address and port",
        ) from err
    except OSError as err:
        raise Symptom(
            f"{what} at {host}:{port} cannot be reached: {err.strerror or err}",
            "check that it runs and that the port is right; have the hospital's IT open outgoing "
            "TCP to this address and port",
        ) from err
    with line:
        if way.proxy:
            _tunnel(line, way)
        yield line


def _tunnel(line: socket.socket, way: _Way) -> None:
    """Have the proxy connect us (RFC 9110, section 9.3.6)."""
    target = way.coordinator.address
    try:
        line.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _MOST_HEADER:
            part = line.recv(4096)
            if not part:
                break
            head += part
        status = int(head.split(b" ", 2)[1])
    except (OSError, ValueError, IndexError) as err:
        raise Symptom(
            f"{way.coordinator.proxy} does not speak as a proxy for HTTPS",
            "check [server] proxy in site.toml",
        ) from err
    if status == 407:
        raise Symptom(
            "the proxy asks for a password",
            "have the hospital's IT let this machine through without one; passwords are not kept",
        )
    if status != 200:
        raise Symptom(
            f"the proxy answers {status} to a connection to {target}",
            "have the hospital's IT allow CONNECT to this host and port",
        )


def _context(coordinator: Coordinator) -> ssl.SSLContext:
    """Trust in the federation's authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=coordinator.ca_certificate.decode("ascii"))
    return context


@contextmanager
def _secured(way: _Way) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the coordinator whose certificate was verified."""
    host = way.coordinator.host
    with _connected(way) as line:
        try:
            secured = _context(way.coordinator).wrap_socket(line, server_hostname=host)
        except ssl.SSLCertVerificationError as err:
            raise _distrust(err, host) from err
        except (ssl.SSLError, OSError) as err:
            raise Symptom(
                f"what answers at {way.coordinator.address} does not speak TLS: {err}",
                "check the port with the coordinator's IT",
            ) from err
        with secured:
            yield secured


def _distrust(err: ssl.SSLCertVerificationError, host: str) -> Symptom:
    """Why a certificate is not trusted, and what to do."""
    found = distrust(err)
    if found == "name":
        return Symptom(
            f"the certificate is for another name than {host}",
            "have the coordinator's IT make one for the name in the kit (synth-server renew)",
        )
    if found == "expired":
        return Symptom(
            "the certificate has expired, or this machine's clock is ahead",
            "check the clock; then have the coordinator's IT renew it (synth-server renew)",
        )
    if found == "not yet valid":
        return Symptom(
            "the certificate is not valid yet, so this machine's clock is behind",
            "set the clock, best by NTP",
        )
    return Symptom(
        f"the certificate is not of the federation's authority ({err.verify_message})",
        "somebody else answers, or a proxy opens TLS: have the hospital's IT exempt this host; "
        "if the federation was made anew, accept its new kit",
    )


def _certificate(way: _Way) -> str:
    with _secured(way) as line:
        der = line.getpeercert(binary_form=True) or b""
        version = line.version()
    left = days_left(x509.load_der_x509_certificate(der))
    found = (
        f"for {way.coordinator.host}, by the federation's authority, {left} days left, {version}"
    )
    if left < WARN_DAYS:
        fix = "tell the coordinator's IT to renew it (synth-server renew)"
        raise Symptom(found, fix, "warning")
    return found


def _clock(way: _Way) -> str:
    """This machine's clock against the coordinator's Date header."""
    with _secured(way) as line:
        try:
            request = f"HEAD /health HTTP/1.1\r\nHost: {way.coordinator.address}\r\n"
            line.sendall(f"{request}Connection: close\r\n\r\n".encode())
            response = HTTPResponse(line, method="HEAD")
            response.begin()
            theirs = parsedate_to_datetime(response.headers["Date"])
        except (OSError, HTTPException, TypeError, ValueError) as err:
            raise Symptom(
                "the coordinator does not tell the time",
                "check this machine's clock by hand (timedatectl)",
                "warning",
            ) from err
    ahead = (datetime.now(UTC) - theirs).total_seconds()
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead >= 0 else 'behind'} the coordinator's"
    if not -_BEHIND < ahead < _AHEAD:
        raise Symptom(found, "set this machine's clock, best by NTP; signed requests are refused")
    return found


def _knock(coordinator: Coordinator, key: ec.EllipticCurvePrivateKey) -> str:
    """Whether the coordinator lets this site's key in."""
    from synth_common.errors import RefusedError, UnreachableError
    from synth_common.flower.node import knock

    try:
        knock(coordinator, key, _SECONDS)
    except RefusedError as err:
        raise Symptom(str(err), "ask the coordinator's IT; enrol again if need be") from err
    except UnreachableError as err:
        raise Symptom(str(err), "see what it names") from err
    return "lets this site in"
