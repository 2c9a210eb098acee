"""The way to the sites over a network: the link, with who is enrolled at its door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synth_common.address import parse_address
from synth_common.flower.link import Listener, open_link
from synth_server.attendance import Sites
from synth_server.members import Members
from synth_server.settings import ServerFolder, ServerSettings

LINK = (
    "TLS with certificates of the federation's own authority; every request is signed with the key "
    "of an enrolled site and turned away otherwise; sites dial out, and the coordinator listens on "
    "one port"
)
"""What the link is, in words for the record."""


@contextmanager
def open_network(folder: ServerFolder, settings: ServerSettings) -> Iterator[Sites]:
    """Serve the sites on the public port while the context lasts.

    Raises:
        ConfigError: The port cannot be used.
        EnrolmentError: A member's file is damaged.
        PrivacyError: Others could enrol themselves.
    """
    bind = parse_address(settings.bind)
    listener = Listener(
        host=bind.host,
        port=bind.port,
        certificate=folder.keys / "server.crt",
        key=folder.keys / "server.key",
        max_request_bytes=settings.limits.max_request_bytes,
    )
    with open_link(listener, Members(folder.path)) as grid:
        yield Sites(grid, grid)
