"""``host:port``, as people write it in settings and on command lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from synth_common.errors import ConfigError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True)
class Address:
    """A host (a DNS name, or an IP address without brackets) and a TCP port."""

    host: str
    port: int

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The host as an IP address; None for a DNS name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        """As :func:`parse_address` reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``name:port``, ``1.2.3.4:port`` or ``[::1]:port``.

    Raises:
        ConfigError: Anything else, a port outside 1 to 65535 among it.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = Address(host[1:-1] if bracketed else host, int(port) if port.isdecimal() else 0)
    is_v6 = isinstance(address.ip, IPv6Address)
    is_name = address.ip is not None or _NAME.fullmatch(address.host) is not None
    if not colon or not 1 <= address.port <= 65535 or bracketed != is_v6 or not is_name:
        raise ConfigError(
            f"address {text!r}: expected HOST:PORT, as in synthward.example.org:8443 or [::1]:8443"
        )
    return address
